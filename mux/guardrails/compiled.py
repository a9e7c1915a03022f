"""A configured rule made ready to scan with: patterns compiled and shaped, functions loaded."""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import regex

from mux.errors import ConfigError
from mux.guardrails.confusables import latin
from mux.guardrails.presets import PRESETS, Refine
from mux.guardrails.shape import Unusable, analyse, hold_pattern
from mux.settings import GuardrailRule
from mux.telemetry import get_logger

__all__ = ["Checker", "Rule", "Stage", "compile_rule"]

Stage: TypeAlias = Literal["input", "output", "tool_input", "tool_output"]
Spans: TypeAlias = Sequence[tuple[int, int]]
Checker: TypeAlias = Callable[[str], Awaitable[Spans]]

_MAX_HOLD = 2048  # characters; scanning what is held costs its length for every delta
_WORD = 256  # a longer hold than this is worth a warning: readers see the text stop
_NEVER = "\ufdd0"  # a noncharacter, appended so that "matches up to the end" is a partial match as well
_UNMATCHABLE = regex.compile(r"(?!)")
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule, ready to scan with.

    Attributes:
        pattern: what is forbidden.
        hold: the same, undecided where it would depend on what follows (see :mod:`.shape`).
        open: partial wherever ``pattern`` matches up to the end of the text or may begin to.
        ahead, behind: characters after and before a match that decide it.
        max_hold: characters that may be held back; more can't be decided and blocks.
        refine: narrows a match down to its forbidden parts (a check digit), or to none.
        check: the function of a function rule, with its timeout.
        fold: characters that are read as others (with ``normalize``).
        window: longest span that the function forbids; ``None`` = it must see the whole text.
    """

    name: str
    stages: frozenset[Stage]
    blocks: bool
    mask: str
    refusal: str | None
    normalize: bool
    timeout_s: float
    fold: Mapping[int, str] | None = None
    pattern: regex.Pattern[str] = _UNMATCHABLE
    hold: regex.Pattern[str] = _UNMATCHABLE
    open: regex.Pattern[str] = _UNMATCHABLE
    ahead: int = 0
    behind: int = 0
    max_hold: int = _MAX_HOLD
    refine: Refine | None = None
    check: Checker | None = None
    window: int | None = None


@functools.lru_cache(maxsize=256)  # an agent's own rules are asked for with every channel
def compile_rule(name: str, rule: GuardrailRule, base: Path) -> tuple[Rule, list[str]]:
    """Make a rule ready.

    Args:
        name: its name in the configuration.
        base: folder that ``path.py:function`` is relative to.

    Returns:
        The rule and warnings, each a sentence.

    Raises:
        ConfigError: ``guardrail_invalid``.
    """
    kinds = [k for k in ("pattern", "words", "preset", "function") if getattr(rule, k)]
    if len(kinds) != 1:
        have = " and ".join(kinds) or "none of them"
        raise _invalid(name, f"it needs exactly one of pattern, words, preset and function, and has {have}.")
    common: dict[str, Any] = {
        "name": name,
        "stages": frozenset(rule.stage),
        "blocks": rule.action == "block",
        "mask": rule.mask,
        "refusal": rule.refusal,
        "normalize": rule.normalize or rule.fold,
        "fold": _folding(name) if rule.fold else None,
        "timeout_s": rule.timeout_s,
    }
    if rule.function:
        return _function_rule(name, rule, base, common)
    refine: Refine | None = None
    if rule.preset:
        preset = PRESETS.get(rule.preset)
        if preset is None:
            raise _invalid(name, f"there is no preset {rule.preset!r}. Known: {', '.join(sorted(PRESETS))}.")
        source, refine = preset.pattern, preset.refine
    else:
        source = rule.pattern if rule.pattern is not None else _words(rule.words)
    return _pattern_rule(name, rule, source, refine, common)


def _invalid(name: str, why: str) -> ConfigError:
    return ConfigError("guardrail_invalid", f"Guardrail {name!r} can't be used: {why}")


def _folding(name: str) -> Mapping[int, str]:
    try:
        return latin()
    except ConfigError as e:
        raise _invalid(name, f"{e.message}.") from e


def _words(words: Sequence[str]) -> str:
    """Each word or phrase literally, at word boundaries where its script has them."""
    parts = []
    for word in sorted({w.strip() for w in words if w.strip()}, key=len, reverse=True):
        body = r"\s+".join(regex.escape(piece, literal_spaces=True) for piece in word.split())
        before = r"(?<!\w)" if _bounded(word[0]) else ""
        after = r"(?!\w)" if _bounded(word[-1]) else ""
        parts.append(f"{before}{body}{after}")
    return "|".join(parts)


def _bounded(edge: str) -> bool:
    return bool(regex.match(r"\w", edge)) and not _UNSPACED.match(edge)


def _pattern_rule(
    name: str, rule: GuardrailRule, source: str, refine: Refine | None, common: dict[str, Any]
) -> tuple[Rule, list[str]]:
    flags = (regex.IGNORECASE | regex.FULLCASE) if rule.ignore_case else 0
    if not source:
        raise _invalid(name, "its list of words is empty.")
    try:
        pattern = regex.compile(source, flags)
        shape = analyse(source, flags)
        nested = bool(pattern.flags & regex.VERSION1)
        verbose = bool(pattern.flags & regex.VERBOSE)
        held = hold_pattern(source, verbose=verbose, nested=nested)
        hold = regex.compile(held, flags)
        end = "\n" if verbose else ""  # ends a comment that the pattern may end with
        opened = regex.compile(f"(?:{held}{end}){_NEVER}", flags)
    except (regex.error, Unusable) as e:
        raise _invalid(name, str(e)) from e
    if pattern.search(""):
        raise _invalid(name, "it matches the empty text, so it would forbid everything.")
    warnings = _hold_warnings(name, rule, shape.hold, shape.prose)
    ready = Rule(
        **common,
        pattern=pattern,
        hold=hold,
        open=opened,
        # a combining character may still change the last one
        ahead=max(shape.ahead, 1) if common["normalize"] else shape.ahead,
        behind=max(shape.behind, 1),  # so that what follows never looks like the beginning of the text
        max_hold=rule.max_hold or max(_MAX_HOLD, shape.hold or 0),
        refine=refine,
    )
    return ready, warnings


def _hold_warnings(name: str, rule: GuardrailRule, hold: int | None, prose: bool) -> list[str]:
    if hold is None and prose and rule.max_hold is None:
        raise _invalid(
            name,
            "it would hold back whole replies, because an unbounded part of it takes in any text before it"
            " is decided. Leave a leading .* away, bound the repeat (.{0,80}), or set max_hold: what is still"
            " undecided after that many characters is blocked.",
        )
    if hold is None:
        bound = rule.max_hold or _MAX_HOLD
        what = "text" if prose else "a long word"
        return [
            f"Guardrail {name!r} holds {what} back until it is decided, and blocks it after {bound}"
            " characters. Bounding its repeats, such as {1,64}, avoids both."
        ]
    if hold > _WORD and prose:
        return [f"Guardrail {name!r} may hold up to {hold} characters of text back; readers see it stall."]
    return []


# --- functions ---------------------------------------------------------------------------------------------

# Threads of their own: a function that hangs keeps its thread, and must not take the default pool's.
_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="guardrail")


def _function_rule(
    name: str, rule: GuardrailRule, base: Path, common: dict[str, Any]
) -> tuple[Rule, list[str]]:
    function = _load(name, str(rule.function), base)
    warnings = []
    if rule.max_hold is None and "output" in rule.stage:
        warnings.append(
            f"Guardrail {name!r} is a function and must see each text whole: replies appear only when"
            " they are complete. Set max_hold to the longest text that it forbids and they stream again."
        )
    return Rule(**common, check=_checker(name, function, rule), window=rule.max_hold), warnings


def _load(name: str, reference: str, base: Path) -> Callable[[str], Any]:
    where, _, attribute = reference.rpartition(":")
    if not where:
        raise _invalid(name, f"{reference!r} is neither module:function nor path.py:function.")
    try:
        if where.endswith(".py"):
            path = base / where
            spec = importlib.util.spec_from_file_location(f"mux_guardrail_{path.stem}", path)
            assert spec is not None, where  # its name ends in .py
            assert spec.loader is not None, where
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        function = getattr(module, attribute)
    except Exception as e:
        raise _invalid(name, f"{reference!r} can't be loaded ({type(e).__name__}: {e}).") from e
    if not callable(function):
        raise _invalid(name, f"{reference!r} is not a function.")
    loaded: Callable[[str], Any] = function
    return loaded


def _checker(name: str, function: Callable[[str], Any], rule: GuardrailRule) -> Checker:
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )

    async def check(text: str) -> Spans:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(rule.timeout_s):
                if is_async:
                    said = await function(text)
                else:
                    said = await loop.run_in_executor(_threads, functools.partial(function, text))
            return _spans(said, len(text))
        except Exception as e:
            # The exception's own words may quote the text, so only its kind is told.
            get_logger().warning("guardrail function failed", rule=name, error=type(e).__name__)
            raise

    return check


def _spans(said: Any, length: int) -> Spans:
    """What a function said, as spans: True = all of it, None or False = nothing."""
    if said is None or said is False:
        return ()
    if said is True:
        return ((0, length),)
    spans = sorted((int(a), int(b)) for a, b in said)
    for a, b in spans:
        if not 0 <= a < b <= length:
            raise ValueError("a span is outside the text")
    return spans

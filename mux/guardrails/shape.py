"""What a pattern needs to see before it can be decided: worked out once, when it is loaded.

The hold-back stands on the partial matching of the ``regex`` package, which says of a text that it *may*
become a match. Two things it does not say, and this module adds:

- Assertions (``\\b``, ``$``) are evaluated at the end of the text as if nothing followed: ``foo\\Bx`` has no
  partial match on ``foo``. In the *hold pattern* each of them first asks for one more character, which
  turns "nothing follows" into "not known yet".
- How far a pattern looks beyond its match, how far before it, and whether what it holds back is bounded.
  That is read off the package's own parse tree. The tree is private to ``regex``; every use of it is here,
  and a shape that is not known is refused rather than guessed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import regex

__all__ = ["Shape", "Unusable", "analyse", "hold_pattern"]

core: Any = importlib.import_module("regex._regex_core")  # untyped: its stubs leave the tree out

UNBOUNDED: int = core.UNLIMITED
_MAX_REACH = 256  # characters of look-around that are kept or waited for; more than that is no "word"
_REFUSED = {
    "Fuzzy": "fuzzy matching has no reliable partial matches",
    "Keep": "\\K hides where the forbidden text begins",
    "SearchAnchor": "\\G has no meaning in a stream",
    "Prune": "(*PRUNE) changes what partial matching reports",
    "Skip": "(*SKIP) changes what partial matching reports",
    "Grapheme": "\\X is not decided until the next character is known",
    "GraphemeBoundary": "grapheme boundaries are not decided until the next character is known",
    "LookAroundConditional": "conditional look-around can't be held back safely",
    "CallGroup": "recursion has no bound",
}
_BOUNDARIES = {
    "Boundary", "DefaultBoundary", "StartOfWord", "EndOfWord", "DefaultStartOfWord", "DefaultEndOfWord",
    "EndOfLine", "EndOfLineU", "EndOfString",
}  # fmt: skip
_END_BEFORE_NEWLINE = {"EndOfStringLine", "EndOfStringLineU"}


class Unusable(ValueError):
    """The pattern can't be held back safely; the message says why and what to write instead."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What scanning a stream for one pattern takes.

    Attributes:
        ahead: characters beyond a match that decide whether it is one.
        behind: characters before a match that decide it.
        hold: longest text that may be held back before the shortest match; ``None`` = no bound.
        prose: whether what is held back can be ordinary prose (spaces and letters), not only a word.
    """

    ahead: int
    behind: int
    hold: int | None
    prose: bool


def analyse(pattern: str, flags: int) -> Shape:
    """Read off the parse tree what :class:`Shape` says.

    Raises:
        Unusable: with the reason, as a sentence.
    """
    tree = _parse(pattern, flags)
    ahead = behind = 0
    for node in _walk(tree):
        name = type(node).__name__
        if name in _REFUSED:
            raise Unusable(f"{_REFUSED[name]}.")
        if name in _BOUNDARIES:
            ahead, behind = max(ahead, 1), max(behind, 1)
        elif name in _END_BEFORE_NEWLINE:
            ahead = max(ahead, 2)
        elif name in ("StartOfLine", "StartOfLineU", "StartOfString"):
            behind = max(behind, 1)
        elif name == "LookAround":
            width = node.subpattern.max_width() + 1  # one more for a boundary inside it
            if width > _MAX_REACH:
                side = "behind" if node.behind else "ahead"
                raise Unusable(
                    f"it looks more than {_MAX_REACH} characters {side}, so that nothing near it can ever be"
                    " decided. Bound the look-around, for example .{0,80}."
                )
            ahead, behind = (ahead, max(behind, width)) if node.behind else (max(ahead, width), behind)
    required = _required(tree)
    width = sum(n.max_width() for n in required)
    repeats = [r for n in required for r in _wide_repeats(n)]
    return Shape(ahead, behind, None if width >= UNBOUNDED else width, any(_is_prose(r) for r in repeats))


def _parse(pattern: str, flags: int) -> Any:
    """As ``regex._main._compile`` does it, up to the tree."""
    while True:
        source = core.Source(pattern)
        info = core.Info(flags, source.char_type, {})
        info.guess_encoding = regex.UNICODE
        source.ignore_space = bool(info.flags & regex.VERBOSE)
        try:
            tree = core._parse_pattern(source, info)
            break
        except core._UnscopedFlagSet:
            flags = info.global_flags
        except regex.error as e:
            raise Unusable(f"{e}.") from e
    if info.flags & regex.REVERSE:
        raise Unusable("a reverse search can't follow a stream.")
    try:
        tree.fix_groups(pattern, False, False)
    except regex.error as e:
        raise Unusable(f"{e}.") from e
    return tree


def _children(node: Any) -> list[Any]:
    found: list[Any] = []
    for name in ("subpattern", "items", "branches", "yes_item", "no_item"):
        value = getattr(node, name, None)
        if isinstance(value, list | tuple):
            found += value
        elif value is not None and not isinstance(value, str):
            found.append(value)
    return found


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for child in _children(node):
        yield from _walk(child)


def _required(node: Any) -> list[Any]:
    """The parts up to where the shortest match ends: trailing optional repeats decide nothing."""
    name = type(node).__name__
    if name in ("Group", "Atomic"):
        return _required(node.subpattern)
    if name == "Sequence":
        items = list(node.items)
        while items:
            last = _required(items[-1])
            if last or isinstance(items[-1], core.LookAround):
                return [*items[:-1], *last]
            items.pop()
        return []
    if isinstance(node, core.GreedyRepeat):  # the lazy and possessive ones derive from it
        if node.min_count == 0:
            return []
        if node.min_count == node.max_count:
            return [node]
        return [type(node)(node.subpattern, node.min_count, node.min_count)]
    return [] if isinstance(node, core.ZeroWidthBase) else [node]


def _wide_repeats(node: Any) -> Iterator[Any]:
    """Repeats that may take in more than a word's worth of text."""
    for part in _walk(node):
        if isinstance(part, core.GreedyRepeat) and (part.max_count is None or part.max_width() > _MAX_REACH):
            yield part


def _is_prose(repeat: Any) -> bool:
    letter = space = False
    for part in _walk(repeat.subpattern):
        if isinstance(part, core.Any):
            return True
        if hasattr(part, "matches") and part.max_width() == 1:
            letter = letter or part.matches(ord("e"))
            space = space or part.matches(ord(" "))
    return bool(letter and space)


# --- the hold pattern --------------------------------------------------------------------------------------

_ASSERTIONS = "bBmMZz"


def hold_pattern(pattern: str, *, verbose: bool, nested: bool = False) -> str:
    """The pattern with each assertion about what follows guarded by "one more character, whichever".

    Args:
        pattern: a pattern that compiles.
        verbose: whether it is written in verbose mode (then ``#`` begins a comment).
        nested: whether ``[`` inside a character class opens another (version 1 of the dialect).
    """
    out: list[str] = []
    i, depth = 0, 0  # depth of nested character classes
    while i < len(pattern):
        c = pattern[i]
        if c == "\\" and i + 1 < len(pattern):
            token = pattern[i : i + 2]
            guarded = depth == 0 and token[1] in _ASSERTIONS
            out.append(rf"(?:(?=[\s\S]){token})" if guarded else token)
            i += 2
            continue
        if depth == 0 and pattern.startswith("(?#", i):
            end = pattern.find(")", i)
            i = len(pattern) if end < 0 else end + 1
            continue
        if depth == 0 and verbose and c == "#":
            end = pattern.find("\n", i)
            i = len(pattern) if end < 0 else end
            continue
        if c == "[" and (nested or not depth or pattern.startswith("[:", i)):
            depth, skip = _class_opens(pattern, i, depth)
            out.append(pattern[i : i + skip])
            i += skip
            continue
        if c == "]" and depth:
            depth -= 1
        out.append(r"(?:(?=[\s\S])$)" if c == "$" and not depth else c)
        i += 1
    return "".join(out)


def _class_opens(pattern: str, i: int, depth: int) -> tuple[int, int]:
    """A ``[`` at ``i``: the depth after it, and how many characters belong to the opening."""
    if pattern.startswith("[:", i) and depth and ":]" in pattern[i:]:
        return depth, pattern.index(":]", i) + 2 - i
    skip = 1
    if pattern.startswith("^", i + skip):
        skip += 1
    if pattern.startswith("]", i + skip):  # a literal one, as first member
        skip += 1
    return depth + 1, skip

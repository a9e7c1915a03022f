"""An agent from a Markdown file: YAML front matter, and the instructions as the body.

The convention is the one of coding assistants' sub-agents, so their files work: ``model: inherit`` means the
default, a name for people becomes the title and the id comes from the file's name, and keys that mean nothing
here are named once. What such a file says about tools is read in `mux.roster.rights`.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mux.adapters.command import CommandAgent, ProgramAgent
from mux.agent import Agent, Budget
from mux.errors import ConfigError
from mux.llm.agent import LlmAgent
from mux.roster.frontmatter import FrontMatterError, read_front_matter, split_front_matter
from mux.roster.rights import RIGHTS, normal, rights_of
from mux.settings import GuardrailRule, McpServer, problem_of

__all__ = ["NAME", "check_name", "read_markdown"]

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PARAMS = ("temperature", "top_p", "max_tokens", "seed", "stop", "reasoning_effort")
_KNOWN = {
    "name", "description", "model", "tools", "params", "guardrails", "budget", "max_steps",
    "retry_after_reset", "examples", "mcp", "command", "format", "env", "cwd", "acp", "workspace", *_PARAMS,
}  # fmt: skip
# Keys that other programs' agent files have; they begin a key where the front matter is no YAML.
_STEPS = frozenset({"maxsteps", "maxturns", "steps"})
_FOREIGN = frozenset({
    "color", "mode", "hooks", "skills", "memory", "isolation", "background", "effort", "initialprompt",
    "mcpservers", "category", "tags", "version", "author", "icon", "emoji", "vibe", "disable", "hidden",
    "target", "handoffs", "agents", "argumenthint", "license", "metadata", "usecases", "whentouse", "prompt",
})  # fmt: skip
_DEFAULT_MODEL = {"inherit", "default", ""}
_guardrails: TypeAdapter[tuple[str, ...] | dict[str, GuardrailRule]] = TypeAdapter(
    tuple[str, ...] | dict[str, GuardrailRule]
)
_servers = TypeAdapter(dict[str, McpServer])
P = TypeVar("P", bound=ProgramAgent)


def read_markdown(path: Path) -> tuple[Agent | None, list[str]]:
    """The agent of a file, not yet bound (``None``: the file switches it off), and warnings about the file.

    Raises:
        ConfigError: ``agent_invalid``: it is no agent; the message is the reason alone.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise _invalid(f"it can't be read: {e}") from e
    parts = split_front_matter(text)
    if parts is None:
        raise _invalid("it has no front matter: begin it with '---', name and description, '---'")
    try:
        front, warnings = read_front_matter(parts[0], _is_key)
    except FrontMatterError as e:
        raise _invalid(str(e)) from e
    if front.get("disable") is True:
        return None, ["it says 'disable: true' and was left out"]
    warnings += _passed_over(front)
    if "acp" in front:
        return _acp(front, parts[1], path), warnings
    if "command" in front:
        return _command(front, parts[1], path), warnings
    return _agent(front, parts[1], path, warnings), warnings


def check_name(name: str) -> None:
    """Raises ConfigError ``agent_invalid``: it can't be an agent's name."""
    if not NAME.fullmatch(name):
        raise _invalid("a name has letters, digits and . _ - alone, 64 at most")


def _invalid(reason: str) -> ConfigError:
    return ConfigError("agent_invalid", reason)


def _is_key(word: str) -> bool:
    return word in _KNOWN or normal(word) in RIGHTS | _FOREIGN | _STEPS


def _passed_over(front: dict[str, Any]) -> list[str]:
    """What is said of keys that mean nothing here: all of them by name, and what was perhaps meant."""
    odd = [key for key in front if key not in _KNOWN and normal(key) not in RIGHTS | _STEPS]
    warnings: list[str] = []
    for key in odd:
        near = difflib.get_close_matches(key, _KNOWN, n=1, cutoff=0.8)
        if near and normal(key) not in _FOREIGN:
            warnings.append(f"unknown key {key!r}: did you mean {near[0]!r}?")
    if odd:
        warnings.append(f"these keys mean nothing here: {', '.join(k[:64] for k in odd[:20])}")
    return warnings


def _agent(front: dict[str, Any], body: str, path: Path, warnings: list[str]) -> LlmAgent:
    name, title = _name(front.get("name"), path)
    model = str(front.get("model") or "").strip()
    params = front.get("params") or {}
    if not isinstance(params, dict):
        raise _invalid("params must be a mapping, such as 'temperature: 0.2'")
    rights = rights_of(front)
    warnings += rights.warnings
    try:
        return LlmAgent(
            name=name,
            title=title,
            description=_description(front),
            instructions=body,
            model=None if model in _DEFAULT_MODEL else model,
            tools=rights.given,
            denied=rights.denied,
            params={**{k: front[k] for k in _PARAMS if k in front}, **params},
            guardrails=_guardrails.validate_python(front.get("guardrails") or ()),
            mcp=_servers.validate_python(front.get("mcp") or {}),
            budget=_budget(front.get("budget")),
            max_steps=_max_steps(front),
            retry_after_reset=bool(front.get("retry_after_reset", False)),
            examples=_lines(front.get("examples")),
            source=str(path),
        )
    except ValidationError as e:
        raise _misfit(e) from e
    except (TypeError, ValueError) as e:
        raise _invalid(f"its front matter: {e}") from e


def _command(front: dict[str, Any], body: str, path: Path) -> CommandAgent:
    """The agent that a program is; ``cwd`` is relative to the file."""
    unfit = _unfit(front, ("command", "format", "env", "cwd"))
    if unfit:
        raise _invalid(f"{unfit} says nothing to a program: leave it out, or leave 'command' out")
    given = {k: front[k] for k in ("command", "format", "env") if front.get(k) is not None}
    return _program(CommandAgent, front, body, path, given | _folder(front, "cwd", path))


def _acp(front: dict[str, Any], body: str, path: Path) -> Agent:
    """The agent that a program is which speaks ACP; ``workspace`` is relative to the file."""
    from mux.adapters.acp import AcpAgent  # an extra

    if unfit := _unfit(front, ("acp", "workspace")):
        raise _invalid(f"{unfit} says nothing to an ACP agent: leave it out")
    program = front["acp"]
    if not isinstance(program, dict) or (odd := set(program) - {"command", "env"}):
        named = f"; unknown: {sorted(map(str, odd))[0]}" if isinstance(program, dict) else ""
        raise _invalid(f"acp must be a mapping with 'command: [...]' and, perhaps, 'env: [NAMES]'{named}")
    return _program(AcpAgent, front, body, path, program | _folder(front, "workspace", path), under="acp.")


def _unfit(front: dict[str, Any], own: tuple[str, ...]) -> str | None:
    """The first key that means something for other agents, and nothing for this kind of program."""
    fit = {*own, "name", "description", "examples", "budget"}
    return min((key for key in front if key in _KNOWN and key not in fit), default=None)


def _folder(front: dict[str, Any], key: str, path: Path) -> dict[str, Path]:
    return {} if front.get(key) is None else {key: path.parent / Path(str(front[key])).expanduser()}


def _program(
    kind: type[P], front: dict[str, Any], body: str, path: Path, given: dict[str, Any], under: str = ""
) -> P:
    """An agent that is a program: what all of them have, and what this kind is given besides."""
    name, title = _name(front.get("name"), path)
    try:
        return kind(
            name=name,
            title=title,
            description=_description(front),
            instructions=body,
            source=str(path),
            **{k: front[k] for k in ("examples", "budget") if front.get(k) is not None},
            **given,
        )
    except ValidationError as e:
        raise _misfit(e, under) from e


def _description(front: dict[str, Any]) -> str:
    return " ".join(str(front.get("description") or "").split())


def _misfit(error: ValidationError, under: str = "") -> ConfigError:
    loc, why = problem_of(error)
    return _invalid(f"its front matter: {under}{'.'.join(map(str, loc))}: {why}")


def _name(given: Any, path: Path) -> tuple[str, str]:
    """The agent's id, and its name for people where that is another one."""
    text = "" if given is None or isinstance(given, bool | list | dict) else " ".join(str(given).split())
    if NAME.fullmatch(text):
        return text, ""
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    name = "-".join("".join(c if NAME.fullmatch(c) else " " for c in plain).split())[:64]
    if not name:
        raise _invalid(
            f"neither its name {text[:64]!r} nor the file's name can be an id: letters, digits and . _ -"
        )
    return name, text[:200]


def _max_steps(front: dict[str, Any]) -> int | None:
    """The strictest of ``max_steps`` and what other programs call it."""
    found = [int(v) for k, v in front.items() if normal(k) in _STEPS and v]
    return min(found) if found else None


def _budget(value: Any) -> Budget | None:
    if value is None:
        return None
    if isinstance(value, dict) and (unknown := set(value) - set(Budget.model_fields)):
        raise _invalid(f"budget: unknown {sorted(unknown)}; known: {', '.join(Budget.model_fields)}")
    return Budget.model_validate(value)


def _lines(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(v) for v in value)

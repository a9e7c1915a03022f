"""An agent from a Markdown file: YAML front matter, and the instructions as the body.

The convention is the one of coding assistants' sub-agents, so their files work: ``tools`` may be a string
with commas, ``model: inherit`` means the default, and a description with colons in it, which is no YAML,
is read as it was meant.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from mux.agent import Budget
from mux.errors import ConfigError
from mux.llm.agent import LlmAgent
from mux.settings import GuardrailRule, McpServer, problem_of

__all__ = ["NAME", "read_markdown"]

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n(.*))?\Z", re.DOTALL)
_LINE = re.compile(r"([A-Za-z_][\w-]*):(?:[ \t]+(.*))?")
_PARAMS = ("temperature", "top_p", "max_tokens", "seed", "stop", "reasoning_effort")
_KNOWN = {
    "name", "description", "model", "tools", "params", "guardrails", "budget", "max_steps",
    "retry_after_reset", "examples", "mcp", *_PARAMS,
}  # fmt: skip
_DEFAULT_MODEL = {"inherit", "default", ""}
_guardrails: TypeAdapter[tuple[str, ...] | dict[str, GuardrailRule]] = TypeAdapter(
    tuple[str, ...] | dict[str, GuardrailRule]
)
_servers = TypeAdapter(dict[str, McpServer])


def read_markdown(path: Path) -> tuple[LlmAgent, list[str]]:
    """The agent of a file, not yet bound, and warnings about the file.

    Raises:
        ConfigError: ``agent_invalid``: it is no agent; the message is the reason alone.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise _invalid(f"it can't be read: {e}") from e
    match = _FRONT.match(text)
    if match is None:
        raise _invalid("it has no front matter: begin it with '---', name and description, '---'")
    warnings: list[str] = []
    front = _front_matter(match[1], warnings)
    for key in front:
        near = difflib.get_close_matches(key, _KNOWN, n=1, cutoff=0.8)
        if key not in _KNOWN and near:
            warnings.append(f"unknown key {key!r}: did you mean {near[0]!r}?")
    return _agent(front, (match[2] or "").strip(), path), warnings


def _invalid(reason: str) -> ConfigError:
    return ConfigError("agent_invalid", reason)


def _front_matter(text: str, warnings: list[str]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        value = _line_by_line(text)
        if not value:
            raise _invalid(f"its front matter is no YAML: {_where(e)}") from e
        warnings.append(f"the front matter is no valid YAML ({_where(e)}); it was read line by line")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid("its front matter must be a mapping, such as 'name: researcher'")
    return {str(k): v for k, v in value.items()}


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or "it can't be parsed"
    return f"line {mark.line + 2}: {what}" if mark is not None else str(what)


def _line_by_line(text: str) -> dict[str, Any]:
    """``key: value`` per line, the value taken as it stands; further lines belong to the key above."""
    found: dict[str, Any] = {}
    key = ""
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match and not line[0].isspace():
            key = match[1]
            found[key] = (match[2] or "").strip().strip("\"'")
        elif key:
            found[key] = f"{found[key]}\n{line.strip()}".strip()
    return found


def _agent(front: dict[str, Any], body: str, path: Path) -> LlmAgent:
    name = str(front.get("name") or path.stem)
    if not NAME.fullmatch(name):
        raise _invalid(f"its name {name!r} may have only letters, digits and . _ - (64 at most)")
    model = str(front.get("model") or "").strip()
    params = front.get("params") or {}
    if not isinstance(params, dict):
        raise _invalid("params must be a mapping, such as 'temperature: 0.2'")
    try:
        return LlmAgent(
            name=name,
            description=" ".join(str(front.get("description") or "").split()),
            instructions=body,
            model=None if model in _DEFAULT_MODEL else model,
            tools=_names(front.get("tools")),
            params={**{k: front[k] for k in _PARAMS if k in front}, **params},
            guardrails=_guardrails.validate_python(front.get("guardrails") or ()),
            mcp=_servers.validate_python(front.get("mcp") or {}),
            budget=_budget(front.get("budget")),
            max_steps=int(front["max_steps"]) if front.get("max_steps") else None,
            retry_after_reset=bool(front.get("retry_after_reset", False)),
            examples=_lines(front.get("examples")),
            source=str(path),
        )
    except ValidationError as e:
        loc, why = problem_of(e)
        raise _invalid(f"its front matter: {'.'.join(map(str, loc))}: {why}") from e
    except (TypeError, ValueError) as e:
        raise _invalid(f"its front matter: {e}") from e


def _budget(value: Any) -> Budget | None:
    if value is None:
        return None
    if isinstance(value, dict) and (unknown := set(value) - set(Budget.model_fields)):
        raise _invalid(f"budget: unknown {sorted(unknown)}; known: {', '.join(Budget.model_fields)}")
    return Budget.model_validate(value)


def _names(value: Any) -> tuple[str, ...]:
    """Names from a list or from a string with commas."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(str(p).strip() for p in parts if str(p).strip()))


def _lines(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(v) for v in value)

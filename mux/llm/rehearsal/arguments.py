"""Fills the parameters of a tool that the policy knows nothing of but its schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mux.llm.model import ToolSchema
from mux.llm.rehearsal.reading import expressions, keywords, numbers, urls

__all__ = ["fill"]

_DEPTH = 4
_WHOLE = ("message", "task", "question", "prompt", "text", "content", "instruct")  # take the whole task


def fill(tool: ToolSchema, task: str, /, **known: Any) -> dict[str, Any]:
    """Arguments that fit a tool's schema, made of what stands in the task.

    Args:
        tool: the tool.
        task: the text to take words and numbers from.
        known: values for parameters of these names, where the tool has them.
    """
    properties = tool.parameters.get("properties") or {}
    required = tool.parameters.get("required") or ()
    filled = {name: value for name, value in known.items() if name in properties}
    pool = _Pool(task, tool.name)
    for name in required:
        if name not in filled:
            filled[name] = _value(properties.get(name) or {}, name, pool, tool.parameters, 0)
    return filled


class _Pool:
    """Words and numbers of the task, each used once and then from the start again."""

    def __init__(self, task: str, tool: str) -> None:
        self.task = task
        self._words = keywords(task, 12) or task.split()[:1] or ["example"]
        asked_for = tool.lower().split("_")  # the word that chose the tool is none of its arguments
        self._words = [w for w in self._words if w.lower() not in asked_for] or self._words
        self._proper = [w for w in self._words if w[:1].isupper()] or self._words
        self._numbers = numbers(task) or [1.0]
        self._taken = {"word": 0, "number": 0}

    def word(self) -> str:
        self._taken["word"] += 1
        return self._proper[(self._taken["word"] - 1) % len(self._proper)]

    def number(self) -> float:
        self._taken["number"] += 1
        return self._numbers[(self._taken["number"] - 1) % len(self._numbers)]

    def text(self, name: str) -> str:
        low = name.lower()
        if "url" in low or "link" in low:
            return next(iter(urls(self.task)), "https://example.com/")
        if "expression" in low or "formula" in low:
            return next(iter(expressions(self.task)), "1 + 1")
        if any(part in low for part in ("query", "search", "keyword")) or low == "q":
            return " ".join(self._words[:5])
        if any(
            part in low for part in ("message", "task", "question", "prompt", "text", "content", "instruct")
        ):
            return self.task
        return self._named(low) or self.word()

    def _named(self, name: str) -> str | None:
        """What the task gives by the parameter's own name: ``folder docs``, ``to: Ann``."""
        words = re.escape(name).replace("_", "[ _]")
        given = rf"\b{words}(?:\s*[:=]\s*|\s+(?:is\s+)?)(?!(?:a|an|the)\s)([\w./@-]*\w)"
        found = re.search(given, self.task, re.IGNORECASE)
        return found[1] if found and len(name) > 1 else None


def _value(schema: Mapping[str, Any], name: str, pool: _Pool, root: Mapping[str, Any], depth: int) -> Any:
    schema = _resolved(schema, root)
    if schema.get("enum"):
        return schema["enum"][0]
    for constant in ("const", "default"):
        if constant in schema:
            return schema[constant]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "string")
    match kind:
        case "integer":
            return int(_bounded(pool.number(), schema))
        case "number":
            return _bounded(pool.number(), schema)
        case "boolean":
            return False
        case "array":
            least = max(int(schema.get("minItems", 1)), 1)
            items = schema.get("items") or {}
            return (
                [_value(items, name, pool, root, depth + 1) for _ in range(least)] if depth < _DEPTH else []
            )
        case "object":
            properties = schema.get("properties") or {}
            wanted = schema.get("required") or () if depth < _DEPTH else ()
            return {k: _value(properties.get(k) or {}, k, pool, root, depth + 1) for k in wanted}
        case "null":
            return None
        case _:
            return pool.text(name)[: int(schema.get("maxLength", 4_000))]


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema without reference and alternatives: the first alternative that is not null."""
    for _ in range(8):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            target: Any = root
            for part in reference[2:].split("/"):
                target = target.get(part, {}) if isinstance(target, Mapping) else {}
            schema = target
            continue
        options = schema.get("anyOf") or schema.get("oneOf")
        if not options:
            break
        schema = next((o for o in options if o.get("type") != "null"), {})
    return schema


def _bounded(value: float, schema: Mapping[str, Any]) -> float:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        value = max(value, low)
    if high is not None:
        value = min(value, high)
    return value

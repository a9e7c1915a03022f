"""The arguments of a tool call, as text written by a model → a JSON object or the reason why not."""

from __future__ import annotations

import json
from typing import Any

from mux.llm.failures import scrub_all

__all__ = ["parse_arguments"]


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_number)


def parse_arguments(text: str) -> tuple[str, dict[str, Any] | None, str | None]:
    """Parse a call's arguments as written.

    Nothing is repaired: only whole repetitions of the same object (an endpoint's flush at the end) and ``{}``
    before the real object (a placeholder) are left out.

    Returns:
        ``(raw, arguments, error)``: the text that counts, and either the object (nothing at all is ``{}``) or
        ``invalid_json`` or ``not_an_object``.
    """
    stripped = text.strip()
    if not stripped:
        return text, {}, None
    values: list[Any] = []
    ends = [0]
    at = 0
    try:
        while at < len(stripped) and len(values) < 64:
            value, at = _DECODER.raw_decode(stripped, at)
            values.append(value)
            ends.append(at)
            while at < len(stripped) and stripped[at] in " \t\r\n":
                at += 1
    except (ValueError, RecursionError):
        return text, None, "invalid_json"
    kept = [v for v in values if v != {}] or values[:1]
    if at < len(stripped) or any(v != kept[0] for v in kept):
        return text, None, "invalid_json"
    if not isinstance(kept[0], dict):
        return text, None, "not_an_object"
    first = values.index(kept[0])
    raw = text if len(values) == 1 else stripped[ends[first] : ends[first + 1]].strip()
    return raw, scrub_all(kept[0]), None

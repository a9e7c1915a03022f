"""What a tool returned, as the text for the model and the JSON for programs, both within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from mux.tools.base import ToolOutput

__all__ = ["as_output", "clean_text", "cut"]

MAX_DATA = 1_000_000  # bytes of JSON: what a typed card can reasonably show
_NO_OUTPUT = "(no output)"


@dataclass(frozen=True, slots=True)
class _Finished(ToolOutput):
    """An output that was brought within bounds already, in the tool's thread."""


def clean_text(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 frame can carry, and without NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "\ufffd")


def cut(text: str, limit: int) -> str:
    """The first ``limit`` characters, with a visible note of what is missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[… cut here: {limit:,} of {len(text):,} characters are shown]"


def as_output(value: Any, max_output: int) -> ToolOutput:
    """Make a :class:`ToolOutput` of whatever a tool returned, its text cut to ``max_output`` characters.

    A string is the output; ``None`` is said as such; anything else becomes JSON, as text and as ``data``.
    """
    if isinstance(value, _Finished):
        return value
    if isinstance(value, ToolOutput):
        output = cut(clean_text(value.output), max_output)
        return _Finished(output, _bounded(value.data), value.is_error, value.error)
    if value is None:
        return _Finished(_NO_OUTPUT)
    if isinstance(value, str):
        return _Finished(cut(clean_text(value), max_output) if value else _NO_OUTPUT)
    data = _jsonable(value)
    text = _json_text(data)
    return _Finished(cut(text, max_output), data if len(text) <= MAX_DATA else None)


def _bounded(data: Any) -> Any:
    if data is None:
        return None
    data = _jsonable(data)
    size = len(_json_text(data))
    return data if size <= MAX_DATA else {"omitted": f"the data had {size:,} characters of JSON"}


def _jsonable(value: Any) -> Any:
    """JSON values only, whatever a tool put in: unknown objects by their ``str``, NaN as null."""
    try:
        value = to_jsonable_python(value, fallback=str, serialize_unknown=True, inf_nan_mode="null")
    except (PydanticSerializationError, UnicodeError, ValueError, RecursionError):
        value = repr(value)
    return _scrub(value)


def _scrub(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(k)): _scrub(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_scrub(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _json_text(value: Any) -> str:
    return to_json(value, inf_nan_mode="null").decode()

"""The chunks of chat.completions as typed structs.

Typed decoding costs a tenth of a full decoder. What does not fit (other types than the format says, lone
surrogates, bad UTF-8) goes through :func:`lenient` into the same structs, so that there is one reader.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from mux.llm.failures import broken, scrub_all

__all__ = [
    "CALL_EXTRAS",
    "UNFIT",
    "Choice",
    "Chunk",
    "DeltaFrame",
    "Function",
    "ToolCall",
    "broke_off",
    "decode",
    "is_done",
    "lenient",
    "lenient_chunk",
    "text_of",
    "values_of",
]

CALL_EXTRAS: Final = ("extra_content", "thought_signature", "provider_specific_fields")


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class Custom(msgspec.Struct):
    name: str | None = None
    input: str | None = None


class ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None
    custom: Custom | None = (
        None  # a tool whose input is no JSON; nobody offered one, but a model may write it
    )
    name: str | None = None  # some send name and arguments beside the id, without "function"
    arguments: str | dict[str, Any] | None = None
    extra_content: Any = None  # Gemini: {"google": {"thought_signature": …}}
    thought_signature: Any = None
    provider_specific_fields: Any = None  # LiteLLM


class DeltaFrame(msgspec.Struct):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None  # DeepSeek, Qwen, vLLM, llama.cpp
    reasoning: str | None = None  # OpenRouter, Ollama, Groq
    reasoning_text: str | None = None  # GitHub Copilot
    thinking: str | None = None  # Ollama's own word, and gateways that pass it on
    reasoning_details: list[Any] | None = None  # OpenRouter: must go back as they came
    thinking_blocks: list[Any] | None = None  # LiteLLM: likewise, with the signatures of Anthropic's models
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None  # before tools there were functions
    extra_content: Any = None  # Gemini: a signature on a text part
    images: Any = None  # OpenRouter, LiteLLM: pictures that the model made
    audio: Any = None  # OpenAI: pieces of {id, data, transcript, expires_at}
    annotations: Any = None  # OpenAI, OpenRouter: citations, parsed files
    citations: Any = None  # gateways of models that search


class Choice(msgspec.Struct):
    index: int | None = None
    delta: DeltaFrame | None = None
    message: DeltaFrame | None = None  # a whole answer, or a gateway's last chunk
    text: str | None = None  # the older completions format, from some local servers
    finish_reason: str | None = None
    usage: Any = None  # Moonshot
    error: Any = None  # OpenRouter: one choice failed
    logprobs: Any = None


class Chunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Any = None
    model: str | None = None
    error: Any = None
    x_groq: Any = None
    citations: Any = None  # Perplexity, in every chunk
    search_results: Any = None  # likewise
    type: str | None = None
    object: str | None = None


UNFIT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
decode: Final = msgspec.json.Decoder(Chunk).decode


# --- what does not fit the structs ------------------------------------------------------------------------


def values_of(data: bytes) -> list[Any]:
    """The JSON values of a record: one, or several that lost what stood between them.

    Bad UTF-8, NUL, a byte order mark and ``data:`` said twice are forgiven; text that is no JSON is not.

    Raises:
        UpstreamError: ``upstream_protocol``.
    """
    text = data.decode("utf-8", "replace")
    values: list[Any] = []
    at = _skip(text, 0)
    try:
        while at < len(text) and not (values and is_done(text[at : at + 16].encode())):
            value, at = _DECODER.raw_decode(text, at)
            values.append(value)
            at = _skip(text, at)
    except (ValueError, RecursionError):
        raise broken("A record of the stream is not JSON.") from None
    return values


def broke_off(data: bytes) -> bool:
    """Whether bytes that are no JSON are the beginning of it."""
    text = data.decode("utf-8", "replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as e:
        return e.pos >= len(text) or e.msg.startswith("Unterminated string")
    except RecursionError:
        pass
    return False


def _skip(text: str, at: int) -> int:
    found = _GAP.match(text, at)
    return found.end() if found else at


def is_done(data: bytes) -> bool:
    """Whether this is ``[DONE]``, also in small letters, in quotes, or with something after it."""
    return data[:32].lstrip(b" \t\"'").upper().startswith(b"[DONE]")


_GAP: Final = re.compile(r"[ \t\r\n\0\ufeff]*(?:data:[ \t\r\n\0\ufeff]*)?")
_DECODER: Final = json.JSONDecoder(strict=False)


def lenient(data: bytes, event: str) -> list[Chunk]:
    """Read a record that the typed decoder refused. Raises ``upstream_protocol`` where it is no JSON."""
    if event == "error":
        return [Chunk(type="error")]
    chunks: list[Chunk] = []
    for value in values_of(data):
        if isinstance(value, str):
            raise broken("A record of the stream is not a JSON object.")
        chunks += [
            lenient_chunk(v) for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict)
        ]
    return chunks


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def text_of(value: Any, depth: int = 4) -> str | None:
    """What is said by a value where a string belongs: parts, or an object around it."""
    if isinstance(value, str) or not depth:
        return _string(value)
    if isinstance(value, list):
        return "".join(text_of(v, depth - 1) or "" for v in value) or None
    if isinstance(value, dict):
        return next((t for k in _TEXT_KEYS if (t := text_of(value.get(k), depth - 1))), None)
    return None


_TEXT_KEYS: Final = ("text", "content", "thinking", "summary", "value", "parts")


def _word(value: Any) -> str | None:
    """A finish reason that is no string: what is told there ends the turn, whatever it is."""
    if isinstance(value, dict):
        value = next((v for k in ("type", "reason", "finish_reason") if (v := value.get(k))), None)
    return _string(value) or (str(value).lower() if value else None)


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return int(value) if isinstance(value, int | float) and value == value and abs(value) < 1e9 else None


def lenient_chunk(value: dict[str, Any]) -> Chunk:
    choices = value.get("choices")
    choices = [choices] if isinstance(choices, dict) else choices
    return Chunk(
        choices=[_lenient_choice(c) for c in choices if isinstance(c, dict)]
        if isinstance(choices, list)
        else None,
        usage=value.get("usage"),
        model=scrub_all(_string(value.get("model"))),
        error=value.get("error"),
        x_groq=value.get("x_groq"),
        citations=value.get("citations"),
        search_results=value.get("search_results"),
        type=_string(value.get("type")),
        object=_string(value.get("object")),
    )


def _lenient_choice(value: dict[str, Any]) -> Choice:
    return Choice(
        index=_whole_number(value.get("index")),
        delta=_lenient_delta(value.get("delta")),
        message=_lenient_delta(value.get("message")),
        text=_string(value.get("text")),
        finish_reason=_word(value.get("finish_reason")),
        usage=value.get("usage"),
        error=value.get("error"),
        logprobs=value.get("logprobs"),
    )


def _lenient_delta(value: Any) -> DeltaFrame | None:
    if isinstance(value, str):
        return DeltaFrame(content=value)
    if not isinstance(value, dict):
        return None
    content = value.get("content")
    calls = value.get("tool_calls")
    calls = [calls] if isinstance(calls, dict) else calls
    details = value.get("reasoning_details")
    return DeltaFrame(
        content=[content]
        if isinstance(content, dict)
        else content
        if isinstance(content, str | list)
        else None,
        reasoning_content=text_of(value.get("reasoning_content")),
        reasoning=text_of(value.get("reasoning")),
        reasoning_text=text_of(value.get("reasoning_text")),
        thinking=text_of(value.get("thinking")),
        reasoning_details=details if isinstance(details, list) else None,
        thinking_blocks=blocks if isinstance(blocks := value.get("thinking_blocks"), list) else None,
        refusal=text_of(value.get("refusal")),
        tool_calls=[_lenient_call(c) for c in calls if isinstance(c, dict)]
        if isinstance(calls, list)
        else None,
        function_call=_lenient_function(value.get("function_call")),
        extra_content=value.get("extra_content"),
        images=value.get("images"),
        audio=value.get("audio"),
        annotations=value.get("annotations"),
        citations=value.get("citations"),
    )


def _lenient_call(value: dict[str, Any]) -> ToolCall:
    id = value.get("id")
    function = value.get("function")
    custom = value.get("custom")
    return ToolCall(
        index=_whole_number(value.get("index")),
        id=scrub_all(str(id)) if isinstance(id, str | int) and not isinstance(id, bool) else None,
        function=_lenient_function(function if isinstance(function, dict) else value),
        custom=Custom(_string(custom.get("name")), _string(custom.get("input")))
        if isinstance(custom, dict)
        else None,
        **{k: value.get(k) for k in CALL_EXTRAS},
    )


def _lenient_function(value: Any) -> Function | None:
    if not isinstance(value, dict):
        return None
    arguments = value.get("arguments")
    if isinstance(arguments, list | int | float):
        arguments = json.dumps(arguments)  # no object: the end of the turn says so
    return Function(
        name=scrub_all(_string(value.get("name"))),
        arguments=arguments if isinstance(arguments, str | dict) else None,
    )

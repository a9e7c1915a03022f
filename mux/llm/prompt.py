"""From a :class:`~mux.llm.model.ModelRequest` to the JSON body of a request, for both wire APIs.

What a provider asked to have back (its own call ids, thought signatures, reasoning items) goes back with the
message it came with, and only to that provider.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mux.agent import Message
from mux.llm.model import ModelRequest

__all__ = ["chat_body", "responses_body"]

_OURS = frozenset({"model", "messages", "input", "stream", "tools"})
_REASONING_MODELS = re.compile(r"^(o\d|gpt-5|gpt-6|codex|computer-use)")


def chat_body(request: ModelRequest, *, provider: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``POST /chat/completions``.

    Args:
        provider: our name for the endpoint: whose items may go back.
        params: the provider's defaults; the request's own win. A value of ``None`` leaves the member out.
    """
    body: dict[str, Any] = {
        "model": request.model,
        "messages": _chat_messages(request.messages, provider),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)},
            }
            for t in request.tools
        ]
    return _with_params(body, params, request.params)


def _with_params(body: dict[str, Any], *sources: Mapping[str, Any]) -> dict[str, Any]:
    for source in sources:
        body.update({k: v for k, v in source.items() if k not in _OURS})
    return {k: v for k, v in body.items() if v is not None}


def _own(message: Message, provider: str) -> list[dict[str, Any]]:
    """The items of a message that belong to this provider."""
    owner = (message.provider or "").partition(":")[0]
    if owner != provider:
        return []
    return [i for i in message.provider_items or () if isinstance(i, dict)]


def _arguments(text: str) -> str:
    """The arguments of an earlier call, for the way back.

    Servers parse them and fail on what is no object, so a broken one goes back empty: the tool error that
    follows says what was wrong with it.
    """
    try:
        return text if isinstance(json.loads(text), dict) else "{}"
    except (ValueError, RecursionError):
        return "{}"


def _name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "_"


def _last_user(messages: Sequence[Message]) -> int:
    return max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)


class _Ids:
    """Our call ids → the ids to use with the provider: its own where they are known and unambiguous."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def learn(self, message: Message, told: Sequence[str | None]) -> None:
        known = [i for i in told if i]
        own = len(known) == len(set(known))
        for at, call in enumerate(message.calls):
            theirs = told[at] if own and at < len(told) else None
            self._ids[call.call_id] = theirs or call.call_id

    def __getitem__(self, call_id: str | None) -> str:
        return self._ids.get(call_id or "", call_id or "")


def _chat_messages(messages: Sequence[Message], provider: str) -> list[dict[str, Any]]:
    ids = _Ids()
    last_user = _last_user(messages)
    out: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        if message.role == "assistant":
            built = _chat_assistant(message, _own(message, provider), ids, recent=at > last_user)
            if built is not None:
                out.append(built)
        elif message.role == "tool":
            out.append({"role": "tool", "tool_call_id": ids[message.call_id], "content": message.text})
        else:
            out.append({"role": message.role, "content": message.content})
    return out


def _chat_assistant(
    message: Message, items: list[dict[str, Any]], ids: _Ids, *, recent: bool
) -> dict[str, Any] | None:
    if not message.calls and not message.content:
        return None  # endpoints refuse an assistant who says nothing
    built: dict[str, Any] = {"role": "assistant", "content": message.content or None}
    by_call = {i["at"]: i for i in items if i.get("kind") == "call" and isinstance(i.get("at"), int)}
    if message.calls:
        ids.learn(message, [(by_call.get(at) or {}).get("id") for at in range(len(message.calls))])
        built["tool_calls"] = []
        for at, call in enumerate(message.calls):
            extras = {k: v for k, v in (by_call.get(at) or {}).items() if k not in ("kind", "at", "id")}
            function = {"name": _name(call.tool), "arguments": _arguments(call.arguments)}
            entry = {"id": ids[call.call_id], "type": "function", "function": function, **extras}
            built["tool_calls"].append(entry)
    for item in items:
        if item.get("kind") == "message":
            built.update({k: v for k, v in item.items() if k != "kind"})
        elif item.get("kind") == "reasoning" and recent and message.reasoning:
            # DeepSeek, Kimi and others want the thoughts of the turn that is going on, and no older ones
            built[str(item.get("field", "reasoning_content"))] = message.reasoning
    return built


# --- Responses API ----------------------------------------------------------------------------------------


def responses_body(request: ModelRequest, *, provider: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``POST /responses``: nothing is stored there, so reasoning items travel with us."""
    body: dict[str, Any] = {
        "model": request.model,
        "input": _responses_input(request.messages, provider),
        "stream": True,
        "store": False,
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": t.name,
                "description": t.description,
                "parameters": dict(t.parameters),
                "strict": False,
            }
            for t in request.tools
        ]
    given = {**params, **request.params}
    # other models answer 400 to it: "Encrypted content is not supported with this model"
    if "include" not in given and ("reasoning" in given or _REASONING_MODELS.match(request.model)):
        body["include"] = ["reasoning.encrypted_content"]
    if "max_tokens" in given:
        given.setdefault("max_output_tokens", given.pop("max_tokens"))
    return _with_params(body, given)


def _responses_input(messages: Sequence[Message], provider: str) -> list[dict[str, Any]]:
    ids = _Ids()
    out: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "assistant":
            out += _responses_assistant(message, _own(message, provider), ids)
        elif message.role == "tool":
            out.append(
                {"type": "function_call_output", "call_id": ids[message.call_id], "output": message.text}
            )
        else:
            out.append({"role": message.role, "content": _responses_content(message.content)})
    return out


def _responses_assistant(message: Message, items: list[dict[str, Any]], ids: _Ids) -> list[dict[str, Any]]:
    told = [i for i in items if i.get("type") == "function_call"]
    ids.learn(message, [i.get("call_id") for i in told] if len(told) == len(message.calls) else [])
    # without its content a reasoning item only names something that was never stored there
    out: list[dict[str, Any]] = [
        {k: v for k, v in item.items() if k != "status"}
        for item in items
        if item.get("type") == "reasoning" and (item.get("encrypted_content") or item.get("content"))
    ]
    if text := message.text:
        out.append({"role": "assistant", "content": text})
    out += [
        {
            "type": "function_call",
            "call_id": ids[call.call_id],
            "name": _name(call.tool),
            "arguments": _arguments(call.arguments),
        }
        for call in message.calls
    ]
    return out


def _responses_content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Chat-format content parts in the words of the Responses API."""
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            parts.append({"type": "input_text", "text": part.get("text", "")})
        elif kind == "image_url":
            image = part.get("image_url")
            image = image if isinstance(image, dict) else {"url": image}
            parts.append(
                {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail", "auto")}
            )
        elif kind == "file" and isinstance(part.get("file"), dict):
            parts.append({"type": "input_file", **part["file"]})
        else:
            parts.append(part)
    return parts

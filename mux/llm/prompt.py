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
from mux.errors import BadRequest
from mux.llm.model import ModelRequest, ToolSchema
from mux.llm.normalise import normalised

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
        "messages": _chat_messages(normalised(request.messages), provider),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [{"type": "function", "function": _chat_tool(t)} for t in request.tools]
    return _with_params(body, params, request.params)


def _chat_tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return function if tool.strict is None else {**function, "strict": tool.strict}


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
        "input": _responses_input(normalised(request.messages), provider),
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
                "strict": bool(t.strict),
            }
            for t in request.tools
        ]
    asked = {**params, **request.params}
    given = _responses_params(asked)
    # other models answer 400 to it: "Encrypted content is not supported with this model"
    if "include" not in asked and ("reasoning" in given or _REASONING_MODELS.match(request.model)):
        given["include"] = [*given.get("include", ()), "reasoning.encrypted_content"]
    return _with_params(body, given)


# members of chat.completions for which the Responses API has no word
_NO_WORD = ("stop", "seed", "logit_bias", "frequency_penalty", "presence_penalty", "n", "audio", "modalities")


def _responses_params(given: dict[str, Any]) -> dict[str, Any]:
    """Parameters in the chat format, in the words of the Responses API.

    Raises:
        BadRequest: ``param_unsupported``: it has no word for one.
    """
    for name in _NO_WORD:
        if given.get(name) not in (None, {}, []) and not (name == "n" and given[name] == 1):
            raise BadRequest(
                "param_unsupported",
                f"The model's API (responses) has no {name!r}: leave it away, or use a provider with api ="
                ' "chat".',
                extra={"param": name},
            )
    out = {k: v for k, v in given.items() if k not in _NO_WORD and v is not None}
    for name in ("max_completion_tokens", "max_tokens"):
        if name in out:
            out.setdefault("max_output_tokens", out.pop(name))
    text = dict(out.pop("text", None) or {})
    if isinstance(shape := out.pop("response_format", None), dict):
        schema = shape.get("json_schema")
        text.setdefault("format", {"type": "json_schema", **schema} if isinstance(schema, dict) else shape)
    if (verbosity := out.pop("verbosity", None)) is not None:
        text.setdefault("verbosity", verbosity)
    if text:
        out["text"] = text
    if (effort := out.pop("reasoning_effort", None)) is not None:
        out["reasoning"] = {"effort": effort, **(out.get("reasoning") or {})}
    choice = out.get("tool_choice")
    if isinstance(choice, dict) and isinstance(function := choice.get("function"), dict):
        out["tool_choice"] = {"type": "function", "name": function.get("name")}
    if out.pop("logprobs", None):
        out["include"] = [*(out.get("include") or ()), "message.output_text.logprobs"]
        out.setdefault("top_logprobs", 0)
    return out


# items of the Responses API that may go back as they came, beside reasoning
_OWN_ITEMS = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}
    | {"mcp_list_tools", "mcp_approval_request", "computer_call", "local_shell_call", "shell_call"}
    | {"apply_patch_call", "tool_search_call"}
)


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
        if (item.get("type") == "reasoning" and (item.get("encrypted_content") or item.get("content")))
        or item.get("type") in _OWN_ITEMS
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
        elif kind == "refusal":
            parts.append({"type": "input_text", "text": part.get("refusal", "")})
        else:
            parts.append(part)
    return parts

"""The Responses face's requests and answers, as models: what is accepted, and how it reads in our words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mux.http.openai_models import FunctionDefinition, OpenAIRequest
from mux.requests import ChatMessage, ClientTool

__all__ = ["ResponseFrame", "ResponseObject", "ResponseRequest"]

Item = dict[str, Any]

_PARAMS: Final = ("temperature", "top_p", "parallel_tool_calls", "top_logprobs")


class ResponseRequest(OpenAIRequest):
    """``POST /v1/responses``."""

    REFUSED: ClassVar = {
        "prompt": "stored prompts are not kept here; send instructions and input",
        "conversation": "conversations are threads here; use previous_response_id",
        "context_management": "the history is fitted to the model's context by itself",
        "moderation": "guardrails are configured on the server",
        "background_options": "a background response begins at once",
        "image": "agents answer in text",
        "access_programs": "there are none here",
    }
    # What changes nothing here: every run is kept, histories are fitted, everything is included.
    IGNORED: ClassVar = frozenset(
        {"store", "truncation", "include", "stream_options", "prompt_cache_options", "prompt_cache_retention"}
    )

    model: str = Field(min_length=1, max_length=2000)
    input: str | list[Item]
    instructions: str | None = None
    stream: bool = False
    background: bool = False
    previous_response_id: str | None = None
    tools: list[Item] | None = Field(default=None, max_length=128)
    tool_choice: str | Item | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(default=None, ge=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    text: Item | None = None
    reasoning: Item | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None

    @model_validator(mode="after")
    def _readable(self) -> ResponseRequest:
        for at, tool in enumerate(self.tools or ()):
            if tool.get("type") != "function":
                raise ValueError(
                    f"tools.{at}: a tool of type {str(tool.get('type'))[:40]!r} can't be offered here; "
                    "only functions can. Agents bring tools of their own."
                )
            FunctionDefinition.model_validate(tool)
        if isinstance(self.tool_choice, dict) and self.tool_choice.get("type") != "function":
            raise ValueError("tool_choice: choose auto, none, required or a function")
        kind = ((self.text or {}).get("format") or {}).get("type", "text")
        if kind not in ("text", "json_object", "json_schema"):
            raise ValueError(
                f"text.format: {str(kind)[:40]!r} is not supported; text, json_object and json_schema are"
            )
        for at, item in enumerate(self.input if isinstance(self.input, list) else ()):
            if _kind(item) not in _READERS:
                raise ValueError(f"input.{at}: an item of type {_kind(item)[:40]!r} can't be read here")
        return self

    # --- in our words --------------------------------------------------------------------------------------

    def approvals(self) -> list[Item]:
        """The decisions that the input ends with; earlier ones are history."""
        items = self.input if isinstance(self.input, list) else []
        return list(itertools.takewhile(lambda i: _kind(i) == "mcp_approval_response", reversed(items)))

    def references(self) -> list[str]:
        """The ids of the items that the input only names."""
        items = self.input if isinstance(self.input, list) else []
        return [str(i.get("id")) for i in items if _kind(i) == "item_reference"]

    def client_tools(self) -> list[ClientTool] | None:
        """The tools that the client runs."""
        return [FunctionDefinition.model_validate(t).tool() for t in self.tools or ()] or None

    def params(self) -> dict[str, Any]:
        """What goes to the model, in the words of chat completions."""
        params = self.model_dump(include=set(_PARAMS), exclude_none=True)
        if self.max_output_tokens is not None:
            params["max_tokens"] = self.max_output_tokens
        if self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or ()):
            params["logprobs"] = True
        if (effort := (self.reasoning or {}).get("effort")) is not None:
            params["reasoning_effort"] = effort
        text = self.text or {}
        if (verbosity := text.get("verbosity")) is not None:
            params["verbosity"] = verbosity
        form = text.get("format") or {}
        if form.get("type") == "json_object":
            params["response_format"] = {"type": "json_object"}
        elif form.get("type") == "json_schema":
            schema = {k: v for k, v in form.items() if k != "type"}
            params["response_format"] = {"type": "json_schema", "json_schema": schema}
        if isinstance(self.tool_choice, dict):
            params["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.get("name")}}
        elif self.tool_choice is not None:
            params["tool_choice"] = self.tool_choice
        return params | self.unnamed()

    def messages(self, referenced: Sequence[Item]) -> list[ChatMessage]:
        """The input as messages of the chat format.

        Args:
            referenced: the items that `references` named, in their order.
        """
        if isinstance(self.input, str):
            return [ChatMessage(role="user", content=self.input)]
        found = iter(referenced)
        messages: list[Item] = []
        for item in self.input:
            whole = next(found) if _kind(item) == "item_reference" else item
            if (read := _READERS.get(_kind(whole))) is not None:
                read(whole, messages)
        return [ChatMessage.model_validate(m) for m in messages]


def _kind(item: Item) -> str:
    return str(item.get("type") or ("message" if "role" in item else ""))


def _message(item: Item, messages: list[Item]) -> None:
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(p) for p in content if isinstance(p, dict)]
        if item.get("role") == "assistant":
            content = "".join(str(p.get("text", "")) for p in content)
    messages.append({"role": item.get("role"), "content": content})


def _part(part: Item) -> Item:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text", "")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal", "")}
    if kind == "input_image" and part.get("image_url"):
        return {
            "type": "image_url",
            "image_url": {"url": part["image_url"], "detail": part.get("detail") or "auto"},
        }
    if kind == "input_file":
        return {"type": "file", "file": {k: v for k, v in part.items() if k != "type" and v is not None}}
    return part


def _call(item: Item, messages: list[Item]) -> None:
    function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
    call = {"id": item.get("call_id") or item.get("id"), "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _call_output(item: Item, messages: list[Item]) -> None:
    output = item.get("output")
    if isinstance(output, list):
        output = [_part(p) for p in output if isinstance(p, dict)]
    elif not isinstance(output, str):
        output = json.dumps(output, ensure_ascii=False)
    messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})


def _own_call(item: Item, messages: list[Item]) -> None:
    """A call that ran here, sent back: what the model asked, and what it got."""
    _call(item, messages)
    output = item.get("output")
    if output is None and item.get("error") is not None:
        output = json.dumps(item["error"], ensure_ascii=False)
    messages.append({"role": "tool", "tool_call_id": item.get("id"), "content": output or ""})


def _nothing(item: Item, messages: list[Item]) -> None:
    """What the agents know already, or nobody needs: reasoning, and approvals that were asked and given."""


_READERS: Final[dict[str, Callable[[Item, list[Item]], None]]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "mcp_call": _own_call,
    "mcp_approval_request": _nothing,
    "mcp_approval_response": _nothing,
    "reasoning": _nothing,
    "item_reference": _nothing,
}


class ResponseObject(BaseModel):
    """A response; more of its members in OpenAI's reference."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[Item]
    usage: Item | None = None
    error: Item | None = None


class ResponseFrame(BaseModel):
    """One event of a streamed response."""

    model_config = ConfigDict(extra="allow")

    type: str
    sequence_number: int

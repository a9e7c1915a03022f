"""The OpenAI Responses face: our events as response events, one output item for each thing that a channel
did. Pure; no transport.

Format: https://platform.openai.com/docs/api-reference/responses-streaming, as the openai SDKs accept it.

- What channels do are items of one ``output`` list, in the order in which they began, so several channels
  interleave by ``output_index``; each item says in ``x_mux`` whose it is.
- Tools that run here are ``mcp_call`` items (a call that the server ran), so that no client thinks that it
  has to run them; those that the client brought are ``function_call`` items.
- A call that waits for a person is a ``mcp_approval_request``; when everything waits, the response is
  complete, and a next request with ``mcp_approval_response`` goes on (`resumed_at`).
- Text can't be taken back: after a ``step_reset`` the open items end as ``incomplete``, the step's items
  are left out of the response's ``output``, and new items follow.
- The numbers of the frames follow from the log, so that ``starting_after`` means the same in every replay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    ChannelAdded,
    ChannelStarted,
    Custom,
    Done,
    Error,
    Event,
    GuardrailHit,
    Reasoning,
    Refusal,
    RunFinished,
    RunStarted,
    StepFinished,
    StepReset,
    Token,
    ToolArgs,
    ToolCall,
    ToolResult,
    ToolStart,
    Usage,
)
from mux.faces.base import approval_id, dump

__all__ = ["Responses", "responses_usage"]

_FAILED = frozenset({"failed", "timed_out", "cancelled"})


@dataclass(slots=True)
class _Item:
    """One output item: its place, and what it is so far."""

    index: int
    cseq: int
    value: dict[str, Any]
    text: list[str] = field(default_factory=list)  # of the open part: text, refusal, arguments or summary
    part: int = -1  # index of the open content part
    kind: str = ""  # of the open content part
    open: bool = True
    logprobs: list[Any] = field(default_factory=list)
    discarded: bool = False


@dataclass(slots=True)
class _Channel:
    agent: str
    speaking: _Item | None = None  # an open message or reasoning item
    calls: dict[str, _Item] = field(default_factory=dict)
    names: dict[str, tuple[str, bool]] = field(default_factory=dict)  # call → (tool, the client runs it)
    approvals: set[str] = field(default_factory=set)
    open_calls: set[str] = field(default_factory=set)
    started: bool = False
    status: str | None = None
    finish: str = "stop"
    error: Error | None = None

    @property
    def waits(self) -> bool:
        return bool(self.approvals) and self.open_calls <= self.approvals


class Responses:
    """Folds a run's events into response events (:meth:`feed`), and into one response (:meth:`result`).

    Args:
        id: the response's id.
        base: further members of the response: what of the request is echoed (``model``, ``tools``, …).
        resumed_at: the response goes on after an approval: events up to this seq belong to the one before.
        starting_after: frames up to this number are left out.

    Attributes:
        ended: the terminal event is out.
        acted: a tool has run, so that asking again would do it again.
        number: of the next frame.
    """

    def __init__(
        self,
        *,
        id: str,
        created: int,
        base: Mapping[str, Any],
        resumed_at: int = 0,
        starting_after: int = -1,
    ) -> None:
        self._head = {"id": id, "object": "response", "created_at": created}
        self._base = dict(base)
        self._resumed_at = resumed_at
        self._starting_after = starting_after
        self._run = ""
        self._thread = ""
        self._begun = False
        self._items: list[_Item] = []
        self._channels: dict[str, _Channel] = {}
        self._filtered = False
        self._usage: Usage | None = None
        self._status = "in_progress"
        self._spoke = False
        self.acted = False
        self.ended = False
        self.number = 0

    # --- the face ------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[bytes]:
        """The frames for one event, in order; none for what this protocol has no word for."""
        if self.ended:
            return []
        known = event.seq <= self._resumed_at
        if known:
            self._event(event)
            return self._forget_known()
        frames: list[dict[str, Any]] = []
        if not self._begun:
            self._run = event.run
            self._begun = True
            if isinstance(event.body, RunStarted):
                self._announce(event.body)
            frames = [
                {"type": "response.created", "response": self.result()},
                {"type": "response.in_progress", "response": self.result()},
            ]
        return self._encoded([*frames, *self._event(event)])

    def settle(self) -> list[bytes]:
        """To be called when all that there is has been fed: the end, where every channel waits for a
        person."""
        undone = [c for c in self._channels.values() if c.status is None]
        if self.ended or not self._begun or not undone or not all(c.waits for c in undone):
            return []
        frames = [f for c in undone for f in self._close(c, "incomplete")]
        for item in self._items:  # the calls themselves come in the response that follows
            if item.value["type"] == "mcp_call" and item.value["status"] == "incomplete":
                item.discarded = True
        return self._encoded([*frames, self._terminal("completed")])

    @property
    def complete(self) -> bool:
        """Whether `result` is the whole response."""
        return self._status != "in_progress"

    @property
    def spoke(self) -> bool:
        """Whether a client has seen anything of what the agents do."""
        return self._spoke

    @property
    def refused(self) -> bool:
        """Whether the run is over, failed, and nothing of it was shown."""
        return self._status == "failed" and not self._spoke

    def cut(self, message: str, code: str = "interrupted") -> list[bytes]:
        """The last frames when the stream ends before the run does: nobody is left waiting."""
        if self.ended:
            return []
        frames = [f for c in self._channels.values() for f in self._close(c, "incomplete")]
        self.ended = True
        return self._encoded([*frames, {"type": "error", "code": code, "message": message, "param": None}])

    def result(self) -> dict[str, Any]:
        """The response as it stands."""
        response: dict[str, Any] = {
            **self._head,
            "status": self._status,
            "error": None,
            "incomplete_details": None,
            **self._base,
            "output": [item.value for item in self._items if not item.discarded],
        }
        error = next((c.error for c in self._channels.values() if c.error), None)
        if error is not None and self._status == "failed":
            response["error"] = {
                "code": "rate_limit_exceeded" if error.code == "rate_limited" else "server_error",
                "message": error.message,
            }
        if self._status == "incomplete":
            reason = "content_filter" if self._filtered else "max_output_tokens"
            response["incomplete_details"] = {"reason": reason}
        if (usage := responses_usage(self._usage)) is not None:
            response["usage"] = usage
        about: dict[str, Any] = {"run": self._run, "thread": self._thread}
        about["channels"] = {
            name: {"agent": c.agent, "status": c.status or "running"} for name, c in self._channels.items()
        }
        if error is not None:
            about["error"] = error.code
        response["x_mux"] = about
        return response

    @property
    def failure(self) -> Error | None:
        """Why the run failed before anything of it was shown; a response that began says it in itself."""
        return next((c.error for c in self._channels.values() if c.error), None) if self.refused else None

    # --- frames --------------------------------------------------------------------------------------------

    def _encoded(self, frames: list[dict[str, Any]]) -> list[bytes]:
        out = []
        for frame in frames:
            if self.number > self._starting_after:
                data = dump({**frame, "sequence_number": self.number})
                out.append(b"event: %b\ndata: %b\n\n" % (frame["type"].encode(), data))
            self.number += 1
        return out

    def _forget_known(self) -> list[bytes]:
        """What an earlier response said is not said again."""
        self._items.clear()
        self._spoke = False
        for channel in self._channels.values():
            channel.speaking = None
            channel.calls.clear()
        return []

    def _terminal(self, status: str) -> dict[str, Any]:
        self.ended = True
        self._status = status
        kind = status if status in ("completed", "failed") else "incomplete"  # no event is named `cancelled`
        return {"type": f"response.{kind}", "response": self.result()}

    # --- one event -----------------------------------------------------------------------------------------

    def _announce(self, body: RunStarted) -> None:
        self._thread = body.thread
        for info in body.channels:
            self._channels.setdefault(info.id, _Channel(info.agent))

    def _event(self, event: Event) -> list[dict[str, Any]]:
        body = event.body
        if isinstance(body, RunStarted):
            self._run = event.run
            self._announce(body)
            return []
        if isinstance(body, ChannelAdded):
            self._channels[body.id] = _Channel(body.agent)
            return []
        if isinstance(body, RunFinished):
            return self._end(body)
        channel = self._channels.get(event.channel or "")
        if channel is None or event.path:
            return []
        if isinstance(body, Token):
            return self._say(event, channel, "output_text", body.content)
        if isinstance(body, Refusal):
            return self._say(event, channel, "refusal", body.content)
        if isinstance(body, Reasoning):
            return self._think(event, channel, body.content)
        if isinstance(body, ToolCall | ToolArgs | ToolStart | ToolResult):
            return self._tool(event, channel, body)
        return self._state(event, channel)

    def _state(self, event: Event, channel: _Channel) -> list[dict[str, Any]]:
        body = event.body
        if isinstance(body, ChannelStarted):
            channel.started = True
            return self._reset(channel, 0) if body.attempt > 1 else []
        if isinstance(body, StepFinished):
            channel.finish = body.finish_reason
            return self._close_speaking(channel)
        if isinstance(body, StepReset):
            return self._reset(channel, body.from_cseq)
        if isinstance(body, ApprovalRequested):
            return self._approval(event, channel, body)
        if isinstance(body, ApprovalResolved):
            channel.approvals.discard(body.call_id)
        elif isinstance(body, GuardrailHit):
            self._filtered = self._filtered or body.action == "blocked"
        elif isinstance(body, Error):
            channel.error = body
        elif isinstance(body, Custom) and body.name == "logprobs" and channel.speaking is not None:
            if isinstance(body.value, dict) and isinstance(found := body.value.get("content"), list):
                channel.speaking.logprobs += found
        elif isinstance(body, Done):
            channel.status = body.status
            channel.finish = body.finish_reason or channel.finish
            channel.approvals.clear()
            return self._close(channel, "incomplete" if body.status in _FAILED else "completed")
        return []

    def _open(self, event: Event, channel: _Channel, value: dict[str, Any]) -> _Item:
        kind = value["type"]
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc", "mcp_call": "mcp"}.get(
            kind, "item"
        )
        about = {"channel": event.channel, "agent": channel.agent}
        value = {"id": f"{prefix}_{event.run}_{event.seq}", **value, "x_mux": about}
        item = _Item(len(self._items), event.cseq, value)
        self._items.append(item)
        self._spoke = True
        return item

    def _added(self, item: _Item) -> dict[str, Any]:
        return {"type": "response.output_item.added", "output_index": item.index, "item": dict(item.value)}

    def _about(self, item: _Item, kind: str, **members: Any) -> dict[str, Any]:
        return {
            "type": f"response.{kind}",
            "item_id": item.value["id"],
            "output_index": item.index,
            **members,
        }

    # --- text ----------------------------------------------------------------------------------------------

    def _say(self, event: Event, channel: _Channel, kind: str, content: str) -> list[dict[str, Any]]:
        frames: list[dict[str, Any]] = []
        item = channel.speaking
        if item is not None and item.value["type"] != "message":
            frames += self._close_speaking(channel)
            item = None
        if item is None:
            value = {"type": "message", "status": "in_progress", "role": "assistant", "content": []}
            item = channel.speaking = self._open(event, channel, value)
            frames.append(self._added(item))
        if item.kind != kind:
            frames += self._close_part(item)
            item.part, item.kind = item.part + 1, kind
            frames.append(
                self._about(item, "content_part.added", content_index=item.part, part=_part(kind, "", []))
            )
        item.text.append(content)
        delta: dict[str, Any] = {"content_index": item.part, "delta": content}
        if kind == "output_text":
            delta["logprobs"] = []
        frames.append(self._about(item, f"{kind}.delta", **delta))
        return frames

    def _think(self, event: Event, channel: _Channel, content: str) -> list[dict[str, Any]]:
        frames: list[dict[str, Any]] = []
        item = channel.speaking
        if item is None or item.value["type"] != "reasoning":
            frames += self._close_speaking(channel)
            value: dict[str, Any] = {"type": "reasoning", "summary": [], "status": "in_progress"}
            item = channel.speaking = self._open(event, channel, value)
            item.part, item.kind = 0, "summary_text"
            part = {"type": "summary_text", "text": ""}
            frames += [
                self._added(item),
                self._about(item, "reasoning_summary_part.added", summary_index=0, part=part),
            ]
        item.text.append(content)
        frames.append(self._about(item, "reasoning_summary_text.delta", summary_index=0, delta=content))
        return frames

    def _close_part(self, item: _Item) -> list[dict[str, Any]]:
        """The open content part, whole."""
        if not item.kind:
            return []
        text, kind = "".join(item.text), item.kind
        item.text.clear()
        item.kind = ""
        if kind == "summary_text":
            part = {"type": "summary_text", "text": text}
            item.value["summary"] = [part]
            return [
                self._about(item, "reasoning_summary_text.done", summary_index=0, text=text),
                self._about(item, "reasoning_summary_part.done", summary_index=0, part=part),
            ]
        part = _part(kind, text, item.logprobs)
        item.logprobs = []
        item.value["content"] = [*item.value["content"], part]
        whole: dict[str, Any] = {"refusal": text}
        if kind == "output_text":
            whole = {"text": text, "logprobs": part["logprobs"]}
        return [
            self._about(item, f"{kind}.done", content_index=item.part, **whole),
            self._about(item, "content_part.done", content_index=item.part, part=part),
        ]

    def _close_speaking(self, channel: _Channel, status: str = "completed") -> list[dict[str, Any]]:
        item, channel.speaking = channel.speaking, None
        if item is None:
            return []
        return [*self._close_part(item), self._item_done(item, status)]

    def _item_done(self, item: _Item, status: str) -> dict[str, Any]:
        item.open = False
        item.value["status"] = status
        return {"type": "response.output_item.done", "output_index": item.index, "item": dict(item.value)}

    # --- tools ---------------------------------------------------------------------------------------------

    def _tool(
        self, event: Event, channel: _Channel, body: ToolCall | ToolArgs | ToolStart | ToolResult
    ) -> list[dict[str, Any]]:
        if isinstance(body, ToolCall):
            frames = self._close_speaking(channel)
            client = bool(body.client)
            channel.names[body.call_id] = (body.tool, client)
            if not client:
                channel.open_calls.add(body.call_id)
            return [*frames, *self._call(event, channel, body.call_id)]
        item = channel.calls.get(body.call_id)
        if isinstance(body, ToolArgs):
            if item is None or not item.open or item.kind != "arguments" or not body.content:
                return []
            item.text.append(body.content)
            return [self._about(item, f"{_arguments_of(item)}.delta", delta=body.content)]
        if isinstance(body, ToolStart):
            self.acted = True
            return self._arguments(item, body.arguments)
        channel.open_calls.discard(body.call_id)
        channel.approvals.discard(body.call_id)
        frames = []
        if item is None:  # it was begun in the response before this one
            frames = self._call(event, channel, body.call_id)
            item = channel.calls[body.call_id]
        frames += self._arguments(item, None)
        if item.value["type"] == "function_call":
            return [*frames, self._item_done(item, "completed")]
        if body.is_error:
            content = [{"type": "text", "text": body.output}]
            item.value["error"] = {"type": "mcp_tool_execution_error", "content": content}
            ends = ("mcp_call.failed", "failed")
        else:
            item.value["output"] = body.output
            ends = ("mcp_call.completed", "completed")
        return [*frames, self._about(item, ends[0]), self._item_done(item, ends[1])]

    def _call(self, event: Event, channel: _Channel, call_id: str) -> list[dict[str, Any]]:
        tool, client = channel.names.get(call_id, ("", False))
        value: dict[str, Any] = {"type": "mcp_call", "server_label": channel.agent, "status": "in_progress"}
        if client:
            value = {"type": "function_call", "call_id": call_id, "status": "in_progress"}
        item = channel.calls[call_id] = self._open(event, channel, {**value, "name": tool, "arguments": ""})
        item.part, item.kind = 0, "arguments"
        frames = [self._added(item)]
        return frames if client else [*frames, self._about(item, "mcp_call.in_progress")]

    def _arguments(self, item: _Item | None, arguments: dict[str, Any] | None) -> list[dict[str, Any]]:
        """The call's arguments, whole; as they run where they are known."""
        if item is None or item.kind != "arguments":
            return []
        text = "".join(item.text)
        if arguments is not None and not text:
            text = json.dumps(arguments, ensure_ascii=False)
        item.text.clear()
        item.kind = ""
        item.value["arguments"] = text
        members = {"arguments": text}
        if item.value["type"] == "function_call":
            members["name"] = item.value["name"]
        return [self._about(item, f"{_arguments_of(item)}.done", **members)]

    def _approval(self, event: Event, channel: _Channel, body: ApprovalRequested) -> list[dict[str, Any]]:
        channel.approvals.add(body.call_id)
        frames = self._arguments(channel.calls.get(body.call_id), body.arguments)
        arguments = json.dumps(body.arguments, ensure_ascii=False)
        value = {
            "type": "mcp_approval_request",
            "server_label": channel.agent,
            "name": body.tool,
            "arguments": arguments,
            "id": approval_id(event.run, body.call_id),
        }
        item = self._open(event, channel, value)
        item.open = False
        done = {"type": "response.output_item.done", "output_index": item.index, "item": dict(item.value)}
        return [*frames, self._added(item), done]

    # --- ends ----------------------------------------------------------------------------------------------

    def _close(self, channel: _Channel, status: str) -> list[dict[str, Any]]:
        """Close everything that the channel has open."""
        frames = self._close_speaking(channel, status)
        for item in channel.calls.values():
            if item.open:
                frames += [*self._arguments(item, None), self._item_done(item, "incomplete")]
        return frames

    def _reset(self, channel: _Channel, from_cseq: int) -> list[dict[str, Any]]:
        frames = self._close(channel, "incomplete")
        for item in self._items:
            if item.value["x_mux"]["channel"] in self._names_of(channel) and item.cseq >= from_cseq:
                item.discarded = True
        channel.calls.clear()
        channel.open_calls.clear()
        channel.approvals.clear()
        self._filtered = False
        return frames

    def _names_of(self, channel: _Channel) -> list[str]:
        return [name for name, one in self._channels.items() if one is channel]

    def _end(self, body: RunFinished) -> list[dict[str, Any]]:
        self._usage = body.usage
        if body.status in ("failed", "cancelled"):
            return [self._terminal(body.status)]
        cut_short = [
            c for c in self._channels.values() if c.finish == "length" or c.status == "budget_exceeded"
        ]
        filtered = any(c.finish == "content_filter" for c in self._channels.values())
        self._filtered = self._filtered or filtered
        short = len(self._channels) == 1 and bool(cut_short or filtered)
        return [self._terminal("incomplete" if short else "completed")]


def _part(kind: str, text: str, logprobs: list[Any]) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _arguments_of(item: _Item) -> str:
    return "function_call_arguments" if item.value["type"] == "function_call" else "mcp_call_arguments"


def responses_usage(usage: Usage | None) -> dict[str, Any] | None:
    """Our usage as the Responses API's; ``None`` where nothing was reported. The details are required there,
    so those that were not reported are 0."""
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    read, written = usage.input_tokens or 0, usage.output_tokens or 0
    counts: dict[str, Any] = {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": read + written,
    }
    if usage.cost is not None:
        counts["cost"] = usage.cost
    return counts

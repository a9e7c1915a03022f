"""The AI SDK's UI message stream, version 1: one channel as one assistant message. Pure; no transport.

Format: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol, as ``uiMessageChunkSchema`` of ``ai`` 7 checks it.

- One stream is one message, so a stream carries one channel (``data-mux-*`` parts say what the protocol has
  no word for). What agents inside the agent say (``path``) is left out.
- A step of ours is a step of theirs, with its tools in it; a ``step_reset`` is a ``reset-step``, which
  drops the step's parts.
- Tools are dynamic and run here (``providerExecuted``), but for those that the client brought.
- When the channel waits for a person, the stream ends after its ``tool-approval-request``: ``useChat``
  sends the answer with its next request, which goes on from there (`resumed_at`).
- On every way out open parts are closed, then ``finish`` or ``abort`` and ``[DONE]`` come.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    ChannelStarted,
    Custom,
    Done,
    Error,
    Event,
    GuardrailHit,
    MessageApplied,
    Reasoning,
    Refusal,
    RunFinished,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
)
from mux.faces.base import approval_id, sse_data

__all__ = ["HEADERS", "UiMessages"]

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
_DONE = b"data: [DONE]\n\n"
_FINISH = {"length": "length", "content_filter": "content-filter", "tool_calls": "tool-calls"}


@dataclass(slots=True)
class _Call:
    tool: str
    client: bool = False
    raw: list[str] = field(default_factory=list)
    available: bool = False  # its input is complete
    answered: bool = False


class UiMessages:
    """Folds one channel's events into chunks (:meth:`feed`).

    Args:
        run, channel: which it is; its message's id is made of both.
        message_id: the id of the message that goes on, where the client has a part of it already.
        resumed_at: the stream goes on after an approval: events up to this seq are known to the client.

    Attributes:
        ended: the last chunk is out.
        chunks: how many chunks were made so far (``[DONE]`` is none); what ``startIndex`` counts.
    """

    def __init__(
        self,
        *,
        run: str,
        channel: str,
        message_id: str | None = None,
        resumed_at: int = 0,
        start_index: int = 0,
    ) -> None:
        self._run = run
        self._channel = channel
        self._message_id = message_id or f"{run}.{channel}"
        self._resumed_at = resumed_at
        self._start_index = start_index
        self._begun = False
        self._part: tuple[str, str] | None = None  # (text or reasoning, id) of the open one
        self._in_step = False
        self._calls: dict[str, _Call] = {}
        self._approvals: dict[str, ApprovalRequested] = {}
        self._error: Error | None = None
        self._finish = "stop"
        self._filtered = False
        self.ended = False
        self.chunks = 0

    # --- the face ------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[bytes]:
        """The frames for one event, in order; none for what this protocol has no word for."""
        if self.ended or (event.channel != self._channel and not isinstance(event.body, RunFinished)):
            return []
        opening = self._opening() if event.seq > self._resumed_at and not self._begun else []
        chunks = self._chunks(event) if not event.path else []
        if event.seq <= self._resumed_at:
            return []
        frames = self._counted([*opening, *chunks])
        return [*frames, _DONE] if self.ended else frames

    def settle(self) -> list[bytes]:
        """To be called when all that there is has been fed: the end, where the channel waits for a person."""
        open_calls = {i for i, c in self._calls.items() if not c.answered and not c.client}
        if self.ended or not self._begun or not self._approvals or not open_calls <= self._approvals.keys():
            return []
        self.ended = True
        chunks = [*self._close_part(), *self._close_step(), {"type": "finish", "finishReason": "tool-calls"}]
        return [*self._counted(chunks), _DONE]

    def cut(self, message: str, code: str = "interrupted") -> list[bytes]:
        """The last frames when the stream ends before the channel does: nobody is left waiting."""
        if self.ended:
            return []
        self.ended = True
        opening = [] if self._begun else self._opening()
        chunks = [
            *opening,
            *self._close_part(),
            *self._close_calls(message),
            *self._close_step(),
            {"type": "error", "errorText": f"{message} [{code}]"},
            {"type": "finish", "finishReason": "error"},
        ]
        return [*self._counted(chunks), _DONE]

    def _counted(self, chunks: list[dict[str, Any]]) -> list[bytes]:
        first = self.chunks
        self.chunks += len(chunks)
        return [sse_data(c) for i, c in enumerate(chunks, first) if i >= self._start_index]

    def _opening(self) -> list[dict[str, Any]]:
        self._begun = True
        metadata = {"mux": {"run": self._run, "channel": self._channel}}
        return [{"type": "start", "messageId": self._message_id, "messageMetadata": metadata}]

    # --- one event -----------------------------------------------------------------------------------------

    def _chunks(self, event: Event) -> list[dict[str, Any]]:
        body = event.body
        if isinstance(body, Token | Refusal):
            return self._say("text", event.cseq, body.content)
        if isinstance(body, Reasoning):
            return self._say("reasoning", event.cseq, body.content)
        if isinstance(body, ToolCall | ToolArgs | ToolStart | ToolProgress | ToolResult):
            return self._tool(body)
        if isinstance(body, ApprovalRequested | ApprovalResolved):
            return self._approval(body)
        if isinstance(body, StepStarted):
            chunks = [*self._close_part(), *self._close_step(), {"type": "start-step"}]
            self._in_step = True
            return chunks
        if isinstance(body, StepFinished):  # its tools come after it, and belong to the step
            self._finish = body.finish_reason
            return self._close_part()
        if isinstance(body, StepReset):
            return self._reset()
        if isinstance(body, Done):
            return self._done(body)
        if isinstance(body, RunFinished):  # a channel's end comes before it, always
            return []
        return self._other(event)

    def _other(self, event: Event) -> list[dict[str, Any]]:
        body = event.body
        if isinstance(body, ChannelStarted):
            return self._reset() if body.attempt > 1 and self._begun else []
        if isinstance(body, Error):
            self._error = body
            return []
        if isinstance(body, MessageApplied):
            part = {"type": "text", "text": body.content or ""}
            steering = {"type": "steering-message", "id": body.message_id, "parts": [part]}
            return [*self._close_part(), steering]
        if isinstance(body, GuardrailHit):
            self._filtered = self._filtered or body.action == "blocked"
            data = {"rule": body.rule, "stage": body.stage, "action": body.action}
            return [{"type": "data-mux-guardrail", "id": f"{self._channel}.{event.cseq}", "data": data}]
        if isinstance(body, Custom):
            data = {"name": body.name, "value": body.value}
            return [{"type": "data-mux-custom", "id": f"{self._channel}.{event.cseq}", "data": data}]
        return []

    def _say(self, kind: str, cseq: int, content: str) -> list[dict[str, Any]]:
        chunks: list[dict[str, Any]] = []
        if self._part is None or self._part[0] != kind:
            chunks = self._close_part()
            self._part = (kind, f"{self._channel}.{cseq}")
            chunks.append({"type": f"{kind}-start", "id": self._part[1]})
        if content:
            chunks.append({"type": f"{kind}-delta", "id": self._part[1], "delta": content})
        return chunks

    def _tool(
        self, body: ToolCall | ToolArgs | ToolStart | ToolProgress | ToolResult
    ) -> list[dict[str, Any]]:
        head = {"toolCallId": body.call_id}
        if isinstance(body, ToolCall):
            self._calls[body.call_id] = _Call(body.tool, bool(body.client))
            start = {"type": "tool-input-start", **head, "toolName": body.tool, **self._mode(body.call_id)}
            return [*self._close_part(), start]
        call = self._calls.get(body.call_id)
        if call is None or call.answered:
            return []
        if isinstance(body, ToolArgs):
            if call.available or not body.content:
                return []
            call.raw.append(body.content)
            return [{"type": "tool-input-delta", **head, "inputTextDelta": body.content}]
        if isinstance(body, ToolStart):
            return self._available(body.call_id, body.arguments)
        if isinstance(body, ToolProgress):
            if not call.available:
                return []
            output = body.model_dump(exclude={"type", "call_id"}, exclude_none=True)
            return [{"type": "tool-output-available", **head, "output": output, "preliminary": True, **_HERE}]
        return self._result(call, body)

    def _result(self, call: _Call, body: ToolResult) -> list[dict[str, Any]]:
        head = {"toolCallId": body.call_id}
        call.answered = True
        self._approvals.pop(body.call_id, None)
        if call.client:
            return self._available(body.call_id, _object(call.raw))
        if not body.is_error:
            output = body.output if body.data is None else {"text": body.output, "data": body.data}
            return [
                *self._available(body.call_id, _object(call.raw)),
                {"type": "tool-output-available", **head, "output": output, **_HERE},
            ]
        if body.error == "denied" and call.available:
            return [{"type": "tool-output-denied", **head}]
        if call.available:
            return [{"type": "tool-output-error", **head, "errorText": body.output, **_HERE}]
        call.available = True
        return [
            {
                "type": "tool-input-error",
                **head,
                "toolName": call.tool,
                "input": "".join(call.raw),
                "errorText": body.output,
                **self._mode(body.call_id),
            }
        ]

    def _available(self, call_id: str, arguments: Any) -> list[dict[str, Any]]:
        call = self._calls.get(call_id)
        if call is None or call.available:
            return []
        call.available = True
        return [
            {
                "type": "tool-input-available",
                "toolCallId": call_id,
                "toolName": call.tool,
                "input": arguments,
                **self._mode(call_id),
            }
        ]

    def _mode(self, call_id: str) -> dict[str, Any]:
        return {"dynamic": True} if self._calls[call_id].client else {"dynamic": True, **_HERE}

    def _approval(self, body: ApprovalRequested | ApprovalResolved) -> list[dict[str, Any]]:
        approval = approval_id(self._run, body.call_id)
        if isinstance(body, ApprovalRequested):
            self._approvals[body.call_id] = body
            request = {"type": "tool-approval-request", "approvalId": approval, "toolCallId": body.call_id}
            return [*self._close_part(), *self._available(body.call_id, body.arguments), request]
        self._approvals.pop(body.call_id, None)
        answer: dict[str, Any] = {
            "type": "tool-approval-response",
            "approvalId": approval,
            "approved": body.decision in ("approve", "edit"),
        }
        if body.reason or body.decision == "expired":
            answer["reason"] = body.reason or "Nobody decided in time."
        return [answer]

    def _reset(self) -> list[dict[str, Any]]:
        self._part = None  # it goes with the step's other parts
        self._calls.clear()
        self._approvals.clear()
        self._filtered = False
        return [{"type": "reset-step"}]

    def _done(self, done: Done) -> list[dict[str, Any]]:
        self.ended = True
        chunks = [*self._close_part(), *self._close_calls("It did not end."), *self._close_step()]
        if done.status == "cancelled":
            return [*chunks, {"type": "abort", "reason": "cancelled"}]
        if done.status in ("failed", "timed_out"):
            text = self._error.message if self._error else f"The agent's channel was {done.status}."
            chunks.append({"type": "error", "errorText": text})
            reason = "error"
        elif done.status == "refused" or self._filtered:
            reason = "content-filter"
        elif done.status == "budget_exceeded":
            reason = "length"
        else:
            reason = _FINISH.get(done.finish_reason or self._finish, "stop")
            if reason == "tool-calls" and not any(c.client for c in self._calls.values()):
                reason = "stop"
        metadata: dict[str, Any] = {"status": done.status, "durationMs": done.duration_ms}
        if done.usage is not None:
            metadata["usage"] = done.usage.model_dump(exclude_none=True)
        if done.ttft_ms is not None:
            metadata["ttftMs"] = done.ttft_ms
        return [*chunks, {"type": "finish", "finishReason": reason, "messageMetadata": {"mux": metadata}}]

    # --- closing -------------------------------------------------------------------------------------------

    def _close_part(self) -> list[dict[str, Any]]:
        if self._part is None:
            return []
        (kind, name), self._part = self._part, None
        return [{"type": f"{kind}-end", "id": name}]

    def _close_calls(self, why: str) -> list[dict[str, Any]]:
        chunks = []
        for call_id, call in self._calls.items():
            if not call.answered and not call.client:
                call.answered = True
                chunks += self._available(call_id, _object(call.raw))
                chunks.append({"type": "tool-output-error", "toolCallId": call_id, "errorText": why, **_HERE})
        return chunks

    def _close_step(self) -> list[dict[str, Any]]:
        if not self._in_step:
            return []
        self._in_step = False
        return [{"type": "finish-step"}]


_HERE = {"providerExecuted": True}


def _object(raw: list[str]) -> Any:
    """Arguments as the model wrote them: their value where they are JSON, else their text."""
    text = "".join(raw)
    try:
        return json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return text

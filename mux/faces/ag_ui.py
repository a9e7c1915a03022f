"""The AG-UI 1.0 face: our events as AG-UI events. Pure; no transport.

Format: https://docs.ag-ui.com (schema https://ag-ui.com/spec/1.0/schema.json), as ``verifyEvents`` of
``@ag-ui/client`` 1.0 checks it.

- The run is the run. A channel is a sub-agent (``subagentRunId`` = the channel's id), but for the one channel
  of a run that was started with one: that is the agent itself. Agents inside an agent (``path``) are
  sub-agents of theirs.
- When every channel that is not done waits for a person, the run ends with the outcome ``interrupt``; its
  interrupts' ids name run and call, so that a later request can answer them and go on (`resumed_at`).
- AG-UI can't take text back: after a ``step_reset`` the step has new message ids, and the ``CUSTOM`` event
  ``mux.step_reset`` names the messages to discard.
- On every way out what is open is closed first, then one terminal event comes.

Ids are made of run, channel and ``cseq``, so that a replay has the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
    MessageApplied,
    Reasoning,
    Refusal,
    Retry,
    RunFinished,
    RunStarted,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
    Usage,
)
from mux.faces.base import approval_id, sse_data

__all__ = ["AgUi"]

VERSION = "1.0"
_FAILED = frozenset({"failed", "timed_out"})


@dataclass(slots=True)
class _Call:
    name: str
    open: bool = True  # TOOL_CALL_END is to come
    raw: bool = False  # arguments were sent


@dataclass(slots=True)
class _Voice:
    """An agent that speaks: a channel's own, or one inside it. What it has open."""

    channel: str
    subagent: str | None  # None = the run's own agent
    name: str
    model: str | None = None
    text: str | None = None  # the open message's id
    reasoning: str | None = None
    step: str | None = None
    calls: dict[str, _Call] = field(default_factory=dict)
    messages: list[tuple[int, str]] = field(default_factory=list)  # (cseq, id): what a reset discards

    def of(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event under this voice's name."""
        return event if self.subagent is None else {**event, "subagentRunId": self.subagent}


@dataclass(slots=True)
class _Channel:
    agent: str
    own: _Voice
    inner: dict[tuple[str, ...], _Voice] = field(default_factory=dict)
    started: bool = False
    attempt: int = 1
    approvals: dict[str, ApprovalRequested] = field(default_factory=dict)
    open_calls: set[str] = field(default_factory=set)
    left_to_client: list[str] = field(default_factory=list)
    error: Error | None = None
    status: str | None = None
    usage: Usage | None = None

    @property
    def waits(self) -> bool:
        """Whether nothing happens on it before a person decides."""
        return bool(self.approvals) and self.open_calls <= self.approvals.keys()


class AgUi:
    """Folds a run's events into AG-UI events (:meth:`feed`).

    Args:
        thread_id, run_id: the client's own ids, echoed.
        resumed_at: the stream goes on after an interrupt: events up to this seq are known to the client.
        after: the rest of a stream that was cut: frames of events up to this seq are left out.

    Attributes:
        ended: the terminal event is out.
    """

    def __init__(self, *, thread_id: str, run_id: str, resumed_at: int = 0, after: int = 0) -> None:
        self._thread_id = thread_id
        self._run_id = run_id
        self._resumed_at = resumed_at
        self._after = after
        self._begun = False
        self._run = ""
        self._alone = ""  # the channel that is the run's own agent
        self._channels: dict[str, _Channel] = {}
        self.ended = False

    # --- the face ------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[bytes]:
        """The frames for one event, in order; none for what this protocol has no word for."""
        if self.ended:
            return []
        frames = self._opening(event) if event.seq > self._resumed_at and not self._begun else []
        own = self._event(event)
        if event.seq <= max(self._resumed_at, self._after):
            return []
        return [sse_data({**frame, "timestamp": event.ts}) for frame in [*frames, *own]]

    def settle(self) -> list[bytes]:
        """To be called when all that there is has been fed: the end, where the whole run waits for a
        person."""
        waiting = [c for c in self._channels.values() if c.status is None and c.started]
        asleep = all(c.waits for c in waiting) and not any(
            not c.started and c.status is None for c in self._channels.values()
        )
        if self.ended or not self._begun or not waiting or not asleep:
            return []
        frames: list[dict[str, Any]] = []
        interrupts: list[dict[str, Any]] = []
        for channel in waiting:
            own = [self._interrupt(channel.own, request) for request in channel.approvals.values()]
            interrupts += own
            for voice in [*channel.inner.values(), channel.own]:
                frames += self._close(voice)
                if voice.subagent is not None:
                    ids = [i["id"] for i in own] if voice is channel.own else []
                    frames.append(_suspended(voice.subagent, ids))
        outcome = {"type": "interrupt", "interrupts": interrupts}
        return self._terminal([*frames, self._finished(outcome)])

    def cut(self, message: str, code: str = "interrupted") -> list[bytes]:
        """The terminal frames when the stream ends before the run does: nobody is left waiting."""
        if self.ended:
            return []
        frames: list[dict[str, Any]] = []
        for channel in self._channels.values() if self._begun else ():
            for voice in (*channel.inner.values(), channel.own):
                frames += self._close(voice)
                if voice.subagent is not None and channel.started and channel.status is None:
                    frames.append(_subagent_error(voice.subagent, message, code))
        return self._terminal([*frames, {"type": "RUN_ERROR", "message": message, "code": code}])

    def _terminal(self, frames: Sequence[dict[str, Any]]) -> list[bytes]:
        self.ended = True
        return [sse_data(frame) for frame in frames]

    # --- beginning and end ---------------------------------------------------------------------------------

    def _opening(self, event: Event) -> list[dict[str, Any]]:
        """RUN_STARTED; after an interrupt also the sub-agents that go on, each as an invocation of its
        own."""
        self._begun = True
        start = {
            "type": "RUN_STARTED",
            "threadId": self._thread_id,
            "runId": self._run_id,
            "protocolVersion": VERSION,
            "metadata": {"mux": {"run": event.run}},
        }
        frames = [start]
        for name, channel in self._channels.items():
            if channel.started and channel.status is None and channel.own.subagent is not None:
                channel.own.subagent = f"{name}@{self._resumed_at}"
                frames.append(self._subagent(channel.own))
            channel.inner.clear()  # they were suspended; whoever speaks again is announced again
        return frames

    def _finished(self, outcome: dict[str, Any], result: dict[str, Any] | None = None) -> dict[str, Any]:
        frame: dict[str, Any] = {
            "type": "RUN_FINISHED",
            "threadId": self._thread_id,
            "runId": self._run_id,
            "outcome": outcome,
        }
        if result is not None:
            frame["result"] = result
        if usage := [u for c in self._channels.values() if (u := _usage(c.usage, c.own.model))]:
            frame["usage"] = usage
        return frame

    def _end(self, body: RunFinished) -> list[dict[str, Any]]:
        self.ended = True
        if body.status == "cancelled":
            return [self._finished({"type": "cancelled"})]
        if body.status == "failed":
            first = next((c.error for c in self._channels.values() if c.error), None)
            error: dict[str, Any] = {
                "type": "RUN_ERROR",
                "message": first.message if first else "No agent of the run succeeded.",
                "code": first.code if first else "failed",
            }
            if usage := [u for c in self._channels.values() if (u := _usage(c.usage, c.own.model))]:
                error["usage"] = usage
            return [error]
        outcome: dict[str, Any] = {"type": "success"}
        if pending := [call for c in self._channels.values() for call in c.left_to_client]:
            outcome["pendingToolCallIds"] = pending
        return [self._finished(outcome, {"status": body.status, "channels": dict(body.channels)})]

    def _interrupt(self, voice: _Voice, request: ApprovalRequested) -> dict[str, Any]:
        return voice.of(
            {
                "id": approval_id(self._run, request.call_id),
                "reason": "tool_call",
                "toolCallId": request.call_id,
                "message": f"May {voice.name} run {request.tool}?",
                "responseSchema": _RESPONSE_SCHEMA,
                "expiresAt": _iso(request.expires_at),
                "metadata": {"tool": request.tool, "arguments": request.arguments},
            }
        )

    # --- one event -----------------------------------------------------------------------------------------

    def _event(self, event: Event) -> list[dict[str, Any]]:
        body = event.body
        self._run = event.run
        if isinstance(body, RunStarted):
            for info in body.channels:
                self._channels[info.id] = _Channel(info.agent, _Voice(info.id, info.id, info.agent))
            if len(body.channels) == 1:
                self._alone = body.channels[0].id
                self._channels[self._alone].own.subagent = None
            return []
        if isinstance(body, ChannelAdded):
            self._channels[body.id] = _Channel(body.agent, _Voice(body.id, body.id, body.agent))
            return []
        if isinstance(body, RunFinished):
            return self._end(body)
        channel = self._channels.get(event.channel or "")
        if channel is None:
            return []
        if isinstance(body, ChannelStarted):
            return self._channel_started(channel, body)
        if isinstance(body, Done):
            return self._done(channel, body)
        frames: list[dict[str, Any]] = []
        voice = channel.own
        if event.path:
            voice = self._inner(channel, event.path, frames)
        return frames + self._speech(channel, voice, event)

    def _inner(self, channel: _Channel, path: tuple[str, ...], frames: list[dict[str, Any]]) -> _Voice:
        """The voice of an agent inside the channel's, announced when it first speaks."""
        voice = channel.inner.get(path)
        if voice is None:
            parent = self._inner(channel, path[:-1], frames) if len(path) > 1 else channel.own
            base = channel.own.subagent or channel.own.channel
            name = f"{base}/{'/'.join(path)}" + (f"@{self._resumed_at}" if self._resumed_at else "")
            voice = channel.inner[path] = _Voice(channel.own.channel, name, path[-1])
            frames.append(self._subagent(voice, parent.subagent))
        return voice

    def _subagent(self, voice: _Voice, parent: str | None = None) -> dict[str, Any]:
        frame = {"type": "SUBAGENT_STARTED", "subagentRunId": voice.subagent, "name": voice.name}
        return frame if parent is None else {**frame, "parentSubagentRunId": parent}

    def _channel_started(self, channel: _Channel, body: ChannelStarted) -> list[dict[str, Any]]:
        voice, frames = channel.own, []
        voice.model = body.model or voice.model
        channel.started = True
        if body.attempt > 1 and body.attempt != channel.attempt:
            frames = self._restarted(channel, body.attempt)
        elif voice.subagent is not None:
            frames = [self._subagent(voice)]
        channel.attempt = body.attempt
        return frames

    def _restarted(self, channel: _Channel, attempt: int) -> list[dict[str, Any]]:
        """The channel begins anew after a crash: everything that it said before is discarded."""
        voice = channel.own
        frames = self._reset(channel, 0, {"attempt": attempt})
        for inner in channel.inner.values():
            frames += [
                *self._close(inner),
                _subagent_error(inner.subagent or "", "It began anew.", "interrupted"),
            ]
        channel.inner.clear()
        channel.approvals.clear()
        channel.open_calls.clear()
        channel.left_to_client.clear()
        if voice.subagent is not None:
            frames.append(
                _subagent_error(voice.subagent, "It began anew after an interruption.", "interrupted")
            )
            voice.subagent = f"{voice.channel}@{attempt}"
            frames.append(self._subagent(voice))
        return frames

    def _done(self, channel: _Channel, body: Done) -> list[dict[str, Any]]:
        channel.status, channel.usage = body.status, body.usage
        channel.approvals.clear()
        frames: list[dict[str, Any]] = []
        for inner in channel.inner.values():
            frames += [*self._close(inner), {"type": "SUBAGENT_FINISHED", "subagentRunId": inner.subagent}]
        voice = channel.own
        frames += self._close(voice)
        if body.status in _FAILED and channel.error is None:
            channel.error = Error(code=body.status, message=f"The agent's channel was {body.status}.")
        if voice.subagent is None:
            return frames
        if body.status in ("completed", "refused"):
            frames.append(
                {"type": "SUBAGENT_FINISHED", "subagentRunId": voice.subagent, "outcome": {"type": "success"}}
            )
        else:
            why = channel.error.message if channel.error else f"It was ended: {body.status}."
            code = channel.error.code if channel.error else body.status
            frames.append(_subagent_error(voice.subagent, why, code))
        return frames

    def _speech(self, channel: _Channel, voice: _Voice, event: Event) -> list[dict[str, Any]]:
        body = event.body
        if isinstance(body, Token | Refusal):
            return self._text(voice, event, body.content)
        if isinstance(body, Reasoning):
            return self._reasoning(voice, event, body.content)
        if isinstance(body, StepStarted):
            voice.step = f"step {body.step}"
            return [voice.of({"type": "STEP_STARTED", "stepName": voice.step})]
        if isinstance(body, StepFinished):
            return self._close(voice)
        if isinstance(body, StepReset):
            return self._reset(channel, body.from_cseq, {"step": body.step})
        if isinstance(body, Error):
            channel.error = body
            return []
        if isinstance(body, ToolCall | ToolArgs | ToolStart | ToolProgress | ToolResult):
            return self._tool(channel, voice, event)
        return self._custom(channel, voice, event)

    def _text(self, voice: _Voice, event: Event, content: str) -> list[dict[str, Any]]:
        frames = self._close_reasoning(voice)
        if voice.text is None:
            voice.text = self._id(voice, event)
            voice.messages.append((event.cseq, voice.text))
            start = {"type": "TEXT_MESSAGE_START", "messageId": voice.text, "role": "assistant"}
            frames.append(voice.of({**start, "name": voice.name}))
        if content:
            frames.append(
                voice.of({"type": "TEXT_MESSAGE_CONTENT", "messageId": voice.text, "delta": content})
            )
        return frames

    def _reasoning(self, voice: _Voice, event: Event, content: str) -> list[dict[str, Any]]:
        frames = self._close_text(voice)
        if voice.reasoning is None:
            voice.reasoning = self._id(voice, event)
            voice.messages.append((event.cseq, voice.reasoning))
            head = {"messageId": voice.reasoning}
            frames.append(voice.of({"type": "REASONING_START", **head}))
            frames.append(voice.of({"type": "REASONING_MESSAGE_START", **head, "role": "reasoning"}))
        if content:
            frames.append(
                voice.of(
                    {"type": "REASONING_MESSAGE_CONTENT", "messageId": voice.reasoning, "delta": content}
                )
            )
        return frames

    def _tool(self, channel: _Channel, voice: _Voice, event: Event) -> list[dict[str, Any]]:
        body = event.body
        if isinstance(body, ToolCall):
            frames = [*self._close_reasoning(voice)]
            start = {"type": "TOOL_CALL_START", "toolCallId": body.call_id, "toolCallName": body.tool}
            if voice.text is not None:
                start["parentMessageId"] = voice.text
            frames += [*self._close_text(voice), voice.of(start)]
            voice.calls[body.call_id] = _Call(body.tool)
            voice.messages.append((event.cseq, body.call_id))
            if body.client:
                channel.left_to_client.append(body.call_id)
            else:
                channel.open_calls.add(body.call_id)
            return frames
        assert isinstance(body, ToolArgs | ToolStart | ToolProgress | ToolResult)
        call = voice.calls.get(body.call_id)
        if isinstance(body, ToolArgs):
            if call is None or not call.open or not body.content:
                return []
            call.raw = True
            return [voice.of({"type": "TOOL_CALL_ARGS", "toolCallId": body.call_id, "delta": body.content})]
        if isinstance(body, ToolStart):
            return self._end_call(voice, body.call_id, body.arguments)
        if isinstance(body, ToolProgress):
            value = body.model_dump(exclude={"type"}, exclude_none=True)
            return [voice.of({"type": "CUSTOM", "name": "mux.tool_progress", "value": value})]
        channel.open_calls.discard(body.call_id)
        channel.approvals.pop(body.call_id, None)
        frames = self._end_call(voice, body.call_id)
        if body.client:
            return frames
        result: dict[str, Any] = {
            "type": "TOOL_CALL_RESULT",
            "messageId": f"{self._run}.{body.call_id}",
            "toolCallId": body.call_id,
            "content": body.output,
            "role": "tool",
        }
        if body.is_error:
            result["metadata"] = {"mux": {"error": body.error or "tool_failed"}}
        return [*frames, voice.of(result)]

    def _end_call(
        self, voice: _Voice, call_id: str, arguments: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        call = voice.calls.get(call_id)
        if call is None or not call.open:
            return []
        call.open = False
        frames: list[dict[str, Any]] = []
        if not call.raw and arguments is not None:
            text = json.dumps(arguments, ensure_ascii=False)
            frames.append(voice.of({"type": "TOOL_CALL_ARGS", "toolCallId": call_id, "delta": text}))
        return [*frames, voice.of({"type": "TOOL_CALL_END", "toolCallId": call_id})]

    def _custom(self, channel: _Channel, voice: _Voice, event: Event) -> list[dict[str, Any]]:
        body, frames = event.body, []
        if isinstance(body, ApprovalRequested):
            channel.approvals[body.call_id] = body
            frames = self._end_call(voice, body.call_id, body.arguments)
        elif isinstance(body, ApprovalResolved):
            channel.approvals.pop(body.call_id, None)
        elif isinstance(body, MessageApplied):
            return self._steered(voice, event, body)
        elif not isinstance(body, Custom | GuardrailHit | Retry):
            return []
        if isinstance(body, Custom):
            return [voice.of({"type": "CUSTOM", "name": body.name, "value": body.value})]
        value = body.model_dump(exclude={"type"}, exclude_none=True)
        return [*frames, voice.of({"type": "CUSTOM", "name": f"mux.{body.type}", "value": value})]

    def _steered(self, voice: _Voice, event: Event, body: MessageApplied) -> list[dict[str, Any]]:
        message = {"messageId": self._id(voice, event)}
        return [
            *self._close_reasoning(voice),
            *self._close_text(voice),
            voice.of({"type": "TEXT_MESSAGE_START", **message, "role": "user"}),
            *(
                [voice.of({"type": "TEXT_MESSAGE_CONTENT", **message, "delta": body.content})]
                if body.content
                else []
            ),
            voice.of({"type": "TEXT_MESSAGE_END", **message}),
        ]

    def _reset(self, channel: _Channel, from_cseq: int, value: dict[str, Any]) -> list[dict[str, Any]]:
        """What was sent of a span that is discarded: closed, and named so that a client can drop it."""
        frames: list[dict[str, Any]] = []
        discarded: list[str] = []
        for voice in [channel.own, *channel.inner.values()]:
            frames += self._close(voice)
            discarded += [name for cseq, name in voice.messages if cseq >= from_cseq]
            voice.messages = [m for m in voice.messages if m[0] < from_cseq]
        channel.left_to_client = [c for c in channel.left_to_client if c not in discarded]
        value = {"channel": channel.own.channel, **value, "messageIds": discarded}
        return [*frames, channel.own.of({"type": "CUSTOM", "name": "mux.step_reset", "value": value})]

    # --- closing -------------------------------------------------------------------------------------------

    def _close(self, voice: _Voice) -> list[dict[str, Any]]:
        """Close everything that this voice has open."""
        frames = [*self._close_reasoning(voice), *self._close_text(voice)]
        for call_id, call in voice.calls.items():
            if call.open:
                call.open = False
                frames.append(voice.of({"type": "TOOL_CALL_END", "toolCallId": call_id}))
        if voice.step is not None:
            frames.append(voice.of({"type": "STEP_FINISHED", "stepName": voice.step}))
            voice.step = None
        return frames

    def _close_text(self, voice: _Voice) -> list[dict[str, Any]]:
        if voice.text is None:
            return []
        name, voice.text = voice.text, None
        return [voice.of({"type": "TEXT_MESSAGE_END", "messageId": name})]

    def _close_reasoning(self, voice: _Voice) -> list[dict[str, Any]]:
        if voice.reasoning is None:
            return []
        name, voice.reasoning = voice.reasoning, None
        return [
            voice.of({"type": "REASONING_MESSAGE_END", "messageId": name}),
            voice.of({"type": "REASONING_END", "messageId": name}),
        ]

    def _id(self, voice: _Voice, event: Event) -> str:
        return f"{event.run}.{voice.channel}.{event.cseq}"


_RESPONSE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "approved": {"type": "boolean"},
        "arguments": {"type": "object", "description": "run it with these instead"},
        "reason": {"type": "string"},
    },
    "required": ["approved"],
}


def _subagent_error(subagent: str, message: str, code: str) -> dict[str, Any]:
    return {"type": "SUBAGENT_ERROR", "subagentRunId": subagent, "message": message, "code": code}


def _suspended(subagent: str, interrupts: list[str]) -> dict[str, Any]:
    outcome: dict[str, Any] = {"type": "suspended"}
    if interrupts:
        outcome["interruptIds"] = interrupts
    return {"type": "SUBAGENT_FINISHED", "subagentRunId": subagent, "outcome": outcome}


def _usage(usage: Usage | None, model: str | None) -> dict[str, Any] | None:
    """What one channel used, as reported; ``None`` where nothing was."""
    if usage is None:
        return None
    known = {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "reasoningTokens": usage.reasoning_tokens,
        "cachedInputTokens": usage.cached_tokens,
    }
    counts = {k: v for k, v in known.items() if v is not None}
    if not counts:
        return None
    if usage.input_tokens is not None and usage.output_tokens is not None:
        counts["totalTokens"] = usage.input_tokens + usage.output_tokens
    provider, colon, name = (model or "").partition(":")
    named = {"provider": provider, "model": name} if colon else {"model": provider} if provider else {}
    return {**named, **counts}


def _iso(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")

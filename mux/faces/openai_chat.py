"""The OpenAI ``chat.completions`` face: our events as chunks, one choice per channel. Pure; no transport.

Format: the ``chat.completion.chunk`` object of the OpenAI API reference, as the openai SDKs accept it.

- A channel is a choice (``choices[].index``); ``model`` is an agent, or several joined by ``+``. The first
  chunk of a choice says in ``x_mux`` which run and channel it is.
- Calls of tools that the client brought are ``tool_calls``. The agents' own tools run on our side, so the
  client does not see them: it would think that it has to run them. Their progress is not shown as text
  either.
- A call that waits for a person is told by a chunk whose choice has ``x_mux.approval``; the stream goes on
  when it was decided over the native API.
- A failed channel ends with ``finish_reason: "error"`` and an ``error`` member in its choice; when no channel
  succeeded, an ``error`` frame follows, which the SDKs raise. ``[DONE]`` always comes last.
- The protocol has no word for taking text back. After a ``step_reset`` the redone text is compared with what
  was sent: an equal beginning is sent once; where it differs the stream ends with an ``error`` frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mux.events import (
    ApprovalRequested,
    ChannelStarted,
    Custom,
    Done,
    Error,
    Event,
    GuardrailHit,
    Reasoning,
    Refusal,
    RunFinished,
    StepFinished,
    StepReset,
    Token,
    ToolArgs,
    ToolCall,
    ToolStart,
    Usage,
)
from mux.faces.base import sse_data

__all__ = ["ChatCompletions", "error_body", "openai_usage"]

_DONE = b"data: [DONE]\n\n"
_SHOWN = (Token, Reasoning, Refusal, ApprovalRequested)


@dataclass(slots=True)
class _Call:
    """A call that the client is to run."""

    index: int
    id: str
    name: str
    cseq: int
    arguments: list[str] = field(default_factory=list)

    def whole(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(slots=True)
class _Choice:
    index: int
    calls: dict[str, _Call] = field(default_factory=dict)
    logprobs: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    pieces: list[tuple[int, str]] = field(default_factory=list)  # (cseq, text): what stands
    reasoning: list[tuple[int, str]] = field(default_factory=list)
    refusal: list[tuple[int, str]] = field(default_factory=list)
    sent: str = ""  # after a reset: text of the discarded span that the client already has
    filtered: bool = False
    step_finish: str = "stop"
    finish: str | None = None
    error: Error | None = None

    @property
    def text(self) -> str:
        return _joined(self.pieces)


def _joined(pieces: list[tuple[int, str]]) -> str:
    return "".join(piece for _, piece in pieces)


class ChatCompletions:
    """Folds a run's events into chunks (:meth:`feed`), and into one answer (:meth:`result`).

    Args:
        id: what the client sees as the completion's id: the run's id.
        model: the model as it was asked for.
        created: seconds since the epoch.
        channels: channel ids in the order of their choices; channels that join later are left out.
        include_usage: whether to send the usage chunk before the end.
        streamed: whether the chunks are sent: what was sent can't be taken back, the whole answer can.

    Attributes:
        ended: the last frame is out.
        spoke: a client has seen something of an answer.
        acted: a tool has run, so that asking again would do it again.
    """

    def __init__(
        self,
        *,
        id: str,
        model: str,
        created: int,
        channels: Sequence[str],
        include_usage: bool = False,
        streamed: bool = True,
    ) -> None:
        self._head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._choices = {name: _Choice(i) for i, name in enumerate(channels)}
        self._include_usage = include_usage
        self._streamed = streamed
        self._usage: Usage | None = None
        self._finished = False
        self.ended = False
        self.spoke = False
        self.acted = False

    def feed(self, event: Event) -> list[bytes]:
        """The frames for one event, in order; none for what this protocol has no word for."""
        if self.ended:
            return []
        body = event.body
        if isinstance(body, RunFinished):
            return self._end(body.usage)
        choice = self._choices.get(event.channel or "")
        if choice is None or event.path:
            return []
        self.spoke = (
            self.spoke or isinstance(body, _SHOWN) or (isinstance(body, ToolCall) and bool(body.client))
        )
        self.acted = self.acted or isinstance(body, ToolStart)
        if isinstance(body, Token):
            return self._text(choice, event.cseq, body.content)
        if isinstance(body, Reasoning):
            choice.reasoning.append((event.cseq, body.content))
            return [self._chunk(choice, {"reasoning_content": body.content})]
        if isinstance(body, Refusal):
            choice.refusal.append((event.cseq, body.content))
            return [self._chunk(choice, {"refusal": body.content})]
        return self._state(choice, event)

    def settle(self) -> list[bytes]:
        """Nothing: a client of this protocol can't answer for the person that a run waits for."""
        return []

    @property
    def complete(self) -> bool:
        """Whether the run is over, so that `result` is the whole answer."""
        return self._finished

    @property
    def refused(self) -> bool:
        """Whether the run is over, failed, and nothing of it was shown."""
        return self._finished and not self.spoke and self.failure is not None

    def cut(self, message: str, code: str = "interrupted") -> list[bytes]:
        """The terminal frames when the stream ends before the run does: nobody is left waiting."""
        if self.ended:
            return []
        self.ended = True
        return [sse_data(error_body(message, code)), _DONE]

    def result(self) -> dict[str, Any]:
        """The whole answer, for a request that does not stream; complete after ``run_finished``."""
        answer: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._message(c) for c in self._choices.values()],
        }
        if (usage := openai_usage(self._usage)) is not None:
            answer["usage"] = usage
        return answer

    @property
    def failure(self) -> Error | None:
        """Why the whole answer failed: no choice succeeded, and this is the first one's reason."""
        if any(c.finish not in (None, "error") for c in self._choices.values()):
            return None
        return next((c.error for c in self._choices.values() if c.error), None)

    # --- one event -----------------------------------------------------------------------------------------

    def _state(self, choice: _Choice, event: Event) -> list[bytes]:
        body = event.body
        if isinstance(body, ChannelStarted):
            choice.about = {"run": event.run, "channel": event.channel, "agent": body.agent}
            if body.attempt > 1:
                return self._discard(choice, 0)
            return [self._chunk(choice, {"role": "assistant", "content": ""}, extra={"x_mux": choice.about})]
        if isinstance(body, ToolCall | ToolArgs):
            return self._call(choice, event.cseq, body)
        if isinstance(body, ApprovalRequested):
            approval = body.model_dump(exclude={"type"})
            return [self._chunk(choice, {}, extra={"x_mux": {**choice.about, "approval": approval}})]
        if isinstance(body, Custom):
            return self._logprobs(choice, event.cseq, body)
        if isinstance(body, StepReset):
            return self._discard(choice, body.from_cseq)
        if isinstance(body, StepFinished):
            choice.step_finish = body.finish_reason
        elif isinstance(body, GuardrailHit) and body.action == "blocked":
            choice.filtered = True
        elif isinstance(body, Error):
            choice.error = body
        elif isinstance(body, Done):
            return self._done(choice, body)
        return []

    def _text(self, choice: _Choice, cseq: int, content: str) -> list[bytes]:
        choice.pieces.append((cseq, content))
        if not choice.sent:
            return [self._chunk(choice, {"content": content})]
        common = min(len(choice.sent), len(content))
        if choice.sent[:common] != content[:common]:
            return self._contradicted()
        choice.sent = choice.sent[common:]
        rest = content[common:]
        return [self._chunk(choice, {"content": rest})] if rest else []

    def _contradicted(self) -> list[bytes]:
        return self.cut(
            "The model's answer was interrupted and began anew after a part of it had been sent; "
            "ask again, or read the run's own stream, which can take text back.",
            "step_reset",
        )

    def _call(self, choice: _Choice, cseq: int, body: ToolCall | ToolArgs) -> list[bytes]:
        """A call of a tool that the client brought; the agent's own calls are not its business."""
        if isinstance(body, ToolCall):
            if not body.client:
                return []
            call = choice.calls[body.call_id] = _Call(len(choice.calls), body.call_id, body.tool, cseq)
            return [self._chunk(choice, {"tool_calls": [{"index": call.index, **call.whole()}]})]
        known = choice.calls.get(body.call_id)
        if known is None:
            return []
        known.arguments.append(body.content)
        delta = {"index": known.index, "function": {"arguments": body.content}}
        return [self._chunk(choice, {"tool_calls": [delta]})]

    def _logprobs(self, choice: _Choice, cseq: int, body: Custom) -> list[bytes]:
        if body.name != "logprobs" or not isinstance(body.value, dict):
            return []
        choice.logprobs.append((cseq, body.value))
        return [self._chunk(choice, {}, extra={"logprobs": body.value})]

    def _discard(self, choice: _Choice, from_cseq: int) -> list[bytes]:
        dropped = _joined([piece for piece in choice.pieces if piece[0] >= from_cseq])
        for pieces in (choice.pieces, choice.reasoning, choice.refusal):
            pieces[:] = [piece for piece in pieces if piece[0] < from_cseq]
        choice.logprobs = [item for item in choice.logprobs if item[0] < from_cseq]
        lost = [name for name, call in choice.calls.items() if call.cseq >= from_cseq]
        for name in lost:
            del choice.calls[name]
        if self._streamed:
            if lost:
                return self._contradicted()
            choice.sent = dropped + choice.sent
        return []

    def _done(self, choice: _Choice, done: Done) -> list[bytes]:
        if done.status in ("failed", "timed_out", "cancelled"):
            choice.finish = "error"
            choice.error = choice.error or Error(
                code=done.status, message=f"The agent's channel was {done.status.replace('_', ' ')}."
            )
            extra = {"error": error_body(choice.error.message, choice.error.code)["error"]}
        elif choice.sent:
            return self._contradicted()  # the redone text ended before what had been sent
        else:
            extra = {}
            if choice.filtered:
                choice.finish = "content_filter"
            elif done.status == "budget_exceeded":
                choice.finish = "length"
            else:
                reason = done.finish_reason or choice.step_finish
                usable = reason in ("length", "content_filter") or (reason == "tool_calls" and choice.calls)
                choice.finish = reason if usable else "stop"
        return [self._chunk(choice, {}, finish=choice.finish, extra=extra)]

    def _end(self, usage: Usage | None) -> list[bytes]:
        self.ended = self._finished = True
        self._usage = usage
        frames: list[bytes] = []
        if self._include_usage and (counts := openai_usage(usage)) is not None:
            frames.append(sse_data({**self._head, "choices": [], "usage": counts}))
        if (failure := self.failure) is not None:
            frames.append(sse_data(error_body(failure.message, failure.code)))
        return [*frames, _DONE]

    def _chunk(
        self,
        choice: _Choice,
        delta: dict[str, Any],
        finish: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        one = {"index": choice.index, "delta": delta, "finish_reason": finish, **(extra or {})}
        return sse_data({**self._head, "choices": [one]})

    def _message(self, choice: _Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": None}
        if choice.refusal:
            message["refusal"] = _joined(choice.refusal)
        if choice.reasoning:
            message["reasoning_content"] = _joined(choice.reasoning)
        if choice.calls:
            message["tool_calls"] = [call.whole() for call in choice.calls.values()]
        answer: dict[str, Any] = {
            "index": choice.index,
            "message": message,
            "finish_reason": choice.finish or "error",
        }
        if choice.logprobs:
            answer["logprobs"] = _together([value for _, value in choice.logprobs])
        if choice.about:
            answer["x_mux"] = choice.about
        if choice.finish == "error" and choice.error:
            answer["error"] = error_body(choice.error.message, choice.error.code)["error"]
        return answer


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Log probabilities of several deltas as those of one text."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, values in part.items():
            if isinstance(values, list):
                whole.setdefault(name, []).extend(values)
    return whole


def openai_usage(usage: Usage | None) -> dict[str, Any] | None:
    """Our usage as OpenAI's; ``None`` where the provider reported nothing, never zeros of our own."""
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    prompt, completion = usage.input_tokens or 0, usage.output_tokens or 0
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if usage.cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.cost is not None:
        counts["cost"] = usage.cost
        if usage.currency is not None:
            counts["cost_currency"] = usage.currency
    return counts


def error_body(
    message: str, code: str, kind: str = "server_error", param: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}

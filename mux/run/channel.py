"""One channel's fold: what its events add up to. Checks come first; a refused event changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    ChannelAdded,
    ChannelInfo,
    ChannelStarted,
    Done,
    Error,
    Event,
    MessageApplied,
    MessageReceived,
    MessageReturned,
    Phase,
    Reasoning,
    Refusal,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
    Unknown,
    Usage,
    UsageReport,
)
from mux.run.parts import TextFold, ToolState, Turn
from mux.run.table import CALL_TABLE, TABLE, CallAt, ChannelAt, IllegalEvent

__all__ = ["ChannelState"]


@dataclass(slots=True)
class ChannelState:
    """A channel: its place in the table, and the fold of its events."""

    id: str
    agent: str
    title: str | None = None
    model: str | None = None
    depends_on: tuple[str, ...] = ()
    retry_of: str | None = None
    parent: str | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    at: ChannelAt = "announced"
    nested: dict[tuple[str, ...], ChannelAt] = field(default_factory=dict)
    cseq: int = 0
    attempt: int = 0
    started_ts: int = 0
    attempt_cseq: int = 0
    text: TextFold = field(default_factory=TextFold)
    reasoning: TextFold = field(default_factory=TextFold)
    refusal: TextFold = field(default_factory=TextFold)
    tools: dict[str, ToolState] = field(default_factory=dict)
    open_calls: int = 0
    usages: dict[tuple[tuple[str, ...], int], tuple[int, Usage]] = field(default_factory=dict)
    steps: list[Turn] = field(default_factory=list)  # own turns that ended
    turn: Turn | None = None  # the own turn that is open
    phase: str | None = None
    requested_ts: int | None = None
    first_delta: tuple[int, int] | None = None  # (cseq, ms after the request)
    messages: dict[str, tuple[MessageReceived, int | None]] = field(default_factory=dict)  # id → settled at
    returned: set[str] = field(default_factory=set)
    error: Error | None = None
    done: Done | None = None

    @classmethod
    def of(cls, info: ChannelInfo) -> ChannelState:
        """The channel as it was announced."""
        state = cls(
            info.id, info.agent, info.title, info.model, tuple(info.depends_on or ()), plan=info.plan()
        )
        if isinstance(info, ChannelAdded):
            state.retry_of, state.parent = info.retry_of, info.parent
        return state

    # --- reading ------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether a person must decide before it goes on."""
        return self.at != "done" and any(t.waiting for t in self.open_tools())

    def open_tools(self) -> Iterator[ToolState]:
        """Calls without a result, in order."""
        return (t for t in self.tools.values() if t.at != "answered") if self.open_calls else iter(())

    @property
    def status(self) -> str:
        """``queued``, ``running``, ``waiting`` or a final status (``pending`` needs the other channels)."""
        if self.done is not None:
            return self.done.status
        if self.at == "announced":
            return "queued"
        return "waiting" if self.waiting else "running"

    @property
    def usage(self) -> Usage | None:
        """What its steps reported so far; ``None`` if nothing was."""
        if self.done is not None and self.done.usage is not None:
            return self.done.usage
        total: Usage | None = None
        for _, usage in self.usages.values():
            total = usage if total is None else total + usage
        return total

    def step_start(self, step: int) -> int | None:
        """The cseq at which the own turn of that number began, if it is (still) there."""
        turns = [*self.steps, self.turn] if self.turn else self.steps
        return next((t.cseq for t in reversed(turns) if t.step == step), None)

    def output(self) -> str:
        """The final answer: what `done` says, else the text of the last step, else the refusal's text."""
        if self.done is not None and self.done.output is not None:
            return self.done.output
        last = self.turn or (self.steps[-1] if self.steps else None)
        since = last.cseq if last else 0
        return self.text.own_since(since) or self.text.since(since) or str(self.refusal)

    def pending_messages(self) -> list[MessageReceived]:
        """Steering messages that were neither applied nor returned, in order."""
        return [m for m, applied in self.messages.values() if applied is None]

    # --- applying -----------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Check one event of this channel against the table, then fold it in. Raises `IllegalEvent`."""
        body = event.body
        if type(body) is Token and not event.path and self.takes_tokens:
            self.add_tokens([body.content])
            return
        at = self._next_state(body, event.path)
        if isinstance(
            body, ToolArgs | ToolStart | ToolProgress | ToolResult | ApprovalRequested | ApprovalResolved
        ):
            call, call_at = self._next_call(body, event.path)
            self._fold_call(call, call_at, body, event)
        else:
            self._check(body, event)
            self._fold(body, event)
        if event.path and not isinstance(body, Done):
            self.nested[event.path] = at
        else:
            self.at = at
        self.cseq = event.cseq

    @property
    def takes_tokens(self) -> bool:
        """Whether a token of its own agent is legal now and changes nothing but the text (the hot path)."""
        at = self.at
        return (at == "turn" or at == "idle") and (self.first_delta is not None or self.requested_ts is None)

    def add_tokens(self, contents: Sequence[str]) -> None:
        """Fold in tokens that follow each other, while it ``takes_tokens``."""
        self.text.extend(contents, self.cseq + 1)
        self.cseq += len(contents)

    def _next_state(self, body: Body, path: tuple[str, ...]) -> ChannelAt:
        at = self.at
        if path and at in ("idle", "turn"):
            if isinstance(body, ChannelStarted | StepReset | Error | Done):
                raise IllegalEvent(f"{body.type} belongs to the channel itself, not to {'/'.join(path)!r}.")
            at = self.nested.get(path, "idle")
        if isinstance(body, Unknown) and at not in ("announced", "failing", "done"):
            return at
        following = TABLE[at].get(body.type)
        if following is None:
            raise IllegalEvent(f"{body.type} is not allowed on channel {self.id!r}: it is {at}.")
        return following

    def _next_call(
        self,
        body: ToolArgs | ToolStart | ToolProgress | ToolResult | ApprovalRequested | ApprovalResolved,
        path: tuple[str, ...],
    ) -> tuple[ToolState, CallAt]:
        call = self.tools.get(body.call_id)
        if call is None:
            raise IllegalEvent(
                f"{body.type} names the call {body.call_id!r}, which channel {self.id!r} has not."
            )
        following = CALL_TABLE[call.at].get(body.type)
        if following is None:
            raise IllegalEvent(f"{body.type} is not allowed for call {body.call_id!r}: it is {call.at}.")
        if not isinstance(body, ToolArgs | ToolProgress | ApprovalResolved) and body.tool != call.tool:
            raise IllegalEvent(
                f"{body.type} of call {body.call_id!r} names {body.tool!r}, not {call.tool!r}."
            )
        if isinstance(body, ApprovalResolved | ApprovalRequested):
            if (call.waiting is None) == isinstance(body, ApprovalResolved):
                raise IllegalEvent(f"{body.type} of call {body.call_id!r}: no approval is to be made here.")
        elif call.waiting is not None and not isinstance(body, ToolArgs):
            raise IllegalEvent(f"{body.type} of call {body.call_id!r} while its approval is open.")
        return call, following

    def _check(self, body: Body, event: Event) -> None:  # noqa: C901 - one rule per type of event, side by side
        if isinstance(body, ChannelStarted | Error | Done | StepReset) and self.open_calls:
            raise IllegalEvent(f"{body.type} on channel {self.id!r} while {self.open_calls} calls are open.")
        if isinstance(body, ChannelStarted) and body.attempt != self.attempt + 1:
            raise IllegalEvent(f"attempt {body.attempt} on channel {self.id!r} after attempt {self.attempt}.")
        if isinstance(body, StepStarted) and not event.path:
            last = self.steps[-1].step if self.steps else 0
            if body.step <= last:
                raise IllegalEvent(f"step {body.step} on channel {self.id!r} after step {last}.")
        if isinstance(body, StepFinished) and not event.path and self.turn and body.step != self.turn.step:
            raise IllegalEvent(f"step {body.step} ends on channel {self.id!r}, but {self.turn.step} is open.")
        if isinstance(body, StepReset):
            self._check_reset(body, event)
        if isinstance(body, Done):
            failed = body.status in ("failed", "timed_out")
            if failed != (self.at == "failing"):
                raise IllegalEvent(
                    f"done {body.status!r} on channel {self.id!r} {'without' if failed else 'after'} error."
                )
            if body.attempt != self.attempt:
                raise IllegalEvent(
                    f"done of attempt {body.attempt} on channel {self.id!r} in attempt {self.attempt}."
                )
        if isinstance(body, MessageReceived) and body.message_id in self.messages:
            raise IllegalEvent(f"message {body.message_id!r} was received before.")
        if isinstance(body, MessageApplied | MessageReturned):
            known = self.messages.get(body.message_id)
            if known is None or known[1] is not None:
                raise IllegalEvent(f"{body.type} names message {body.message_id!r}, which does not wait.")

    def _check_reset(self, body: StepReset, event: Event) -> None:
        if not self.attempt_cseq < body.from_cseq <= event.cseq:
            raise IllegalEvent(
                f"step_reset on channel {self.id!r} from cseq {body.from_cseq}: not in this attempt."
            )
        for call in self.tools.values():
            if call.cseq < body.from_cseq <= call.last_cseq:
                raise IllegalEvent(
                    f"step_reset from cseq {body.from_cseq} would cut call {call.call_id!r} in two."
                )

    # --- folding (nothing below may fail) -------------------------------------------------------------------

    def _fold(self, body: Body, event: Event) -> None:  # noqa: C901 - one case per type of event
        match body:
            case Token() | Reasoning() | Refusal():
                self._fold_text(body, event)
            case ToolCall():
                step = self.turn.step if self.turn else (self.steps[-1].step if self.steps else 0)
                self.tools[body.call_id] = ToolState(
                    body.call_id, body.tool, event.cseq, event.cseq, step, len(self.text.parts), event.path
                )
                self.open_calls += 1
                self._delta(event)
            case ChannelStarted():
                self._restart(body, event)
            case StepStarted() if not event.path:
                self.turn = Turn(body.step, event.cseq, body.model)
                self.model = body.model or self.model
                if self.requested_ts is None:
                    self.requested_ts = event.ts
            case StepFinished():
                if not event.path and self.turn is not None:
                    self.turn.finished = body
                    self.steps.append(self.turn)
                    self.turn = None
                if body.usage is not None:
                    self.usages.setdefault((event.path, body.step), (event.cseq, body.usage))
            case UsageReport():
                self.usages[event.path, body.step] = (event.cseq, body.usage())
            case StepReset():
                self._reset(body.from_cseq)
            case Phase() if not event.path:
                self.phase = body.phase
            case MessageReceived():
                self.messages[body.message_id] = (body, None)
            case MessageApplied() | MessageReturned():
                self.messages[body.message_id] = (self.messages[body.message_id][0], event.cseq)
                if isinstance(body, MessageReturned):
                    self.returned.add(body.message_id)
            case Error():
                self.error = body
            case Done():
                self.done = body
                self.phase = None

    def _fold_text(self, body: Token | Reasoning | Refusal, event: Event) -> None:
        fold = (
            self.text
            if isinstance(body, Token)
            else self.reasoning
            if isinstance(body, Reasoning)
            else self.refusal
        )
        fold.add(body.content, event.cseq, own=not event.path)
        self._delta(event)

    def _folds(self) -> tuple[TextFold, ...]:
        return self.text, self.reasoning, self.refusal

    def _delta(self, event: Event) -> None:
        if self.first_delta is None and self.requested_ts is not None:
            self.first_delta = (event.cseq, max(0, event.ts - self.requested_ts))

    def _fold_call(self, call: ToolState, at: CallAt, body: Body, event: Event) -> None:
        call.last_cseq = event.cseq
        call.at = at
        match body:
            case ToolArgs():
                call.raw.append(body.content)
            case ToolStart():
                call.arguments = body.arguments
                call.started_ts = event.ts
            case ToolProgress():
                call.progress = body
            case ToolResult():
                call.result = body
                self.open_calls -= 1
            case ApprovalRequested():
                call.waiting = body
            case ApprovalResolved():
                call.waiting, call.decision = None, body

    def _restart(self, body: ChannelStarted, event: Event) -> None:
        """A new attempt: all of the channel before it is discarded, but not the messages sent to it."""
        if body.attempt > 1:
            for fold in self._folds():
                fold.cut(0)
            for kept in (self.tools, self.nested, self.usages):
                kept.clear()
            self.steps.clear()
            self.turn = self.phase = self.requested_ts = self.first_delta = None
            self.messages = {k: (m, None) for k, (m, _) in self.messages.items()}
        else:
            self.started_ts = event.ts
        self.attempt = body.attempt
        self.attempt_cseq = event.cseq
        self.model = body.model or self.model

    def _reset(self, from_cseq: int) -> None:
        for fold in self._folds():
            fold.cut(from_cseq)
        self.tools = {k: t for k, t in self.tools.items() if t.cseq < from_cseq}
        self.usages = {k: u for k, u in self.usages.items() if u[0] < from_cseq}
        self.steps = [s for s in self.steps if s.cseq < from_cseq]
        if self.turn is not None and self.turn.cseq >= from_cseq:
            self.turn = None
        if self.first_delta is not None and self.first_delta[0] >= from_cseq:
            self.first_delta = self.requested_ts = None
        self.nested.clear()
        self.messages = {
            k: (m, None if applied is not None and applied >= from_cseq else applied)
            for k, (m, applied) in self.messages.items()
        }

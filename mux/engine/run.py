"""One live run, as an object that does no I/O.

Like h11's connection: items of its channels and commands of its callers go in; records to append, and
actions to carry out once they are appended, come out of `Run.flush`. What the order rules don't allow raises
`IllegalEvent` and changes nothing. No task, clock or store is known here, so every order of things can be
tried without any.

A channel moves so::

    planned ──(its dependencies ended, a place is free)──▶ Start ──▶ its agent's items ──▶ ended ──▶ done
    planned ──(cancelled, or its `when` can't hold)──▶ done

How a channel ends is decided once: by who stopped it (``ending``; the first decision stands), else by what
its agent said (``outcome``), else by the exception that came out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mux._failpoints import failpoint
from mux.agent import ChannelResult, Draft, Nested, Outcome, Steering
from mux.engine.closing import closing
from mux.engine.plan import Plan, PlannedChannel
from mux.errors import AgentError, Conflict, MuxError, NotFound
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    DoneStatus,
    Event,
    MessageReceived,
    Record,
    RunFinished,
    StepReset,
    Token,
    ToolStart,
    token_records,
)
from mux.merge import Burst
from mux.run import SUCCESS, ChannelState, IllegalEvent, RunState, run_status

__all__ = [
    "Action",
    "Decided",
    "Delivered",
    "Ended",
    "Ending",
    "Finished",
    "Logged",
    "Note",
    "Run",
    "Start",
    "StatusChanged",
    "Stop",
    "StopAfterStep",
    "Turn",
    "lane",
    "run_finished",
]

Clock: TypeAlias = Callable[[], int]  # ms since the epoch
Item: TypeAlias = "Draft | Burst[str] | Ending"


def lane(channel: str) -> str:
    """The lane of a thread that a channel belongs to: a retry continues its original's."""
    return channel.partition("~")[0]


def run_finished(run: str) -> Conflict:
    """The answer to whatever needs a running run."""
    return Conflict("run_finished", f"Run {run} is finished. Start a new run on its thread instead.")


# --- what comes out -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Let the channel's agent begin."""

    channel: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the channel's agent now."""

    channel: str


@dataclass(frozen=True, slots=True)
class StopAfterStep:
    """Let the channel's agent end its step, and no more."""

    channel: str


@dataclass(frozen=True, slots=True)
class Logged:
    """What the channel's agent waits for is in the log: a tool may start, a person is asked."""

    channel: str
    key: tuple[str, str]  # event type, call_id


@dataclass(frozen=True, slots=True)
class Decided:
    """An approval is decided, and the decision is in the log."""

    channel: str
    body: ApprovalResolved


@dataclass(frozen=True, slots=True)
class Delivered:
    """A steering message is in the log: give it to the channel's agent."""

    channel: str
    message: Steering


@dataclass(frozen=True, slots=True)
class Ended:
    """The channel's ``done`` is in the log."""

    channel: str


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """The run is ``running`` or ``waiting`` from now on."""

    status: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run's last event is in the log."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log of the server."""

    level: str
    channel: str
    text: str
    fields: dict[str, Any]


Action: TypeAlias = (
    Start | Stop | StopAfterStep | Logged | Decided | Delivered | Ended | StatusChanged | Finished | Note
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn came to.

    Attributes:
        records: to append, in order.
        structural: those of them that are no tokens.
        ended: channels whose conversation is to be kept before the records are appended: the next run on
            the thread may begin as soon as they are seen.
        actions: to carry out, in order, when the records are appended.
    """

    records: Sequence[Record]
    structural: Sequence[Record]
    ended: Sequence[str]
    actions: Sequence[Action]


# --- what goes in -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ending:
    """An item of a channel: the engine ends it here, at a step's border."""

    status: DoneStatus


@dataclass(slots=True)
class _Course:
    """How one channel goes, beside what the log shows."""

    plan: PlannedChannel
    started: bool = False
    rejecting: bool = False  # it broke the rules; whatever still comes from it is dropped
    graceful: bool = False  # it was asked to end after its step
    ending: tuple[DoneStatus, MuxError | None] | None = None
    outcome: Outcome | None = None


class Run:
    """One run from its first event to its last.

    Args:
        run: its id.
        plan: its channels; `add` adds to them.
        state: the fold of its log so far.
        clock: ms since the epoch; should be steady while the run lasts.
    """

    def __init__(self, run: str, plan: Plan, *, state: RunState | None = None, clock: Clock) -> None:
        self.run = run
        self.plan = plan
        self.state = state or RunState(run)
        self._clock = clock
        self._courses = {c.id: _Course(c) for c in plan.channels}
        self._begun = False
        self._status = self.state.status
        self._records: list[Record] = []
        self._structural: list[Record] = []
        self._ended: list[str] = []
        self._actions: list[Action] = []

    # --- reading --------------------------------------------------------------------------------------------

    def channel(self, channel: str) -> PlannedChannel:
        """Raises NotFound ``channel_not_found``."""
        course = self._courses.get(channel)
        if course is None:
            raise NotFound(
                "channel_not_found",
                f"Run {self.run} has no channel {channel!r}. It has: {', '.join(self._courses)}.",
            )
        return course.plan

    @property
    def channels(self) -> Sequence[str]:
        """The ids of its channels, in order."""
        return list(self._courses)

    def done(self, channel: str) -> bool:
        """Whether a channel is over, as the log will have it."""
        state = self.state.channels.get(channel)
        return state is not None and state.done is not None

    def result(self, channel: str) -> ChannelResult:
        """How a channel stands."""
        state = self.state.channels[channel]
        error = state.error.message if state.error else None
        if error is None and state.done is not None and state.done.status not in SUCCESS:
            error = state.done.status
        return ChannelResult(
            id=channel,
            agent=state.agent,
            status=self.state.channel_status(channel),
            output=state.output(),
            error=error,
        )

    def replaced(self, channel: str) -> bool:
        """Whether the channel failed, and another attempt at its lane did not: its conversation stays."""
        if self.state.channels[channel].status in SUCCESS:
            return False
        mates = [c for c in self._courses if c != channel and lane(c) == lane(channel)]
        return any(self.done(m) and self.state.channels[m].status in SUCCESS for m in mates)

    @property
    def dirty(self) -> bool:
        """Whether `flush` has something."""
        return bool(self._records or self._actions)

    def flush(self) -> Turn:
        """What the turn came to; the next one begins empty."""
        if self._structural and (status := self.state.status) != self._status:
            self._status = status
            if status in ("running", "waiting"):
                self._actions.append(StatusChanged(status))
        turn = Turn(self._records, self._structural, self._ended, self._actions)
        self._records, self._structural, self._ended, self._actions = [], [], [], []
        return turn

    # --- the log --------------------------------------------------------------------------------------------

    def write(self, channel: str | None, draft: str | Body | Nested) -> None:
        """Mint the envelope and apply the event (a ``str`` is a token).

        Raises:
            IllegalEvent: the order rules don't allow it; nothing was changed.
        """
        state = self.state
        known = state.channels.get(channel) if channel is not None else None
        if isinstance(draft, str):
            if known is not None and known.takes_tokens:
                self._write_tokens(known, (draft,))
                return
            draft = Token.of(draft)
        path, body = (draft.path, draft.body) if isinstance(draft, Nested) else ((), draft)
        before = state.cseq if channel is None else known.cseq if known is not None else 0
        ts = max(self._clock(), state.last_ts)
        event = Event(self.run, state.seq + 1, channel, before + 1, ts, body, path)
        record = event.record()  # encoded before it is applied: what can't be encoded must not count
        state.apply(event)
        self._records.append(record)
        if type(body) is Token:
            return
        self._structural.append(record)
        if channel is not None and isinstance(body, ToolStart | ApprovalRequested):
            self._actions.append(Logged(channel, (body.type, body.call_id)))

    def _write_tokens(self, channel: ChannelState, texts: Sequence[str]) -> None:
        """`write` for tokens that came together, on a channel that ``takes_tokens``: nothing can make them
        illegal. The same records and the same fold without an `Event` between them: 0.6 µs each, not 3."""
        state = self.state
        ts = max(self._clock(), state.last_ts)
        self._records += token_records(self.run, channel.id, state.seq, channel.cseq, ts, texts, keep=True)
        state.apply_tokens(channel, texts, ts)

    # --- what channels bring --------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on channels may start."""
        self._begun = True
        self.settle()

    def take(self, channel: str, item: Item) -> None:
        """One item of a channel's agent."""
        course = self._courses[channel]
        if course.rejecting:
            return
        if isinstance(item, Burst):
            self._take_texts(channel, course, item)
        elif isinstance(item, Outcome):
            course.outcome = item
        elif isinstance(item, Ending):
            course.ending = course.ending or (item.status, None)
        else:
            self._take(channel, course, item)

    def _take_texts(self, channel: str, course: _Course, texts: Sequence[str]) -> None:
        """Tokens that came together: in one go, as soon as the channel is in the middle of its text."""
        state = self.state.channels[channel]
        for position, text in enumerate(texts):
            if course.rejecting:
                return
            if state.takes_tokens:
                self._write_tokens(state, texts[position:] if position else texts)
                return
            self._take(channel, course, text)

    def _take(self, channel: str, course: _Course, item: str | Body | Nested) -> None:
        state = self.state.channels[channel]
        if isinstance(item, StepReset):  # only the log knows the number
            start = state.step_start(item.step)
            item = item.model_copy(update={"from_cseq": start or state.cseq + 1})
        if isinstance(item, ApprovalResolved):
            call = state.tools.get(item.call_id)
            if call is None or call.waiting is None:
                return  # withdrawn when it was decided already: a matter of time, and no fault of the agent's
        try:
            self.write(channel, item)
        except IllegalEvent as e:
            self._note("warning", channel, "agent broke the order of events", reason=e.message)
            course.rejecting = True
            error = AgentError("agent_failed", f"The agent broke the order of events: {e.message}")
            course.ending = ("failed", error)
            self._actions.append(Stop(channel))

    def ended(
        self,
        channel: str,
        failure: BaseException | None = None,
        *,
        ttft_ms: int | None = None,
        cancelled_itself: bool = False,
    ) -> None:
        """A channel's agent has ended, and all that it said was taken.

        Args:
            failure: what it raised; ``None`` if it ended, or was stopped.
            ttft_ms: first delta received minus request sent.
            cancelled_itself: it raised `CancelledError` though nobody stopped it.
        """
        if cancelled_itself and failure is None and self._courses[channel].outcome is None:
            failure = AgentError("agent_failed", "The agent cancelled itself.")
        self._close(channel, failure, ttft_ms)
        self.settle()

    def _close(self, channel: str, failure: BaseException | None, ttft_ms: int | None = None) -> None:
        if self.done(channel):
            return
        course = self._courses[channel]
        status, error = self._verdict(channel, course, failure)
        state = self.state.channels[channel]
        for body in closing(state, status, error, now=self._clock(), outcome=course.outcome, ttft_ms=ttft_ms):
            self.write(channel, body)
        self._ended.append(channel)
        self._actions.append(Ended(channel))
        if status not in SUCCESS:
            for other in self._courses.values():
                if other.plan.parent == channel:
                    self.stop(other.plan.id, "cancelled")

    def _verdict(
        self, channel: str, course: _Course, failure: BaseException | None
    ) -> tuple[DoneStatus, MuxError | None]:
        if course.ending is not None:
            if isinstance(failure, TimeoutError):
                self._note("warning", channel, "agent did not stop in time; its channel ended without it")
            return course.ending
        if failure is not None and course.outcome is not None:  # it had said how it ended
            self._note("warning", channel, "agent failed after its outcome", error=repr(failure))
        elif failure is not None:
            if isinstance(failure, MuxError):
                return "failed", failure
            self._note("error", channel, "agent failed", exc_info=failure)
            name = type(failure).__name__
            return "failed", AgentError(
                "agent_failed", f"The agent failed ({name}); the server's log says where."
            )
        if course.outcome is not None:
            if course.outcome.status in ("failed", "timed_out"):
                return course.outcome.status, AgentError(
                    "agent_failed", "The agent said that it failed, and not why."
                )
            return course.outcome.status, None
        return ("cancelled" if course.graceful else "completed"), None

    def _note(self, level: str, channel: str, text: str, **fields: Any) -> None:
        self._actions.append(Note(level, channel, text, fields))

    # --- what callers ask -----------------------------------------------------------------------------------

    def stop(self, channel: str, status: DoneStatus, error: MuxError | None = None) -> None:
        """End a channel now: its model's stream is closed and its tools are stopped. Idempotent; `settle`
        closes one that has not begun."""
        course = self._courses[channel]
        if self.done(channel):
            return
        if course.ending is None and course.outcome is None:
            course.ending = (status, error)
        if course.started:
            self._actions.append(Stop(channel))

    def stop_all(self, status: DoneStatus, error: MuxError | None = None) -> None:
        """`stop` for every channel."""
        for channel in self.channels:
            self.stop(channel, status, error)
        self.settle()

    def cancel(self, *, graceful: bool, channel: str | None = None) -> None:
        """Cancel one channel, or all of them.

        Args:
            graceful: let each end its step; approvals that are open are refused, since it can't wait for a
                person.
        """
        for one in self.channels if channel is None else [channel]:
            course = self._courses[one]
            if not graceful or not course.started:
                self.stop(one, "cancelled")
                continue
            course.graceful = True
            self._actions.append(StopAfterStep(one))
            for call in list(self.state.channels[one].open_tools()):
                if call.waiting is not None:
                    self.resolve(one, ApprovalResolved(call_id=call.call_id, decision="deny", by="cancel"))
        self.settle()

    def add(self, planned: PlannedChannel) -> None:
        """One channel more. Raises IllegalEvent: the run is finished."""
        self.write(None, planned.announcement())
        self.plan = self.plan.with_channel(planned)
        course = self._courses[planned.id] = _Course(planned)
        parent = self._courses.get(planned.parent) if planned.parent is not None else None
        if parent is not None and planned.parent is not None:
            failed = self.done(planned.parent) and self.state.channels[planned.parent].status not in SUCCESS
            if parent.ending or failed:  # it was stopped while it opened this one
                course.ending = ("cancelled", None)
        self.settle()

    def resolve(self, channel: str, body: ApprovalResolved) -> None:
        """Decide about a call that waits for a person. Raises IllegalEvent: it does not wait (any more)."""
        call = self.state.channels[channel].tools.get(body.call_id)
        self.write(channel, Nested(call.path, body) if call and call.path else body)
        self._actions.append(Decided(channel, body))

    def receive(self, channel: str, body: MessageReceived) -> None:
        """Take a message for a channel. Raises IllegalEvent: it has not begun, or is over."""
        self.write(channel, body)
        message = Steering(message_id=body.message_id, content=body.content or "", mode=body.mode)
        self._actions.append(Delivered(channel, message))

    # --- order ----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Start what may start, close what can't, end the run if that was all."""
        progress = True
        while progress:
            progress = False
            for channel, course in list(self._courses.items()):
                if course.started or channel not in self.state.channels or self.done(channel):
                    continue
                if course.ending is None and self._unmet(course):
                    course.ending = ("cancelled", None)
                if course.ending is not None:
                    self._close(channel, None)
                    progress = True
                elif self._begun and self._may_start(course):
                    course.started = True
                    self._actions.append(Start(channel))
        self._finish_if_done()

    def _open(self, channels: Iterable[str]) -> bool:
        return any(not self.done(c) for c in channels)

    def _unmet(self, course: _Course) -> bool:
        """Whether its `when` can't hold any more: everything it waits for has ended, and not as it must."""
        plan = course.plan
        if plan.when == "settled" or not plan.depends_on or self._open(plan.waits_for):
            return False
        good = [self.state.channels[d].status in SUCCESS for d in plan.depends_on]
        return not (all(good) if plan.when == "all" else any(good))

    def _may_start(self, course: _Course) -> bool:
        if self._open(course.plan.waits_for):
            return False
        limit = self.plan.max_parallel
        if limit is None or course.plan.parent is not None:  # a parent that waits for it has a place already
            return True
        busy = [
            c for c in self._courses.values()
            if c.started and c.plan.parent is None and not self.done(c.plan.id)
        ]  # fmt: skip
        return len(busy) < limit

    def _finish_if_done(self) -> None:
        state = self.state
        if state.finished is not None or state.started is None or not state.all_done:
            return
        statuses = state.statuses()
        failpoint("terminal.before")
        self.write(
            None,
            RunFinished(
                status=run_status(statuses.values()),
                channels=statuses,
                usage=state.usage,
                duration_ms=max(0, self._clock() - state.first_ts),
            ),
        )
        self._actions.append(Finished())

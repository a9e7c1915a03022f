"""Drives one live run: starts channels in their order, merge → journal, closes channels and the run.

The driver alone decides how a channel ends. Whatever the reason, the order is the same: open approvals and
calls are closed, waiting messages are returned, then ``error`` (only for failed and timed_out), ``done``.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Final, cast

from mux._failpoints import failpoint
from mux.agent import Nested, Outcome
from mux.engine._tasks import uncut
from mux.engine.channel import Channel
from mux.engine.live import LiveRun, lane
from mux.errors import AgentError, MuxError, StoreError, UpstreamError
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    ChannelStarted,
    Done,
    DoneStatus,
    Error,
    MessageReturned,
    Record,
    RunFinished,
    RunStarted,
    StepReset,
    ToolErrorCode,
    ToolResult,
    ToolStart,
)
from mux.merge import END, Batch, Burst, Failed
from mux.run import SUCCESS, IllegalEvent, conversation, dump_messages, run_status

if TYPE_CHECKING:
    from mux.agent import Draft
    from mux.log.protocols import RowStatus

__all__ = ["Driver", "closing", "run_started"]

_CALL_ERRORS: Final[dict[DoneStatus, tuple[ToolErrorCode, str]]] = {
    "cancelled": ("cancelled", "The call was stopped: the channel was cancelled."),
    "timed_out": ("timeout", "The call was stopped: the channel ran out of time."),
    "refused": ("blocked", "The call was stopped by a guardrail."),
    "failed": ("interrupted", "The call was cut off: its channel failed."),
    "budget_exceeded": ("cancelled", "The call was stopped: the channel's budget is used up."),
    "completed": ("interrupted", "The agent ended before the call had a result."),
}

_BARRIERS: Final = frozenset({"tool_start", "approval_requested"})


def closing(channel: Channel, status: DoneStatus, error: MuxError | None) -> Iterator[Body | Nested]:
    """What ends a channel, in the order that always holds; ``error`` for failed and timed_out."""
    state = channel.state
    outcome = channel.outcome
    if state.at == "announced":
        yield ChannelStarted(agent=state.agent, model=state.model, attempt=1)
    yield from closed_calls(channel, *_CALL_ERRORS[status])
    if state.at != "failing":
        for message in state.pending_messages():
            yield MessageReturned(message_id=message.message_id, content=message.content, mode=message.mode)
    if error is not None and state.at != "failing":
        yield error_event(error)
    live = channel.live
    output = outcome.output if outcome is not None and outcome.output is not None else state.output()
    started = state.started_ts or live.services.clock()
    yield Done(
        status=status,
        output=output or None,
        finish_reason=outcome.finish_reason if outcome else None,
        usage=(outcome.usage if outcome else None) or state.usage,
        ttft_ms=outcome.ttft_ms if outcome and outcome.ttft_ms is not None else channel.ttft_ms,
        tokens_per_s=outcome.tokens_per_s if outcome else None,
        duration_ms=max(0, live.services.clock() - started),
        attempt=state.attempt or 1,
    )


def error_event(error: MuxError) -> Error:
    """The event for what ended a channel; a model endpoint's own status and wait go with it."""
    status = error.status if error.fault == "client" else error.extra.get("upstream_status")
    return Error(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        status=status,
        retry_after_s=error.retry_after if isinstance(error, UpstreamError) else None,
    )


def closed_calls(
    channel: Channel, error: ToolErrorCode, why: str, *, keep: Collection[str] = ()
) -> Iterator[Body | Nested]:
    """A result for every open call (but those to ``keep``), its open approval closed before."""
    for call in list(channel.state.open_tools()):
        if call.call_id in keep:
            continue
        bodies: list[Body] = []
        if call.waiting is not None:
            bodies.append(ApprovalResolved(call_id=call.call_id, decision="expired", by="engine"))
        elapsed = call.progress.elapsed_ms if call.progress is not None else 0
        bodies.append(
            ToolResult(
                call_id=call.call_id,
                tool=call.tool,
                output=why,
                is_error=True,
                error=error,
                elapsed_ms=elapsed,
            )
        )
        for body in bodies:
            yield Nested(call.path, body) if call.path else body


def _is_late(channel: Channel, draft: Draft) -> bool:
    """Whether an agent withdraws an approval that was decided meanwhile, or whose request was cut off with
    it before it was written: a matter of time, and no fault of the agent's."""
    if not isinstance(draft, ApprovalResolved):
        return False
    call = channel.state.tools.get(draft.call_id)
    return call is None or call.waiting is None


def run_started(live: LiveRun) -> RunStarted:
    """The first event."""
    return RunStarted(
        thread=live.row.thread,
        channels=[c.info() for c in live.plan.channels if not c.added],
        message=live.row.message,
        metadata=dict(live.row.metadata) or None,
    )


class Driver:
    """Runs one live run to its end. Exactly one per run, in one task."""

    def __init__(self, live: LiveRun) -> None:
        self.live = live
        self.journal = live.journal
        self._begun = False
        self._row_status = live.row.status
        self._started_at = time.monotonic()
        live.settle = self.settle

    async def drive(self) -> None:
        """From admission to the last event.

        Raises:
            StoreError: the log can't be written any more (`Fenced`: it is another owner's now).
        """
        live = self.live
        self._begun = True
        live.meter.start()
        if self.journal.state.first_ts and self.journal.state.last_ts > self.journal.state.first_ts:
            live.start_timer((self.journal.state.last_ts - self.journal.state.first_ts) / 1000)
        else:
            live.start_timer()
        recovered = any(c.attempt for c in self.journal.state.channels.values())  # somebody began it before
        live.log.info("run started", channels=len(live.channels), recovered=recovered)
        async with live.merger as merger:
            await self.settle()
            async for batch in merger:
                await self._take(batch)
                if live.state.finished is not None:
                    break

    # --- batches ------------------------------------------------------------------------------------------

    async def _take(self, batch: Batch[Draft | Burst[str]]) -> None:
        ended: list[Channel] = []
        async with self.journal.lock:
            for key, item in batch:
                channel = self.live.channels[key]
                if isinstance(item, Burst):
                    self._stage_burst(channel, item)
                elif item is END or isinstance(item, Failed):
                    await self._end(channel, item.error if isinstance(item, Failed) else None)
                    ended.append(channel)
                elif not channel.rejecting:
                    self._stage(channel, item)
            if ended:
                ended += await self._settle()
            await self._commit()
        if ended:
            await self._after(ended)

    def _stage_burst(self, channel: Channel, texts: Sequence[str]) -> None:
        """Tokens that came together: in one go, as soon as the channel is in the middle of its text."""
        for position, text in enumerate(texts):
            if channel.rejecting:
                return
            if channel.state.takes_tokens:
                self.journal.stage_tokens(channel.state, texts[position:] if position else texts)
                return
            self._stage(channel, text)

    def _stage(self, channel: Channel, item: Draft) -> None:
        if isinstance(item, Outcome):
            channel.outcome = item
            return
        if isinstance(item, StepReset):  # only the log knows the number
            start = channel.state.step_start(item.step)
            item = item.model_copy(update={"from_cseq": start or channel.state.cseq + 1})
        if _is_late(channel, item):
            return
        try:
            self.journal.stage(channel.id, item)
        except IllegalEvent as e:
            channel.log.warning("agent broke the order of events", reason=e.message)
            channel.reject(AgentError("agent_failed", f"The agent broke the order of events: {e.message}"))

    async def _commit(self) -> None:
        telling = await self.journal.commit()
        if not telling:  # tokens release no barrier and change no status, which asks every channel
            return
        for record in telling:
            if record.type in _BARRIERS and isinstance(record.body, ToolStart | ApprovalRequested):
                self._release_barrier(record, record.body)
        status = self.journal.state.status
        if status != self._row_status and status in ("running", "waiting"):
            await self._keep_status(status)

    async def _keep_status(self, status: str) -> None:
        """For lists. The log says it as well, so that a store which fails just now costs the run nothing: the
        next event that tells something tries again."""
        try:
            self.live.row = await self.live.services.store.update(self.live.run, status=status)
        except StoreError as e:
            self.live.log.warning("status could not be kept", status=status, code=e.code)
        else:
            self._row_status = cast("RowStatus", status)

    def _release_barrier(self, record: Record, body: ToolStart | ApprovalRequested) -> None:
        if record.channel is not None:
            self.live.channels[record.channel].barriers.lift((body.type, body.call_id))

    # --- ends ---------------------------------------------------------------------------------------------

    async def _end(self, channel: Channel, failure: BaseException | None) -> None:
        """Close one channel (staged; the caller commits)."""
        if channel.done:
            return
        status, error = self._verdict(channel, failure)
        if failure is not None:
            failure.__traceback__ = None  # logged; its frames hold the run, and it them
        for body in closing(channel, status, error):
            self.journal.stage(channel.id, body)
        if channel.plan.parent is None and channel.conversation:
            await self._keep_conversation(channel, status)
        if status not in SUCCESS:
            for child in self.live.channels.values():
                if child.plan.parent == channel.id:
                    child.stop("cancelled")

    def _verdict(self, channel: Channel, failure: BaseException | None) -> tuple[DoneStatus, MuxError | None]:
        if channel.ending is not None:
            if isinstance(failure, TimeoutError):
                channel.log.warning("agent did not stop in time; its channel ended without it")
            return channel.ending
        if failure is None and channel.cancelled_itself and channel.outcome is None:
            failure = AgentError("agent_failed", "The agent cancelled itself.")
        if failure is not None and channel.outcome is not None:
            # it had said how it ended, and failed while it was closed
            channel.log.warning("agent failed after its outcome", error=repr(failure))
        elif failure is not None:
            if not isinstance(failure, MuxError):
                channel.log.error("agent failed", exc_info=failure)
                name = type(failure).__name__
                failure = AgentError(
                    "agent_failed", f"The agent failed ({name}); the server's log says where."
                )
            return "failed", failure
        if channel.outcome is not None:
            status = channel.outcome.status
            if status in ("failed", "timed_out"):
                return status, AgentError("agent_failed", "The agent said that it failed, and not why.")
            return status, None
        return ("cancelled" if channel.host.stopping else "completed"), None

    async def _keep_conversation(self, channel: Channel, status: DoneStatus) -> None:
        """What was said stays for the next run on the thread; a failed lane never replaces a good retry."""
        live = self.live
        mates = [c for c in live.channels.values() if c is not channel and lane(c.id) == lane(channel.id)]
        if status not in SUCCESS and any(m.done and m.state.status in SUCCESS for m in mates):
            return
        data = dump_messages([*channel.conversation, *conversation(channel.state)])
        try:
            await live.services.store.put_conversation(live.row.thread, lane(channel.id), live.run, data)
        except StoreError as e:
            channel.log.exception("conversation could not be kept", code=e.code)

    async def _after(self, ended: Sequence[Channel]) -> None:
        """After the commit: wake who waits for these channels, and make their text findable."""
        for channel in ended:
            channel.ended.set()
            channel.release()
            done = channel.state.done
            if done is None:
                continue
            usage = done.usage
            channel.log.info(
                "channel finished",
                status=done.status,
                duration_ms=done.duration_ms,
                ttft_ms=done.ttft_ms,
                input_tokens=usage.input_tokens if usage else None,
                output_tokens=usage.output_tokens if usage else None,
                error=channel.state.error.code if channel.state.error else None,
            )
            if text := channel.state.output():
                try:
                    await self.live.services.store.index_text(self.live.run, channel.id, text)
                except MuxError as e:
                    channel.log.warning("text could not be indexed", code=e.code)

    # --- order --------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Start what may start, close what can't, end the run if that was all. Callable by anyone."""
        await uncut(self._settle_locked())

    async def _settle_locked(self) -> None:
        async with self.journal.lock:
            ended = await self._settle()
            await self._commit()
        await self._after(ended)

    async def _settle(self) -> list[Channel]:
        ended: list[Channel] = []
        progress = True
        while progress:
            progress = False
            for channel in list(self.live.channels.values()):
                if channel.started or channel.done or channel.id not in self.live.state.channels:
                    continue
                if channel.ending is None and self._unmet(channel):
                    channel.ending = ("cancelled", None)
                if channel.ending is not None:
                    await self._end(channel, None)
                    ended.append(channel)
                    progress = True
                elif self._begun and self._may_start(channel):
                    self._start(channel)
        self._finish_if_done()
        return ended

    def _open_dependencies(self, channel: Channel) -> bool:
        return any(not self.live.channels[d].done for d in channel.plan.waits_for)

    def _unmet(self, channel: Channel) -> bool:
        """Whether its `when` can't hold any more: everything it waits for has ended, and not as it must."""
        if channel.plan.when == "settled" or not channel.plan.depends_on or self._open_dependencies(channel):
            return False
        good = [self.live.channels[d].state.status in SUCCESS for d in channel.plan.depends_on]
        return not (all(good) if channel.plan.when == "all" else any(good))

    def _may_start(self, channel: Channel) -> bool:
        limit = self.live.plan.max_parallel
        if self._open_dependencies(channel):
            return False
        if (
            limit is None or channel.plan.parent is not None
        ):  # a parent that waits for it holds a slot already
            return True
        others = [
            c for c in self.live.channels.values() if c.started and not c.done and c.plan.parent is None
        ]
        return len(others) < limit

    def _start(self, channel: Channel) -> None:
        channel.log.info("channel started", resumed=channel.resuming)
        channel.start()

    def _finish_if_done(self) -> None:
        state, live = self.live.state, self.live
        if state.finished is not None or state.started is None or not state.all_done:
            return
        statuses = state.statuses()
        failpoint("terminal.before")
        self.journal.stage(
            None,
            RunFinished(
                status=run_status(statuses.values()),
                channels=statuses,
                usage=state.usage,
                duration_ms=max(0, live.services.clock() - state.first_ts),
            ),
        )
        live.merger.close()
        live.on_finished()

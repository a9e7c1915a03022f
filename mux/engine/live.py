"""One run while it is live: its journal, channels, timers, and what callers may do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

from mux.agent import ChannelRequest, ChannelResult, Draft, Message, Nested, Steering
from mux.engine._tasks import uncut
from mux.engine.channel import AHEAD, Channel
from mux.engine.intake import guards, read_channel
from mux.engine.journal import Journal
from mux.engine.meter import Meter
from mux.engine.plan import Plan, PlannedChannel, plan_channel, too_many_channels
from mux.engine.presence import Presence
from mux.engine.services import Services
from mux.engine.task import HandOver, Task, make_task
from mux.errors import AgentError, Conflict, MuxError, NotFound
from mux.events import ApprovalResolved, MessageReceived
from mux.log.protocols import RunRow
from mux.merge import Burst, Merger
from mux.requests import CancelMode, ChannelSpec
from mux.run import SUCCESS, IllegalEvent, RunState, load_messages

__all__ = ["LiveRun", "run_finished"]

# A cancelled agent has 2 x this to clean up, then its channel ends without it. Freed "within 1 s" (issue 5).
_STOP_S = 0.45


def run_finished(run: str) -> Conflict:
    """The answer to whatever needs a running run."""
    return Conflict("run_finished", f"Run {run} is finished. Start a new run on its thread instead.")


class LiveRun:
    """A run that this process drives.

    Args:
        services: the engine's surroundings.
        row: the run's row; ``plan`` is what its request holds.
        foreign_output: reads ``run/channel`` for `inputs`.
    """

    def __init__(
        self,
        services: Services,
        row: RunRow,
        plan: Plan,
        foreign_output: Callable[[str, str, str], Awaitable[HandOver]],
    ) -> None:
        self.services = services
        self.row = row
        self.run = row.run
        self.plan = plan
        self.log = services.log.bind(run=row.run, thread=row.thread)
        self.journal = Journal(row.run, services.store, services.publish, services.clock)
        self.meter = Meter(plan.budget)
        self.merger: Merger[Draft | Burst[str]] = Merger(max_buffer=AHEAD, bundled=str, stop_s=_STOP_S)
        self.channels: dict[str, Channel] = {c.id: Channel(self, c) for c in plan.channels}
        self.presence = Presence(plan.on_disconnect, self._everybody_left)
        self.ended = asyncio.Event()
        self.settle: Callable[[], Awaitable[None]] = _no_driver  # set by the driver
        self.on_finished: Callable[[], None] = lambda: None  # its last event is on its way: free its slot
        self._foreign_output = foreign_output
        self._adding = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> RunState:
        """The fold of its log."""
        return self.journal.state

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside the driver; it ends with the run at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("work beside the run failed", error=repr(error))

    # --- what a channel begins with -----------------------------------------------------------------------

    async def task_of(self, channel: Channel) -> Task:
        """History of its lane on the thread, then the task with the outputs handed over."""
        plan = channel.plan
        outputs = [self._hand_over(name) for name in plan.waits_for]
        for name in plan.inputs:
            if "/" in name:
                run, _, other = name.partition("/")
                outputs.append(await self._foreign_output(run, other, self.row.owner))
        return make_task(self.plan, plan, await self._history(plan), outputs)

    async def _history(self, plan: PlannedChannel) -> list[Message]:
        if plan.parent is not None:
            return []  # a worker opened for one task has no lane on the thread
        before = self.plan.history_before or self.run
        try:
            data = await self.services.store.conversation(self.row.thread, lane(plan.id), before)
        except NotFound:  # the run before which we look was deleted meanwhile
            data = None
        return load_messages(data) if data else []

    def _hand_over(self, name: str) -> HandOver:
        result = self.result(name)
        return HandOver(name, result.agent, result.status, result.output, result.error)

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

    # --- callers ------------------------------------------------------------------------------------------

    def channel(self, channel: str) -> Channel:
        """Raises NotFound ``channel_not_found``."""
        found = self.channels.get(channel)
        if found is None:
            raise NotFound(
                "channel_not_found",
                f"Run {self.run} has no channel {channel!r}. It has: {', '.join(self.channels)}.",
            )
        return found

    async def add_channel(
        self,
        spec: ChannelSpec | ChannelRequest,
        *,
        parent: str | None = None,
        retry_of: str | None = None,
    ) -> str:
        """Add a channel; durable before it is announced.

        Raises:
            Conflict: ``run_finished``.
            BadRequest, NotFound: as `plan_channel`; ``too_many_channels``.
        """
        return await uncut(self._add_channel(spec, parent, retry_of))

    async def _add_channel(
        self, spec: ChannelSpec | ChannelRequest, parent: str | None, retry_of: str | None
    ) -> str:
        async with self._adding:
            if self.state.finished is not None:
                raise run_finished(self.run)
            limit = self.services.settings.limits.max_channels
            if len(self.channels) >= limit:
                raise too_many_channels(limit)
            planned = plan_channel(spec, self.services.roster, self.plan, parent=parent, retry_of=retry_of)
            planned = await read_channel(planned, self.plan, guards(self.services, self.run))
            self.plan = self.plan.with_channel(planned)
            agents = tuple(dict.fromkeys((*self.row.agents, planned.agent)))
            self.row = await self.services.store.update(self.run, request=self.plan.dump(), agents=agents)
            try:
                await self.journal.write([(None, planned.announcement())])
            except IllegalEvent:
                raise run_finished(self.run) from None
            channel = self.channels[planned.id] = Channel(self, planned)
            owner = self.channels.get(parent) if parent is not None else None
            if owner is not None and (owner.ending or (owner.done and owner.state.status not in SUCCESS)):
                # it was stopped while it opened this one
                channel.stop("cancelled")
        await self.settle()
        return planned.id

    async def cancel(self, mode: CancelMode) -> None:
        """Cancel every channel."""
        for channel in list(self.channels.values()):
            self._cancel_one(channel, mode)
        await self._refuse_open_approvals(None, mode)
        await self.settle()

    async def cancel_channel(self, channel: str, mode: CancelMode) -> None:
        """Cancel one channel (idempotent); the others never notice."""
        target = self.channel(channel)
        self._cancel_one(target, mode)
        await self._refuse_open_approvals(channel, mode)
        await self.settle()

    def _cancel_one(self, channel: Channel, mode: CancelMode) -> None:
        if mode == "graceful" and channel.started:
            channel.host.stopping = True
        else:
            channel.stop("cancelled")

    async def _refuse_open_approvals(self, only: str | None, mode: CancelMode) -> None:
        """A graceful stop lets the step end, so it can't wait for a person."""
        if mode == "now":
            return
        for state in list(self.state.channels.values()):
            if only is None or state.id == only:
                for call in list(state.open_tools()):
                    if call.waiting is not None:
                        body = ApprovalResolved(call_id=call.call_id, decision="deny", by="cancel")
                        await self.resolve_approval(state.id, body, lenient=True)

    async def resolve_approval(self, channel: str, body: ApprovalResolved, *, lenient: bool = False) -> None:
        """Log a decision, then let the agent go on with it. The first one wins.

        Raises:
            Conflict: ``approval_decided``, with the winner in ``extra`` (unless ``lenient``).
        """
        await uncut(self._resolve_approval(channel, body, lenient))

    async def _resolve_approval(self, channel: str, body: ApprovalResolved, lenient: bool) -> None:
        call = self.state.channels[channel].tools.get(body.call_id)
        target = self.channels.get(channel)  # looked up now: the run may be over when this is written
        try:
            await self.journal.write([(channel, Nested(call.path, body) if call and call.path else body)])
        except IllegalEvent:
            if not lenient:
                self._raise_decided(channel, body.call_id)
            return
        if target is not None:
            target.host.decide(body)

    def _raise_decided(self, channel: str, call_id: str) -> NoReturn:
        call = self.state.channels[channel].tools.get(call_id)
        winner = call.decision if call is not None else None
        if winner is None:
            raise Conflict("approval_closed", f"Call {call_id} does not wait for approval (any more).")
        raise Conflict(
            "approval_decided",
            f"Call {call_id} was decided already: {winner.decision} by {winner.by}.",
            extra={"decision": winner.decision, "by": winner.by},
        )

    async def receive(self, channel: str, body: MessageReceived) -> None:
        """Log a steering message and hand it to the channel.

        Raises:
            Conflict: ``channel_finished`` or ``channel_not_started``.
        """
        await uncut(self._receive(channel, body))

    async def _receive(self, channel: str, body: MessageReceived) -> None:
        target = self.channels.get(channel)  # looked up now: the run may be over when this is written
        try:
            await self.journal.write([(channel, body)])
        except IllegalEvent:
            status = self.state.channel_status(channel)
            if status in ("queued", "pending"):
                raise Conflict(
                    "channel_not_started", f"Channel {channel!r} is {status}; it can't be steered yet."
                ) from None
            raise Conflict(
                "channel_finished", f"Channel {channel!r} is {status}; start a new run on its thread."
            ) from None
        message = Steering(message_id=body.message_id, content=body.content or "", mode=body.mode)
        if target is not None:
            target.host.receive(message)

    # --- timers -------------------------------------------------------------------------------------------

    def start_timer(self, elapsed_s: float = 0.0) -> None:
        """The run's own time limit begins."""
        limit = self.plan.timeout_s or self.services.settings.limits.run_timeout_s
        limit = min(limit, self.services.settings.limits.run_timeout_s)
        left = max(1.0, limit - elapsed_s) if elapsed_s else limit
        self._timer = asyncio.get_running_loop().call_later(left, self._time_out, limit)

    def _time_out(self, limit: float) -> None:
        error = AgentError(
            "timed_out", f"The run took longer than its {limit:g} s (timeout_s, limits.run_timeout_s)."
        )
        for channel in list(self.channels.values()):
            channel.stop("timed_out", error)
        self.spawn(self._settle_safely())

    def _everybody_left(self) -> None:
        self.log.info("run is cancelled: its last viewer is gone")
        self.spawn(self._cancel_safely())

    async def _cancel_safely(self) -> None:
        try:
            await self.cancel("now")
        except MuxError as e:
            self.log.warning("run could not be cancelled", code=e.code)

    async def _settle_safely(self) -> None:
        try:
            await self.settle()
        except MuxError as e:
            self.log.warning("run could not be ended", code=e.code)

    async def release(self) -> None:
        """Stop timers and whatever runs beside the driver; the run is over (or left).

        Nothing of it points in a circle afterwards, so that it goes at once: thousands of finished runs
        would wait for the collector, which looks seldom.
        """
        self.presence.close()
        if self._timer is not None:
            self._timer.cancel()
        for channel in self.channels.values():
            channel.release()
            channel.ended.set()
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.settle = _no_driver
        self.channels.clear()

    # --- reading ------------------------------------------------------------------------------------------

    async def snapshot(self, queue_position: int | None) -> dict[str, Any]:
        """As DESIGN section 5; never ahead of the log."""
        async with self.journal.lock:
            out = self.state.snapshot(epoch=self.journal.epoch, row=row_members(self.row))
        waiting = [c for c in out["channels"] if c["status"] == "queued"]
        for position, channel in enumerate(waiting, 1):
            channel["queue_position"] = queue_position if queue_position is not None else position
        if queue_position is not None:
            out["queue_position"] = queue_position
        if self.journal.lost is not None:
            out["problem"] = {"code": self.journal.lost.code, "message": self.journal.lost.message}
        return out


async def _no_driver() -> None:
    """Nobody drives the run yet; the driver looks at everything when it begins."""


def lane(channel: str) -> str:
    """The lane of a thread that a channel belongs to: a retry continues its original's."""
    return channel.partition("~")[0]


def row_members(row: RunRow) -> dict[str, Any]:
    """What the row knows better than the log."""
    return {
        "thread": row.thread,
        "title": row.title,
        "starred": row.starred,
        "metadata": dict(row.metadata),
        "created": row.created,
        "message": row.message,
        "agents": list(row.agents),
    }

"""One run as a process drives it: its claim on the log, its channels, its timers, its callers' commands.

The run itself (`mux.engine.run`) decides; this carries out what it decides, and gives its channels what they
ask for. What was decided is appended before it is carried out: `Multiplexer` sees to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mux.agent import Agent, ChannelRequest, ChannelResult, Guard, Message, Steering
from mux.clock import Clock
from mux.engine.channel import MAX_STEERING, Channel, filtered
from mux.engine.commands import Add, Answer, Cancel, Command, Retry, Steer, Watched
from mux.engine.intake import guards, read_channel
from mux.engine.meter import Meter
from mux.engine.multiplexer import Multiplexer
from mux.engine.plan import Plan, PlannedChannel, plan_channel, spec_of, too_many_channels
from mux.engine.presence import Presence
from mux.engine.run import (
    Action,
    Decided,
    Delivered,
    Ended,
    Finished,
    Logged,
    Note,
    Run,
    Start,
    StatusChanged,
    Stop,
    StopAfterStep,
    lane,
    run_finished,
)
from mux.engine.site import Site
from mux.engine.stored import Stored, summary_of
from mux.engine.task import Task, make_task
from mux.engine.tasks import Tasks
from mux.errors import AgentError, BadRequest, Conflict, MuxError, NotFound, Overloaded, StoreError
from mux.events import ApprovalResolved, MessageReceived
from mux.log.protocols import Head, RunRow
from mux.requests import ChannelSpec
from mux.run import ChannelState, IllegalEvent, RunState, conversation, dump_messages, load_messages

__all__ = ["Drive", "Owner"]

_STATUS_S = 1.0  # a status is kept in the row for lists when it has held for so long


class Owner(Protocol):
    """Whoever has a run driven."""

    def freed(self, drive: Drive) -> None:
        """The run's last event is in its log: another may take its place."""

    def over(self, drive: Drive, error: MuxError | None) -> None:
        """The run is not driven any more: it is finished, or was lost by ``error``."""


class Drive:
    """Drives one run; see `mux.engine.channel.Surroundings` and `mux.engine.multiplexer.Driven`.

    Args:
        site: the server.
        row, plan: the run.
        state: the fold of its log.
        fence, at: of the claim.
        multiplexer: where its channels are merged.
        stored: reads other runs, for `inputs`.
        owner: is told of its end.
    """

    def __init__(
        self,
        site: Site,
        row: RunRow,
        plan: Plan,
        *,
        state: RunState,
        fence: int,
        at: Head,
        multiplexer: Multiplexer,
        stored: Stored,
        owner: Owner,
    ) -> None:
        limits = site.settings.limits
        self.clock: Clock = site.run_clock()
        self.run = row.run
        self.thread = row.thread
        self.row = row
        self.fence = fence
        self.at = at
        self.machine = Run(row.run, plan, state=state, clock=self.clock)
        self.approval_s = limits.approval_s
        self.max_reply_mb = limits.max_reply_mb
        self.refusal = site.settings.refusal
        self.over = asyncio.Event()
        self.lost_by: MuxError | None = None
        self.presence = Presence(
            plan.on_disconnect, self._everybody_left, forget_s=3.5 * site.times.say_every
        )
        self._site = site
        self._multiplexer = multiplexer
        self._stored = stored
        self._owner = owner
        # A thread is its owner's: another one's with the same name is another thread. Names have no slash.
        self._own_thread = row.thread if row.owner == "local" else f"{row.owner}/{row.thread}"
        self._log = site.log.bind(run=row.run, thread=row.thread)
        self._meter = Meter(plan.budget)
        self._channels: dict[str, Channel] = {}
        self._resuming: set[str] = set()
        self._ends: dict[str, asyncio.Event] = {}
        self._adding = asyncio.Lock()
        self._tasks = Tasks()
        self._timers: list[asyncio.TimerHandle] = []
        self._applied: set[str] = set()

    # --- its life -------------------------------------------------------------------------------------------

    def join(self, *, resuming: Sequence[str] = ()) -> None:
        """Be appended to from now on.

        Args:
            resuming: channels that a crash cut off, and that go on.
        """
        self._resuming = set(resuming)
        for channel in self.machine.state.channels.values():
            self._channel(channel.id, restored=True)
        self._multiplexer.join(self)

    def begin(self) -> None:
        """Let its channels start; `join` came before."""
        state = self.machine.state
        recovered = any(c.attempt for c in state.channels.values())
        self._log.info("run started", channels=len(state.channels), recovered=recovered)
        if recovered:
            self._site.metrics.taken_over()
        self._meter.start()
        elapsed_s = (state.last_ts - state.first_ts) / 1000 if recovered else 0.0
        longest = self._site.settings.limits.run_timeout_s
        limit = min(self.machine.plan.timeout_s or longest, longest)
        left = max(1.0, limit - elapsed_s) if elapsed_s else limit
        self._later(left, lambda: self._time_out(limit))
        if recovered:
            self.presence.arm(self._site.times.come_back)
        self.machine.begin()
        self._multiplexer.flush(self.run)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call))

    def _time_out(self, limit: float) -> None:
        error = AgentError(
            "timed_out", f"The run took longer than its {limit:g} s (timeout_s, limits.run_timeout_s)."
        )
        self.machine.stop_all("timed_out", error)
        self._multiplexer.flush(self.run)

    def _everybody_left(self) -> None:
        self._log.info("run is cancelled: its last viewer is gone")
        self.machine.cancel(graceful=False)
        self._multiplexer.flush(self.run)

    async def close(self) -> None:
        """Drive it no more: nothing is appended, its channels are stopped. Idempotent."""
        self._release()
        await self._tasks.close()

    def _release(self) -> None:
        self.presence.close()
        for timer in self._timers:
            timer.cancel()
        self._multiplexer.leave(self)
        for channel in self._channels.values():
            channel.release()
        self._channels = {}  # they know it: thousands of runs that are over would wait for the collector
        for event in self._ends.values():
            event.set()
        self.over.set()

    # --- for the multiplexer --------------------------------------------------------------------------------

    def ended(self, channel: str, failure: BaseException | None) -> None:
        """See `Driven`."""
        one = self._channels[channel]
        self.machine.ended(
            channel, failure, ttft_ms=one.ttft_ms, cancelled_itself=failure is None and one.cancelled_itself
        )

    async def keep(self, channels: Sequence[str]) -> None:
        """See `Driven`. A failed lane never replaces a good retry."""
        for channel in channels:
            began = self._channels[channel].conversation
            if self.machine.channel(channel).parent is not None or not began:
                continue
            if self.machine.replaced(channel):
                continue
            data = dump_messages([*began, *conversation(self.state(channel))])
            try:
                await self._site.store.put_conversation(self._own_thread, lane(channel), self.run, data)
            except MuxError as e:
                self._log.error("conversation could not be kept", channel=channel, code=e.code)

    def lost(self, error: MuxError) -> None:
        """See `Driven`."""
        if self.lost_by is None and not self.over.is_set():
            self.lost_by = error
            self._tasks.spawn(self._leave(error))

    async def _leave(self, error: MuxError) -> None:
        self._release()
        self._owner.over(self, error)

    def perform(self, action: Action) -> None:
        """See `Driven`."""
        match action:
            case Start(channel):
                self._start(channel)
            case Stop(channel):
                self._multiplexer.cancel(self.run, channel)
            case StopAfterStep(channel):
                self._channels[channel].stop_after_step()
            case Logged(channel, key):
                self._channels[channel].logged(key)
            case Decided(channel, body):
                self._channels[channel].decided(body)
            case Delivered(channel, message):
                self._channels[channel].receive(message)
            case Ended(channel):
                self._after(channel)
            case StatusChanged(status):
                self._later(_STATUS_S, lambda: self._keep_status(status))
            case Finished():
                self.finish_row()
            case Note(level, channel, text, fields):
                getattr(self._log, level)(text, channel=channel, **fields)
                if isinstance(failure := fields.get("exc_info"), BaseException):
                    failure.__traceback__ = None  # its frames hold the agent, and more

    def _channel(self, channel: str, *, restored: bool = False) -> Channel:
        known = self._channels.get(channel)
        if known is None:
            plan = self.machine.channel(channel)
            meter = Meter(plan.budget, self._meter)
            known = self._channels[channel] = Channel(
                plan, self, meter, self._log, resuming=channel in self._resuming
            )
            if restored:
                self._restore(known, meter)
        return known

    def _restore(self, channel: Channel, meter: Meter) -> None:
        state = self.state(channel.plan.id)
        meter.restore(state)
        for message in state.pending_messages():
            channel.receive(_steering(message))
        if state.done is not None:
            self._end(channel.plan.id).set()

    def _start(self, channel: str) -> None:
        self._log.info("channel started", channel=channel, resumed=channel in self._resuming)
        one = self._channel(channel)
        one.enter(self._multiplexer.add(self.run, channel, one.source()))

    def _end(self, channel: str) -> asyncio.Event:
        return self._ends.setdefault(channel, asyncio.Event())

    def _after(self, channel: str) -> None:
        """A channel's ``done`` is in the log: wake who waits for it, and make its text findable."""
        self._end(channel).set()
        self._channel(channel).release()
        state = self.state(channel)
        done = state.done
        assert done is not None
        self._log.info(
            "channel finished",
            channel=channel,
            status=done.status,
            duration_ms=done.duration_ms,
            ttft_ms=done.ttft_ms,
            input_tokens=done.usage.input_tokens if done.usage else None,
            output_tokens=done.usage.output_tokens if done.usage else None,
            error=state.error.code if state.error else None,
        )
        self._site.metrics.channel_ended(state)
        if text := state.output():
            self._tasks.spawn(self._index(channel, text))

    async def _index(self, channel: str, text: str) -> None:
        try:
            await self._site.store.index_text(self.run, channel, text)
        except MuxError as e:
            self._log.warning("text could not be indexed", channel=channel, code=e.code)

    def _keep_status(self, status: str) -> None:
        if self.machine.state.status == status:
            self._tasks.spawn(self._update(status=status))

    async def _update(self, **changes: Any) -> None:
        """For lists. The log says it as well, so that a store which fails just now costs the run nothing."""
        try:
            self.row = await self._site.store.update(self.run, **changes)
        except MuxError as e:
            self._log.warning("row could not be kept", changes=sorted(changes), code=e.code)

    def finish_row(self) -> None:
        """Its last event is in the log already: only the row has to be told."""
        self._owner.freed(self)
        self._tasks.spawn(self._finish())

    async def _finish(self) -> None:
        """After its last event: the row, for lists and retention."""
        state = self.machine.state
        assert state.finished is not None
        self._log.info("run finished", status=state.finished.status, duration_ms=state.finished.duration_ms)
        self._site.metrics.run_ended(state.finished.status, state.finished.duration_ms)
        error: MuxError | None = None
        try:
            self.row = await self._site.store.update(
                self.run,
                status=state.finished.status,
                finished=state.last_ts,
                summary=summary_of(state, self.at.epoch),
            )
        except NotFound:
            pass  # deleted meanwhile
        except StoreError as e:
            error = e
        self._release()
        self._owner.over(self, error)

    # --- for its channels -----------------------------------------------------------------------------------

    def agent(self, name: str) -> Agent:
        """See `Surroundings`."""
        return self._site.roster.get(name)

    def guard(self, agent: str, channel: str) -> Guard:
        """See `Surroundings`."""
        return self._site.guard_for(self.agent(agent), self.run, channel)

    def state(self, channel: str) -> ChannelState:
        """See `Surroundings`."""
        return self.machine.state.channels[channel]

    async def task(self, channel: str) -> Task:
        """See `Surroundings`."""
        plan = self.machine.channel(channel)
        outputs = [self._stored.hand_over(name, self.machine.result(name)) for name in plan.waits_for]
        for name in plan.inputs:
            if "/" in name:
                run, _, other = name.partition("/")
                outputs.append(await self._stored.output(run, other, self.row.owner))
        return make_task(self.machine.plan, plan, await self._history(plan), outputs)

    async def _history(self, plan: PlannedChannel) -> list[Message]:
        if plan.parent is not None:
            return []  # a worker opened for one task has no lane on the thread
        before = self.machine.plan.history_before or self.run
        try:
            data = await self._site.store.conversation(self._own_thread, lane(plan.id), before)
        except NotFound:  # the run before which we look was deleted meanwhile
            data = None
        return load_messages(data) if data else []

    async def open_channel(self, request: ChannelRequest, parent: str) -> str:
        """See `Surroundings`."""
        return await self._add(ChannelSpec.model_validate(request.model_dump()), parent=parent)

    def stop_below(self, parent: str, channel: str) -> None:
        """See `Surroundings`."""
        above: str | None = channel
        while above is not None and above != parent:
            above = self.machine.channel(above).parent if above in self.machine.channels else None
        if above is not None and channel != parent:
            self.machine.cancel(graceful=False, channel=channel)
            self._multiplexer.flush(self.run)

    def results(self) -> Sequence[ChannelResult]:
        """See `Surroundings`."""
        return [self.machine.result(c) for c in self.machine.channels]

    async def result(self, channel: str, *, wait: bool) -> ChannelResult:
        """See `Surroundings`."""
        self.machine.channel(channel)
        if wait:
            await self._end(channel).wait()
        return self.machine.result(channel)

    async def expire_approval(self, channel: str, call_id: str) -> None:
        """See `Surroundings`."""
        try:
            self.machine.resolve(channel, ApprovalResolved(call_id=call_id, decision="expired", by="expiry"))
        except IllegalEvent:  # decided in this very moment
            return
        self._multiplexer.flush(self.run)

    # --- for its callers ------------------------------------------------------------------------------------

    async def apply(self, command_id: str, command: Command) -> str | None:
        """Apply a command; what it did is in the log when this returns. Once for each id, however often it
        is delivered.

        Raises:
            MuxError: it can't be applied; nothing was changed.
        """
        if command_id in self._applied:
            return None
        match command:
            case Watched(front=front, viewers=viewers, back_s=back_s):
                self.presence.watched(front, viewers, back_s)
                return None
            case Cancel(mode=mode, channel=channel):
                self._cancel(mode == "graceful", channel)
                value = None
            case Add(spec=spec):
                value = await self._add(spec)
            case Retry(channel=channel, model=model):
                value = await self._retry(channel, model)
            case Steer():
                value = await self._steer(command)
            case Answer():
                value = await self._answer(command)
        self._applied.add(command_id)
        await self._written()
        return value

    async def _written(self) -> None:
        self._multiplexer.flush(self.run)
        await self._multiplexer.wait_appended(self.run)

    def _cancel(self, graceful: bool, channel: str | None) -> None:
        if channel is not None:
            self.machine.channel(channel)
        self._log.info("run is being cancelled", graceful=graceful, channel=channel)
        self.machine.cancel(graceful=graceful, channel=channel)

    async def _add(self, spec: ChannelSpec, *, parent: str | None = None, retry_of: str | None = None) -> str:
        """Add a channel; durable before it is announced.

        Raises:
            Conflict: ``run_finished``.
            BadRequest, NotFound: as `plan_channel`; ``too_many_channels``.
        """
        async with self._adding:
            if self.machine.state.finished is not None:
                raise run_finished(self.run)
            limit = self._site.settings.limits.max_channels
            if len(self.machine.channels) >= limit:
                raise too_many_channels(limit)
            plan = self.machine.plan
            planned = plan_channel(spec, self._site.roster, plan, parent=parent, retry_of=retry_of)
            planned = await read_channel(planned, plan, guards(self._site, self.run))
            agents = tuple(dict.fromkeys((*self.row.agents, planned.agent)))
            request = plan.with_channel(planned).dump()
            self.row = await self._site.store.update(self.run, request=request, agents=agents)
            try:
                self.machine.add(planned)
            except IllegalEvent:
                raise run_finished(self.run) from None
            self._channel(planned.id)
            await self._written()
            return planned.id

    async def _retry(self, channel: str, model: str | None) -> str:
        spec = spec_of(self.machine.channel(channel))
        if model is not None:
            spec = spec.model_copy(update={"model": model})
        return await self._add(spec, retry_of=channel)

    async def _steer(self, command: Steer) -> str:
        self.machine.channel(command.channel)
        target = self._channel(command.channel)
        if len(target.inbox) >= MAX_STEERING:
            raise Overloaded(
                "too_many_messages",
                f"{MAX_STEERING} messages wait on channel {command.channel!r}.",
                retry_after=5.0,
            )
        verdict = await target.guard.input(command.content)
        if verdict.action == "blocked":
            raise BadRequest("message_blocked", "A guardrail of this server stopped the message.")
        content = verdict.value if verdict.action == "masked" else command.content
        body = MessageReceived(message_id=command.message_id, content=content, mode=command.mode)
        try:
            self.machine.receive(command.channel, body)
        except IllegalEvent:
            raise self._not_steerable(command.channel) from None
        return command.message_id

    def _not_steerable(self, channel: str) -> Conflict:
        status = self.machine.state.channel_status(channel)
        if status in ("queued", "pending"):
            return Conflict(
                "channel_not_started", f"Channel {channel!r} is {status}; it can't be steered yet."
            )
        return Conflict(
            "channel_finished", f"Channel {channel!r} is {status}; start a new run on its thread."
        )

    async def _answer(self, command: Answer) -> str:
        call_id, answer = command.call_id, command.answer
        found = next((c for c in self.machine.state.channels.values() if call_id in c.tools), None)
        if found is None:
            raise NotFound("call_not_found", f"Run {self.run} has no call {call_id!r}.")
        body = ApprovalResolved(
            call_id=call_id,
            decision=answer.decision,
            by=command.by,
            arguments=answer.arguments if answer.decision == "edit" else None,
            reason=answer.reason,
        )
        clean = await filtered(self._channel(found.id).guard, body)
        if not isinstance(clean, ApprovalResolved):
            raise BadRequest(
                "answer_blocked", "A guardrail of this server stopped the arguments or the reason."
            )
        try:
            self.machine.resolve(found.id, clean)
        except IllegalEvent:
            raise self._decided(found, call_id) from None
        return found.id

    def _decided(self, channel: ChannelState, call_id: str) -> Conflict:
        winner = channel.tools[call_id].decision
        if winner is None:
            return Conflict("approval_closed", f"Call {call_id} does not wait for approval (any more).")
        return Conflict(
            "approval_decided",
            f"Call {call_id} was decided already: {winner.decision} by {winner.by}.",
            extra={"decision": winner.decision, "by": winner.by},
        )


def _steering(message: MessageReceived) -> Steering:
    return Steering(message_id=message.message_id, content=message.content or "", mode=message.mode)

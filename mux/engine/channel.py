"""One channel's agent: the task that iterates it, what it is given, and where what it says goes.

Two tasks work on a channel. The *agent task* iterates the agent into the channel's *outlet*; being cancelled
is how an agent is stopped. The merge's pump runs :meth:`Channel.source`, which begins the channel and ends
as its agent ends. Where nothing is guarded, the outlet is the merge itself, so that no queue and no turn of
the loop lies between what an agent says and its being appended. Where something is, the outlet is an outbox,
and the pump carries what the guardrails leave: outbox → guardrails → merge.

A channel never writes to the log and never decides how it ends: its run does (`mux.engine.run`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeAlias

import structlog

from mux.agent import (
    Agent,
    AgentContext,
    ChannelRequest,
    ChannelResult,
    Decision,
    Draft,
    Guard,
    Message,
    Nested,
    OpenGuard,
    Outcome,
    Said,
    Steering,
)
from mux.engine.meter import Meter, stricter
from mux.engine.outbox import Outbox
from mux.engine.plan import Asked, PlannedChannel
from mux.engine.run import Ending
from mux.engine.task import Checked, Task, checked
from mux.errors import AgentError, BadRequest
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    ChannelAdded,
    ChannelStarted,
    Custom,
    Done,
    DoneStatus,
    Error,
    GuardrailHit,
    MessageApplied,
    MessageReceived,
    MessageReturned,
    Phase,
    Reasoning,
    Refusal,
    RunFinished,
    RunStarted,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
)
from mux.merge import Burst, Port
from mux.run import ChannelState, resume_point

__all__ = ["AHEAD", "MAX_STEERING", "Channel", "Item", "Surroundings", "filtered"]

# Drafts that an agent may be ahead of what its run's log takes next: what is paid once for a burst is little
# enough (64: 8 % more CPU an event; 256: 6 % less).
AHEAD: Final = 128
MAX_STEERING: Final = 100  # messages that may wait on one channel; then steering answers 429
# the engine's own; what users wrote (Message*) would also pass the guardrails unread
_RESERVED: Final = (
    ChannelAdded, ChannelStarted, Done, Error, MessageApplied, MessageReceived, MessageReturned, RunFinished,
    RunStarted,
)  # fmt: skip
_COUNTED: Final = (Token, Reasoning, Refusal, ToolArgs)

Item: TypeAlias = Draft | Burst[str] | Ending
Outlet: TypeAlias = Outbox | Port[Item]

_agents: set[asyncio.Task[None]] = set()


class Surroundings(Protocol):
    """What a channel needs of its run and of the server."""

    run: str
    thread: str
    approval_s: float
    max_reply_mb: float
    refusal: str
    clock: Callable[[], int]

    def agent(self, name: str) -> Agent:
        """Raises NotFound ``agent_unknown``."""

    def guard(self, agent: str, channel: str) -> Guard:
        """The channel's guardrails. Raises ConfigError if its agent names some that don't exist."""

    def state(self, channel: str) -> ChannelState:
        """The channel as the log has it."""

    async def task(self, channel: str) -> Task:
        """What it is asked: history of its lane on the thread, then the task with outputs handed over."""

    async def open_channel(self, request: ChannelRequest, parent: str) -> str:
        """Add a channel to the run."""

    def stop_below(self, parent: str, channel: str) -> None:
        """Cancel a channel that this one opened, or one below it."""

    def results(self) -> Sequence[ChannelResult]:
        """How the run's channels stand."""

    async def result(self, channel: str, *, wait: bool) -> ChannelResult:
        """How a channel stands, or ended. Raises NotFound ``channel_not_found``."""

    async def expire_approval(self, channel: str, call_id: str) -> None:
        """Nobody decided in time."""


def _reports_usage(_: str | None) -> bool:
    return False


class _Over:
    """The surroundings of a channel whose run is over."""

    def __getattr__(self, name: str) -> Any:
        raise AgentError("channel_ended", "The channel's run is over; nothing can be added to it.")


_OVER: Final[Any] = _Over()


class _Cut(Exception):
    """The agent was cancelled, by itself: there is no end to its answer."""


class _Stopped(Exception):
    """The engine ends the agent at a step's border (graceful stop, or a budget that the agent ignored)."""


def _bare(said: Said) -> Said | str:
    """A token of the channel's own as its bare, plain text, which is how it goes through the engine."""
    return str.__str__(said.content) if isinstance(said, Token) and type(said) is Token else said


async def _end_of(agent_task: asyncio.Task[None]) -> None:
    """Wait for the agent's end. Raises what it raised, `_Cut` if it was cancelled."""
    if not agent_task.done():
        await asyncio.wait([agent_task])
    if agent_task.cancelled():
        raise _Cut
    if (error := agent_task.exception()) is not None:
        raise error


class Channel:
    """One channel's agent, and what the engine does for it (`mux.agent.Host`).

    Args:
        plan: what the channel is.
        around: its run and the server.
        meter: counts what it uses.
        resuming: its agent was cut off by a crash, and goes on.

    Attributes:
        conversation: what its agent began with, once it runs.
        ttft_ms: first delta received minus request sent.
        stopping: a graceful stop was asked for: end after this step.
        inbox: steering messages that are in the log and not applied yet.
    """

    def __init__(
        self,
        plan: PlannedChannel,
        around: Surroundings,
        meter: Meter,
        log: structlog.typing.FilteringBoundLogger,
        *,
        resuming: bool = False,
    ) -> None:
        self.plan = plan
        self.conversation: tuple[Message, ...] = ()
        self.ttft_ms: int | None = None
        self.stopping = False
        self.inbox: list[Steering] = []
        self._around = around
        self._meter = meter
        self._log = log.bind(channel=plan.id, agent=plan.agent)
        self._resuming = resuming
        self._guard: Guard | None = None
        self._outlet: Outlet | None = None
        self._agent_task: asyncio.Task[None] | None = None
        self._logged: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._decisions: dict[str, asyncio.Future[Decision]] = {}
        self._interrupt = asyncio.Event()
        self._bytes = 0
        self._max_bytes = int(around.max_reply_mb * 1_048_576)
        self._begun = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ending: DoneStatus | None = None  # the engine ends it, and not its agent

    @property
    def guard(self) -> Guard:
        """The channel's guardrails, also before its agent runs (again)."""
        if self._guard is None:
            self._guard = self._around.guard(self.plan.agent, self.plan.id)
        return self._guard

    @property
    def _state(self) -> ChannelState:
        return self._around.state(self.plan.id)

    @property
    def cancelled_itself(self) -> bool:
        """Its agent raised `CancelledError` though nobody stopped it."""
        return self._agent_task is not None and self._agent_task.done() and self._agent_task.cancelled()

    # --- what its run does ----------------------------------------------------------------------------------

    def enter(self, port: Port[Item]) -> None:
        """Its source is in the merge, where this is its port."""
        self._outlet = port

    def logged(self, key: tuple[str, str]) -> None:
        """What its agent waits for is in the log; nothing happens if nobody waits."""
        waiter = self._logged.get(key)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def decided(self, body: ApprovalResolved) -> None:
        """An approval was resolved, and that is in the log: let the agent go on."""
        waiting = self._decisions.get(body.call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(_as_decision(body))

    def receive(self, message: Steering) -> None:
        """A message for the agent is in the log."""
        self.inbox.append(message)
        if message.mode == "interrupt":
            self._interrupt.set()

    def stop_after_step(self) -> None:
        """End at the next border of a step."""
        self.stopping = True

    def release(self) -> None:
        """The channel is over: nobody waits here any more."""
        if self._timer is not None:
            self._timer.cancel()
        for waiting in self._decisions.values():
            waiting.cancel()
        self._around = _OVER  # its agent may hold on to its context, and must not hold the run with it

    # --- running --------------------------------------------------------------------------------------------

    async def source(self) -> AsyncIterator[Item]:
        """The channel from its start to its agent's end, and what it says that does not go into the merge by
        the outlet. Raises what its agent raised, after everything that it said."""
        agent = self._around.agent(self.plan.agent)
        guard = self.guard
        if self._state.at == "announced":
            model = self.plan.model or getattr(agent, "model", None)
            counted = getattr(agent, "estimates_usage", _reports_usage)(self.plan.model) or None
            yield ChannelStarted(agent=self.plan.agent, model=model, attempt=1, usage_estimated=counted)
        verdict = await self._checked_task(guard)
        safe = verdict.task
        if not self._resumes(agent):  # they are in the log already
            for rule in verdict.rules:
                yield GuardrailHit(rule=rule, stage="input", action="masked" if safe else "blocked")
        if safe is None:
            text = verdict.refusal or self._around.refusal
            yield Refusal(content=text)
            yield Outcome(status="refused", output=text)
            return
        self._log.debug("channel task ready", rules=verdict.rules)
        self.conversation = safe.messages
        ctx = self._context(agent, safe)
        ctx.guard = guard
        box = None if type(guard) is OpenGuard else Outbox(AHEAD)
        self._outlet = outlet = box or self._outlet
        assert outlet is not None
        self._agent_task = asyncio.create_task(
            self._iterate(agent, ctx, outlet), name=f"agent-{self._around.run}-{self.plan.id}"
        )
        self._watch_seconds()
        try:
            if box is None:
                await _end_of(self._agent_task)
            else:
                async for draft in guard.stream(self._guarded(box, self._agent_task)):
                    yield _bare(draft)
        except _Cut:
            pass  # its run sees `cancelled_itself`
        finally:
            await self._stop_agent()
        if self._ending is not None:
            yield Ending(self._ending)

    async def _checked_task(self, guard: Guard) -> Checked:
        """What it is asked, if it may be: what the rules found before it was kept, and what they find now,
        when other channels' outputs stand with it."""
        asked = self.plan.asked or Asked()
        if asked.blocked:
            return Checked(None, asked.rules, asked.refusal)
        now = await checked(await self._around.task(self.plan.id), guard)
        return replace(now, rules=tuple(dict.fromkeys((*asked.rules, *now.rules))))

    async def _guarded(
        self, box: Outbox, agent_task: asyncio.Task[None]
    ) -> AsyncIterator[Draft | Burst[str]]:
        """What the agent says, ending as the agent ends: the guardrails pass held-back text on at the end of
        an answer, and must not take a failure for one."""
        try:
            async for draft in box:
                yield draft
            await _end_of(agent_task)
        finally:
            box.close()
            await self._stop_agent()

    async def _stop_agent(self) -> None:
        if self._outlet is not None:
            self._outlet.finish()
        for waiter in self._logged.values():
            waiter.cancel()
        self._logged.clear()
        task = self._agent_task
        if task is None:
            return
        if not task.done():
            _agents.add(task)  # an agent that does not stop outlives its run; it must not be collected
            task.add_done_callback(_agents.discard)
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.debug("agent ended with an error", error=repr(error))  # that it was stopped, most often

    def _resumes(self, agent: Agent) -> bool:
        return self._resuming and getattr(agent, "resumable", "fail") == "resume"

    def _context(self, agent: Agent, task: Task) -> AgentContext:
        plan, state = self.plan, self._state
        self._meter.limit(stricter(plan.budget, getattr(agent, "budget", None)))
        return AgentContext(
            run=self._around.run,
            thread=self._around.thread,
            channel=plan.id,
            agent=plan.agent,
            task=task.text,
            messages=task.messages,
            host=self,
            attempt=state.attempt or 1,
            model=plan.model,
            instructions=plan.instructions,
            params=plan.params or {},
            tools=None if plan.tools is None else frozenset(plan.tools),
            client_tools=plan.client_tools or (),
            budget=self._meter.budget,
            resume=resume_point(state) if self._resumes(agent) else None,
            log=self._log,
        )

    def _watch_seconds(self) -> None:
        """Agents with steps end cleanly at the step's end; one without steps has none, and is stopped."""
        seconds = self._meter.seconds
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._seconds_over)

    def _seconds_over(self) -> None:
        state = self._state
        if not state.steps and state.turn is None and self._agent_task is not None:
            self._ending = "budget_exceeded"
            self._agent_task.cancel()

    async def _iterate(self, agent: Agent, ctx: AgentContext, outlet: Outlet) -> None:
        """The agent task: the agent into the outlet."""
        self._begun = time.monotonic()
        drafts: AsyncIterator[Draft] | None = None
        offer, limit = outlet.offer, self._max_bytes
        try:
            drafts = agent.run(ctx)
            async for draft in drafts:
                text = draft.content if type(draft) is Token else draft
                if type(text) is str:  # the hot path: one call and no coroutine for each
                    self._bytes += len(text) if text.isascii() else len(text.encode())
                    if self._bytes > limit or self.ttft_ms is None:
                        self._counted()
                    if not offer(text):
                        await outlet.put(text)
                else:
                    await self.emit(draft)
        except _Stopped:
            pass
        finally:
            try:
                aclose = getattr(drafts, "aclose", None)
                if aclose is not None:
                    await aclose()
            finally:
                outlet.finish()

    # --- what it says ---------------------------------------------------------------------------------------

    def offer(self, draft: str | Reasoning) -> bool:
        """See `mux.agent.Host`."""
        text = draft if isinstance(draft, str) else draft.content
        size = len(text) if text.isascii() else len(text.encode())
        if self._outlet is None or self.ttft_ms is None or self._bytes + size > self._max_bytes:
            return False
        if not self._outlet.offer(draft):
            return False
        self._bytes += size
        return True

    async def emit(self, draft: Draft) -> None:
        """Take one draft from the agent (or from beside it); waits while the channel is held back.

        A `tool_start` returns only when it is in the log: a tool that may have begun is known to have, also
        after a crash. The same for a request for approval.

        Raises:
            AgentError: ``agent_failed`` for what agents may not say, ``reply_too_large``, ``channel_ended``.
        """
        body: Draft = draft.body if isinstance(draft, Nested) else draft
        if isinstance(body, str):
            draft = str.__str__(body)  # of a subclass (an enum's member): its plain text
            self._count(draft)
        elif isinstance(body, _COUNTED):
            self._count(body.content)
        elif isinstance(body, Body):
            await self._emit_other(draft, body)
            return
        elif not isinstance(body, Outcome):
            raise AgentError(
                "agent_failed", f"The agent yielded a {type(draft).__name__}, which is no event."
            )
        await self._open_outlet().put(_bare(draft))

    def _open_outlet(self) -> Outlet:
        if self._outlet is None:
            raise AgentError("channel_ended", "The channel's agent does not run; nothing can be added to it.")
        return self._outlet

    async def _emit_other(self, draft: Draft, body: Body) -> None:
        if isinstance(body, _RESERVED):
            raise AgentError(
                "agent_failed", f"The agent yielded {body.type!r}, which only the engine writes."
            )
        outlet = self._open_outlet()
        if isinstance(body, StepStarted) and draft is body:
            self._step_border()
            self._begun = time.monotonic()  # the request is being sent: ttft counts from here
        if draft is body:
            self._meter.see(body)
        if isinstance(body, ToolCall) and self.ttft_ms is None:
            self.ttft_ms = self._since_begun()
        if isinstance(body, ToolStart | ApprovalRequested):
            await self._put_logged(outlet, draft, (body.type, body.call_id))
            return
        if isinstance(body, ToolProgress | ToolResult):
            self._count((body.content if isinstance(body, ToolProgress) else body.output) or "", text=False)
        await outlet.put(draft)

    def _step_border(self) -> None:
        if self.stopping:
            self._ending = "cancelled"
        elif self._meter.exceeded() is not None:
            self._ending = "budget_exceeded"
        else:
            return
        raise _Stopped

    def _count(self, content: str, *, text: bool = True) -> None:
        self._bytes += len(content) if content.isascii() else len(content.encode())
        self._counted(text=text)

    def _counted(self, *, text: bool = True) -> None:
        if text and self.ttft_ms is None:
            self.ttft_ms = self._since_begun()
        if self._bytes > self._max_bytes:
            raise AgentError(
                "reply_too_large",
                f"The reply was cut at {self._around.max_reply_mb:g} MiB (limits.max_reply_mb).",
            )

    def _since_begun(self) -> int:
        return round((time.monotonic() - self._begun) * 1000)

    async def _put_logged(self, outlet: Outlet, draft: Draft, key: tuple[str, str]) -> None:
        """Put a draft and wait until it is in the log."""
        waiter = self._logged[key] = asyncio.get_running_loop().create_future()
        try:
            await outlet.put(draft)
            await waiter
        finally:
            self._logged.pop(key, None)

    # --- other channels -------------------------------------------------------------------------------------

    async def open_channel(self, request: ChannelRequest) -> str:
        # what an agent writes into the run's own events passes its guardrails like all that it says
        named = Custom(name="open_channel", value={"id": request.id, "title": request.title})
        if await filtered(self.guard, named) != named:
            raise BadRequest(
                "channel_blocked", "A guardrail of this server stopped the channel's title or id."
            )
        return await self._around.open_channel(request, self.plan.id)

    async def channel_result(self, channel: str, *, wait: bool) -> ChannelResult:
        if wait and channel == self.plan.id:
            raise BadRequest("waits_for_itself", "A channel can't wait for its own result.")
        return await self._around.result(channel, wait=wait)

    def stop_channel(self, channel: str) -> None:
        self._around.stop_below(self.plan.id, channel)

    def channels(self) -> Sequence[ChannelResult]:
        return [r for r in self._around.results() if r.id != self.plan.id]

    # --- approvals ------------------------------------------------------------------------------------------

    async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
        call = self._state.tools.get(call_id)
        if call is not None and call.decision is not None and call.waiting is None:
            return _as_decision(call.decision)  # made before a restart
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._decisions[call_id] = decided
        try:
            if call is not None and call.waiting is not None:
                expires_at = call.waiting.expires_at  # asked before a restart, and still open
            else:
                expires_at = self._around.clock() + round(self._around.approval_s * 1000)
                await self.emit(Phase(phase="waiting"))
                await self.emit(
                    ApprovalRequested(call_id=call_id, tool=tool, arguments=arguments, expires_at=expires_at)
                )
            left_s = max(0.0, (expires_at - self._around.clock()) / 1000)
            done, _ = await asyncio.wait([decided], timeout=left_s)
            if not done:
                await self._around.expire_approval(self.plan.id, call_id)
            decision = await decided
        finally:
            self._decisions.pop(call_id, None)
        if not self._decisions:
            await self.emit(Phase(phase="tool_executing"))
        return decision

    # --- steering -------------------------------------------------------------------------------------------

    def take_messages(self, *, at_end: bool) -> Sequence[Steering]:
        due = [m for m in self.inbox if at_end or m.mode != "queue"]
        self.inbox = [m for m in self.inbox if m not in due]
        self._interrupt.clear()
        for message in due:
            body = MessageApplied(message_id=message.message_id, content=message.content, mode=message.mode)
            self._open_outlet().force(body)  # bounded by MAX_STEERING
        return due

    def interrupted(self) -> bool:
        return self._interrupt.is_set()

    async def interruption(self) -> None:
        await self._interrupt.wait()

    def budget_exceeded(self) -> str | None:
        return self._meter.exceeded()


async def filtered(guard: Guard, body: Body) -> Body | None:
    """What a channel's guardrails leave of one event that does not come from its agent's own stream;
    ``None`` if they block it (and have logged so)."""

    async def alone() -> AsyncIterator[Draft]:
        yield body

    kept = None
    async for draft in guard.stream(alone()):
        kept = draft if type(draft) is type(body) else kept
    return kept if isinstance(kept, Body) else None


def _as_decision(body: ApprovalResolved) -> Decision:
    return Decision(decision=body.decision, by=body.by, arguments=body.arguments, reason=body.reason)

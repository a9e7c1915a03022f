"""One channel while its run is live: it iterates its agent and offers what the agent says to the merge.

Two tasks work on a channel. The *agent task* iterates the agent into the channel's *outlet*; being cancelled
is how an agent is stopped. The merger's pump runs :meth:`Channel.source`, which begins the channel and ends
as its agent ends. Where nothing is guarded, the outlet is the merge itself, so that no queue and no turn of
the loop lies between what an agent says and its being logged. Where something is, the outlet is an outbox,
and the pump carries what the guardrails leave: outbox → guardrails → merge.

A channel never writes to the log and never decides how it ends: the driver does, from ``ending`` (somebody
stopped it), ``outcome`` (what the agent said) or the exception that came out of the source.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from mux.agent import Agent, AgentContext, Draft, Guard, Nested, OpenGuard, Outcome, Said
from mux.engine.barriers import Barrier, Barriers
from mux.engine.host import ChannelHost
from mux.engine.meter import Meter, stricter
from mux.engine.outbox import Outbox
from mux.engine.plan import Asked, PlannedChannel
from mux.engine.task import Checked, Task, checked
from mux.errors import AgentError, MuxError
from mux.events import (
    ApprovalRequested,
    Body,
    ChannelAdded,
    ChannelStarted,
    Done,
    DoneStatus,
    Error,
    GuardrailHit,
    MessageApplied,
    MessageReceived,
    MessageReturned,
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

if TYPE_CHECKING:
    from mux.agent import Message
    from mux.engine.live import LiveRun

__all__ = ["AHEAD", "Channel"]

# Drafts that an agent may be ahead of what its run's log takes next: what is paid once for a burst is little
# enough (64: 8 % more CPU an event; 256: 6 % less).
AHEAD: Final = 128
# the engine's own; what users wrote (Message*) would also pass the guardrails unread
_RESERVED: Final = (
    ChannelAdded, ChannelStarted, Done, Error, MessageApplied, MessageReceived, MessageReturned, RunFinished,
    RunStarted,
)  # fmt: skip
_COUNTED: Final = (Token, Reasoning, Refusal, ToolArgs)

Outlet: TypeAlias = Outbox | Port[Draft | Burst[str]]


_agents: set[asyncio.Task[None]] = set()


def _bare(said: Said) -> Said | str:
    """A token of the channel's own as its bare, plain text, which is how it goes through the engine."""
    return str.__str__(said.content) if isinstance(said, Token) and type(said) is Token else said


def _reports_usage(_: str | None) -> bool:
    return False


class _Cut(Exception):
    """The agent was cancelled, by itself: there is no end to its answer."""


class _Stopped(Exception):
    """The engine ends the agent at a step's border (graceful stop, or a budget that the agent ignored)."""


async def _end_of(agent_task: asyncio.Task[None]) -> None:
    """Wait for the agent's end. Raises what it raised, `_Cut` if it was cancelled."""
    if not agent_task.done():
        await asyncio.wait([agent_task])
    if agent_task.cancelled():
        raise _Cut
    if (error := agent_task.exception()) is not None:
        raise error


class Channel:
    """The engine's side of one channel.

    Attributes:
        ending: how it ends, decided by somebody other than its agent; the first decision stands.
        outcome: what its agent yielded last.
        barriers: drafts whose givers wait until the driver has appended them.
        outlet: where what its agent says goes, from `start` on.
        rejecting: it broke the rules; whatever still comes from it is dropped.
    """

    def __init__(self, live: LiveRun, plan: PlannedChannel) -> None:
        self.live = live
        self.plan = plan
        self.id = plan.id
        self.host = ChannelHost(self)
        self.meter = Meter(plan.budget, live.meter)
        self.barriers = Barriers()
        self.outlet: Outlet
        self.conversation: tuple[Message, ...] = ()  # what it began with, once it runs
        self.ended = asyncio.Event()
        self.ending: tuple[DoneStatus, MuxError | None] | None = None
        self.outcome: Outcome | None = None
        self.started = False  # its source is in the merge
        self.rejecting = False
        self.resuming = False
        self.ttft_ms: int | None = None
        self._agent_task: asyncio.Task[None] | None = None
        self._guard: Guard | None = None
        self._bytes = 0
        self._max_bytes = int(live.services.settings.limits.max_reply_mb * 1_048_576)
        self._begun = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.log = live.log.bind(channel=plan.id, agent=plan.agent)

    @property
    def state(self) -> ChannelState:
        """Its fold."""
        return self.live.state.channels[self.id]

    @property
    def done(self) -> bool:
        """Whether it is over, as the log will have it."""
        return self.state.done is not None

    @property
    def guard(self) -> Guard:
        """Its guardrails. Raises ConfigError if its agent names some that don't exist."""
        if self._guard is None:
            agent = self.live.services.roster.get(self.plan.agent)
            self._guard = self.live.services.guard_for(agent, self.live.run, self.id)
        return self._guard

    # --- stopping -------------------------------------------------------------------------------------------

    def stop(self, status: DoneStatus, error: MuxError | None = None) -> None:
        """End it now: the model's stream is closed and its tools are stopped. Idempotent."""
        if self.done:
            return
        if self.ending is None and self.outcome is None:
            self.ending = (status, error)
        if self.started:
            self.live.merger.cancel(self.id)

    def reject(self, error: MuxError) -> None:
        """It broke the order rules: fail it, and take nothing more from it."""
        self.rejecting = True
        self.ending = ("failed", error)
        self.live.merger.cancel(self.id)

    async def _stop_agent(self) -> None:
        self.outlet.finish()
        self.barriers.cancel()
        task = self._agent_task
        if task is None:
            return
        if not task.done():
            _agents.add(task)  # an agent that does not stop outlives its run; it must not be collected
            task.add_done_callback(_agents.discard)
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.debug("agent ended with an error", error=repr(error))  # that it was stopped, most often

    @property
    def cancelled_itself(self) -> bool:
        """Its agent raised `CancelledError` though nobody stopped it."""
        return self._agent_task is not None and self._agent_task.done() and self._agent_task.cancelled()

    def release(self) -> None:
        """Forget timers, and the task, whose exception points back here; called when it is over."""
        if self._timer is not None:
            self._timer.cancel()
        self._agent_task = None
        self.host.release()

    # --- running --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Into the merge with it."""
        self.started = True
        self.outlet = self.live.merger.add(self.id, self.source())

    async def source(self) -> AsyncIterator[Draft | Burst[str]]:
        """The channel from its start to its agent's end, and what it says that does not go into the merge by
        the outlet. Raises what its agent raised, after everything that it said."""
        agent = self.live.services.roster.get(self.plan.agent)
        guard = self.guard
        if self.state.at == "announced":
            model = self.plan.model or getattr(agent, "model", None)
            counted = getattr(agent, "estimates_usage", _reports_usage)(self.plan.model) or None
            yield ChannelStarted(agent=self.plan.agent, model=model, attempt=1, usage_estimated=counted)
        verdict = await self._checked_task(guard)
        safe = verdict.task
        if not self._resumes(agent):  # they are in the log already
            for rule in verdict.rules:
                yield GuardrailHit(rule=rule, stage="input", action="masked" if safe else "blocked")
        if safe is None:
            text = verdict.refusal or self.live.services.settings.refusal
            yield Refusal(content=text)
            yield Outcome(status="refused", output=text)
            return
        self.log.debug("channel task ready", rules=verdict.rules)
        self.conversation = safe.messages
        ctx = self._context(agent, safe)
        ctx.guard = guard
        box = None if type(guard) is OpenGuard else Outbox(AHEAD)
        self.outlet = box or self.outlet
        self._agent_task = asyncio.create_task(
            self._iterate(agent, ctx), name=f"agent-{self.live.run}-{self.id}"
        )
        self._watch_seconds()
        try:
            if box is None:
                await _end_of(self._agent_task)
            else:
                async for draft in guard.stream(self._said(box, self._agent_task)):
                    yield _bare(draft)
        except _Cut:
            pass  # the driver sees `cancelled_itself`
        finally:
            await self._stop_agent()

    async def _checked_task(self, guard: Guard) -> Checked:
        """What it is asked, if it may be: what the rules said before it was kept, and what they say now, when
        other channels' outputs stand with it."""
        asked = self.plan.asked or Asked()
        if asked.blocked:
            return Checked(None, asked.rules, asked.refusal)
        now = await checked(await self.live.task_of(self), guard)
        return replace(now, rules=tuple(dict.fromkeys((*asked.rules, *now.rules))))

    async def _said(self, box: Outbox, agent_task: asyncio.Task[None]) -> AsyncIterator[Draft | Burst[str]]:
        """What the agent says, ending as the agent ends: the guardrails pass held-back text on at the end of
        an answer, and must not take a failure for one."""
        try:
            async for draft in box:
                yield draft
            await _end_of(agent_task)
        finally:
            box.close()
            await self._stop_agent()

    def _resumes(self, agent: Agent) -> bool:
        return self.resuming and getattr(agent, "resumable", "fail") == "resume"

    def _context(self, agent: Agent, task: Task) -> AgentContext:
        self.meter.budget = stricter(self.plan.budget, getattr(agent, "budget", None))
        self.meter.start()
        return AgentContext(
            run=self.live.run,
            thread=self.live.row.thread,
            channel=self.id,
            agent=self.plan.agent,
            task=task.text,
            messages=task.messages,
            host=self.host,
            attempt=self.state.attempt or 1,
            model=self.plan.model,
            instructions=self.plan.instructions,
            params=self.plan.params or {},
            tools=None if self.plan.tools is None else frozenset(self.plan.tools),
            client_tools=self.plan.client_tools or (),
            budget=self.meter.budget,
            resume=resume_point(self.state) if self._resumes(agent) else None,
            log=self.log,
        )

    def _watch_seconds(self) -> None:
        """Agents with steps end cleanly at the step's end; one without steps has none, and is stopped."""
        limits = [
            b.seconds for b in (self.meter.budget, self.live.plan.budget) if b and b.seconds is not None
        ]
        if limits:
            self._timer = asyncio.get_running_loop().call_later(min(limits), self._seconds_over)

    def _seconds_over(self) -> None:
        if not self.state.steps and self.state.turn is None:
            self.stop("budget_exceeded")

    async def _iterate(self, agent: Agent, ctx: AgentContext) -> None:
        """The agent task: the agent into the outlet."""
        self._begun = time.monotonic()
        drafts: AsyncIterator[Draft] | None = None
        offer, limit = self.outlet.offer, self._max_bytes
        try:
            drafts = agent.run(ctx)
            async for draft in drafts:
                text = draft.content if type(draft) is Token else draft
                if type(text) is str:  # the hot path: one call and no coroutine for each
                    self._bytes += len(text) if text.isascii() else len(text.encode())
                    if self._bytes > limit or self.ttft_ms is None:
                        self._counted()
                    if not offer(text):
                        await self.outlet.put(text)
                else:
                    await self.accept(draft)
        except _Stopped:
            pass
        finally:
            try:
                aclose = getattr(drafts, "aclose", None)
                if aclose is not None:
                    await aclose()
            finally:
                self.outlet.finish()

    def offer(self, draft: str | Reasoning) -> bool:
        """Take a piece of the answer in the caller's turn of the event loop; see `mux.agent.Host`."""
        text = draft if isinstance(draft, str) else draft.content
        size = len(text) if text.isascii() else len(text.encode())
        if self.ttft_ms is None or self._bytes + size > self._max_bytes or not self.outlet.offer(draft):
            return False
        self._bytes += size
        return True

    async def accept(self, draft: Draft) -> None:
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
            await self._accept_other(draft, body)
            return
        elif not isinstance(body, Outcome):
            raise AgentError(
                "agent_failed", f"The agent yielded a {type(draft).__name__}, which is no event."
            )
        await self.outlet.put(_bare(draft))

    async def _accept_other(self, draft: Draft, body: Body) -> None:
        if isinstance(body, _RESERVED):
            raise AgentError(
                "agent_failed", f"The agent yielded {body.type!r}, which only the engine writes."
            )
        if isinstance(body, StepStarted) and draft is body:
            self._step_border()
            self._begun = time.monotonic()  # the request is being sent: ttft counts from here
        if draft is body:
            self.meter.see(body)
        if isinstance(body, ToolCall) and self.ttft_ms is None:
            self.ttft_ms = self._since_begun()
        if isinstance(body, ToolStart | ApprovalRequested):
            await self._put_logged(draft, (body.type, body.call_id))
            return
        if isinstance(body, ToolProgress | ToolResult):
            self._count((body.content if isinstance(body, ToolProgress) else body.output) or "", text=False)
        await self.outlet.put(draft)

    def _step_border(self) -> None:
        if self.host.stopping:
            self.ending = self.ending or ("cancelled", None)
        elif self.meter.exceeded() is not None:
            self.ending = self.ending or ("budget_exceeded", None)
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
            limit_mb = self.live.services.settings.limits.max_reply_mb
            raise AgentError(
                "reply_too_large", f"The reply was cut at {limit_mb:g} MiB (limits.max_reply_mb)."
            )

    def _since_begun(self) -> int:
        return round((time.monotonic() - self._begun) * 1000)

    async def _put_logged(self, draft: Draft, key: Barrier) -> None:
        """Put a draft and wait until it is in the log."""
        with self.barriers.raised(key) as logged:
            await self.outlet.put(draft)
            await logged

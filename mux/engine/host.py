"""What the engine does for one channel's agent: the other side of `AgentContext`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from mux.agent import ChannelRequest, ChannelResult, Decision, Draft, Guard, Steering
from mux.errors import AgentError, BadRequest, NotFound
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    Custom,
    MessageApplied,
    Phase,
    Reasoning,
)

if TYPE_CHECKING:
    from mux.engine.channel import Channel

__all__ = ["MAX_STEERING", "ChannelHost", "passed"]

MAX_STEERING = 100  # messages that may wait on one channel; then steering answers 429


class ChannelHost:
    """See `mux.agent.Host`.

    Attributes:
        inbox: steering messages that are logged as received and not applied yet.
    """

    def __init__(self, channel: Channel) -> None:
        # Not a strong one: a run that is over must go by itself. Its agents may hold on to their context.
        self._of = weakref.ref(channel)
        self.stopping = False
        self.inbox: list[Steering] = []
        self._interrupt = asyncio.Event()
        self._decisions: dict[str, asyncio.Future[Decision]] = {}

    @property
    def _channel(self) -> Channel:
        channel = self._of()
        if channel is None:
            raise AgentError("channel_ended", "The channel's run is over; nothing can be added to it.")
        return channel

    @property
    def guard(self) -> Guard:
        """The channel's guardrails, also before its agent runs (again)."""
        return self._channel.guard

    async def emit(self, draft: Draft) -> None:
        await self._channel.accept(draft)

    def offer(self, draft: str | Reasoning) -> bool:
        channel = self._of()
        return channel is not None and channel.offer(draft)

    # --- other channels -------------------------------------------------------------------------------------

    async def open_channel(self, request: ChannelRequest) -> str:
        # what an agent writes into the run's own events passes its guardrails like all that it says
        named = Custom(name="open_channel", value={"id": request.id, "title": request.title})
        if await passed(self.guard, named) != named:
            raise BadRequest(
                "channel_blocked", "A guardrail of this server stopped the channel's title or id."
            )
        return await self._channel.live.add_channel(request, parent=self._channel.id)

    async def channel_result(self, channel: str, *, wait: bool) -> ChannelResult:
        live = self._channel.live
        other = live.channels.get(channel)
        if other is None:
            raise NotFound(
                "channel_not_found",
                f"This run has no channel {channel!r}. It has: {', '.join(sorted(live.channels))}.",
            )
        if wait:
            if other is self._channel:
                raise BadRequest("waits_for_itself", "A channel can't wait for its own result.")
            await other.ended.wait()
        return live.result(channel)

    def stop_channel(self, channel: str) -> None:
        live = self._channel.live
        above = live.channels.get(channel)
        while above is not None and above is not self._channel:
            above = live.channels.get(above.plan.parent or "")
        if above is not None and channel != self._channel.id:
            live.spawn(live.cancel_channel(channel, "now"))

    def channels(self) -> Sequence[ChannelResult]:
        live = self._channel.live
        return [live.result(c) for c in live.channels if c != self._channel.id]

    # --- approvals ------------------------------------------------------------------------------------------

    async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
        channel = self._channel
        live = channel.live
        call = channel.state.tools.get(call_id)
        if call is not None and call.decision is not None and call.waiting is None:
            return _as_decision(call.decision)  # made before a restart
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._decisions[call_id] = decided
        try:
            if call is not None and call.waiting is not None:
                expires_at = call.waiting.expires_at  # asked before a restart, and still open
            else:
                expires_at = live.services.clock() + round(live.services.settings.limits.approval_s * 1000)
                await channel.accept(Phase(phase="waiting"))
                await channel.accept(
                    ApprovalRequested(call_id=call_id, tool=tool, arguments=arguments, expires_at=expires_at)
                )
            decision = await self._decided(call_id, decided, expires_at)
        finally:
            self._decisions.pop(call_id, None)
        if not self._decisions:
            await channel.accept(Phase(phase="tool_executing"))
        return decision

    async def _decided(self, call_id: str, decided: asyncio.Future[Decision], expires_at: int) -> Decision:
        live = self._channel.live
        left_s = max(0.0, (expires_at - live.services.clock()) / 1000)
        done, _ = await asyncio.wait([decided], timeout=left_s)
        if not done:
            await live.resolve_approval(
                self._channel.id,
                ApprovalResolved(call_id=call_id, decision="expired", by="expiry"),
                lenient=True,
            )
        return await decided

    def decide(self, body: ApprovalResolved) -> None:
        """An approval was resolved and logged: let the agent go on."""
        waiting = self._decisions.get(body.call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(_as_decision(body))

    # --- steering -------------------------------------------------------------------------------------------

    def receive(self, message: Steering) -> None:
        """A message was logged as received."""
        self.inbox.append(message)
        if message.mode == "interrupt":
            self._interrupt.set()

    def take_messages(self, *, at_end: bool) -> Sequence[Steering]:
        due = [m for m in self.inbox if at_end or m.mode != "queue"]
        self.inbox = [m for m in self.inbox if m not in due]
        self._interrupt.clear()
        for message in due:
            body = MessageApplied(message_id=message.message_id, content=message.content, mode=message.mode)
            self._channel.outlet.force(body)  # bounded by MAX_STEERING
        return due

    def interrupted(self) -> bool:
        return self._interrupt.is_set()

    async def interruption(self) -> None:
        await self._interrupt.wait()

    # --- the rest -------------------------------------------------------------------------------------------

    def budget_exceeded(self) -> str | None:
        return self._channel.meter.exceeded()

    def release(self) -> None:
        """The channel is over: nobody waits for a decision any more."""
        for waiting in self._decisions.values():
            waiting.cancel()


async def passed(guard: Guard, body: Body) -> Body | None:
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

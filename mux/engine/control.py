"""What callers do to a running run: cancel, add, retry, steer, approve, watch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from mux.engine.base import COME_BACK_S, EngineBase, Started
from mux.engine.host import MAX_STEERING, passed
from mux.engine.live import LiveRun, lane
from mux.engine.plan import Plan, PlannedChannel, new_id
from mux.errors import BadRequest, Conflict, NotFound, Overloaded
from mux.events import ApprovalResolved, MessageReceived
from mux.requests import AddChannel, ApprovalAnswer, CancelMode, ChannelSpec, SteerRequest

__all__ = ["Controls"]

_SPEC = {
    "agent",
    "message",
    "model",
    "instructions",
    "params",
    "tools",
    "client_tools",
    "depends_on",
    "when",
    "inputs",
    "budget",
    "title",
}


class Controls(EngineBase, ABC):
    """Every method raises NotFound for unknown runs and channels; see `Engine`."""

    async def cancel(self, run: str, mode: CancelMode = "now") -> None:
        """Cancel a run; one that is finished already stays as it is.

        Args:
            mode: ``graceful`` lets each channel's step end; ``now`` closes streams and stops tools.
        """
        live = await self._live_or_finished(run)
        if live is not None:
            live.log.info("run is being cancelled", mode=mode)
            await live.cancel(mode)

    async def cancel_channel(self, run: str, channel: str, mode: CancelMode = "now") -> None:
        """Cancel one channel; one that is done already stays as it is."""
        live = await self._live_or_finished(run)
        if live is not None:
            await live.cancel_channel(channel, mode)
        elif channel not in (await self._folder.state(run))[0].channels:
            raise NotFound("channel_not_found", f"Run {run} has no channel {channel!r}.")

    async def _live_or_finished(self, run: str) -> LiveRun | None:
        try:
            return await self._live_run(run)
        except Conflict:
            return None

    async def add_channel(self, run: str, spec: AddChannel) -> str:
        """Add a channel to a running run; returns its id. Raises Conflict ``run_finished``."""
        return await (await self._live_run(run)).add_channel(ChannelSpec(**spec.model_dump()))

    async def retry(self, run: str, channel: str, model: str | None = None) -> tuple[str, str]:
        """Do a channel again: beside the old one in a running run, else in a new run on the thread.

        One that still runs goes on: to compare, for example with another model.

        Args:
            model: another model for it.

        Returns:
            Run and channel of the new attempt.

        Raises:
            Conflict: ``run_imported``: it holds no request.
        """
        live = await self._live_or_finished(run)
        if live is None:
            return await self._retry_finished(run, channel, model)
        old = live.channel(channel)
        spec = ChannelSpec.model_validate(old.plan.model_dump(include=_SPEC, mode="json"))
        if model is not None:
            spec = spec.model_copy(update={"model": model})
        return run, await live.add_channel(spec, retry_of=channel)

    async def _retry_finished(self, run: str, channel: str, model: str | None) -> tuple[str, str]:
        row = await self.store.get(run)
        try:
            plan = Plan.model_validate(row.request)
        except ValueError:
            raise Conflict("run_imported", f"Run {run} was imported; it can't be done again.") from None
        old = plan.channel(channel)
        if old is None:
            raise NotFound("channel_not_found", f"Run {run} has no channel {channel!r}.")
        self.services.roster.get(old.agent)
        inputs = tuple(f"{run}/{i}" if "/" not in i else i for i in (*old.waits_for, *old.inputs))
        again = PlannedChannel(
            **old.model_dump(include=_SPEC - {"depends_on", "when", "inputs", "model"}),
            id=lane(old.id),
            model=model or old.model,
            inputs=tuple(dict.fromkeys(inputs)),
            asked=old.asked,
        )
        before = plan.history_before or run
        new = plan.model_copy(
            update={"channels": (again,), "history_before": before, "on_disconnect": "continue"}
        )
        started = await self._launch(new, row.owner, row.thread, row.title, dict(row.metadata))
        return started.row.run, again.id

    @abstractmethod
    async def _launch(
        self, plan: Plan, owner: str, thread: str, title: str | None, metadata: dict[str, Any]
    ) -> Started:
        """Start a planned run."""

    async def steer(self, run: str, channel: str, request: SteerRequest) -> str:
        """Send a message to a running channel; it is logged before this returns its id.

        Raises:
            Conflict: ``channel_finished``, ``channel_not_started``, ``run_finished``.
            BadRequest: ``message_blocked`` by a guardrail on input.
            Overloaded: ``too_many_messages`` wait already.
        """
        live = await self._live_run(run)
        target = live.channel(channel)
        if len(target.host.inbox) >= MAX_STEERING:
            raise Overloaded(
                "too_many_messages", f"{MAX_STEERING} messages wait on channel {channel!r}.", retry_after=5.0
            )
        verdict = await target.host.guard.input(request.content)
        if verdict.action == "blocked":
            raise BadRequest("message_blocked", "A guardrail of this server stopped the message.")
        content = verdict.value if verdict.action == "masked" else request.content
        body = MessageReceived(message_id=new_id("m"), content=content, mode=request.mode)
        await live.receive(channel, body)
        return body.message_id

    async def answer(
        self, run: str, call_id: str, answer: ApprovalAnswer, by: str = "local"
    ) -> dict[str, Any]:
        """Decide about a call that waits for a person; logged before this returns.

        Raises:
            NotFound: ``call_not_found``.
            Conflict: ``approval_decided`` (the winner is in ``extra``), ``approval_closed``.
            BadRequest: ``arguments_missing`` for an edit; ``answer_blocked`` by a guardrail.
        """
        live = await self._live_run(run)
        if answer.decision == "edit" and answer.arguments is None:
            raise BadRequest("arguments_missing", "Send the edited `arguments` with decision `edit`.")
        found = next((c for c in live.state.channels.values() if call_id in c.tools), None)
        if found is None:
            raise NotFound("call_not_found", f"Run {run} has no call {call_id!r}.")
        body = ApprovalResolved(
            call_id=call_id,
            decision=answer.decision,
            by=by,
            arguments=answer.arguments if answer.decision == "edit" else None,
            reason=answer.reason,
        )
        clean = await passed(live.channels[found.id].host.guard, body)
        if not isinstance(clean, ApprovalResolved):
            raise BadRequest(
                "answer_blocked", "A guardrail of this server stopped the arguments or the reason."
            )
        await live.resolve_approval(found.id, clean)
        return {"run": run, "channel": found.id, "call_id": call_id, "decision": body.decision, "by": by}

    # --- viewers ------------------------------------------------------------------------------------------

    def viewer_joined(self, run: str, *, observe: bool = False) -> None:
        """A viewer opened a stream; observers don't count."""
        if observe:
            return
        self._viewers[run] += 1
        if (live := self._live.get(run)) is not None:
            live.presence.joined()

    def viewer_left(self, run: str, *, observe: bool = False, sent_away: bool = False) -> None:
        """The viewer is gone, however it went.

        Args:
            sent_away: by the server, which told it to come back: it gets the time for that.
        """
        if observe:
            return
        self._viewers[run] -= 1
        if not self._viewers[run]:
            del self._viewers[run]
        if (live := self._live.get(run)) is not None:
            live.presence.left(COME_BACK_S if sent_away else 0.0)

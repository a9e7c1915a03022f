"""The engine as one caller sees it: its own runs, and nothing of anybody else's.

Handlers have this one only, so none can forget to ask whose a run is. Another owner's run is answered exactly
like one that does not exist.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

from mux.engine import Engine
from mux.engine.engine import Started
from mux.engine.plan import key_limit
from mux.http.keys import LOCAL, Grant
from mux.log.protocols import RunPage, RunQuery, RunRow, run_not_found
from mux.requests import (
    AddChannel,
    ApprovalAnswer,
    CancelMode,
    KeyLimits,
    PatchRun,
    StartRequest,
    SteerRequest,
)

__all__ = ["Owners", "OwnersEngine"]

_MAX_KNOWN: Final = 10_000


class Owners:
    """Whose a run is. That never changes, so a stream that is opened again needs no look at the store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[str, str] = OrderedDict()

    def learn(self, row: RunRow) -> None:
        """This run has this owner."""
        self._known[row.run] = row.owner
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    async def of(self, run: str) -> str:
        """The run's owner. Raises NotFound ``run_not_found``."""
        if run not in self._known:
            self.learn(await self._engine.row(run))
        return self._known[run]


class OwnersEngine:
    """What HTTP uses of the engine, by the engine's own names; see `mux.engine.Engine`.

    Args:
        engine: everybody's.
        grant: the caller.
        owners: shared by all callers.
    """

    def __init__(self, engine: Engine, grant: Grant = LOCAL, owners: Owners | None = None) -> None:
        self._engine = engine
        self._grant = grant
        self._owners = owners or Owners(engine)

    def of(self, grant: Grant) -> OwnersEngine:
        """The same engine, as another caller sees it."""
        return OwnersEngine(self._engine, grant, self._owners)

    async def own(self, *runs: str) -> None:
        """Raise NotFound ``run_not_found`` unless the caller may see all of these."""
        for run in runs:
            if self._grant.run not in (None, run) or await self._owners.of(run) != self._grant.owner:
                raise run_not_found(run)

    # --- starting, and what there is ----------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        return self._engine.accepting

    def unready(self) -> str | None:
        return self._engine.unready()

    async def stats(self) -> dict[str, Any]:
        return await self._engine.stats()

    async def start_run(
        self, req: StartRequest, *, key: str | None = None, streaming: bool = False
    ) -> Started:
        grant = self._grant
        started = await self._engine.start_run(
            req, owner=grant.owner, key=key, streaming=streaming, agents=grant.agents, limits=grant.limits
        )
        self._owners.learn(started.row)
        return started

    async def row(self, run: str) -> RunRow:
        await self.own(run)
        return await self._engine.row(run)

    async def snapshot(self, run: str) -> dict[str, Any]:
        await self.own(run)
        snapshot = await self._engine.snapshot(run)
        shared = self._grant.shared()
        return snapshot if shared is None else shared.snapshot(snapshot)

    async def list_runs(self, query: RunQuery) -> RunPage:
        return await self._engine.list_runs(replace(query, owner=self._grant.owner))

    def summary(self, row: RunRow) -> dict[str, Any]:
        return self._engine.summary(row)

    async def usage(self) -> dict[str, Any]:
        return await self._engine.usage(self._grant.owner)

    async def patch(self, run: str, change: PatchRun) -> dict[str, Any]:
        await self.own(run)
        return await self._engine.patch(run, change)

    async def delete(self, run: str) -> None:
        await self.own(run)
        await self._engine.delete(run)

    async def export(self, run: str) -> AsyncIterator[bytes]:
        await self.own(run)
        async for line in self._engine.export(run):
            yield line

    async def import_run(self, lines: AsyncIterator[bytes]) -> str:
        grant = self._grant
        await self._engine.check_usage(grant.owner, KeyLimits(stored_mb=grant.limits.stored_mb))
        return await self._engine.import_run(lines, owner=grant.owner)

    # --- control ------------------------------------------------------------------------------------------

    async def cancel(self, run: str, mode: CancelMode) -> None:
        await self.own(run)
        await self._engine.cancel(run, mode)

    async def cancel_channel(self, run: str, channel: str, mode: CancelMode) -> None:
        await self.own(run)
        await self._engine.cancel_channel(run, channel, mode)

    async def add_channel(self, run: str, spec: AddChannel) -> str:
        await self.own(run)
        self._grant.check_agent(spec.agent)
        await self._check_room(run)
        return await self._engine.add_channel(run, spec)

    async def retry(self, run: str, channel: str, model: str | None) -> tuple[str, str]:
        await self.own(run)
        await self._check_channel(run, channel)
        await self._check_room(run)
        return await self._engine.retry(run, channel, model, limits=self._grant.limits)

    async def steer(self, run: str, channel: str, request: SteerRequest) -> str:
        await self.own(run)
        await self._check_channel(run, channel)
        return await self._engine.steer(run, channel, request)

    async def answer(self, run: str, call_id: str, answer: ApprovalAnswer) -> dict[str, Any]:
        await self.own(run)
        return await self._engine.answer(run, call_id, answer, by=self._grant.owner)

    async def _check_channel(self, run: str, channel: str) -> None:
        """That its agent, which another key of the owner may have started, is one that this one may use."""
        if self._grant.agents is not None:
            for one in (await self._engine.snapshot(run))["channels"]:
                if one["id"] == channel:
                    self._grant.check_agent(one["agent"])

    async def _check_room(self, run: str) -> None:
        most = self._grant.limits.channels
        if most is not None and len((await self._engine.snapshot(run))["channels"]) >= most:
            raise key_limit("channels", most)

    # --- viewers ------------------------------------------------------------------------------------------

    # Whoever may only look can't make a run be cancelled, by leaving it.

    def viewer_joined(self, run: str, *, observe: bool = False) -> None:
        self._engine.viewer_joined(run, observe=observe or not self._grant.may("run"))

    def viewer_left(self, run: str, *, observe: bool = False, sent_away: bool = False) -> None:
        observe = observe or not self._grant.may("run")
        self._engine.viewer_left(run, observe=observe, sent_away=sent_away)

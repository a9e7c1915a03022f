"""What the parts of the engine share: its surroundings and the runs that are live."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from weakref import WeakValueDictionary

from mux.engine.history import Folder
from mux.engine.live import LiveRun, run_finished
from mux.engine.services import Services
from mux.engine.task import HandOver
from mux.errors import MuxError, NotFound, Unavailable
from mux.log.protocols import RunRow

__all__ = ["COME_BACK_S", "EngineBase", "Started"]

COME_BACK_S = 15.0  # for viewers whose connection the server ended: a restart, a rotation

_OPEN = ("queued", "running", "waiting")


@dataclass(frozen=True, slots=True)
class Started:
    """The answer to a start; ``created`` is false when the idempotency key was known."""

    row: RunRow
    created: bool


class EngineBase:
    """State and look-ups; the behaviour is in `Controls`, `Archive` and `Engine`."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.store = services.store
        self.settings = services.settings
        self._log = services.log
        self._folder = Folder(services.store)
        self._live: dict[str, LiveRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Also of runs that are not live: their streams stay open while a run waits to be taken over.
        self._viewers: Counter[str] = Counter()
        self._editing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def row(self, run: str, *, owner: str | None = None) -> RunRow:
        """The run's row.

        Raises:
            NotFound: ``run_not_found``, also for another owner's run.
        """
        live = self._live.get(run)
        row = live.row if live is not None else await self.store.get(run)
        if owner is not None and row.owner != owner:
            raise NotFound("run_not_found", f"There is no run {run!r}.")
        return row

    async def _live_run(self, run: str) -> LiveRun:
        """The run, if it is live here.

        Raises:
            NotFound: ``run_not_found``.
            Conflict: ``run_finished``.
            Unavailable: ``run_not_driven``: it waits to be taken over.
        """
        live = self._live.get(run)
        if live is not None:
            if live.state.finished is not None:
                raise run_finished(run)
            return live
        row = await self.store.get(run)
        if row.status not in _OPEN:
            raise run_finished(run)
        raise Unavailable(
            "run_not_driven", f"Run {run} waits to be taken over; try again in a moment.", retry_after=2.0
        )

    async def _foreign_output(self, run: str, channel: str, owner: str) -> HandOver:
        """``run/channel`` of an earlier run, for `inputs`; what can't be read is named as failed."""
        name = f"{run}/{channel}"
        try:
            row = await self.row(run, owner=owner)
            live = self._live.get(run)
            state = live.state if live is not None else (await self._folder.state(row.run))[0]
        except MuxError as e:
            return HandOver(name, "?", "missing", "", e.message)
        found = state.channels.get(channel)
        if found is None:
            return HandOver(name, "?", "missing", "", f"Run {run} has no channel {channel!r}.")
        error = found.error.message if found.error else None
        return HandOver(name, found.agent, state.channel_status(channel), found.output(), error)

"""How many runs may run at once, and the bounded queue in front of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from mux.errors import Overloaded

__all__ = ["Admission"]

_RETRY_AFTER_S = 5.0  # runs last seconds to minutes; a shorter wait would only make a crowd come back


class Admission:
    """Slots for runs, first come first served.

    Args:
        max_runs: runs that may run at once.
        max_queue: runs that may wait for a slot; above that new ones are refused.
    """

    def __init__(self, max_runs: int, max_queue: int) -> None:
        self._max_runs = max_runs
        self._max_queue = max_queue
        self._running: set[str] = set()
        self._queue: OrderedDict[str, asyncio.Future[None]] = OrderedDict()
        self._paused = False

    def check(self) -> None:
        """Raise `Overloaded` (429) if neither a slot nor a place in the queue is free."""
        if len(self._running) >= self._max_runs and len(self._queue) >= self._max_queue:
            raise Overloaded(
                "too_many_runs",
                f"{self._max_runs} runs are running and {len(self._queue)} wait. Try again later, or raise "
                "limits.max_runs or limits.max_queue.",
                retry_after=_RETRY_AFTER_S,
            )

    def enter(self, run: str) -> None:
        """Take a slot, or the last place in the queue (whatever its length: ask `check` before)."""
        self._queue[run] = asyncio.get_running_loop().create_future()
        self._admit()

    async def admitted(self, run: str) -> None:
        """Wait for the slot."""
        if (future := self._queue.get(run)) is not None:
            await asyncio.shield(future)

    def leave(self, run: str) -> None:
        """Give the slot or the place in the queue back (whoever waits for it goes on); idempotent."""
        self._running.discard(run)
        if (future := self._queue.pop(run, None)) is not None and not future.done():
            future.set_result(None)
        self._admit()

    def pause(self) -> None:
        """Admit nobody any more (drain)."""
        self._paused = True

    def position(self, run: str) -> int | None:
        """Place in the queue, from 1; ``None`` if the run has its slot."""
        return next((i for i, waiting in enumerate(self._queue, 1) if waiting == run), None)

    def _admit(self) -> None:
        while self._queue and len(self._running) < self._max_runs and not self._paused:
            run, future = self._queue.popitem(last=False)
            self._running.add(run)
            if not future.done():
                future.set_result(None)

    def statistics(self) -> dict[str, int]:
        """How many run and wait."""
        return {"running": len(self._running), "queued": len(self._queue)}

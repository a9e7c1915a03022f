"""The queue of runs that wait for a worker; see `mux.log.protocols.Queue`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from mux.log.redis.lease import QUEUE
from mux.log.redis.link import Link

__all__ = ["RedisQueue"]

WORD = "mux:queue"  # the channel on which an offer is published


class RedisQueue:
    """In one slot, so that taking, giving back and the end of a lease are one step each.

    Args:
        link: calls go out on it.
        worker: this process's name, under which its lease runs.
    """

    def __init__(self, link: Link, worker: str) -> None:
        self._link = link
        self._worker = worker
        self._offered: Callable[[], None] = lambda: None
        self._lost: Callable[[], None] = lambda: None

    def wake(self, _: bytes | None) -> None:
        """An offer was published, or may have been missed."""
        self._offered()

    def on_lost(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def lose(self) -> None:
        """The lease ended while this process was away: what it took went to others."""
        self._lost()

    async def _call(self, script: str, *args: Any) -> Any:
        return (await self._link.call(script, QUEUE, *args))[1:]

    async def offer(self, run: str, owner: str) -> None:
        await self._call("offer", run, owner)

    async def take(self, worker: str, limit: int) -> Sequence[str]:
        if limit <= 0:
            return []
        answer = await self._call("take", self._worker, limit, secrets.token_hex(8))
        return [run.decode() for run in answer[0]] if answer else []  # no lease just now: nothing to take

    async def withdraw(self, run: str, worker: str) -> bool:
        return bool((await self._call("withdraw", run, self._worker))[0])

    async def give_back(self, run: str, worker: str) -> None:
        await self._call("give_back", run, self._worker)

    async def finish(self, run: str, worker: str) -> None:
        await self._call("finish", run, self._worker)

    async def position(self, run: str) -> int | None:
        return int((await self._call("position", run))[0]) or None

    async def waiting(self) -> int:
        return int((await self._call("waiting"))[0])

    def on_offered(self, offered: Callable[[], None]) -> None:
        self._offered = offered

    async def unknown(self, runs: Sequence[str]) -> Sequence[str]:
        """Which of these runs nobody waits for or has taken."""
        return [run.decode() for run in (await self._call("unknown", *runs))[0]] if runs else []

"""Where logs stand, and who waits for them to grow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mux.log.protocols import Head

__all__ = ["Heads"]


class Heads:
    """Where the logs stand that somebody reads or writes now, and who waits for them to grow.

    In-process only: a store with writers in other processes must tell it of their appends.
    """

    def __init__(self) -> None:
        self._known: dict[str, Head] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def get(self, run: str) -> Head | None:
        """The head, if the run was appended to in this process and is not final."""
        return self._known.get(run)

    def known(self) -> list[tuple[str, Head]]:
        """All of them."""
        return list(self._known.items())

    def set(self, run: str, head: Head) -> None:
        """Say where the log stands now, and wake whoever waits for it to grow."""
        known = self._known.get(run)
        if known is None or head.head >= known.head:
            self._known[run] = head
        self.wake(run)

    def forget(self, run: str) -> None:
        """The run ended, was deleted or taken over: ask the store from now on."""
        self._known.pop(run, None)
        self.wake(run)

    def wake(self, run: str) -> None:
        """Let everybody who waits for this run look again."""
        for future in self._waiting.pop(run, ()):
            _finish(future)

    def clear(self) -> None:
        """The store is closed: whoever waits asks it, and is told so."""
        self._known.clear()
        for run in list(self._waiting):
            self.wake(run)

    async def wait(self, run: str, after: int, timeout_s: float, look: Callable[[], Awaitable[Head]]) -> Head:
        """Return what ``look`` says as soon as it is beyond ``after``, or when the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            woken = loop.create_future()  # before looking: what comes in between must not be missed
            self._waiting.setdefault(run, set()).add(woken)
            try:
                at = await look()
                left = deadline - loop.time()
                if at.head > after or left <= 0:
                    return at
                timer = loop.call_later(left, _finish, woken)
                try:
                    await woken
                finally:
                    timer.cancel()
            finally:
                self._leave(run, woken)

    def _leave(self, run: str, woken: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(run)
        if waiting is not None:
            waiting.discard(woken)
            if not waiting:
                del self._waiting[run]


def _finish(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)

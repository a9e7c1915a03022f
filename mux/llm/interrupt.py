"""Cuts an await short when an ``interrupt`` message arrives, as `asyncio.timeout` does when time is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from mux.agent import Host

__all__ = ["Interrupted", "Interruption"]

A = TypeVar("A")
T = TypeVar("T")


class Interrupted(Exception):
    """A message wants the running turn to be cut short."""


class Interruption:
    """Watches a host for an interruption while the body of ``async with`` runs.

    The watcher cancels the task that waits in `next` or `wait`, and only while it waits there: never while a
    generator stands at a ``yield``. A cancellation that comes from elsewhere is passed on.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: asyncio.Task[object] | None = None
        self._cancelled = False
        self.happened = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._watcher = self._loop.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watcher = self._watcher
        del self._watcher  # its exception will point back here
        watcher.cancel()
        await asyncio.wait({watcher})

    async def _watch(self) -> None:
        await self._host.interruption()
        self.happened = True
        if self._waiting is not None:
            self._cancelled = True
            self._waiting.cancel()

    async def next(self, source: AsyncIterator[T]) -> T:
        """The source's next item.

        Raises:
            Interrupted: a message arrived; the source is ended or stands at a yield, and is to be closed.
            StopAsyncIteration: the source is at its end.
        """
        return await self.wait(anext, source)

    async def wait(self, begin: Callable[[A], Awaitable[T]], argument: A) -> T:
        """What ``begin(argument)`` gives when awaited, for example of a sleep.

        Raises:
            Interrupted: a message arrived; the wait was cancelled, or never begun.
        """
        if self.happened or self._host.interrupted():
            self.happened = True
            raise Interrupted
        task = asyncio.current_task(self._loop)  # without the loop CPython 3.11 asks the system for its pid
        self._waiting = task
        try:
            return await begin(argument)
        except asyncio.CancelledError:
            if self._cancelled and task is not None and task.uncancel() == 0:
                raise Interrupted from None
            raise
        finally:
            self._waiting = None

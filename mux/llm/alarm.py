"""One timer for all the reads of a turn, where `asyncio.timeout` would make and cancel one for each.

A provider that streams a hundred chunks a second moves its deadline a hundred times a second. The timer is
left where it is, and looks when it goes off how much time is left by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

__all__ = ["Alarm"]

T = TypeVar("T")


class Alarm:
    """Cuts an await short when no time is left, while the body of ``with`` runs.

    Args:
        left: seconds until the deadline, asked again whenever the timer goes off.
    """

    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0  # when the timer goes off
        self._waiting: asyncio.Task[object] | None = None
        self._rang = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def wait(self, begin: Callable[[], Awaitable[T]]) -> T:
        """What ``begin()`` gives when awaited.

        Raises:
            TimeoutError: there is no time left; it was cancelled, or never begun.
        """
        left = self._left()
        if left <= 0:
            raise TimeoutError
        at = self._loop.time() + left
        if self._timer is None or at < self._at:  # else it goes off no later than due, and looks then
            self._set(at)
        task = asyncio.current_task()
        assert task is not None
        self._waiting, self._rang = task, False
        before = task.cancelling()
        try:
            return await begin()
        except asyncio.CancelledError:
            if self._rang and task.uncancel() <= before:
                raise TimeoutError from None
            raise
        finally:
            self._waiting = None

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiting is None:
            return  # the next wait sets it
        left = self._left()
        if left > 0:
            self._set(self._loop.time() + left)
        else:
            self._rang = True
            self._waiting.cancel()

"""Work that must not be cut in two when its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["kept", "uncut"]

T = TypeVar("T")

_running: set[asyncio.Task[Any]] = set()  # the loop itself keeps only weak references


async def uncut(work: Coroutine[Any, Any, T]) -> T:
    """Do it to its end, even if whoever waits for it is cancelled meanwhile."""
    return await asyncio.shield(kept(work))


def kept(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that goes on if nobody waits for it any more."""
    task = asyncio.get_running_loop().create_task(work)
    _running.add(task)
    task.add_done_callback(_over)
    return task


def _over(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled():
        task.exception()  # seen: a caller that was cancelled can't be told, and has nobody who waits for it

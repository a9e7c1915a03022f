"""Drafts that are given to the merge, and whose givers wait until they are in the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["Barrier", "Barriers"]

Barrier: TypeAlias = tuple[str, str]  # event type, call_id


class Barriers:
    """Those of one channel."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Barrier, asyncio.Future[None]] = {}

    @contextlib.contextmanager
    def raised(self, key: Barrier) -> Iterator[asyncio.Future[None]]:
        """What to wait for: done when `lift` is called for the key, cancelled by `cancel`."""
        waiter = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            yield waiter
        finally:
            self._waiting.pop(key, None)

    def lift(self, key: Barrier) -> None:
        """It is in the log; nothing happens if nobody waits for it."""
        waiter = self._waiting.get(key)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def cancel(self) -> None:
        """Nothing more comes into the log: whoever waits is cancelled."""
        for waiter in self._waiting.values():
            waiter.cancel()
        self._waiting.clear()

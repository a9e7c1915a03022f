"""Time, as it stands in logs, rows and leases."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Clock", "now_ms", "steady"]

Clock: TypeAlias = Callable[[], int]  # ms since the epoch


def now_ms() -> int:
    """Milliseconds since the epoch, by the wall clock: it may step."""
    return time.time_ns() // 1_000_000


def steady() -> Clock:
    """A clock that begins with the wall clock's time and goes on evenly: what is measured with it does not
    follow the wall clock when that is set."""
    offset = time.time_ns() - time.monotonic_ns()
    return lambda: (offset + time.monotonic_ns()) // 1_000_000

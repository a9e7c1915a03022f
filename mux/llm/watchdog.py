"""The deadlines of one model turn. Pure: the clock is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mux.errors import UpstreamError
from mux.settings import Timeouts

__all__ = ["LINGER_S", "Watch"]

LINGER_S: Final = 5.0  # how long to wait for [DONE] or the end once the turn is over


class Watch:
    """The watchdogs of one turn. Time during which the consumer holds the stream does not count.

    Args:
        timeouts: limits in seconds.
        clock: monotonic seconds.
    """

    def __init__(self, timeouts: Timeouts, clock: Callable[[], float]) -> None:
        self._timeouts = timeouts
        self._clock = clock
        self._started = clock()
        self._held = 0.0
        self.first: float | None = None  # when the first progress was made
        self.last = 0.0  # when the last was

    def now(self) -> float:
        """Seconds since the request was sent, without those that the consumer took."""
        return self._clock() - self._started - self._held

    def progress(self) -> None:
        self.last = self.now()
        if self.first is None:
            self.first = self.last

    def held(self, seconds: float) -> None:
        self._held += seconds

    def left(self, *, terminal: bool) -> float:
        """Seconds until something has to happen; not positive when it is overdue."""
        now = self.now()
        turn = self._timeouts.turn_s - now
        if self.first is None:
            return min(turn, self._timeouts.first_byte_s - now)
        quiet = min(self._timeouts.progress_s, LINGER_S) if terminal else self._timeouts.progress_s
        return min(turn, self.last + quiet - now)

    def overdue(self) -> UpstreamError:
        """The error for a deadline that has passed."""
        t = self._timeouts
        if self.now() >= t.turn_s and (self.first is not None or t.turn_s <= t.first_byte_s):
            return UpstreamError(
                "turn_timeout",
                f"The turn took longer than {t.turn_s:g} s (timeouts.turn_s).",
                retryable=False,
            )
        if self.first is None:
            return UpstreamError(
                "upstream_unavailable",
                f"The endpoint sent nothing for {t.first_byte_s:g} s (timeouts.first_byte_s).",
                retryable=True,
            )
        return UpstreamError(
            "upstream_stall",
            f"The endpoint went silent for {t.progress_s:g} s in mid-answer (timeouts.progress_s).",
            retryable=True,
        )

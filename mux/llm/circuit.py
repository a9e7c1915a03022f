"""A circuit per endpoint: when it fails again and again, further steps fail at once and say why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from mux.errors import UpstreamError

__all__ = ["Circuit"]

_COUNTED = frozenset(
    {
        "upstream_error",
        "upstream_truncated",
        "upstream_empty",
        "upstream_protocol",
        "upstream_stall",
        "upstream_unavailable",
    }
)  # a rejected request or a rate limit shows an endpoint that works


class Circuit:
    """Closed while the endpoint works; open after failures in a row; then one probe decides.

    Args:
        threshold: failures in a row, none older than ``window_s``, that open it.
        open_s: how long it stays open the first time; doubles with each failed probe up to ``max_open_s``.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        threshold: int = 8,
        window_s: float = 120.0,
        open_s: float = 5.0,
        max_open_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._window_s = window_s
        self._first_open_s = open_s
        self._max_open_s = max_open_s
        self._clock = clock
        self._failures: list[tuple[float, str]] = []  # when, and the error's code
        self._open_s = open_s
        self._open_until: float | None = None
        self._probing = False
        self._last = ""
        self.opened = 0  # how often
        self.errors: Counter[str] = Counter()  # requests that failed, by the error's code

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half_open``."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half_open"

    def admit(self) -> bool:
        """Let a request pass; ``True`` if it is the probe, which `failed`, `worked` or `gave_up` must end.

        Raises:
            UpstreamError: ``upstream_unavailable``: the circuit is open.
        """
        if self._open_until is None:
            return False
        left = self._open_until - self._clock()
        if left <= 0 and not self._probing:
            self._probing = True
            return True
        wait = max(left, 1.0)
        raise UpstreamError(
            "upstream_unavailable",
            f"The endpoint failed again and again (last: {self._last}), so it is left alone for now;"
            f" it is tried again in {wait:.0f} s.",
            retryable=True,
            retry_after=wait,
            extra={"circuit": "open"},
        )

    def worked(self) -> None:
        """A turn ended well, or the probe got its first progress."""
        self._failures.clear()
        self._open_until = None
        self._open_s = self._first_open_s
        self._probing = False

    def answered(self) -> None:
        """A turn made its first progress: the endpoint is there. A slow one may leave some requests without
        an answer in time while it answers others; whether it also breaks off is not told yet."""
        self._failures = [f for f in self._failures if f[1] != "upstream_unavailable"]
        if self._last == "upstream_unavailable" and self._open_until is not None and not self._probing:
            self.worked()

    def gave_up(self) -> None:
        """The probe was cancelled before it could tell: the next request is the probe."""
        self._probing = False

    def failed(self, error: UpstreamError, *, probe: bool) -> None:
        """A request failed."""
        self.errors[error.code] += 1
        if probe:
            self._probing = False
        if error.code not in _COUNTED:
            if probe:
                self.worked()
            return
        now = self._clock()
        self._last = error.code
        if probe:
            self._open_s = min(self._open_s * 2, self._max_open_s)
            self._open_until = now + self._open_s
            return
        self._failures = [f for f in self._failures if now - f[0] < self._window_s]
        self._failures.append((now, error.code))
        if len(self._failures) >= self._threshold and self._open_until is None:
            self._open_until = now + self._open_s
            self.opened += 1
            self._failures.clear()

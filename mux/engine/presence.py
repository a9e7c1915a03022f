"""What happens to a run when nobody watches it any more: the disconnect policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from mux.requests import Grace

__all__ = ["Presence"]


class Presence:
    """Counts the viewers of one run; observers are not viewers.

    Args:
        policy: ``continue``, ``cancel``, or the grace.
        on_gone: called once, when the last viewer has been gone for the grace.
    """

    def __init__(self, policy: Literal["continue", "cancel"] | Grace, on_gone: Callable[[], None]) -> None:
        self._grace_s = policy.grace_s if isinstance(policy, Grace) else 0.0
        self._applies = policy != "continue"
        self._on_gone = on_gone
        self._timer: asyncio.TimerHandle | None = None
        self.viewers = 0

    def joined(self) -> None:
        """A viewer came (or came back)."""
        self.viewers += 1
        self.stop()

    def left(self, at_least_s: float = 0.0) -> None:
        """A viewer went; one that was sent away has this long to come back, whatever the grace."""
        self.viewers = max(0, self.viewers - 1)
        if self.viewers == 0:
            self.arm(at_least_s)

    def arm(self, at_least_s: float = 0.0) -> None:
        """Start the grace now; also after a restart of the server, which took everybody's connection."""
        self.stop()
        if self._applies and self.viewers == 0:
            delay = max(self._grace_s, at_least_s)
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_gone)

    def close(self) -> None:
        """The run is over: whoever comes and goes means nothing any more."""
        self.stop()
        self._applies = False
        self._on_gone = _nothing

    def stop(self) -> None:
        """Forget the timer (somebody came)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nothing() -> None:
    """What happens when the viewers of a run that is over are gone."""

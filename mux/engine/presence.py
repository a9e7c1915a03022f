"""What happens to a run when nobody watches it any more: the disconnect policy.

Viewers may be at several servers; each says how many it has, and says it again now and then. What a server
said is forgotten after a while: then it is gone, and its viewers with it.
"""

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
        forget_s: a front that has not said anything for so long is gone.
        on_gone: called once, when the last viewer has been gone for the grace.
    """

    def __init__(
        self,
        policy: Literal["continue", "cancel"] | Grace,
        on_gone: Callable[[], None],
        *,
        forget_s: float = 17.5,
    ) -> None:
        self._forget_s = forget_s
        self._grace_s = policy.grace_s if isinstance(policy, Grace) else 0.0
        self._applies = policy != "continue"
        self._on_gone = on_gone
        self._fronts: dict[str, tuple[int, float]] = {}  # front → its viewers, and when it said so
        self._timer: asyncio.TimerHandle | None = None

    @property
    def viewers(self) -> int:
        """How many there are."""
        return sum(count for count, _ in self._fronts.values())

    def watched(self, front: str, viewers: int, back_s: float = 0.0) -> None:
        """A front has so many viewers now; those that it sent away have ``back_s`` to come back, whatever the
        grace."""
        self._fronts[front] = (viewers, asyncio.get_running_loop().time())
        if self.viewers:
            self._watch()
        else:
            self.arm(back_s)

    def arm(self, at_least_s: float = 0.0) -> None:
        """Start the grace now, if nobody watches; also after a takeover, which took all connections."""
        self._stop()
        if self._applies and not self.viewers:
            delay = max(self._grace_s, at_least_s)
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_gone)

    def close(self) -> None:
        """The run is over: whoever comes and goes means nothing any more."""
        self._stop()
        self._applies = False
        self._on_gone = _nothing

    def _watch(self) -> None:
        self._stop()
        if self._applies:
            self._timer = asyncio.get_running_loop().call_later(self._forget_s, self._forget)

    def _forget(self) -> None:
        """Fronts that have not said anything for long are gone."""
        limit = asyncio.get_running_loop().time() - self._forget_s
        self._fronts = {name: said for name, said in self._fronts.items() if said[1] > limit}
        if self.viewers:
            self._watch()
        else:
            self.arm()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nothing() -> None:
    """What happens when the viewers of a run that is over are gone."""

"""What lies between the sources of a merge and its consumer: one shared list, and a port for each source.

Sources append in order of arrival; one future wakes the consumer, which swaps the list for an empty one. A
source that gave its quota since the last swap waits for the next: that is the bound, the back-pressure and
the fairness in one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from mux.errors import AgentError

__all__ = ["Buffer", "Burst", "Port"]

T = TypeVar("T")


class Burst(list[T]):
    """An item that stands for several, and is counted as so many: what a source had ready at once."""

    __slots__ = ()


class Buffer:
    """The list, and who waits for it.

    Args:
        quota: items that one port may give between two swaps.
        bundled: items of exactly this type that a port gives in a row become one `Burst`.

    Attributes:
        growing: ports whose last item is a burst that may be added to; it is counted when it is sealed.
        gated: ports that somebody waits for room in.
    """

    __slots__ = (
        "_gathering", "_held", "_loop", "_waiter", "bundled", "gated", "growing", "items", "quota", "swaps",
    )  # fmt: skip

    def __init__(self, quota: int, bundled: type | None) -> None:
        self.quota = quota
        self.bundled = bundled
        self.items: list[tuple[Any, Any]] = []
        self.swaps = 0
        self.growing: dict[Port[Any], None] = {}
        self.gated: list[Port[Any]] = []
        self._held = 0  # but for the growing bursts
        self._waiter: asyncio.Future[None] | None = None
        self._gathering: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # kept: CPython 3.11 looks it up by a system call

    def add(self, key: Hashable, item: object, weight: int = 1) -> None:
        """Append an item and wake the consumer."""
        self.items.append((key, item))
        self._held += weight
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def held(self) -> int:
        """How many items are in it; a burst counts as its length."""
        return self._held + sum([port.growing for port in self.growing])

    def sealed(self, port: Port[Any], weight: int) -> None:
        """A port's burst is as long as that, and is not added to any more."""
        self._held += weight
        del self.growing[port]

    def swap(self) -> tuple[list[tuple[Any, Any]], int]:
        """Take everything, and how many items that is; let in who waited for room."""
        while self.growing:
            next(iter(self.growing)).seal()
        taken, self.items = self.items, []
        held, self._held = self._held, 0
        self.swaps += 1
        if self.gated:  # each of them gave a whole quota: O(1) per event
            gated, self.gated = self.gated, []
            for port in gated:
                if not port.held:
                    port.let_in()
        return taken, held

    def changed(self) -> asyncio.Future[None]:
        """What the consumer waits for: the next `add` or `wake`. Raises RuntimeError if one waits already."""
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("a merger has one consumer; somebody else is waiting already")
        self._waiter = self.future()
        return self._waiter

    def hurry(self) -> None:
        """A source waits for room: a consumer that gathers takes what there is."""
        if self._gathering is not None and not self._gathering.done():
            self._gathering.set_result(None)

    async def gather(self, seconds: float) -> None:
        """Let more come before the next swap, for so long at most."""
        if self.gated:
            return
        self._gathering = self.future()
        assert self._loop is not None
        timer = self._loop.call_later(seconds, self.hurry)
        try:
            await self._gathering
        finally:
            timer.cancel()
            self._gathering = None

    def wake(self) -> None:
        """Let the consumer look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def future(self) -> asyncio.Future[None]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop.create_future()


class Port(Generic[T]):
    """One source's way into a merge: its iterator's items come through it, and whoever has a task of their
    own may write into it as well, without a pump in between.

    Attributes:
        closed: whether nobody but the iterator may give anything (any more).
        held: whether it has no room, whatever the consumer takes; see `hold`.
    """

    __slots__ = (
        "_buffer", "_burst", "_gate", "_given", "_putters", "_room", "_swap", "closed", "held", "key",
    )  # fmt: skip

    def __init__(self, buffer: Buffer, key: Hashable) -> None:
        self.key = key
        self.closed = False
        self.held = False
        self._buffer = buffer
        self._swap = buffer.swaps
        self._given = 0  # since that swap, but for the burst
        self._burst: Burst[Any] | None = None  # given since then, and the last: more may be added to it,
        self._room = 0  # until it is so long
        self._gate: asyncio.Future[None] | None = None  # the pump waits here
        self._putters: list[asyncio.Future[None]] = []  # and those who write here

    def offer(self, item: T) -> bool:
        """Add an item if there is room; whether there was."""
        if self.closed:
            return False
        burst = self._burst
        if burst is not None and len(burst) < self._room and type(item) is self._buffer.bundled:
            burst.append(item)  # the hot path: 90 ns less than by `give`, which counts one by one
            return True
        if self._full():
            return False
        self.give(item)
        return True

    async def put(self, item: T) -> None:
        """Add an item; waits while the source has given its quota.

        Raises:
            AgentError: ``channel_ended``: it is closed, or was while this waited.
        """
        while not self.closed and self._full():
            putter = self._wait()
            self._putters.append(putter)
            await putter
        self.force(item)

    def force(self, item: T) -> None:
        """Add an item without waiting; for the few that are bounded elsewhere.

        Raises:
            AgentError: ``channel_ended``: it is closed.
        """
        if self.closed:
            raise AgentError("channel_ended", "The channel has ended; nothing can be added to it.")
        self.give(item)

    def finish(self) -> None:
        """Nobody writes any more; idempotent. The source itself goes on to its end."""
        self.closed = True
        self.held = False
        self.let_in()

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for room."""
        return self._gate is not None or bool(self._putters)

    # --- for the consumer ---------------------------------------------------------------------------------

    def hold(self) -> None:
        """The source has no room from now on: its consumer can't use more just now. Idempotent."""
        self.held = True

    def release(self) -> None:
        """It has room again."""
        self.held = False
        self.let_in()

    # --- for the merger -----------------------------------------------------------------------------------

    def give(self, item: object) -> bool:
        """Into the buffer with it, whether there is room or not; whether the quota is used up now."""
        buffer = self._buffer
        if self._swap != buffer.swaps:
            self._swap, self._given = buffer.swaps, 0
        if type(item) is buffer.bundled:
            if self._burst is None:
                self._room = buffer.quota - self._given
                self._burst = Burst()
                buffer.growing[self] = None
                buffer.add(self.key, self._burst, 0)
            self._burst.append(item)
            return self.held or len(self._burst) >= self._room
        if self._burst is not None:
            self.seal()  # what comes after it may not overtake it
        weight = len(item) if isinstance(item, Burst) else 1
        buffer.add(self.key, item, weight)
        self._given += weight
        return self.held or self._given >= buffer.quota

    @property
    def growing(self) -> int:
        """How long the burst is that may still be added to."""
        return 0 if self._burst is None else len(self._burst)

    def seal(self) -> None:
        """Add nothing more to the burst that is growing."""
        self._given += self.growing
        self._buffer.sealed(self, self.growing)
        self._burst = None

    def gate(self) -> asyncio.Future[None]:
        """What the pump waits for when the quota is used up."""
        self._gate = self._wait()
        return self._gate

    def let_in(self) -> bool:
        """Wake who waits for room; whether the pump was among them."""
        gate, self._gate = self._gate, None
        putters, self._putters = self._putters, []
        for waiting in putters if gate is None else (gate, *putters):
            if not waiting.done():
                waiting.set_result(None)
        return gate is not None

    def _full(self) -> bool:
        if self._swap != self._buffer.swaps:
            self._swap, self._given = self._buffer.swaps, 0
        return self.held or self._given + self.growing >= self._buffer.quota

    def _wait(self) -> asyncio.Future[None]:
        if not self.waiting:
            self._buffer.gated.append(self)
            self._buffer.hurry()
        return self._buffer.future()

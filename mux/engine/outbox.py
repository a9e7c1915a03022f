"""What an agent has said and its guardrails have not taken yet: a bounded queue with several writers and one
reader.

Texts that wait in a row are read as one burst, which costs their guardrails hardly more than one of them.
It has the writers' side of a `mux.merge.Port`, which agents without guardrails write into. A full outbox
pauses the agent (and with it, over TCP, its provider).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from mux.agent import Draft
from mux.errors import AgentError
from mux.merge import Burst

__all__ = ["Outbox"]


class Outbox:
    """A bounded queue of drafts.

    Args:
        limit: drafts that may wait; then `put` waits.
    """

    def __init__(self, limit: int) -> None:
        self._drafts: deque[Draft] = deque()
        self._limit = limit
        self._loop = asyncio.get_running_loop()  # looked up once: CPython 3.11 asks the system for its pid
        self._getter: asyncio.Future[None] | None = None
        self._putters: deque[asyncio.Future[None]] = deque()
        self.closed = False

    async def put(self, draft: Draft) -> None:
        """Add a draft; waits while the outbox is full.

        Raises:
            AgentError: ``channel_ended``: the channel has ended meanwhile.
        """
        while len(self._drafts) >= self._limit and not self.closed:
            putter = self._loop.create_future()
            self._putters.append(putter)
            try:
                await putter
            except asyncio.CancelledError:
                if putter.done() and not putter.cancelled():
                    self._wake_putter()  # the place that was given to us is somebody else's now
                raise
        self.force(draft)

    def offer(self, draft: Draft) -> bool:
        """Add a draft if there is room; whether there was."""
        if self.closed or len(self._drafts) >= self._limit:
            return False
        self.force(draft)
        return True

    def force(self, draft: Draft) -> None:
        """Add a draft without waiting; for the few that are bounded elsewhere.

        Raises:
            AgentError: ``channel_ended``.
        """
        if self.closed:
            raise AgentError("channel_ended", "The channel has ended; nothing can be added to it.")
        self._drafts.append(draft)
        self._wake_getter()

    def finish(self) -> None:
        """Nothing comes any more; the reader gets what is left, then the end."""
        self.closed = True
        self._wake_getter()
        while self._putters:
            self._wake_putter()

    def _wake_getter(self) -> None:
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)

    def _wake_putter(self) -> None:
        while self._putters:
            putter = self._putters.popleft()
            if not putter.done():
                putter.set_result(None)
                return

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Draft | Burst[str]:
        """The next draft; texts that wait in a row come as one burst."""
        while not self._drafts:
            if self.closed:
                raise StopAsyncIteration
            self._getter = self._loop.create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        drafts = self._drafts
        draft = drafts.popleft()
        if self._putters:
            self._wake_putter()
        if type(draft) is not str or not drafts or type(drafts[0]) is not str:
            return draft
        burst = Burst((draft,))
        while drafts and type(text := drafts[0]) is str:
            burst.append(text)
            drafts.popleft()
            if self._putters:
                self._wake_putter()
        return burst

    def close(self) -> None:
        """Nothing is taken or read any more; idempotent."""
        self.finish()
        self._drafts.clear()

"""What an agent has said and nobody has taken yet: a bounded buffer with several writers and one reader.

A full outbox pauses the agent (and with it, over TCP, its provider). Tokens that wait together leave it
together: at full speed an agent writes until the outbox is full, so whatever lies behind it is paid once for
64 tokens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from mux.agent import Draft
from mux.errors import AgentError
from mux.events import Token
from mux.merge import Burst

__all__ = ["Outbox"]


class Outbox:
    """A bounded queue of drafts.

    Args:
        limit: drafts that may wait; then `put` waits.
    """

    def __init__(self, limit: int) -> None:
        self._items: deque[Draft | Burst[Token]] = deque()
        self._tokens: Burst[Token] | None = None  # the last of `_items`, while more may be added to it
        self._room = limit
        self._loop = asyncio.get_running_loop()  # looked up once: CPython 3.11 asks the system for its pid
        self._getter: asyncio.Future[None] | None = None
        self._putters: deque[asyncio.Future[None]] = deque()
        self.closed = False

    async def put(self, draft: Draft) -> None:
        """Add a draft; waits while the outbox is full.

        Raises:
            AgentError: ``channel_ended``: the channel has ended meanwhile.
        """
        while self._room <= 0 and not self.closed:
            putter = self._loop.create_future()
            self._putters.append(putter)
            try:
                await putter
            except asyncio.CancelledError:
                if putter.done() and not putter.cancelled():
                    self._wake_putter()  # the place that was given to us is somebody else's now
                raise
        self.force(draft)

    def offer(self, token: Token) -> bool:
        """Add a token if there is room; whether there was."""
        if self._room <= 0 or self.closed:
            return False
        self._add_token(token)
        return True

    def force(self, draft: Draft) -> None:
        """Add a draft without waiting; for the few that are bounded elsewhere."""
        if self.closed:
            raise AgentError("channel_ended", "The channel has ended; nothing can be added to it.")
        if type(draft) is Token:
            self._add_token(draft)
            return
        self._room -= 1
        self._tokens = None  # what comes after it may not overtake it
        self._items.append(draft)
        self._wake_getter()

    def _add_token(self, token: Token) -> None:
        self._room -= 1
        if self._tokens is not None:
            self._tokens.append(token)
            return
        self._tokens = Burst((token,))
        self._items.append(self._tokens)
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

    async def __anext__(self) -> Draft | Burst[Token]:
        while not self._items:
            if self.closed:
                raise StopAsyncIteration
            self._getter = self._loop.create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        taken = self._items.popleft()
        if taken is self._tokens:
            self._tokens = None
        freed = len(taken) if isinstance(taken, Burst) else 1
        self._room += freed
        while freed and self._putters:
            self._wake_putter()
            freed -= 1
        return taken

    def close(self) -> None:
        """Nothing is taken or read any more; idempotent."""
        self.finish()
        self._items.clear()
        self._tokens = None

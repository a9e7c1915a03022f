"""A few at a time, turn by turn of the event loop."""

from __future__ import annotations

import asyncio

__all__ = ["Turns"]


class Turns:
    """Lets a few do a piece of work in each turn of the event loop, and the others wait for the next ones.

    So a storm of a thousand connections leaves the loop to the live viewers in between.
    """

    def __init__(self, limit: int) -> None:
        self._places = asyncio.Semaphore(limit)

    async def __aenter__(self) -> None:
        await self._places.acquire()

    async def __aexit__(self, *exc: object) -> None:
        try:
            await asyncio.sleep(0)  # keep the place for the rest of this turn
        finally:
            self._places.release()

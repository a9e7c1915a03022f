"""A TCP proxy that cuts connections: in the middle of anything, and at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["CuttingProxy", "cutting"]


@dataclass
class CuttingProxy:
    """Passes bytes between a fixed address and ``target``.

    Attributes:
        target: where the server is now; may change.
        mean: bytes of answers after which a connection is cut, on average; 0 = never.
        cuts: how many were cut.
    """

    target: str
    dice: random.Random
    mean: float
    url: str = ""
    cuts: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _sides: set[asyncio.StreamWriter] = field(default_factory=set)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        sides = [writer]
        self._sides.add(writer)
        try:
            parts = urlsplit(self.target)
            answers, upstream = await asyncio.open_connection(parts.hostname, parts.port)
            sides.append(upstream)
            self._sides.add(upstream)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, upstream))
                both.create_task(self._answers(answers, writer))
        except* (OSError, EOFError):
            pass  # a side is gone; cutting the other one is what follows
        finally:
            for side in sides:
                side.transport.abort()
                self._sides.discard(side)
            self._tasks.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            # The Host check of the server names the server, not us.
            to.write(data.replace(urlsplit(self.url).netloc.encode(), urlsplit(self.target).netloc.encode()))
            await to.drain()
        raise EOFError

    async def _answers(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            # Exponential, so it has no memory: drawn anew for each piece, it follows changes of ``mean``.
            left = self.dice.expovariate(1 / self.mean) if self.mean else float("inf")
            if len(data) > left:
                to.write(data[: int(left)])
                await to.drain()
                self.cuts += 1
                break
            to.write(data)
            await to.drain()
        raise EOFError

    async def close(self) -> None:
        """Cut what is left."""
        for side in tuple(self._sides):
            side.transport.abort()
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def cutting(target: str, *, seed: int, mean: float) -> AsyncIterator[CuttingProxy]:
    """A proxy on a free port."""
    proxy = CuttingProxy(target, random.Random(seed), mean)
    server = await asyncio.start_server(proxy._handle, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()

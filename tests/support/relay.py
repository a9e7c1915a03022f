"""A TCP relay on loopback that can cut what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Relay", "relay"]


class Relay:
    """Forwards connections to another port.

    Attributes:
        port: where it listens.
        cut_answers: how many answers more are dropped, each with its connection, after the request was
            delivered.
        requests: how many writes of clients went through.
        target: the port that new connections go to.
        half_answers: how many answers more are cut in their middle.
        held: nothing passes any more, and nobody is told: a half-open connection.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.cut_answers = 0
        self.requests = 0
        self.target = target
        self.half_answers = 0
        self.held = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, upstream}
        pumps = [
            asyncio.create_task(self._requests(reader, upstream)),
            asyncio.create_task(self._answers(upstream_reader, writer)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (writer, upstream):
            self._writers.discard(end)
            end.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.requests += 1
            if self.held:
                continue
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.cut_answers > 0:
                self.cut_answers -= 1
                return
            if self.half_answers > 0:
                self.half_answers -= 1
                writer.write(data[: len(data) // 2])
                await writer.drain()
                return
            if self.held:
                continue
            writer.write(data)
            await writer.drain()

    def cut_all(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def relay(target: int) -> AsyncIterator[Relay]:
    """One that runs in the block."""
    made = Relay(target)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut_all()
        await asyncio.sleep(0)

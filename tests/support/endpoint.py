"""A model endpoint of a few lines, for what a well-behaved server never does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DONE", "Endpoint", "Exchange", "delta", "serving"]

DONE = b"data: [DONE]\n\n"


def delta(text: str = "", finish: str | None = None) -> bytes:
    """One chunk of chat.completions as an SSE record."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@dataclass
class Exchange:
    """One request and the way to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self, status: int = 200, **headers: str) -> None:
        """Begin a chunked answer; header names with ``_`` for ``-``."""
        given = {"content-type": "text/event-stream", **{k.replace("_", "-"): v for k, v in headers.items()}}
        lines = "".join(f"{k}: {v}\r\n" for k, v in given.items())
        self.writer.write(f"HTTP/1.1 {status} X\r\n{lines}transfer-encoding: chunked\r\n\r\n".encode())
        await self.writer.drain()

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await self.writer.drain()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def answer(self, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        given = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        lines = "".join(f"{k}: {v}\r\n" for k, v in given.items())
        self.writer.write(
            f"HTTP/1.1 {status} X\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body
        )
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        while await self.reader.read(1024):
            pass


Script = Callable[[Exchange], Awaitable[None]]


@dataclass
class Endpoint:
    """A server that runs a script for each request."""

    port: int = 0
    seen: list[Exchange] = field(default_factory=list)
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Endpoint]:
    """Serve on a free port; connections stay open until the script or the client closes them."""
    endpoint = Endpoint()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        endpoint.tasks.add(task)
        endpoint.connections += 1
        try:
            while (exchange := await _request(reader, writer)) is not None and not writer.is_closing():
                endpoint.seen.append(exchange)
                await script(exchange)
        except ConnectionError:
            pass  # the client went away, which is what many of these tests are about
        finally:
            writer.close()
            endpoint.tasks.discard(task)

    server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=1 << 22)
    endpoint.port = server.sockets[0].getsockname()[1]
    try:
        yield endpoint
    finally:
        server.close()
        for task in tuple(endpoint.tasks):
            task.cancel()
        await asyncio.gather(*endpoint.tasks, return_exceptions=True)
        await server.wait_closed()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *rest = head.split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in rest if x)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = line.split(" ")
    return Exchange(method, path, headers, json.loads(body) if body else None, reader, writer)

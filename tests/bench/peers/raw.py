"""The floor: asyncio transports and pre-encoded frames, without HTTP parsing, log, filters or limits.

``GET /full?N``: N frames, one write each. ``GET /live``: one stream for all, flushed every ``FLUSH`` ms.
Arguments: rate in events/s, flush in ms (0 = one write per event and viewer).
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

RATE, FLUSH_S = float(sys.argv[1]), float(sys.argv[2]) / 1000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
FRAME = (
    b'id: r0123456789abcde.1.%d\ndata: {"run":"r0123456789abcde","seq":%d,"channel":"firehose","cseq":%d,'
    b'"type":"token","ts":1790000000000,"content":"%b"}\n\n'
)
FRAMES = [FRAME % (n, n, n, b"hello ") for n in range(100_000, 100_256)]
live: set[asyncio.Transport] = set()
joined = asyncio.Event()


class Peer(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1]
        self.transport.write(HEAD)
        if path.startswith(b"/live"):
            live.add(self.transport)
            joined.set()
        else:
            self.task = asyncio.create_task(self.pour(int(path.partition(b"?")[2])))

    async def pour(self, count: int) -> None:
        write = self.transport.write
        for n in range(count):
            write(FRAMES[n & 255])
            if not self.writable.is_set():
                await self.writable.wait()
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        live.discard(self.transport)
        if not live:
            joined.clear()
        self.writable.set()


async def tick() -> None:
    """Make events at the rate, and write them to all."""
    number, due, flushed, pending = 100_000, time.monotonic(), 0.0, []
    while True:
        if not live:
            await joined.wait()
            due = time.monotonic()
        due += 1 / RATE
        if (pause := due - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        number += 1
        pending.append(FRAME % (number, number, number, b"@%d " % time.monotonic_ns()))
        if time.monotonic() - flushed >= FLUSH_S:
            chunk = b"".join(pending)
            pending.clear()
            for transport in live:
                transport.write(chunk)
            flushed = time.monotonic()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0, backlog=2048)
    print(f"ready http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await tick()


def run() -> None:
    """On uvloop where it is, as the other side."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


run() if "asyncio" not in sys.argv else asyncio.run(main())

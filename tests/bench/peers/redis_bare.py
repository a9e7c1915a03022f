"""The floor of a log in Redis: a bare Lua append loop, one XREAD reader, one write to each viewer.

No fence, no lease, no run, no filters, no HTTP parsing. ``GET /live``: one stream for all. Arguments: port of
Redis, events/s, events of one batch (one EVALSHA), ``event`` (each is an entry of the stream) or ``batch``
(all of them one entry, as Mux does it).
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, cast

from redis.asyncio import Redis

PORT, RATE, BURST, JOINED = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "batch"
STREAM = "bare"
APPEND = """
local first = tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('XADD', KEYS[1], string.format('%.0f-0', first + i - 2), 'd', ARGV[i]) end
return first + #ARGV - 2
"""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
FRAME = (
    b'id: r0123456789abcde.1.%d\ndata: {"run":"r0123456789abcde","seq":%d,"channel":"firehose","cseq":%d,'
    b'"type":"token","ts":1790000000000,"content":"@%d "}\n\n'
)
live: set[asyncio.Transport] = set()
joined = asyncio.Event()


class Peer(asyncio.Protocol):
    """One viewer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(HEAD)
        live.add(self.transport)
        joined.set()

    def connection_lost(self, exc: Exception | None) -> None:
        live.discard(self.transport)


async def write() -> None:
    """Append a batch whenever one is due."""
    async with Redis(port=PORT) as client:
        sha = await client.script_load(APPEND)
        await joined.wait()
        number, due = 1, time.monotonic()
        while True:
            due += BURST / RATE
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            frames = [FRAME % (n, n, n, time.monotonic_ns()) for n in range(number, number + BURST)]
            entries = [b"".join(frames)] if JOINED else frames
            first = number + BURST - len(entries)
            await cast("Any", client.evalsha(sha, 1, STREAM, first, *entries))
            number += BURST


async def read() -> None:
    """Show what comes."""
    async with Redis(port=PORT) as client:
        after: Any = "0-0"
        while True:
            for _, entries in cast("Any", await client.xread({STREAM: after}, block=10_000)) or ():
                chunk = b"".join(fields[b"d"] for _, fields in entries)
                after = entries[-1][0]
                for transport in live:
                    transport.write(chunk)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0)
    print(f"ready http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await asyncio.gather(write(), read())


def run() -> None:
    """On uvloop where it is, as the other side."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


run()

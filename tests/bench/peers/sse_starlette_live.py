"""sse-starlette: one stream for all, a queue for each viewer. ``GET /live``; argument: rate in events/s."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import EventSourceResponse

RATE = float(sys.argv[1])
queues: set[asyncio.Queue[dict[str, str]]] = set()


async def tick() -> None:
    due, seq = time.monotonic(), 100_000
    while True:
        due += 1 / RATE
        if (pause := due - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        seq += 1
        event = {
            "run": "r0123456789abcde", "seq": seq, "channel": "firehose", "cseq": seq, "type": "token",
            "ts": int(time.time() * 1000), "content": f"@{time.monotonic_ns()} ",
        }  # fmt: skip
        message = {"id": f"r0123456789abcde.1.{seq}", "data": json.dumps(event, separators=(",", ":"))}
        for queue in queues:
            if queue.qsize() < 2000:  # a bound, as anybody must have; what is over it is lost
                queue.put_nowait(message)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(tick())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


async def follow() -> AsyncIterator[dict[str, str]]:
    queue: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


@app.get("/live")
async def live() -> EventSourceResponse:
    return EventSourceResponse(follow())


def main() -> None:
    sock = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"ready http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([sock])


main()

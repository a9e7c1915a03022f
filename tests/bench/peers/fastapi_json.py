"""FastAPI: a StreamingResponse over an async generator, json.dumps for each event. ``GET /full?n=N``."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()


async def events(count: int) -> AsyncIterator[str]:
    for seq in range(1, count + 1):
        event = {
            "run": "r0123456789abcde", "seq": seq, "channel": "firehose", "cseq": seq, "type": "token",
            "ts": int(time.time() * 1000), "content": "hello ",
        }  # fmt: skip
        data = json.dumps(event, separators=(",", ":"))
        yield f"id: r0123456789abcde.1.{seq}\ndata: {data}\n\n"


@app.get("/full")
async def full(n: int) -> StreamingResponse:
    return StreamingResponse(events(n), media_type="text/event-stream")


def main() -> None:
    sock = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"ready http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([sock])


main()

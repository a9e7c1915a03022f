"""A fake model endpoint: chat.completions chunks, pre-encoded, one write each.

Arguments: chunks per answer, rate in chunks/s for each answer (0 = full speed).
At a rate each chunk carries the time at which it was sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

COUNT, RATE = int(sys.argv[1]), float(sys.argv[2])
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: keep-alive\r\n\r\n"
)


def frame(content: str | None, finish: str | None = None) -> bytes:
    """One chunk of the answer, in HTTP's chunked coding."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {"id": "chatcmpl-q", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "fake"}
    return coded(b"data: " + json.dumps({**chunk, "choices": [choice]}).encode() + b"\n\n")


def coded(data: bytes) -> bytes:
    """HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


WORD = frame("hello ")
LAST = frame(None, "stop") + coded(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one connection's requests."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            await reader.readexactly(int(fields.get(b"content-length", b"0")))
            writer.write(HEAD)
            due = time.monotonic()
            for _ in range(COUNT):
                if RATE:
                    due += 1 / RATE
                    if (pause := due - time.monotonic()) > 0:
                        await asyncio.sleep(pause)
                    writer.write(frame(f"@{time.monotonic_ns()} "))
                else:
                    writer.write(WORD)
                    await writer.drain()
            writer.write(LAST)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2048)
    print(f"ready http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await server.serve_forever()


asyncio.run(main())

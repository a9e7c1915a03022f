"""Live: many streams of fifty tokens a second, the way that models write; CPU a token against a byte proxy.

``python -m tests.bench.live [--streams 40] [--seconds 4] [--store sqlite|memory] [--rounds 3]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HZ = 50
ROOT = Path(__file__).resolve().parents[2]


async def provider(port: int, tokens: int) -> None:
    """An OpenAI-compatible endpoint whose every answer is so many tokens, one write each."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if b"content-length" in line
                ),
                0,
            )
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            began = asyncio.get_running_loop().time()
            for n in range(tokens):
                delay = began + n / HZ - asyncio.get_running_loop().time()
                if delay > 0:
                    await asyncio.sleep(delay)
                choice = {"index": 0, "delta": {"content": f"w{n} "}, "finish_reason": None}
                writer.write(b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n")
            last = {"index": 0, "delta": {}, "finish_reason": "stop"}
            writer.write(
                b"data: " + json.dumps({"id": "x", "choices": [last]}).encode() + b"\n\ndata: [DONE]\n\n"
            )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await server.serve_forever()


async def proxy(port: int, upstream: int) -> None:
    """The floor: each client gets the bytes of a stream of the provider, unread."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        source, asking = await asyncio.open_connection("127.0.0.1", upstream)
        asking.write(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        while data := await source.read(1 << 16):
            writer.write(data)
        asking.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


async def client(port: int) -> int:
    """One stream to its end; its tokens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = "/api/chat/stream?message=hi&agents=assistant"
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
    )
    seen = 0
    while data := await reader.read(1 << 16):
        seen += data.count(b'"w')
        if b"run_finished" in data or b"[DONE]" in data:
            break
    writer.close()
    return seen


def cpu_s(pid: int) -> float:
    """Of all its threads, in nanoseconds' resolution: the floor takes a few ticks of the clock in all."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="utf-8").split()[0]) for task in tasks) / 1e9


async def measure(streams: int, seconds: int, store: str, rounds: int) -> dict[str, list[float]]:
    tokens = HZ * seconds
    with tempfile.TemporaryDirectory() as home:
        Path(home, "mux.toml").write_text(
            'model = "p:m"\n[limits]\nmax_runs = 500\n'
            '[providers.p]\nbase_url = "http://127.0.0.1:19001/v1"\n',
            encoding="utf-8",
        )
        kept = "memory:" if store == "memory" else f"sqlite:{home}/mux.db"
        again = [sys.executable, "-m", "tests.bench.live"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        serve = [sys.executable, "-m", "mux.cli", "serve", "--port", "19002", "--store", kept,
                 "--log-level", "error"]  # fmt: skip
        processes = [
            subprocess.Popen([*again, "--provide", "19001", "--tokens", str(tokens)], env=env, cwd=ROOT),
            subprocess.Popen(serve, env=env, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
            subprocess.Popen([*again, "--proxy", "19003", "--upstream", "19001"], env=env, cwd=ROOT),
        ]
        try:
            await asyncio.sleep(4)
            await client(19002)
            found: dict[str, list[float]] = {"mux": [], "proxy": []}
            for _ in range(rounds):
                for name, port, process in (("mux", 19002, processes[1]), ("proxy", 19003, processes[2])):
                    before = cpu_s(process.pid)
                    await asyncio.gather(*(asyncio.wait_for(client(port), 60) for _ in range(streams)))
                    found[name].append((cpu_s(process.pid) - before) / (streams * tokens) * 1e6)
            return found
        finally:
            for process in processes:
                process.terminate()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--store", choices=("sqlite", "memory"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--provide", type=int)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--proxy", type=int)
    parser.add_argument("--upstream", type=int, default=0)
    args = parser.parse_args()
    if args.provide:
        asyncio.run(provider(args.provide, args.tokens))
    elif args.proxy:
        asyncio.run(proxy(args.proxy, args.upstream))
    else:
        began = time.monotonic()
        found = asyncio.run(measure(args.streams, args.seconds, args.store, args.rounds))
        mux, floor = (statistics.median(found[name]) for name in ("mux", "proxy"))
        ratios = sorted(a / b for a, b in zip(found["mux"], found["proxy"], strict=True) if b)
        print(
            f"{args.streams} streams, {args.store}: {mux:.0f} µs of CPU a token, proxy {floor:.0f}; "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
            f"{time.monotonic() - began:.0f} s"
        )


if __name__ == "__main__":
    main()

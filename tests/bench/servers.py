"""Servers and load generators as processes of their own, with their CPU time and memory.

The load generator is never in the server's process; its own CPU is in every result, so that a table where it
was the bottleneck is seen for what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "HERE",
    "PEERS",
    "Load",
    "Server",
    "events_request",
    "get_json",
    "mux_server",
    "peer",
    "post_run",
    "request",
    "start",
    "stream_request",
]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".venv-bench" / "bin" / "python"  # made by `make bench`; other frameworks stay out of ours
READY_S = 60.0

# The command line without uvloop, on a machine that has it.
_ASYNCIO_ONLY = "import sys; sys.modules['uvloop'] = None; from mux.cli import main; sys.exit(main())"


@dataclass
class Server:
    """A running server: where it is, and what it used."""

    process: asyncio.subprocess.Process
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def cpu_s(self) -> float:
        """CPU time of all its threads, and of its children, in seconds."""
        return sum(_cpu_s(pid) for pid in _family(self.process.pid))

    def rss_kib(self) -> float:
        """Resident memory in KiB, without what it shares with other processes' files."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return float(line.split()[1])
        return 0.0


def _cpu_s(pid: int) -> float:
    """From the scheduler's own account, in nanoseconds (``stat`` counts in ticks of 10 ms)."""
    total = 0
    with contextlib.suppress(OSError):  # a thread may end meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _family(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


@contextlib.asynccontextmanager
async def start(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
    """Start a server that prints its address in a line that begins with ``Mux is ready`` or ``ready``."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={**os.environ, **(env or {})}, limit=1 << 24,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            async for line in process.stdout:
                text = line.decode()
                if text.startswith(("Mux is ready", "ready")):
                    host, _, port = text.split("://")[1].strip().rstrip("/").rpartition(":")
                    break
            else:
                raise RuntimeError(f"did not start: {' '.join(command)}")
        yield Server(process, host, int(port))
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def mux_server(
    store: str = "memory:", *, uvloop: bool = True, provider: str = "", settings: str = ""
) -> AsyncIterator[Server]:
    """``mux serve`` as a user starts it, with the agents of the benchmark.

    Args:
        store: ``memory:``, ``sqlite`` (a fresh file), or a store's URL.
        uvloop: as installed, or plain asyncio.
        provider: base URL of a model endpoint, for ``model = "bench:fake"``.
        settings: more lines for ``mux.toml``.
    """
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        config = Path(folder) / "mux.toml"
        model = f'model = "bench:fake"\n[providers.bench]\nbase_url = "{provider}"\n' if provider else ""
        limits = "[limits]\nmax_channels = 512\nmax_runs = 1000\nmax_viewers = 8000\n"
        config.write_text(f"{model}{limits}{settings}")
        url = f"sqlite:{folder}/bench.sqlite" if store == "sqlite" else store
        program = ["-m", "mux.cli"] if uvloop else ["-c", _ASYNCIO_ONLY]
        command = [sys.executable, *program, "serve", "--port", "0", "--store", url, "--config", str(config)]
        env = {"XDG_DATA_HOME": folder, "XDG_CACHE_HOME": folder, "BENCH_KEY": "none"}
        async with start([*command, "--agents", str(HERE / "roster")], env=env) as server:
            yield server


@contextlib.asynccontextmanager
async def peer(name: str, *args: str) -> AsyncIterator[Server]:
    """A server of ``tests/bench/peers``; those of other frameworks run in their own environment."""
    own = name in ("raw", "provider", "proxy", "redis_bare")
    python = sys.executable if own else str(PEERS)
    async with start([python, str(HERE / "peers" / f"{name}.py"), *args]) as server:
        yield server


class Load:
    """One load generator: opens connections, reads them, and counts. See ``load.py`` for the protocol."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, server: Server, requests: Sequence[str], **options: Any) -> AsyncIterator[Load]:
        """Send every request on a connection of its own.

        Args:
            server: whom to ask.
            requests: whole HTTP requests.
            options: ``marker``: what counts as one event; ``sequential``: one connection after the other.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "load.py"), limit=1 << 26,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        load = cls(process)
        try:
            await load._write(
                {"host": server.host, "port": server.port, "requests": list(requests), **options}
            )
            yield load
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _write(self, value: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended early")
        return json.loads(line)

    async def connected(self, timeout_s: float = 60) -> None:
        """Wait until every connection has got its first bytes."""
        assert await self._read(timeout_s) == "ready"

    async def window(self, seconds: float, server: Server) -> dict[str, Any]:
        """Count for a while, with the server's CPU of just that while."""
        await self._write("go")
        before = server.cpu_s()
        await asyncio.sleep(seconds)
        used = server.cpu_s() - before
        await self._write("stop")
        return {**await self._read(60), "server_cpu_s": used}

    async def finished(self, timeout_s: float = 120) -> dict[str, Any]:
        """Wait for the end of all connections."""
        await self._write("finish")
        while not isinstance(result := await self._read(timeout_s), dict):
            pass  # "ready", which nobody waited for
        return result


async def post_run(server: Server, body: Mapping[str, Any]) -> dict[str, Any]:
    """Start a run without a stream."""
    data = json.dumps(body)
    answer: dict[str, Any] = await _exchange(server, "POST", "/api/runs", data)
    return answer


async def get_json(server: Server, path: str) -> Any:
    """One GET."""
    return await _exchange(server, "GET", path, "")


async def _exchange(server: Server, method: str, path: str, body: str) -> Any:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(request(method, path, body).encode())
        async with asyncio.timeout(60):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 2"):
        raise RuntimeError(f"{method} {path}: {head[:40]!r} {content[:300]!r}")
    return json.loads(content)


def request(method: str, path: str, body: str = "", **headers: str) -> str:
    """An HTTP request; header names with ``_`` for ``-``. The connection ends with the answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body.encode())}"]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def stream_request(agents: Sequence[str], message: Mapping[str, Any]) -> str:
    """Start a run and stream it."""
    body = json.dumps({"agents": list(agents), "message": json.dumps(message)})
    return request("POST", "/api/runs", body, Accept="text/event-stream")


def events_request(run: str, query: str = "") -> str:
    """Follow a run."""
    return request("GET", f"/api/runs/{run}/events{query}", Accept="text/event-stream")

"""An upstream that replays recorded provider streams: ``tests/providers/cases``, and those of a folder
``shared/quirks/cases`` where one lies beside the checkout. The format is described in ``cases/README.md``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Case", "Running", "load_cases", "playing"]

OURS = Path(__file__).resolve().parents[1] / "providers" / "cases"
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "quirks" / "cases"

_BETWEEN_S = 0.002  # so that each item comes by a read of its own
_BUNDLE = 200  # repeated items in one write


@dataclass(frozen=True)
class Case:
    """One recording."""

    name: str
    spec: dict[str, Any]

    @property
    def expect(self) -> dict[str, Any]:
        expect: dict[str, Any] = self.spec["expect"]
        return expect

    @property
    def api(self) -> Literal["chat", "responses"]:
        return "responses" if self.spec["api"] == "responses" else "chat"

    @property
    def in_bytes(self) -> bool:
        """Whether the bytes alone say what it expects, without statuses, pauses and resets."""
        http = self.spec["http"]
        silent = self.expect["error"] == "upstream_stall"
        return not (silent or http.get("forever") or (http.get("end") == "rst" and self.expect["error"]))

    def wire_bytes(self) -> bytes:
        """The body of the stream as bytes, without its pauses."""
        return b"".join(item for item in self.items() if isinstance(item, bytes))

    def items(self) -> Iterator[bytes | float]:
        """What is written, in order, and the seconds to wait in between."""
        for item in self.spec["chunks"]:
            match item:
                case str():
                    yield _record(item)
                case {"raw": text}:
                    yield text.encode()
                case {"b64": text}:
                    yield base64.b64decode(text)
                case {"sleep": seconds}:
                    yield float(seconds)
                case {"gen": {"prefix": prefix, "unit": unit, "count": count, "suffix": suffix}}:
                    yield _record(prefix + unit * count + suffix)
                case {"repeat": {"item": text, "count": count}}:
                    for start in range(0, count, _BUNDLE):
                        yield _record(text) * min(_BUNDLE, count - start)
                case _:
                    raise ValueError(f"{self.name}: no such item: {item}")


def _record(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def load_cases() -> list[Case]:
    """All cases: those beside the checkout, if there are any, then ours."""
    files = [*sorted(BESIDE.glob("*.json")), *sorted(OURS.glob("*.json"))]
    specs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    cases = [Case(spec["name"], spec) for spec in specs]
    assert len({case.name for case in cases}) == len(cases), "a name is used twice"
    return cases


@dataclass
class Running:
    """A player that listens."""

    port: int = 0
    cases: dict[str, Case] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def base_url(self, case: str) -> str:
        return f"http://127.0.0.1:{self.port}/{case}/v1"

    def requests(self, case: str) -> list[dict[str, Any]]:
        """What it was asked for this case: ``name``, ``auth``, ``body``."""
        return [request for request in self.seen if request["name"] == case]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection is used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        name = head[0].split(" ")[1].split("/")[1]
        self.seen.append(
            {"name": name, "auth": headers.get("authorization"), "body": json.loads(body or b"null")}
        )
        self.asked[name] += 1
        case = self.cases.get(name)
        if case is None:
            await _send(writer, 404, {}, b"")
            return True
        http = case.spec["http"]
        before = http.get("before", [])
        number = self.asked[name]
        if number <= len(before) or http.get("forever"):
            fixed = before[number - 1] if number <= len(before) else http
            given = {"content-type": "application/json", **fixed.get("headers", {})}
            await _send(writer, fixed["status"], given, fixed.get("body", "").encode())
            return True
        await _stream(writer, case, http)
        return False


async def _send(writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes) -> None:
    writer.write(_head(status, {**headers, "content-length": str(len(body))}) + body)
    await writer.drain()


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode()


async def _stream(writer: asyncio.StreamWriter, case: Case, http: dict[str, Any]) -> None:
    headers = {"content-type": "text/event-stream; charset=utf-8", **http.get("headers", {})}
    ours = {"transfer-encoding": "chunked", "connection": "close"}
    writer.write(_head(http.get("status", 200), {**headers, **ours}))
    await writer.drain()
    for item in case.items():
        if isinstance(item, float):
            await asyncio.sleep(item)
        elif item:
            writer.write(b"%x\r\n%b\r\n" % (len(item), item))
            await writer.drain()
            await asyncio.sleep(_BETWEEN_S)
    match http.get("end", "close"):
        case "close":
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        case "rst":
            await asyncio.sleep(0.05)  # what was written arrives before
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()


@asynccontextmanager
async def playing() -> AsyncIterator[Running]:
    """The player on a free port; nothing of it is left afterwards."""
    running = Running(cases={case.name: case for case in load_cases()})
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0, limit=1 << 22)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        for task in tuple(running.tasks):
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        await server.wait_closed()

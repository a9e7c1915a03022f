"""Reads streams without any client library, and asserts what every stream promises (DESIGN section 4).

`parse_sse` is strict where browsers are lenient: LF only, known fields, no NUL. `Checker` holds a viewer's
whole life over any number of connections: feed it what arrived, then compare with the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mux.events import Record
from mux.viewers import Selection

__all__ = ["Block", "Checker", "RawResponse", "http", "parse_ndjson", "parse_sse"]

CONTROL = frozenset(
    {"stream_open", "stream_gap", "stream_live", "stream_rotate", "stream_end", "heartbeat", "batch"}
)


@dataclass(frozen=True)
class Block:
    """One SSE block or NDJSON line."""

    data: dict[str, Any]
    id: str | None = None
    retry: int | None = None


def parse_sse(data: bytes) -> tuple[list[Block], bytes]:
    """Whole blocks, and the rest that is not complete yet (and must not be used)."""
    assert b"\r" not in data, "a carriage return in the stream"
    assert b"\0" not in data, "a NUL in the stream"
    *blocks, rest = data.split(b"\n\n")
    return [_block(b) for b in blocks], rest


def _block(text: bytes) -> Block:
    fields: dict[str, str] = {}
    for line in text.decode().split("\n"):
        name, colon, value = line.partition(": ")
        assert colon, f"not a field: {line!r}"
        assert name in ("id", "data", "retry"), f"unexpected field {name!r}"
        assert name not in fields, f"{name} twice in a block"
        fields[name] = value
    assert "data" in fields, f"a block without data: {text!r}"
    retry = fields.get("retry")
    return Block(json.loads(fields["data"]), fields.get("id"), None if retry is None else int(retry))


def parse_ndjson(data: bytes) -> tuple[list[Block], bytes]:
    """Whole lines, and the rest."""
    *lines, rest = data.split(b"\n")
    objects = [json.loads(line) for line in lines if line]
    return [Block(o, o.get("id") if o.get("type") in CONTROL else None) for o in objects], rest


@dataclass
class Checker:
    """What one viewer of one run has seen, over all its connections.

    Attributes:
        after: the seq that it began after.
        selection: its filter.
        cursor: the last id: what it sends on its next connection.
    """

    run: str
    after: int = 0
    selection: Selection = field(default_factory=Selection)
    cursor: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    control: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def feed(self, blocks: Sequence[Block]) -> None:
        """Take in what arrived on a connection, in order."""
        for block in blocks:
            kind = block.data["type"]
            assert not self.ended, f"{kind} after stream_end"
            if kind == "batch":
                assert block.data["events"], "an empty window"
                for event in block.data["events"]:
                    self._event(event)
                self._moved(block.id, block.data["events"][-1]["seq"])
            elif kind in CONTROL:
                self._control(block)
            else:
                self._event(block.data)
                if block.id is not None:
                    assert self._position(block.id) == block.data["seq"]
                self._moved(block.id, block.data["seq"])

    def _moved(self, cursor: str | None, seq: int) -> None:
        if cursor is not None:
            assert self._position(cursor) >= seq
            self.cursor = cursor

    def _position(self, cursor: str) -> int:
        """The seq of this run in a cursor or a vector of them."""
        own = next(part for part in cursor.split(",") if part.startswith(f"{self.run}."))
        return int(own.rsplit(".", 1)[1])

    def _control(self, block: Block) -> None:
        kind = block.data["type"]
        self.control.append(block.data)
        assert "seq" not in block.data
        if kind == "heartbeat":
            assert block.id is not None, "a heartbeat carries the position"
            self.cursor = block.id
        else:
            assert block.id is None, f"{kind} must not move the cursor"
        if kind == "stream_gap":
            self.gaps.append((block.data["requested"], block.data["first"]))
        self.ended = kind == "stream_end"

    def _event(self, event: dict[str, Any]) -> None:
        assert event["run"] == self.run
        last = self.events[-1]["seq"] if self.events else self.after
        assert event["seq"] > last, f"seq {event['seq']} after {last}: doubled or out of order"
        if self.events:
            assert self.events[-1]["type"] != "run_finished", "an event after run_finished"
        self.events.append(event)

    # --- comparing ---------------------------------------------------------------------------------------

    def assert_equals(self, log: Sequence[Record], *, until: int | None = None) -> None:
        """Exactly the logged events after the cursor that pass the filter: none missing, none twice."""
        wanted = [
            json.loads(r.data)
            for r in log
            if r.seq > self.after
            and (until is None or r.seq <= until)
            and not any(requested < r.seq < first for requested, first in self.gaps)
            and self.selection.matches(r)
        ]
        assert self.events == wanted

    def assert_same_text(self, log: Sequence[Record]) -> None:
        """Compacted: every channel's text and reasoning are the log's, deltas of reset steps left out."""
        assert texts(self.events) == texts([json.loads(r.data) for r in log if r.seq > self.after])

    def assert_gapless(self) -> None:
        """Unfiltered and whole: seq and cseq count from 1 without a gap."""
        first = self.after + 1
        assert [e["seq"] for e in self.events] == list(range(first, first + len(self.events)))
        counts: dict[str | None, int] = defaultdict(int)
        for event in self.events:
            counts[event["channel"]] += 1
            assert event["cseq"] == counts[event["channel"]], "cseq has a gap"

    def assert_order(self) -> None:
        """The order rules of a finished run that was read whole."""
        assert_order(self.events)


def assert_order(events: Sequence[Mapping[str, Any]]) -> None:
    """run_started first, run_finished last, and the rules of every channel and call."""
    assert events[0]["type"] == "run_started"
    assert events[-1]["type"] == "run_finished"
    assert sum(e["type"] == "run_finished" for e in events) == 1
    by_channel: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event["channel"] is not None:
            by_channel[event["channel"]].append(event)
    for own in by_channel.values():
        assert own[0]["type"] == "channel_started"
        assert own[-1]["type"] == "done"
        assert sum(e["type"] == "done" for e in own) == 1
        _assert_calls(own)
    assert set(events[-1]["channels"]) == set(by_channel)


def _assert_calls(events: Sequence[Mapping[str, Any]]) -> None:
    state: dict[str, str] = {}
    for event in events:
        kind, call = event["type"], event.get("call_id")
        if kind == "tool_call":
            assert call not in state, f"call_id {call} twice"
            state[str(call)] = "called"
        elif kind == "tool_start":
            assert state[str(call)] == "called", f"tool_start of a {state.get(str(call))} call"
            state[str(call)] = "started"
        elif kind == "tool_result":
            assert state[str(call)] in ("called", "started"), "a second tool_result"
            state[str(call)] = "over"
    assert set(state.values()) <= {"over"}, f"calls without a result: {state}"


def texts(events: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """(channel, type) → text of tokens, reasoning and arguments, without what a step_reset discarded."""
    own: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event["channel"] is None:
            continue
        if event["type"] == "step_reset":
            own[event["channel"]] = [
                e for e in own[event["channel"]] if e.get("from_cseq", e["cseq"]) < event["from_cseq"]
            ]
        elif event["type"] in ("token", "reasoning", "tool_args"):
            own[event["channel"]].append(event)
    out: dict[tuple[str, str], str] = defaultdict(str)
    for channel, kept in own.items():
        for event in kept:
            out[channel, event["type"]] += event["content"]
    return dict(out)


# --- HTTP/1.1 by hand ------------------------------------------------------------------------------------


class RawResponse:
    """A response that is read by hand, so that no client library hides what was sent."""

    def __init__(self, status: int, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader
        self._rest = b""

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; ends with it, or when the connection is cut."""
        if self.status in (204, 304):
            return
        if self.headers.get("transfer-encoding") == "chunked":
            while True:
                try:
                    size = int(await self._reader.readuntil(b"\r\n"), 16)
                    data = await self._reader.readexactly(size + 2)
                except (asyncio.IncompleteReadError, ConnectionError):
                    return
                if size == 0:
                    return
                yield data[:-2]
        elif "content-length" in self.headers:
            yield await self._reader.readexactly(int(self.headers["content-length"]))
        else:
            while data := await self._reader.read(65536):
                yield data

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([c async for c in self.chunks()])

    async def json(self) -> Any:
        """The body as JSON."""
        return json.loads(await self.body())

    async def blocks(self) -> AsyncIterator[Block]:
        """Blocks of an event stream, or lines of NDJSON."""
        parse = parse_ndjson if "ndjson" in self.headers["content-type"] else parse_sse
        async for data in self.chunks():
            found, self._rest = parse(self._rest + data)
            for block in found:
                yield block


@asynccontextmanager
async def http(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    json_body: Any = None,
    body: bytes | None = None,
    version: str = "1.1",
) -> AsyncIterator[RawResponse]:
    """One request over its own connection, which is cut when the block is left."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
    try:
        sent = {"Host": parts.netloc, **(headers or {})}
        if json_body is not None:
            body = json.dumps(json_body).encode()
            sent.setdefault("Content-Type", "application/json")
        if body is not None:
            sent["Content-Length"] = str(len(body))
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = f"{method} {target} HTTP/{version}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in sent.items())
        writer.write(head.encode("latin-1") + b"\r\n" + (body or b""))
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [line.partition(": ") for line in lines[1:] if line]
        response = {k.lower(): v for k, _, v in fields}
        yield RawResponse(int(lines[0].split()[1]), response, reader)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):  # the server may be quicker to cut it
            await writer.wait_closed()

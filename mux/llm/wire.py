"""Bytes of a model endpoint → SSE records → provider-neutral deltas. Pure: no I/O, no clock.

Every provider quirk ends here and in the two parsers (:mod:`mux.llm.chat`, :mod:`mux.llm.responses`). What a
turn *is* follows three rules: it is over only at a finish reason, at ``[DONE]`` or at a terminal response
event; a tool call is complete only then; and an end before that is an error. Bytes may be cut anywhere, and
the deltas never depend on where.

SSE: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, with three
deliberate differences, each seen at real endpoints: a last record without its blank line counts, two JSON
objects on neighbouring ``data:`` lines are two records, and a body that is no SSE at all is looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from mux.errors import UpstreamError
from mux.llm.failures import broken, error_of, raise_reported, scrub_all
from mux.llm.frames import broke_off, is_done, values_of
from mux.llm.model import Delta, TurnEnd

__all__ = ["MAX_RECORD", "MAX_TURN", "Body", "Record", "RecordReader", "StreamParser", "TurnReader"]

MAX_RECORD: Final = 8 * 1024 * 1024  # one SSE record or a body that is no SSE: beyond it nobody streams
MAX_TURN: Final = 512 * 1024 * 1024  # all bytes of a turn: 32 MiB of text in one-character chunks fit

_NO_STREAM = "The answer is neither an event stream nor JSON of this API."
_BOM = b"\xef\xbb\xbf"
_PING_EVENTS = frozenset({"ping", "keepalive", "keep-alive", "heartbeat"})


class Record(NamedTuple):
    """One SSE record: the event's name (``""`` if it has none) and its data."""

    event: str
    data: bytes


class Body(NamedTuple):
    """A line that belongs to no SSE field and looks like JSON or markup."""

    data: bytes


class RecordReader:
    """Cuts bytes into SSE records; CR, LF and CRLF end lines; a BOM at the start is skipped. Linear work.

    A stream whose first line looks like JSON or markup is no SSE: it is collected whole and given as one
    :class:`Body` by :meth:`close`.

    Attributes:
        noise: a line was seen that is no field of SSE, no JSON and no markup.
    """

    __slots__ = (
        "_body", "_bom", "_data", "_event", "_held", "_partial", "_parts", "_skip_lf", "_sse", "noise"
    )  # fmt: skip

    def __init__(self) -> None:
        self._bom: bytes | None = b""  # up to two bytes that may begin a BOM; None once that is settled
        self._skip_lf = False  # the last chunk ended in CR: an LF right after belongs to it
        self._parts: list[bytes] = []  # the unfinished line
        self._partial = 0  # its length
        self._data: list[bytes] = []  # data lines of the unfinished record
        self._event = ""
        self._held = 0  # bytes in data or body
        self._sse = False  # a line that only SSE has was seen
        self._body: list[bytes] | None = None
        self.noise = False

    def feed(self, chunk: bytes) -> Iterator[Record | Body]:
        """Yield what these bytes complete.

        Raises:
            UpstreamError: ``upstream_protocol`` when a record is larger than `MAX_RECORD`.
        """
        if self._bom is not None:
            chunk = self._strip_bom(self._bom + chunk)
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[0] == 10:
                chunk = chunk[1:]
        if not chunk:
            return
        lines = chunk.splitlines()  # of bytes: at LF, CR and CRLF only
        last = chunk[-1]
        self._skip_lf = last == 13
        rest = b"" if last == 10 or last == 13 else lines.pop()
        if lines:
            if self._parts:
                self._parts.append(lines[0])
                lines[0] = b"".join(self._parts)
                self._parts = []
                self._partial = 0
            yield from self._lines(lines)
        if rest:
            self._parts.append(rest)
            self._partial += len(rest)
            self._hold(0)

    def lone(self, chunk: bytes) -> bytes | None:
        """The data of a chunk that is exactly one record, of one line ``data: {…}``: nearly all are that come
        one by one. ``None``: nothing was read, :meth:`records` does. A quarter of the cost of bytes to delta.
        """
        plain = chunk[:7] == b"data: {" and chunk.find(b"\n") == len(chunk) - 2 and chunk[-1] == 10
        if not plain or b"\r" in chunk or len(chunk) > MAX_RECORD or not self._between():
            return None
        self._sse = True
        return chunk[6:-2]

    def records(self, chunk: bytes) -> Iterator[bytes | Record | Body]:
        """:meth:`feed` at a third of the cost: a record that is one line ``data: {…}``, which nearly all are,
        comes as the bytes of its data."""
        if not self._between():
            end = chunk.find(b"\n\n") + 2
            yield from self.feed(chunk[:end] if end > 1 else chunk)
            chunk = chunk[end:] if end > 1 else b""
        if not self._between() or b"\r" in chunk or len(chunk) > MAX_RECORD:
            yield from self.feed(chunk)
            return
        *parts, last = chunk.split(b"\n\n")
        for at, part in enumerate(parts):
            if part[:7] == b"data: {" and b"\n" not in part:
                self._sse = True
                yield part[6:]
                continue
            yield from self.feed(part + b"\n\n")
            if not self._between():
                last = b"\n\n".join([*parts[at + 1 :], last])
                break
        if last:
            yield from self.feed(last)

    def _between(self) -> bool:
        """Whether no record is begun."""
        begun = self._parts or self._data or self._event or self._skip_lf or self._bom is not None
        return not begun and self._body is None

    def close(self) -> Iterator[Record | Body]:
        """Yield what is left when the bytes end: a record without its blank line, or the whole body."""
        if self._bom:
            self._parts.append(self._bom)
        self._bom = None
        if self._parts:
            line = b"".join(self._parts)
            self._parts = []
            self._partial = 0
            yield from self._lines([line])
        if self._body is not None:
            body, self._body = b"\n".join(self._body), None
            yield Body(body)
        elif self._data:
            yield self._take()

    def _strip_bom(self, chunk: bytes) -> bytes:
        if len(chunk) < 3 and _BOM.startswith(chunk):
            self._bom = chunk
            return b""
        self._bom = None
        return chunk[3:] if chunk.startswith(_BOM) else chunk

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held + self._partial > MAX_RECORD:
            raise broken(f"One record is larger than {MAX_RECORD >> 20} MiB.", retryable=False)

    def _take(self) -> Record:
        data = self._data
        record = Record(self._event, data[0] if len(data) == 1 else b"\n".join(data))
        self._data = []
        self._held = 0
        self._event = ""
        return record

    def _lines(self, lines: list[bytes]) -> Iterator[Record | Body]:
        for line in lines:
            if self._body is not None:
                self._hold(len(line) + 1)
                self._body.append(line)
            elif line.startswith(b"data:"):
                self._sse = True
                value = line[6:] if line[5:6] == b" " else line[5:]
                if self._data and _apart(self._data[-1], value):
                    yield self._take()
                self._hold(len(line))
                self._data.append(value)
            elif not line:
                if self._data:
                    yield self._take()
                elif self._event == "error":
                    yield Record("error", b"")  # SSE drops events without data; this one says enough
                self._event = ""
            elif line.startswith(b"event:"):
                self._sse = True
                self._event = line[6:].strip().decode("utf-8", "replace")
            elif line.startswith(_OTHER_FIELDS):
                self._sse = True
            else:
                yield from self._odd_line(line)

    def _odd_line(self, line: bytes) -> Iterator[Record | Body]:
        """A line that is no field as the standard spells it."""
        if line.lstrip()[:1] in (b"{", b"[", b"<"):
            if self._sse:
                yield Body(line)  # in mid-stream: perhaps an error that a gateway wrote without a frame
            else:
                self._body = [line]
                self._hold(len(line))
        elif field := _FIELD.match(line):
            yield from self._lines([b"%b:%b" % (field[1].lower(), line[field.end() :])])
        else:
            self.noise = self.noise or bool(line.strip(b" \t\0"))


_OTHER_FIELDS = (b":", b"id:", b"retry:")
# a field as some proxies and hand-written servers spell it: indented, in capitals, after NULs
_FIELD = re.compile(rb"\A[ \t\0]*(data|event|id|retry)[ \t]*:", re.IGNORECASE)


def _apart(before: bytes, after: bytes) -> bool:
    """Whether two neighbouring data lines are two records whose blank line was left out.

    A closing and an opening bracket next to each other are never inside one JSON value.
    """
    return before[-1:] in (b"}", b"]") and after[:1] in (b"{", b"[")


class StreamParser(Protocol):
    """Reads the records of one wire API into deltas. One object reads one turn."""

    out: list[Delta]  # deltas so far; the reader takes them
    progress: bool  # set by whatever is more than a keep-alive; the reader clears it
    terminal: bool  # the turn is over by a finish reason or a terminal event
    started: bool  # a record with data was seen

    def record(self, event: str, data: bytes) -> None:
        """Read one record. Raises `UpstreamError` for errors that it reports and for what is no JSON."""

    def whole(self, value: dict[str, Any]) -> bool:
        """Read a complete answer, of an endpoint that does not stream; ``False`` if it is none."""

    def end(self, *, done: bool) -> TurnEnd:
        """Settle the turn; ``done`` says that ``[DONE]`` was seen. Adds last deltas to ``out``.

        Raises:
            UpstreamError: ``upstream_empty`` when there was nothing in it.
        """


class TurnReader:
    """The whole way from bytes to deltas, for one turn.

    Deltas that came before a failure in the same bytes are not lost: :meth:`feed` gives them, and `failure`
    is to be raised after them.

    Attributes:
        failure: set when the turn can't go on.
        terminal: the turn is over; what follows still counts until ``done`` or the end.
        done: ``[DONE]`` was read: nothing more is expected.
        progressed: number of times that something more than a keep-alive was read.
    """

    __slots__ = ("_parser", "_reader", "_size", "done", "failure", "progressed")

    def __init__(self, parser: StreamParser) -> None:
        self._parser = parser
        self._reader = RecordReader()
        self._size = 0
        self.failure: UpstreamError | None = None
        self.done = False
        self.progressed = 0

    @property
    def terminal(self) -> bool:
        return self.done or self._parser.terminal

    def feed(self, chunk: bytes) -> list[Delta]:
        """The deltas that these bytes complete; look at `failure` and `done` afterwards."""
        if self.failure is not None or self.done:
            return []
        self._size += len(chunk)
        try:
            if self._size > MAX_TURN:
                raise broken(f"One turn is larger than {MAX_TURN >> 20} MiB.", retryable=False)
            plain = self._parser.record
            if (lone := self._reader.lone(chunk)) is not None:
                plain("", lone)
                return self._collect()
            for record in self._reader.records(chunk):
                if isinstance(record, bytes):
                    plain("", record)
                elif self._read(record):
                    break
        except UpstreamError as e:
            self.failure = e
        return self._collect()

    def end(self, *, cut: bool = False) -> list[Delta]:
        """The bytes have ended; the last delta is the turn's end, unless `failure` is set.

        Args:
            cut: the connection broke, rather than ended.
        """
        try:
            if self.failure is None:
                if not self.done:
                    self._rest()
                self._judge(cut)
                end = self._parser.end(done=self.done)
                self._parser.out.append(end)
        except UpstreamError as e:
            self.failure = e
        return self._collect()

    def _collect(self) -> list[Delta]:
        parser = self._parser
        if parser.progress:
            parser.progress = False
            self.progressed += 1
        out, parser.out = parser.out, []
        return out

    def _read(self, record: Record | Body) -> bool:
        """Read one record; ``True`` if it says that nothing follows."""
        data = record.data
        if isinstance(record, Body):
            if not (done := is_done(data)):
                error_of(data)  # raises if it is one; anything else between records is ignored, as SSE says
            self.done = done
            return done
        if data[:1] != b"{":
            if not data or (data[0] in b" :\t\n" and (not data.strip() or data.lstrip()[:1] == b":")):
                if record.event != "error":
                    return False  # a comment that a gateway wrapped as data
            elif is_done(data):
                self.done = True
                return True
        if record.event in _PING_EVENTS:
            return False
        self._parser.record(record.event, data)
        return False

    def _rest(self) -> None:
        for record in self._reader.close():
            if isinstance(record, Body) and not self._parser.started:
                self._whole(record.data)
                continue
            try:
                self._read(record)
            except UpstreamError as e:
                if e.code != "upstream_protocol":
                    raise
                # half a record: `_judge` says what that means for the turn
                return

    def _whole(self, data: bytes) -> None:
        """A body that is no SSE: a complete answer, chunks without frames, an error in JSON, or a page for
        people."""
        if is_done(data):
            self.done = True
            return
        if data.lstrip()[:1] == b"<":
            raise broken(_NO_STREAM, retryable=False)
        try:
            values = values_of(data)
        except UpstreamError:
            if broke_off(data):
                raise UpstreamError("upstream_truncated", "The answer broke off.", retryable=True) from None
            raise broken(_NO_STREAM, retryable=False) from None
        found = [v for some in values for v in (some if isinstance(some, list) else [some])]
        objects = [scrub_all(v) for v in found if isinstance(v, dict)]
        for value in objects:
            raise_reported(value)
        if len(objects) == 1 and self._parser.whole(objects[0]):
            return
        if not any("choices" in v or str(v.get("type")).startswith("response.") for v in objects):
            raise broken(_NO_STREAM, retryable=False)
        for value in objects:
            self._parser.record("", json.dumps(value).encode())

    def _judge(self, cut: bool) -> None:
        if self.terminal:
            return
        if self._reader.noise and not self._parser.started:
            raise broken(_NO_STREAM, retryable=False)
        if self._parser.started or cut:
            raise UpstreamError(
                "upstream_truncated", "The stream ended in the middle of the turn.", retryable=True
            )
        raise UpstreamError("upstream_empty", "The answer was empty.", retryable=True)

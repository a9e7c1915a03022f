"""NDJSON: one JSON object a line. Windows and heartbeats carry their position as ``id``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mux.events import Record, quote
from mux.faces.base import dump, one_line, plain
from mux.faces.compact import batch, windows

__all__ = ["Ndjson", "NdjsonCompact"]


@dataclass(frozen=True, slots=True)
class Ndjson:
    """One line for each event."""

    name: str = "ndjson"
    media_type: str = "application/x-ndjson"
    shared: bool = True
    window_s: float = 0.0
    ended: bool = False

    def opening(self) -> bytes:
        return b""

    def events(self, records: Sequence[Record], prefix: bytes, suffix: bytes = b"") -> bytes:
        return b"".join([one_line(r) + b"\n" for r in records])

    def control(self, frame: Mapping[str, object]) -> bytes:
        return dump(plain(frame)) + b"\n"

    def heartbeat(self, cursor: bytes) -> bytes:
        return b'{"type":"heartbeat","id":%b}\n' % quote(cursor.decode()).encode()


@dataclass(frozen=True, slots=True)
class NdjsonCompact:
    """One line for each window (``compact=1``); ``compact_ms`` as in SSE."""

    compact_ms: int = 1000
    name: str = "ndjson-compact"
    media_type: str = "application/x-ndjson"
    shared: bool = True
    window_s: float = 0.04
    ended: bool = False

    def opening(self) -> bytes:
        return b""

    def events(self, records: Sequence[Record], prefix: bytes, suffix: bytes = b"") -> bytes:
        lines = []
        for window in windows(records, self.compact_ms):
            position = b'"%b%d%b"' % (prefix, window[-1].seq, suffix)
            lines.append(batch(window, position) + b"\n")
        return b"".join(lines)

    def control(self, frame: Mapping[str, object]) -> bytes:
        return dump(plain(frame)) + b"\n"

    def heartbeat(self, cursor: bytes) -> bytes:
        return b'{"type":"heartbeat","id":%b}\n' % quote(cursor.decode()).encode()

"""Bare text of one channel: what it says, and nothing else. For ``curl``, pipes and small programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mux.events import Record

__all__ = ["Text"]


class _Content(msgspec.Struct):
    content: str


_decode = msgspec.json.Decoder(_Content).decode


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens and refusals of the selected channel; no control frames, no heartbeats."""

    name: str = "text"
    media_type: str = "text/plain; charset=utf-8"
    shared: bool = True
    window_s: float = 0.0
    ended: bool = False

    def opening(self) -> bytes:
        return b""

    def events(self, records: Sequence[Record], prefix: bytes, suffix: bytes = b"") -> bytes:
        parts = [
            _decode(r.data).content
            for r in records
            if r.channel is not None and r.type in ("token", "refusal")
        ]
        return "".join(parts).encode("utf-8", "replace")

    def control(self, frame: Mapping[str, object]) -> bytes:
        return b""

    def heartbeat(self, cursor: bytes) -> bytes:
        return b""

"""What a face gives to the viewers: pure functions from events to bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from mux.events import Record

__all__ = ["Encoder", "Sink"]


class Encoder(Protocol):
    """One wire format.

    An encoder that is ``shared`` is a frozen value without state: viewers with equal encoders and filters
    get the very same bytes, made once. One that is not belongs to its viewer alone.

    Attributes:
        name: for statistics.
        media_type: the ``Content-Type``.
        shared: whether equal encoders make equal bytes for the same records.
        window_s: seconds that a live window lasts; 0 = events go out as they come.
        ended: the format's own end was written before the log's: nothing follows, and the viewer ends.
    """

    @property
    def name(self) -> str: ...

    @property
    def media_type(self) -> str: ...

    @property
    def shared(self) -> bool: ...

    @property
    def window_s(self) -> float: ...

    @property
    def ended(self) -> bool: ...

    def opening(self) -> bytes:
        """The very first bytes of a connection."""

    def events(self, records: Sequence[Record], prefix: bytes, suffix: bytes = b"") -> bytes:
        """Encode events in order; the position after a record is ``prefix + seq + suffix``."""

    def control(self, frame: Mapping[str, object]) -> bytes:
        """Encode a control frame: about the connection, without an id."""

    def heartbeat(self, cursor: bytes) -> bytes:
        """The sign of life after silence, with the position reached so far."""


class Sink(Protocol):
    """Where a viewer's bytes go: a transport with a bounded buffer. Writing never waits.

    Attributes:
        framing: the transfer coding, applied once per distinct one; the same bytes go to all that share it.
        closing: whether the peer is gone.
        full: whether the buffer is over its bound: `drain` would wait.
    """

    @property
    def framing(self) -> str: ...

    @property
    def closing(self) -> bool: ...

    @property
    def full(self) -> bool: ...

    def frame(self, chunk: bytes) -> bytes:
        """The chunk in this sink's transfer coding."""

    def send(self, framed: bytes) -> bool:
        """Write framed bytes; False when the buffer is over its bound (or the peer is gone)."""

    async def drain(self) -> None:
        """Wait until the buffer is below its bound; raises ConnectionError when the peer is gone."""

    def abort(self) -> None:
        """Drop the connection at once."""

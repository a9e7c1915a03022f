"""Live viewers of one run that get the same bytes: one chunk is made and written to each transport.

This is the hot path of the fan-out: no task, queue or copy per viewer. A viewer whose buffer is over its
bound is taken out; its own request handler then waits for the peer (with a deadline) and reads on from its
cursor, so nothing is lost and nobody else waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mux.events import Record
from mux.viewers.encoder import Encoder
from mux.viewers.selection import Selection

if TYPE_CHECKING:
    from mux.viewers.viewer import Viewer

__all__ = ["Group"]


class Group:
    """The live viewers of one run with equal encoder and filter.

    Attributes:
        position: the seq that every member has been sent (or filtered) up to.
        wrote_at: when its members last got bytes, by the loop's clock.
    """

    __slots__ = ("_prefix", "encoder", "members", "position", "selection", "wrote_at")

    def __init__(self, encoder: Encoder, selection: Selection, prefix: bytes, position: int) -> None:
        self.encoder = encoder
        self.selection = selection
        self.members: set[Viewer] = set()
        self.position = position
        self.wrote_at = 0.0
        self._prefix = prefix

    def advance(self, records: Sequence[Record], now: float) -> None:
        """Send what passes the filter to all members, and move their position."""
        self.position = records[-1].seq
        selected = self.selection.select(records)
        if selected:
            self.deliver(self.encoder.events(selected, self._prefix), now)

    def heartbeat(self, now: float) -> None:
        """Send a sign of life with the position reached."""
        self.deliver(self.encoder.heartbeat(self._prefix + b"%d" % self.position), now)

    def deliver(self, chunk: bytes, now: float) -> None:
        """Write one chunk to every member."""
        if not chunk:
            return
        self.wrote_at = now
        framed: dict[str, bytes] = {}
        lagging: list[Viewer] = []
        for viewer in self.members:
            sink = viewer.sink
            data = framed.get(sink.framing)
            if data is None:
                data = framed[sink.framing] = sink.frame(chunk)
            if not sink.send(data):
                lagging.append(viewer)
        for viewer in lagging:
            self.remove(viewer)

    def remove(self, viewer: Viewer) -> None:
        """Take a viewer out; it goes on by itself from the group's position."""
        if viewer in self.members:
            self.members.remove(viewer)
            viewer.leave_group(self.position)

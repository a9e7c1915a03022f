"""The recent past of one run in memory, shared by all its viewers, and what is known of its channels.

Filled by `publish`, in the order of the log. Records that were published twice (a viewer opened the run
between append and publish) are dropped by their seq; a gap empties the ring, and viewers read the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mux.events import ChannelAdded, Record, RunFinished, RunStarted

if TYPE_CHECKING:
    from mux.viewers.group import Group
    from mux.viewers.viewer import Viewer

__all__ = ["DONE_EARLIER", "Ring"]

MAX_RECORDS = 1024  # about 1 MiB a run with its objects: a viewer that lags further reads the store
MAX_BYTES = 512 * 1024
DONE_EARLIER = 0  # the channel is done, at a position that this process did not see


class Ring:
    """One run's recent events, and who reads them.

    Attributes:
        head: the last seq that was published here (or was in the store when the ring was made).
        final: the run's final status, once it has one.
        channels: channel id → seq of its ``done``, ``DONE_EARLIER``, or ``None`` while it is open.
        learned: whether ``channels`` and ``final`` are complete (else the log before must be asked).
        groups: live viewers that share bytes.
        pullers: live viewers that make their own; they are woken.
    """

    __slots__ = (
        "_bytes", "_records", "channels", "epoch", "final", "groups", "head", "learned", "pullers",
        "run", "users", "waiters",
    )  # fmt: skip

    def __init__(self, run: str, epoch: int, head: int) -> None:
        self.run = run
        self.epoch = epoch
        self.head = head
        self.final: str | None = None
        self.channels: dict[str, int | None] = {}
        self.learned = head == 0
        self.groups: dict[object, Group] = {}
        self.pullers: set[Viewer] = set()
        self.waiters: set[asyncio.Future[None]] = set()
        self.users = 0  # open viewers and waiters: while there are any, this ring is the run's only one
        self._records: list[Record] = []
        self._bytes = 0

    @property
    def in_use(self) -> bool:
        """Whether anybody reads it."""
        return self.users > 0

    @property
    def kept(self) -> int:
        """How many records are in memory."""
        return len(self._records)

    def add(self, records: Sequence[Record]) -> bool:
        """Take over what was appended; False if there was nothing new in it."""
        if records and records[0].seq <= self.head:
            records = [r for r in records if r.seq > self.head]
        if not records:
            return False
        if records[0].seq != self.head + 1:
            self._records.clear()
            self._bytes = 0
            self.learned = False
        self._records.extend(records)
        self.head = records[-1].seq
        self._bytes += sum([len(r.data) for r in records])
        for record in [r for r in records if r.type in _TELLING]:
            self._note(record)
        self._trim()
        return True

    def after(self, seq: int) -> Sequence[Record] | None:
        """The records after ``seq``; ``None`` where they are not (all) in memory."""
        if seq >= self.head:
            return ()
        if not self._records or seq + 1 < self._records[0].seq:
            return None
        return self._records[seq + 1 - self._records[0].seq :]

    def wake_waiters(self) -> None:
        """Let whoever waits for the run's end look again."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def forget_records(self) -> None:
        """Keep what is known of the run, but not its events (it is over and nobody reads it)."""
        self._records.clear()
        self._bytes = 0

    def _trim(self) -> None:
        if len(self._records) <= MAX_RECORDS and self._bytes <= MAX_BYTES:
            return
        drop = len(self._records) // 2  # by halves: amortised O(1), and indexing stays a subtraction
        self._bytes -= sum(len(r.data) for r in self._records[:drop])
        del self._records[:drop]

    def _note(self, record: Record) -> None:
        if record.type == "done":
            if record.channel is not None:
                self.channels[record.channel] = record.seq
            return
        body = record.body or record.event().body
        if isinstance(body, RunStarted):
            for channel in body.channels:
                self.channels.setdefault(channel.id, None)
        elif isinstance(body, ChannelAdded):
            self.channels.setdefault(body.id, None)
        elif isinstance(body, RunFinished):
            self.final = body.status


_TELLING = frozenset({"run_started", "channel_added", "done", "run_finished"})

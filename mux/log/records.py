"""A run's records in memory: the newest as they are, older ones packed.

A token's record as objects takes 600 bytes for 105 bytes of data, and the garbage collector looks at it
again and again; packed, 512 of them are one object, and 140 bytes each (a tenth, if they came together).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter

from mux.events import Record
from mux.log import chunks

__all__ = ["Records"]

LOOSE = 512  # the newest, which viewers keep as well; as many again are packed at once


@dataclass(frozen=True, slots=True)
class _Packed:
    last: int  # seq of its last record
    size: int  # bytes of data, as `Records.size` counts them
    chunk: bytes


class Records:
    """Records with gapless seqs, oldest first.

    Attributes:
        first: seq of the oldest that is kept, or of the next one.
        head: seq of the newest; ``first - 1`` if there is none.
        size: bytes of the records' data.
    """

    __slots__ = ("_loose", "_packed", "first", "head", "size")

    def __init__(self) -> None:
        self.first = 1
        self.head = 0
        self.size = 0
        self._packed: list[_Packed] = []
        self._loose: list[Record] = []

    def extend(self, records: Sequence[Record]) -> int:
        """Add what follows; returns its bytes."""
        loose = self._loose
        loose.extend(records)
        self.head = records[-1].seq
        added = chunks.size_of(records)
        self.size += added
        while len(loose) >= 2 * LOOSE:
            self._pack(LOOSE)
        return added

    def _pack(self, count: int) -> None:
        for part in chunks.split(self._loose[:count]):
            self._packed.append(_Packed(part[-1].seq, chunks.size_of(part), chunks.encode(part)))
        del self._loose[:count]

    def after(self, seq: int) -> Iterator[Record]:
        """The records with a higher seq. Nothing may be added or forgotten before the iterator is dropped."""
        for packed in self._packed[bisect_left(self._packed, seq + 1, key=attrgetter("last")) :]:
            records = chunks.decode(packed.chunk, packed.last)
            yield from islice(records, max(0, seq + 1 - records[0].seq), None)
        if self._loose:
            yield from islice(self._loose, max(0, seq + 1 - self._loose[0].seq), None)

    def forget_before(self, seq: int) -> int:
        """Drop the records with a lower seq; returns their bytes."""
        seq = min(seq, self.head + 1)
        if seq <= self.first:
            return 0
        before = self.size
        whole = bisect_left(self._packed, seq, key=attrgetter("last"))
        self.size -= sum([packed.size for packed in self._packed[:whole]])
        del self._packed[:whole]
        if self._packed:
            self._cut(self._packed[0], seq)
        elif self._loose:
            gone = self._loose[: max(0, seq - self._loose[0].seq)]
            del self._loose[: len(gone)]
            self.size -= chunks.size_of(gone)
        self.first = seq
        return before - self.size

    def _cut(self, packed: _Packed, seq: int) -> None:
        kept = [r for r in chunks.decode(packed.chunk, packed.last) if r.seq >= seq]
        rest = _Packed(packed.last, chunks.size_of(kept), chunks.encode(kept))
        self.size -= packed.size - rest.size
        self._packed[0] = rest

    def shorten(self, to: int) -> int:
        """Forget the oldest until ``to`` bytes are left, or only the newest; returns the bytes gone."""
        over, before = self.size - to, self.first
        for packed in self._packed:  # whole ones, rather than to unpack one for a few bytes
            if over <= 0:
                break
            over -= packed.size
            before = packed.last + 1
        for record in self._loose[:-1]:
            if over <= 0:
                break
            over -= len(record.data)
            before = record.seq + 1
        return self.forget_before(before)

"""A batch of records as one value of the store, and back, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from mux.events import Record

__all__ = ["decode", "decode_all", "encode", "split"]

MAX_RECORDS = 512  # of a chunk: reading one event never decodes more
MAX_BYTES = 1 << 20

_Row = tuple[str | None, int, str, int, bytes]
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[_Row]] = msgspec.msgpack.Decoder(list[_Row])


def split(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Parts of a batch, each within a chunk's bounds (a single event may be larger)."""
    start = size = 0
    for position, record in enumerate(records):
        if position > start and (position - start >= MAX_RECORDS or size + len(record.data) > MAX_BYTES):
            yield records[start:position]
            start, size = position, 0
        size += len(record.data)
    yield records[start:]


def encode(records: Sequence[Record]) -> bytes:
    """One chunk: channel, cseq, type, ts and data of each record.

    Seqs are not in it: they are gapless, and the chunk's key names the last.
    """
    return _encoder.encode([record[1:6] for record in records])


def decode(data: bytes, last: int) -> list[Record]:
    """The records of the chunk that ends with seq ``last``."""
    rows = _decoder.decode(data)
    first = last - len(rows) + 1
    return [
        Record(seq, channel, cseq, kind, ts, body)
        for seq, (channel, cseq, kind, ts, body) in enumerate(rows, first)
    ]


def decode_all(chunks: Iterable[tuple[bytes, int]]) -> Iterator[Record]:
    """The records of chunks that follow each other, one decoded at a time; each with its last seq."""
    for data, last in chunks:
        yield from decode(data, last)

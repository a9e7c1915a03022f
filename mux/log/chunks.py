"""A batch of records as one value of the store, and back, byte for byte.

A record is a row: channel, cseq, type, ts and data. Of tokens that came together one row is kept, that of the
first, with the run's id and their texts in place of the data: all else in theirs follows from these. That is
a tenth of the bytes, and three of four events are tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from mux.events import Record, Tokens, token_records

__all__ = ["decode", "decode_all", "encode", "size_of", "split"]

MAX_RECORDS = 512  # of a chunk: reading one event never decodes more
MAX_BYTES = 1 << 20

_Row = tuple[str | None, int, str, int, bytes | tuple[str, list[str]]]
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[_Row]] = msgspec.msgpack.Decoder(list[_Row])


def size_of(records: Sequence[Record]) -> int:
    """Bytes of the records' data."""
    return sum([len(record.data) for record in records])


def split(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Parts of a batch, each within a chunk's bounds (a single event may be larger)."""
    for start in range(0, len(records), MAX_RECORDS):
        part = records[start : start + MAX_RECORDS]
        if size_of(part) <= MAX_BYTES:  # nearly always
            yield part
        else:
            yield from _split_by_size(part)


def _split_by_size(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    start = size = 0
    for position, record in enumerate(records):
        if position > start and size + len(record.data) > MAX_BYTES:
            yield records[start:position]
            start, size = position, 0
        size += len(record.data)
    yield records[start:]


def encode(records: Sequence[Record]) -> bytes:
    """One chunk. Seqs are not in it: they are gapless, and the chunk's key names the last."""
    rows: list[tuple[object, ...]] = []
    at, end = 0, len(records)
    while at < end:
        record = records[at]
        tokens = record.body
        if isinstance(tokens, Tokens):  # those that follow it too, as far as they are in this chunk
            first = record.seq - tokens.seq
            texts = tokens.texts[first : first + end - at]
            rows.append((*record[1:5], (tokens.run, texts)))
            at += len(texts)
        else:
            rows.append(record[1:6])
            at += 1
    return _encoder.encode(rows)


def decode(data: bytes, last: int) -> list[Record]:
    """The records of the chunk that ends with seq ``last``."""
    rows = _decoder.decode(data)
    seq = last - sum([1 if isinstance(row[4], bytes) else len(row[4][1]) for row in rows])
    records: list[Record] = []
    for channel, cseq, kind, ts, said in rows:
        if isinstance(said, bytes):
            records.append(Record(seq + 1, channel, cseq, kind, ts, said))
            seq += 1
        else:
            run, texts = said
            records += token_records(run, channel or "", seq, cseq - 1, ts, texts)
            seq += len(texts)
    return records


def decode_all(chunks: Iterable[tuple[bytes, int]]) -> Iterator[Record]:
    """The records of chunks that follow each other, one decoded at a time; each with its last seq."""
    for data, last in chunks:
        yield from decode(data, last)

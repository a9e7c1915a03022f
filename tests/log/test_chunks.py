"""Chunks give records back as they were."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mux.events import Record, token_records
from mux.log.chunks import MAX_BYTES, MAX_RECORDS, decode, encode, split

_parts = st.tuples(
    st.none() | st.text("abc.~-_9", min_size=1),
    st.integers(1, 2**53),
    st.sampled_from(["token", "run_started", "x"]),
    st.integers(0, 2**53),
    st.binary(),
)
_texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=6)


@given(st.lists(_parts, min_size=1), st.integers(1, 2**31))
def test_what_is_decoded_is_what_was_encoded(
    parts: list[tuple[str | None, int, str, int, bytes]], first: int
) -> None:
    records = [Record(seq, *part) for seq, part in enumerate(parts, first)]
    assert decode(encode(records), records[-1].seq) == records


@given(
    st.lists(st.one_of(_parts, st.tuples(st.sampled_from("ab"), _texts, st.integers(0, 9))), min_size=1),
    st.data(),
)
def test_tokens_that_came_together_come_back_byte_for_byte_wherever_the_chunk_is_cut(
    said: list[tuple[str, list[str], int]] | list[tuple[str | None, int, str, int, bytes]],
    data: st.DataObject,
) -> None:
    records: list[Record] = []
    for item in said:
        seq = len(records)
        if isinstance(item[1], list):
            channel, texts, ts = item
            records += token_records("r1", channel, seq, 7 + seq, ts, texts, keep=True)
        else:
            records.append(Record(seq + 1, *item))
    start = data.draw(st.integers(0, len(records) - 1))
    end = data.draw(st.integers(start + 1, len(records)))
    part = records[start:end]
    assert decode(encode(part), part[-1].seq) == [r._replace(body=None) for r in part]


def test_tokens_that_came_together_take_a_tenth_of_their_data() -> None:
    records = token_records("r0123456789abcde", "analyst", 9, 7, 1_790_000_000_000, ["word "] * 64, keep=True)
    assert 10 * len(encode(records)) < sum(len(r.data) for r in records)


def test_chunks_of_before_there_were_texts_in_them_are_still_read() -> None:
    rows: list[tuple[str | None, int, str, int, bytes]] = [
        (None, 1, "run_started", 5, b'{"x":1}'), ("a", 1, "token", 6, b'{"y":2}'),
    ]  # fmt: skip
    assert decode(msgspec.msgpack.encode(rows), 12) == [Record(11, *rows[0]), Record(12, *rows[1])]


@given(st.lists(st.sampled_from([1, 1000, MAX_BYTES // 3, MAX_BYTES + 1]), min_size=1, max_size=40))
def test_parts_are_complete_in_order_and_within_bounds(sizes: list[int]) -> None:
    datas = {size: b"x" * size for size in sizes}
    records = [Record(seq, None, seq, "token", 0, datas[size]) for seq, size in enumerate(sizes, 1)]
    parts = list(split(records))
    assert [record for part in parts for record in part] == records
    for part in parts:
        assert 0 < len(part) <= MAX_RECORDS
        assert len(part) == 1 or sum(len(r.data) for r in part) <= MAX_BYTES

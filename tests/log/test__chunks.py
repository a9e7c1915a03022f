"""Chunks give records back as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mux.events import Record
from mux.log._chunks import MAX_BYTES, MAX_RECORDS, decode, encode, split

_parts = st.tuples(
    st.none() | st.text("abc.~-_9", min_size=1),
    st.integers(1, 2**53),
    st.sampled_from(["token", "run_started", "x"]),
    st.integers(0, 2**53),
    st.binary(),
)


@given(st.lists(_parts, min_size=1), st.integers(1, 2**31))
def test_what_is_decoded_is_what_was_encoded(
    parts: list[tuple[str | None, int, str, int, bytes]], first: int
) -> None:
    records = [Record(seq, *part) for seq, part in enumerate(parts, first)]
    assert decode(encode(records), records[-1].seq) == records


@given(st.lists(st.sampled_from([1, 1000, MAX_BYTES // 3, MAX_BYTES + 1]), min_size=1, max_size=40))
def test_parts_are_complete_in_order_and_within_bounds(sizes: list[int]) -> None:
    datas = {size: b"x" * size for size in sizes}
    records = [Record(seq, None, seq, "token", 0, datas[size]) for seq, size in enumerate(sizes, 1)]
    parts = list(split(records))
    assert [record for part in parts for record in part] == records
    for part in parts:
        assert 0 < len(part) <= MAX_RECORDS
        assert len(part) == 1 or sum(len(r.data) for r in part) <= MAX_BYTES

"""Packed or not, a run's records in memory are those that were added and not forgotten."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mux.events import Record
from mux.log.records import LOOSE, Records
from tests.support.stores import records


class AgainstAList(RuleBasedStateMachine):
    """The same operations on a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Record] = []
        self.records = Records()

    @rule(count=st.integers(1, 2 * LOOSE), size=st.integers(0, 40))
    def extend(self, count: int, size: int) -> None:
        start = self.records.head + 1
        new = [Record(n, None, n, "token", n, b"x" * (n % 7 + size)) for n in range(start, start + count)]
        self.kept += new
        assert self.records.extend(new) == sum(len(r.data) for r in new)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget_before(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(self.kept[0].seq - 2, self.records.head + 3))
        gone = [r for r in self.kept if r.seq < seq]
        self.kept = self.kept[len(gone) :]
        assert self.records.forget_before(seq) == sum(len(r.data) for r in gone)

    @precondition(lambda self: self.kept)
    @rule(share=st.floats(0, 1.2))
    def shorten(self, share: float) -> None:
        before, to = self.records.size, int(self.records.size * share)
        gone = self.records.shorten(to)
        assert self.records.size == before - gone
        assert self.records.size <= to or self.records.first == self.records.head
        self.kept = [r for r in self.kept if r.seq >= self.records.first]
        assert bool(gone) == (before > to and before != self.records.size)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(0, self.records.head + 2))
        assert list(self.records.after(seq)) == [r for r in self.kept if r.seq > seq]

    @invariant()
    def same(self) -> None:
        assert self.records.size == sum(len(r.data) for r in self.kept)
        assert self.records.first == (self.kept[0].seq if self.kept else self.records.head + 1)


TestRecords = pytest.mark.filterwarnings("default")(AgainstAList.TestCase)
TestRecords.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


def test_a_large_event_is_packed_alone() -> None:
    kept = Records()
    kept.extend([Record(n, None, n, "token", 0, b"x" * (3 << 20 if n == 5 else 9)) for n in range(1, 1500)])
    assert [len(r.data) for r in kept.after(3)][:3] == [9, 3 << 20, 9]


def test_old_records_are_no_objects_any_more() -> None:
    kept = Records()
    for n in range(100):
        kept.extend(records("packed", 1 + 100 * n, 100))
    alive = [o for o in gc.get_objects() if type(o) is Record and b'"run":"packed"' in o.data]
    assert LOOSE <= len(alive) < 2 * LOOSE

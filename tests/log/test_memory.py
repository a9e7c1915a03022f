"""The memory store's bounds."""

from __future__ import annotations

from mux.events import Record
from mux.log import MemoryStore
from tests.support.stores import records, row


async def test_a_full_ring_forgets_the_oldest_events_of_the_run() -> None:
    store = MemoryStore(max_run_bytes=20_000)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    for n in range(100):
        await store.append("r1", fence, records("r1", 1 + 10 * n, 10))
    at = await store.head("r1")
    assert at.head == 1000
    assert 800 < at.first < 1000
    page = await store.read("r1", 0, limit=10_000)
    assert [r.seq for r in page.records] == list(range(at.first, 1001))
    assert sum(len(r.data) for r in page.records) <= 20_000


async def test_the_newest_event_stays_even_if_it_is_larger_than_the_ring() -> None:
    store = MemoryStore(max_run_bytes=100)
    await store.create(row("r1"))
    await store.append("r1", await store.claim("r1", "me"), [Record(1, None, 1, "token", 0, b"x" * 1000)])
    assert len((await store.read("r1", 0)).records) == 1


async def test_the_oldest_finished_runs_make_room_and_running_ones_stay() -> None:
    store = MemoryStore(max_runs=3)
    await store.create(row("running", created=0))
    for n in range(5):
        await store.create(row(f"r{n}", created=n + 1, status="completed"))
    assert set(store._runs) == {"running", "r3", "r4"}


async def test_it_says_that_nothing_survives() -> None:
    assert MemoryStore().info.durable == "no"

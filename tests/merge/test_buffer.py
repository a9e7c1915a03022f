"""Writing into a merge by a source's port: bounded, in order, refused once the source has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mux.errors import AgentError
from mux.merge import END, Burst, Failed, Merger, Port, Statistics

pytestmark = pytest.mark.usefixtures("no_leaks")


class Held:
    """A source that says something first, and ends when it is told to."""

    def __init__(self, *first: Any, error: Exception | None = None) -> None:
        self.first = first
        self.error = error
        self.end = asyncio.Event()

    async def __call__(self) -> AsyncIterator[Any]:
        for item in self.first:
            yield item
        await self.end.wait()
        if self.error is not None:
            raise self.error


async def settle() -> None:
    """Give everybody the turns that they can use."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_written_comes_after_what_was_yielded_and_before_the_end() -> None:
    boom = ValueError("boom")
    source = Held("hello", error=boom)
    async with Merger[str, Any]() as merger:
        port = merger.add("a", source())
        merger.close()
        await settle()
        assert port.offer(1)
        await port.put(2)
        port.force(3)
        source.end.set()
        await settle()
        assert await anext(merger) == [
            ("a", "hello"), ("a", 1), ("a", 2), ("a", 3), ("a", Failed(boom)),
        ]  # fmt: skip


async def test_what_is_written_is_in_the_merge_at_once() -> None:
    source = Held()
    async with Merger[str, Any]() as merger:
        port = merger.add("a", source())
        taking = asyncio.create_task(anext(merger))
        await settle()
        assert port.offer("x")
        await asyncio.sleep(0)  # one turn: the consumer's own
        assert taking.done()
        assert taking.result() == [("a", "x")]


async def test_a_source_and_its_writers_share_one_quota() -> None:
    source = Held("a", "b")
    async with Merger[str, Any](max_buffer=3) as merger:
        port = merger.add("s", source())
        await settle()
        assert port.offer("c")
        assert not port.offer("d")
        writer = asyncio.create_task(port.put("d"))
        await settle()
        assert not writer.done()
        assert merger.statistics() == Statistics(sources=1, paused=1, buffered=3)
        assert [item for _, item in await anext(merger)] == ["a", "b", "c"]
        await settle()
        assert writer.done()
        assert merger.statistics() == Statistics(sources=1, paused=0, buffered=1)


async def test_what_is_forced_needs_no_room_and_counts_all_the_same() -> None:
    async with Merger[str, Any](max_buffer=1) as merger:
        port = merger.add("s", Held()())
        assert port.offer(1)
        port.force(2)
        assert not port.offer(3)
        assert [item for _, item in await anext(merger)] == [1, 2]


async def test_items_in_a_row_are_one_burst_whoever_speaks_between_them() -> None:
    async with Merger[str, Any](bundled=int) as merger:
        one, other = merger.add("one", Held()()), merger.add("other", Held()())
        assert all(one.offer(n) for n in (1, 2))
        assert other.offer(7)
        mixed: list[Any] = [3, "x", 4, True]
        for item in mixed:  # exactly this type: a bool is none
            assert one.offer(item)
        got = await anext(merger)
        assert got == [("one", [1, 2, 3]), ("other", [7]), ("one", "x"), ("one", [4]), ("one", True)]
        assert [type(item) for _, item in got] == [Burst, Burst, str, Burst, bool]
        assert one.offer(5)
        assert got[3] == ("one", [4]), "what was taken is not added to any more"
        assert await anext(merger) == [("one", [5])]


async def test_every_item_of_a_burst_counts_into_the_quota() -> None:
    async with Merger[str, Any](max_buffer=3, bundled=int) as merger:
        port = merger.add("a", Held()())
        assert [port.offer(n) for n in range(4)] == [True, True, True, False]
        assert merger.statistics().buffered == 3
        assert await anext(merger) == [("a", [0, 1, 2])]


@pytest.mark.parametrize("how", ["finish", "end", "cancel", "close"])
async def test_a_closed_port_takes_nothing_and_lets_its_writers_go(how: str) -> None:
    source = Held()
    async with Merger[str, Any](max_buffer=1) as merger:
        port = merger.add("a", source())
        await settle()
        assert port.offer("said before")
        writer = asyncio.create_task(port.put("never"))
        await settle()
        if how == "finish":
            port.finish()
        elif how == "end":
            source.end.set()
        elif how == "cancel":
            assert merger.cancel("a")
        else:
            await merger.aclose()
        await settle()
        with pytest.raises(AgentError) as refused:
            await writer
        assert refused.value.code == "channel_ended"
        assert not port.offer("never")
        with pytest.raises(AgentError):
            port.force("never")
        with pytest.raises(AgentError):
            await port.put("never")
        source.end.set()
        merger.close()
        assert [pair async for batch in merger for pair in batch] == [("a", "said before"), ("a", END)]


async def test_a_cancelled_source_whose_writer_waits_is_closed_and_reported() -> None:
    """The writer's waiting must not be taken for the pump's, which has to be interrupted."""
    closed = False

    async def source() -> AsyncIterator[str]:
        nonlocal closed
        try:
            await asyncio.Event().wait()
            yield "never"
        finally:
            closed = True

    async with Merger[str, str](max_buffer=1, stop_s=60) as merger:
        port = merger.add("a", source())
        assert port.offer("x")
        writer = asyncio.create_task(port.put("y"))
        await settle()
        merger.cancel("a")
        await settle()
        assert closed
        with pytest.raises(AgentError):
            await writer


async def test_a_source_that_waits_at_its_gate_is_not_asked_again_when_it_is_cancelled() -> None:
    asked = 0

    async def source() -> AsyncIterator[int]:
        nonlocal asked
        while True:
            asked += 1
            yield asked

    async with Merger[str, int](max_buffer=2) as merger:
        merger.add("a", source())
        await settle()
        merger.cancel("a")
        merger.close()
        assert [item async for batch in merger for _, item in batch] == [1, 2, END]
    assert asked == 2


async def test_a_cancelled_writer_leaves_the_others_their_room() -> None:
    async with Merger[str, Any](max_buffer=1) as merger:
        port = merger.add("a", Held()())
        assert port.offer(0)
        writers = [asyncio.create_task(port.put(n)) for n in (1, 2)]
        await settle()
        assert await anext(merger) == [("a", 0)]  # wakes both; the first is cancelled before it runs
        writers[0].cancel()
        assert await anext(merger) == [("a", 2)]
        assert writers[0].cancelled()


@given(
    writers=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    yielded=st.integers(0, 12),
    quota=st.integers(1, 5),
    max_batch=st.integers(1, 8),
    bundled=st.booleans(),
    pauses=st.lists(st.booleans(), min_size=1, max_size=7),
)
@settings(max_examples=150, deadline=None)
def test_whoever_writes_loses_and_doubles_nothing_keeps_an_order_and_stays_within_the_bound(
    writers: list[int], yielded: int, quota: int, max_batch: int, bundled: bool, pauses: list[bool]
) -> None:
    """Writer *w*'s item *n* is ``100 w + n``; what the source yields is written with w = 9."""

    async def source() -> AsyncIterator[int]:
        for n in range(yielded):
            if pauses[n % len(pauses)]:
                await asyncio.sleep(0)
            yield 900 + n
        await ready.wait()

    async def write(port: Port[int], number: int, length: int) -> None:
        for n in range(length):
            if pauses[(number + n) % len(pauses)]:
                await asyncio.sleep(0)
            if not port.offer(100 * number + n):
                await port.put(100 * number + n)

    async def run() -> None:
        got: list[int] = []
        async with Merger[str, int](
            max_buffer=quota, max_batch=max_batch, bundled=int if bundled else None
        ) as merger:
            port = merger.add("a", source())
            merger.close()
            tasks = [asyncio.create_task(write(port, n, length)) for n, length in enumerate(writers)]
            together = asyncio.gather(*tasks)
            together.add_done_callback(lambda _: ready.set())
            async for batch in merger:
                for _, item in batch:
                    got += item if isinstance(item, Burst) else [item] if isinstance(item, int) else []
                await asyncio.sleep(0)
                assert merger.statistics().buffered <= 2 * quota + 1  # the end comes on top
            await together
        for number, length in [*enumerate(writers), (9, yielded)]:
            assert [n for n in got if n // 100 == number] == [100 * number + n for n in range(length)]
        assert len(got) == sum(writers) + yielded

    ready = asyncio.Event()
    asyncio.run(asyncio.wait_for(run(), 10))

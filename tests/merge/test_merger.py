"""The merge: fair, O(1) per event, and it closes what it reads, on every way out."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiostream import pipe, stream, streamcontext
from aiostream.core import Stream
from hypothesis import given, settings
from hypothesis import strategies as st

from mux.merge import END, Burst, Failed, Merger, Statistics, merge, merged

pytestmark = pytest.mark.usefixtures("no_leaks")


class Sources:
    """Makes sources and keeps count of those that were opened and not closed."""

    def __init__(self) -> None:
        self.open = 0
        self.closed = 0

    async def always(self, name: str) -> AsyncIterator[str]:
        """Always has a next item, without ever giving the loop a turn."""
        self.open += 1
        try:
            while True:
                yield name
        finally:
            await asyncio.sleep(0)  # closing takes a turn, and must be awaited
            self.open -= 1
            self.closed += 1

    async def items(self, *items: Any) -> AsyncIterator[Any]:
        self.open += 1
        try:
            for item in items:
                if isinstance(item, BaseException):
                    raise item
                await asyncio.sleep(0)
                yield item
        finally:
            await asyncio.sleep(0)
            self.open -= 1
            self.closed += 1

    async def silent(self) -> AsyncIterator[str]:
        self.open += 1
        try:
            await asyncio.Event().wait()
            yield "never"
        finally:
            await asyncio.sleep(0)
            self.open -= 1
            self.closed += 1


@pytest.fixture
def sources() -> Sources:
    return Sources()


async def settle() -> None:
    """Wait until every task but this one is blocked: the loop has nothing ready."""
    loop = asyncio.get_running_loop()
    for _ in range(10_000):
        await asyncio.sleep(0)
        if not loop._ready:  # type: ignore[attr-defined]
            return
    raise AssertionError("the tasks never came to rest")


async def drain(merger: Merger[str, Any]) -> list[tuple[str, Any]]:
    return [pair async for batch in merger for pair in batch]


# --- order and ends ---------------------------------------------------------------------------------------


async def test_every_item_arrives_once_and_in_its_sources_order(sources: Sources) -> None:
    async with Merger[str, int]() as merger:
        for name in "abc":
            merger.add(name, sources.items(*range(200)))
        merger.close()
        got = await drain(merger)
    for name in "abc":
        assert [item for key, item in got if key == name] == [*range(200), END]
    assert sources.open == 0


@given(
    lengths=st.lists(st.integers(0, 30), max_size=6),
    quota=st.integers(1, 8),
    max_batch=st.integers(1, 20),
    failing=st.sets(st.integers(0, 5)),
)
@settings(max_examples=60, deadline=None)
def test_any_mix_of_lengths_failures_and_bounds_is_complete(
    lengths: list[int], quota: int, max_batch: int, failing: set[int]
) -> None:
    async def run() -> None:
        sources = Sources()
        error = ValueError("boom")
        async with Merger[str, Any](max_buffer=quota, max_batch=max_batch) as merger:
            for number, length in enumerate(lengths):
                tail = [error] if number in failing else []
                merger.add(str(number), sources.items(*range(length), *tail))
            merger.close()
            batches = [batch async for batch in merger]
        assert all(0 < len(batch) <= max_batch for batch in batches)
        for number, length in enumerate(lengths):
            own = [item for batch in batches for key, item in batch if key == str(number)]
            assert own == [*range(length), Failed(error) if number in failing else END]
        assert sources.open == 0

    asyncio.run(run())


async def test_a_merge_without_sources_ends_when_it_is_closed() -> None:
    async with Merger[str, str]() as merger:
        merger.close()
        assert await drain(merger) == []


async def test_one_failure_is_reported_and_ends_nothing_else(sources: Sources) -> None:
    error = ValueError("boom")
    async with Merger[str, Any]() as merger:
        merger.add("bad", sources.items(1, error))
        merger.add("good", sources.items(1, 2, 3))
        merger.close()
        got = await drain(merger)
    assert [item for key, item in got if key == "bad"] == [1, Failed(error)]
    assert [item for key, item in got if key == "good"] == [1, 2, 3, END]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(3), GeneratorExit()], ids=repr)
async def test_even_an_exit_or_a_cancellation_of_its_own_is_one_sources_failure(
    sources: Sources, error: BaseException
) -> None:
    async with Merger[str, Any]() as merger:
        merger.add("bad", sources.items(error))
        merger.add("good", sources.items(1))
        merger.close()
        got = dict(await drain(merger))
    assert got == {"bad": Failed(error), "good": END}


async def test_a_failure_while_closing_is_reported(sources: Sources) -> None:
    async def bad() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            raise ValueError("in clean-up")

    async with Merger[str, Any]() as merger:
        merger.add("bad", bad())
        assert await anext(merger) == [("bad", 1)]
        merger.cancel("bad")
        merger.close()
        [(_, last)] = await drain(merger)
    assert isinstance(last, Failed)
    assert str(last.error) == "in clean-up"


# --- bounds and fairness ------------------------------------------------------------------------------------


async def test_a_source_that_gave_its_quota_waits_for_the_consumer(sources: Sources) -> None:
    async with Merger[str, str](max_buffer=3) as merger:
        merger.add("a", sources.always("a"))
        merger.add("b", sources.always("b"))
        await settle()
        assert merger.statistics() == Statistics(sources=2, paused=2, buffered=6)
        assert [key for key, _ in await anext(merger)] == ["a", "a", "a", "b", "b", "b"]
        await settle()
        assert merger.statistics() == Statistics(sources=2, paused=2, buffered=6)


@pytest.mark.parametrize(("channels", "tolerance"), [(4, 0.03), (8, 0.01)])
@pytest.mark.parametrize("slow", [False, True], ids=["fast consumer", "slow consumer"])
async def test_always_ready_channels_get_equal_shares(
    sources: Sources, channels: int, tolerance: float, slow: bool
) -> None:
    seen: Counter[str] = Counter()
    async with streamcontext(merge(*(sources.always(str(n)) for n in range(channels)))) as streamer:
        async for item in streamer:
            seen[item] += 1
            if slow:
                await settle()  # everybody else gets as far as they can, as with a consumer that takes ages
            if seen.total() == 200:
                break
    for n in range(channels):
        assert abs(seen[str(n)] / 200 - 1 / channels) <= tolerance, seen
    assert sources.open == 0


async def test_batches_give_equal_shares_to_a_slow_consumer(sources: Sources) -> None:
    seen: Counter[str] = Counter()
    async with Merger[str, str]() as merger:
        for n in range(8):
            merger.add(str(n), sources.always(str(n)))
        while seen.total() < 64 * 8 * 10:
            await settle()
            seen.update(key for key, _ in await anext(merger))
    assert set(seen.values()) == {640}


@given(
    bursts=st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=4),
    max_buffer=st.integers(1, 4),
    max_batch=st.integers(1, 6),
)
def test_bursts_are_complete_in_order_and_counted_as_their_items(
    bursts: list[list[int]], max_buffer: int, max_batch: int
) -> None:
    """A number n stands for a burst of n items, 0 for a single item."""

    async def source(lengths: list[int]) -> AsyncIterator[int | Burst[int]]:
        number = 0
        for length in lengths:
            yield Burst(range(number, number + length)) if length else number
            number += length or 1
            if length % 2:
                await asyncio.sleep(0)

    async def run() -> None:
        seen: dict[str, list[int]] = {str(n): [] for n in range(len(bursts))}
        async with Merger[str, int | Burst[int]](max_buffer=max_buffer, max_batch=max_batch) as merger:
            for n, lengths in enumerate(bursts):
                merger.add(str(n), source(lengths))
            merger.close()
            async for batch in merger:
                weights = [len(item) if isinstance(item, Burst) else 1 for _, item in batch]
                assert len(batch) == 1 or sum(weights) <= max_batch
                await asyncio.sleep(0)  # the sources go on meanwhile
                limit = len(bursts) * 2 * (max_buffer + 5)
                assert merger.statistics().buffered <= limit
                for key, item in batch:
                    if isinstance(item, int):
                        seen[key].append(item)
                    elif isinstance(item, Burst):
                        seen[key] += item
                    else:
                        assert item is END
            assert merger.statistics().buffered == 0
        assert seen == {str(n): list(range(sum(i or 1 for i in b))) for n, b in enumerate(bursts)}

    asyncio.run(run())


async def test_channels_that_give_bursts_get_the_share_of_those_that_do_not() -> None:
    async def endless(burst: int) -> AsyncIterator[str | Burst[str]]:
        while True:
            yield Burst(["x"] * burst) if burst else "x"

    counts: Counter[str] = Counter()
    async with Merger[str, str | Burst[str]](max_buffer=64) as merger:
        for key, burst in {"single": 0, "pairs": 2, "whole": 64}.items():
            merger.add(key, endless(burst))
        async for batch in merger:
            for key, item in batch:
                counts[key] += len(item) if isinstance(item, Burst) else 1
            if counts.total() > 5000:
                break
    assert all(abs(n / counts.total() - 1 / 3) < 0.02 for n in counts.values()), counts


async def test_a_rare_channel_is_not_held_up_by_busy_ones(sources: Sources) -> None:
    async with Merger[str, str](max_buffer=8, max_batch=16) as merger:
        for n in range(4):
            merger.add(str(n), sources.always(str(n)))
        await settle()
        merger.add("rare", sources.items("now"))
        before = 0
        while True:
            keys = [key for key, _ in await anext(merger)]
            if "rare" in keys:
                break
            before += len(keys)
        assert before <= 2 * 8 * 4  # what lay in front of it, at most: two quotas of each busy channel


async def _operations(channels: int, events: int = 400) -> tuple[int, int]:
    """Loop callbacks and function calls that some events of one live source cost among idle ones."""
    sources = Sources()
    loop = asyncio.get_running_loop()
    callbacks = calls = 0
    scheduled = loop.call_soon

    def call_soon(*args: Any, **kwargs: Any) -> Any:
        nonlocal callbacks
        callbacks += 1
        return scheduled(*args, **kwargs)

    def profile(*_: object) -> None:
        nonlocal calls
        calls += 1

    async with Merger[str, Any]() as merger:
        for n in range(channels - 1):
            merger.add(str(n), sources.silent())
        merger.add("live", sources.items(*range(events)))
        await anext(merger)
        loop.call_soon = call_soon  # type: ignore[assignment,method-assign]
        sys.setprofile(profile)
        try:
            taken = 0
            while taken < events - 50:
                taken += len(await anext(merger))
        finally:
            sys.setprofile(None)
            del loop.call_soon
    return callbacks, calls


async def test_the_cost_of_an_event_does_not_depend_on_the_number_of_channels() -> None:
    few, many = await _operations(8), await _operations(1024)
    assert few[0] > 0
    assert many[0] == few[0]
    assert abs(many[1] - few[1]) <= 0.02 * few[1]  # the collector may call a finalizer in between


# --- joining and leaving while it runs ----------------------------------------------------------------------


async def test_a_source_may_join_while_the_consumer_waits(sources: Sources) -> None:
    async with Merger[str, str]() as merger:
        merger.add("idle", sources.silent())
        taking = asyncio.create_task(anext(merger))
        await settle()
        merger.add("late", sources.items("hello"))
        assert await taking == [("late", "hello")]


async def test_a_key_may_be_used_again_after_its_end_but_not_before(sources: Sources) -> None:
    async with Merger[str, int]() as merger:
        merger.add("a", sources.items(1))
        with pytest.raises(ValueError, match="still open"):
            merger.add("a", stream.empty())
        while ("a", END) not in await anext(merger):
            pass
        merger.add("a", sources.items(2))
        assert await anext(merger) == [("a", 2)]


async def test_nothing_can_be_added_after_close() -> None:
    async with Merger[str, int]() as merger:
        merger.close()
        with pytest.raises(RuntimeError, match="closed"):
            merger.add("a", stream.empty())


@pytest.mark.parametrize("state", ["not begun", "reading", "at its gate"])
async def test_cancelling_one_source_closes_it_and_reports_its_end(sources: Sources, state: str) -> None:
    async with Merger[str, str](max_buffer=4) as merger:
        merger.add("other", sources.items("x"))
        merger.add("a", sources.silent() if state == "reading" else sources.always("a"))
        if state != "not begun":
            await settle()
        opened = sources.open
        assert merger.cancel("a")
        assert not merger.cancel("a")
        merger.close()
        got = [item for key, item in await drain(merger) if key == "a"]
    assert got == (["a"] * 4 if state == "at its gate" else []) + [END]
    assert sources.open == 0
    assert opened == {"not begun": 0, "reading": 1, "at its gate": 1}[state]


async def test_cancelling_an_unknown_source_says_so() -> None:
    async with Merger[str, str]() as merger:
        assert not merger.cancel("nobody")


async def test_a_source_that_swallows_its_cancellation_is_closed_all_the_same() -> None:
    closed = []

    async def stubborn() -> AsyncIterator[str]:
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    yield "still here"
        finally:
            closed.append(True)

    async with Merger[str, str]() as merger:
        merger.add("a", stubborn())
        await settle()
        merger.cancel("a")
        merger.close()
        assert await drain(merger) == [("a", END)]
    assert closed


async def test_a_source_that_never_stops_is_abandoned_with_a_reason() -> None:
    let_go = asyncio.Event()

    async def immortal() -> AsyncIterator[str]:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        yield "too late"

    async with Merger[str, str](stop_s=0.01) as merger:
        merger.add("a", immortal())
        await settle()
        merger.cancel("a")
        merger.close()
        [(key, last)] = await drain(merger)
        assert key == "a"
        assert isinstance(last, Failed)
        assert isinstance(last.error, TimeoutError)
    let_go.set()
    await settle()


# --- every way out ------------------------------------------------------------------------------------------


Way = Callable[[Sources], Any]


async def _take(sources: Sources) -> None:
    xs = merge(sources.always("a"), sources.silent(), sources.items(1, 2)) | pipe.take(3)
    assert len(await stream.list(xs)) == 3


async def _break(sources: Sources) -> None:
    async with merge(sources.always("a"), sources.silent()).stream() as streamer:
        async for _ in streamer:
            break


async def _error_in_consumer(sources: Sources) -> None:
    async def consume() -> None:
        async with merge(sources.always("a"), sources.silent()).stream() as streamer:
            async for _ in streamer:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await consume()


async def _failing_source(sources: Sources) -> None:
    got = []

    async def consume() -> None:
        async with merge(sources.items(1, ValueError("boom")), sources.silent()).stream() as streamer:
            async for item in streamer:
                got.append(item)  # noqa: PERF401 - what came before the failure counts

    with pytest.raises(ValueError, match="boom"):
        await consume()
    assert got == [1]


async def _cancelled_consumer(sources: Sources) -> None:
    async def consume() -> None:
        async with merge(sources.silent(), sources.silent()).stream() as streamer:
            async for _ in streamer:
                pass

    task = asyncio.create_task(consume())
    await settle()
    assert sources.open == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _cancelled_twice(sources: Sources) -> None:
    async def consume() -> None:
        async with Merger[str, str]() as merger:
            merger.add("a", sources.silent())
            merger.add("b", sources.always("b"))
            async for _ in merger:
                await asyncio.sleep(0)

    task = asyncio.create_task(consume())
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # while it waits for its sources to close
    with pytest.raises(asyncio.CancelledError):
        await task


async def _piped_batches(sources: Sources) -> None:
    merger: Merger[str, str] = Merger()
    merger.add("a", sources.always("a"))
    merger.add("b", sources.silent())
    assert len(await (merged(merger) | pipe.take(1))) > 0


@pytest.mark.parametrize(
    "way",
    [
        _take,
        _break,
        _error_in_consumer,
        _failing_source,
        _cancelled_consumer,
        _cancelled_twice,
        _piped_batches,
    ],
)
async def test_every_source_is_closed_on_every_way_out(sources: Sources, way: Way) -> None:
    await way(sources)
    assert sources.open == 0
    assert sources.closed > 0


async def test_a_batch_that_was_not_taken_because_of_a_timeout_is_not_lost() -> None:
    ready = asyncio.Event()

    async def late() -> AsyncIterator[str]:
        await ready.wait()
        yield "x"

    async with Merger[str, str]() as merger:
        merger.add("a", late())
        taking = asyncio.create_task(anext(merger))
        await settle()
        ready.set()
        await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert await anext(merger) == [("a", "x"), ("a", END)]


async def test_a_second_consumer_is_refused(sources: Sources) -> None:
    async with Merger[str, str]() as merger:
        merger.add("a", sources.silent())
        taking = asyncio.create_task(anext(merger))
        await settle()
        with pytest.raises(RuntimeError, match="one consumer"):
            await anext(merger)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking


async def _listed(xs: Stream[int]) -> list[int]:
    async with xs.stream() as streamer:
        got = [x async for x in streamer]
    return sorted(got)


async def test_a_merge_is_repeatable_and_takes_streams_of_aiostream() -> None:
    xs: Stream[int] = merge(stream.range(3), stream.range(3))
    assert await _listed(xs) == await _listed(xs) == [0, 0, 1, 1, 2, 2]


async def test_a_pipe_may_begin_with_a_source() -> None:
    xs: Stream[int] = stream.just(1) | merge.pipe(stream.just(2))
    assert await _listed(xs) == [1, 2]


@pytest.mark.parametrize("bounds", [{"max_buffer": 0}, {"max_batch": 0}])
def test_bounds_below_one_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Merger(**bounds)

"""One timer for the reads of a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial

import pytest

from mux.llm.alarm import Alarm

pytestmark = pytest.mark.usefixtures("no_leaks")


async def later(n: int) -> int:
    await asyncio.sleep(0)
    return n


def never() -> Awaitable[None]:
    return asyncio.get_running_loop().create_future()


async def test_what_arrives_in_time_is_given() -> None:
    with Alarm(lambda: 60.0) as alarm:
        assert [await alarm.wait(partial(later, n)) for n in range(3)] == [0, 1, 2]


async def test_a_wait_is_cut_short_when_no_time_is_left() -> None:
    with Alarm(lambda: 0.0 if looked else 0.01) as alarm:
        looked: list[float] = []
        waited = asyncio.ensure_future(asyncio.sleep(0.005))
        waited.add_done_callback(lambda _: looked.append(1.0))
        with pytest.raises(TimeoutError):
            await alarm.wait(never)
    await waited
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_nothing_is_begun_when_no_time_is_left() -> None:
    begun: list[bool] = []

    def begin() -> Awaitable[None]:
        begun.append(True)
        return never()

    with Alarm(lambda: 0.0) as alarm, pytest.raises(TimeoutError):
        await alarm.wait(begin)
    assert begun == []


async def test_a_deadline_that_moves_away_is_seen_when_the_timer_goes_off() -> None:
    asked: list[float] = []

    def left() -> float:
        asked.append(0.01 if len(asked) < 3 else 0.0)  # asked at the start, and whenever it goes off
        return asked[-1]

    with Alarm(left) as alarm, pytest.raises(TimeoutError):
        await alarm.wait(never)
    assert len(asked) == 4


async def test_a_deadline_that_comes_nearer_is_kept() -> None:
    far = True

    def left() -> float:
        return 60.0 if far else 0.01 if not rung else 0.0

    rung: list[bool] = []
    with Alarm(left) as alarm:
        await alarm.wait(lambda: asyncio.sleep(0))
        far = False
        asyncio.get_running_loop().call_later(0.005, rung.append, True)
        with pytest.raises(TimeoutError):
            await alarm.wait(never)


async def test_a_cancellation_from_elsewhere_is_passed_on() -> None:
    with Alarm(lambda: 60.0) as alarm:
        task = asyncio.ensure_future(alarm.wait(never))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

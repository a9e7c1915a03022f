"""What keeps a storm of viewers from taking the whole loop."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from mux.viewers.turns import Turns

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_no_more_than_its_limit_work_in_a_turn_of_the_loop() -> None:
    turns, turn, worked = Turns(4), 0, Counter[int]()

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def work() -> None:
        async with turns:
            worked[turn] += 1

    counting = asyncio.create_task(count())
    await asyncio.gather(*(work() for _ in range(100)))
    counting.cancel()
    await asyncio.wait([counting])
    assert worked.total() == 100
    assert max(worked.values()) <= 4


async def test_a_failure_or_a_cancellation_gives_the_place_back() -> None:
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with turns:
                raise RuntimeError

        async def held() -> None:
            async with turns:
                await asyncio.Event().wait()

        task = asyncio.create_task(held())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    async with asyncio.timeout(1), turns:
        pass

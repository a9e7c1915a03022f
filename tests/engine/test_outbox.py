"""The bounded queue between an agent and its guardrails."""

from __future__ import annotations

import asyncio

import pytest

from mux.agent import Draft
from mux.engine.outbox import Outbox
from mux.errors import AgentError
from mux.events import Reasoning, StepStarted
from mux.merge import Burst

pytestmark = pytest.mark.usefixtures("no_leaks")


def token(n: int) -> str:
    return str(n)


async def read(box: Outbox) -> list[Draft]:
    """What is left, one by one."""
    left: list[Draft] = []
    async for said in box:
        left += said if isinstance(said, Burst) else [said]
    return left


async def test_a_full_outbox_holds_its_writers_back_and_keeps_their_order() -> None:
    box = Outbox(2)
    written: list[int] = []

    async def write() -> None:
        for n in range(6):
            await box.put(token(n))
            written.append(n)
        box.finish()

    writer = asyncio.create_task(write())
    for _ in range(5):
        await asyncio.sleep(0)
    assert written == [0, 1]
    assert not box.offer(token(9))
    assert await read(box) == [token(n) for n in range(6)]
    await writer


async def test_texts_that_wait_in_a_row_come_as_one_burst_and_nothing_else_does() -> None:
    box = Outbox(9)
    step = StepStarted(step=1)
    thought = Reasoning(content="so")
    for draft in ("0", "1", step, "2", thought, thought, "3", "4", "5"):
        assert box.offer(draft)
    box.finish()
    assert [said async for said in box] == [
        Burst(["0", "1"]), step, "2", thought, thought, Burst(["3", "4", "5"])
    ]  # fmt: skip


async def test_a_burst_lets_as_many_writers_in_as_it_took() -> None:
    box = Outbox(3)
    for n in range(3):
        assert box.offer(token(n))
    writers = [asyncio.create_task(box.put(token(n))) for n in range(3, 7)]
    await asyncio.sleep(0)
    assert await anext(box) == [token(n) for n in range(3)]
    await asyncio.sleep(0)
    assert [w.done() for w in writers] == [True, True, True, False]
    box.finish()
    await asyncio.wait(writers)
    assert isinstance(writers[3].exception(), AgentError)
    assert await read(box) == [token(n) for n in range(3, 6)]


async def test_every_draft_has_a_place_of_its_own_and_forced_ones_need_none() -> None:
    box = Outbox(2)
    step = StepStarted(step=1)
    assert box.offer(token(0))
    assert box.offer(step)
    assert not box.offer(token(1))
    box.force(token(2))
    assert await anext(box) == token(0)
    assert not box.offer(token(3)), "what was forced takes a place all the same"
    assert await anext(box) == step
    assert box.offer(token(4))
    box.finish()
    assert not box.offer(token(5))
    assert await read(box) == [token(2), token(4)]


async def test_each_draft_that_is_taken_lets_one_writer_in() -> None:
    box = Outbox(2)
    drafts = [StepStarted(step=n) for n in range(5)]
    writers = [asyncio.create_task(box.put(draft)) for draft in drafts]
    for taken in range(2):
        for _ in range(3):
            await asyncio.sleep(0)
        assert sum(w.done() for w in writers) == 2 + taken
        assert await anext(box) == drafts[taken]
    for _ in range(3):
        await asyncio.sleep(0)
    assert [w.done() for w in writers] == [True, True, True, True, False]
    box.finish()
    with pytest.raises(AgentError):
        await writers[4]
    assert await read(box) == drafts[2:4]


async def test_closing_drops_what_is_left_stops_the_writers_and_refuses_more() -> None:
    box = Outbox(1)
    await box.put(token(0))
    waiting = asyncio.create_task(box.put(token(1)))
    await asyncio.sleep(0)
    box.close()
    with pytest.raises(AgentError):
        await waiting
    with pytest.raises(AgentError):
        box.force(token(2))
    assert await read(box) == []


async def test_a_cancelled_writer_gives_its_place_to_the_next() -> None:
    box = Outbox(1)
    await box.put(token(0))
    first, second = asyncio.create_task(box.put(token(1))), asyncio.create_task(box.put(token(2)))
    await asyncio.sleep(0)
    assert (await anext(box)) == token(0)  # wakes the first, which is cancelled before it runs
    first.cancel()
    await second
    assert (await anext(box)) == token(2)
    assert first.cancelled() or first.done()

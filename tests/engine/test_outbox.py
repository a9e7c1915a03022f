"""The bounded buffer between an agent and its guardrails."""

from __future__ import annotations

import asyncio

import pytest

from mux.agent import Draft
from mux.engine.outbox import Outbox
from mux.errors import AgentError
from mux.events import StepStarted, Token
from mux.merge import Burst

pytestmark = pytest.mark.usefixtures("no_leaks")


def token(n: int) -> Token:
    return Token(content=str(n))


async def read(box: Outbox) -> list[Draft]:
    """What is left, one by one."""
    drafts: list[Draft] = []
    async for item in box:
        drafts += item if isinstance(item, Burst) else [item]
    return drafts


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
    assert [d.content for d in await read(box) if isinstance(d, Token)] == ["0", "1", "2", "3", "4", "5"]
    await writer


async def test_tokens_that_wait_together_leave_together_and_overtake_nothing() -> None:
    box = Outbox(4)
    step = StepStarted(step=1)
    for draft in (token(0), token(1), step, token(2)):
        await box.put(draft)
    assert not box.offer(token(3)), "each token of a burst has a place of its own"
    assert await anext(box) == [token(0), token(1)]
    assert box.offer(token(3))
    assert box.offer(token(4))
    assert not box.offer(token(5))
    assert await anext(box) == step
    assert await anext(box) == [token(2), token(3), token(4)]
    assert box.offer(token(6)), "what was taken is not added to any more"
    assert await anext(box) == [token(6)]


async def test_a_burst_that_is_taken_lets_as_many_writers_in() -> None:
    box = Outbox(2)
    writers = [asyncio.create_task(box.put(token(n))) for n in range(5)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert await anext(box) == [token(0), token(1)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert [w.done() for w in writers] == [True, True, True, True, False]
    box.finish()
    with pytest.raises(AgentError):
        await writers[4]
    assert await read(box) == [token(2), token(3)]


async def test_closing_drops_what_is_left_stops_the_writers_and_refuses_more() -> None:
    box = Outbox(1)
    await box.put(token(0))
    waiting = asyncio.create_task(box.put(token(1)))
    await asyncio.sleep(0)
    box.close()
    with pytest.raises(AgentError):
        await waiting
    assert [d async for d in box] == []


async def test_a_cancelled_writer_gives_its_place_to_the_next() -> None:
    box = Outbox(1)
    await box.put(token(0))
    first, second = asyncio.create_task(box.put(token(1))), asyncio.create_task(box.put(token(2)))
    await asyncio.sleep(0)
    assert (await anext(box)) == [token(0)]  # wakes the first, which is cancelled before it runs
    first.cancel()
    await second
    assert (await anext(box)) == [token(2)]
    assert first.cancelled() or first.done()

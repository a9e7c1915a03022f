"""The bounded buffer between an agent and its guardrails."""

from __future__ import annotations

import asyncio

import pytest

from mux.engine.outbox import Outbox
from mux.errors import AgentError
from mux.events import Token

pytestmark = pytest.mark.usefixtures("no_leaks")


def token(n: int) -> Token:
    return Token(content=str(n))


async def nothing() -> None:
    return None


async def test_a_full_outbox_holds_its_writers_back_and_keeps_their_order() -> None:
    box = Outbox(2, nothing)
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
    assert [d.content async for d in box if isinstance(d, Token)] == ["0", "1", "2", "3", "4", "5"]
    await writer


async def test_closing_drops_what_is_left_stops_the_writers_and_refuses_more() -> None:
    closed: list[bool] = []

    async def on_close() -> None:
        closed.append(True)

    box = Outbox(1, on_close)
    await box.put(token(0))
    waiting = asyncio.create_task(box.put(token(1)))
    await asyncio.sleep(0)
    await box.aclose()
    with pytest.raises(AgentError):
        await waiting
    assert closed == [True]
    assert [d async for d in box] == []


async def test_a_cancelled_writer_gives_its_place_to_the_next() -> None:
    box = Outbox(1, nothing)
    await box.put(token(0))
    first, second = asyncio.create_task(box.put(token(1))), asyncio.create_task(box.put(token(2)))
    await asyncio.sleep(0)
    assert (await anext(box)) == token(0)  # wakes the first, which is cancelled before it runs
    first.cancel()
    await second
    assert (await anext(box)) == token(2)
    assert first.cancelled() or first.done()

"""Givers of drafts that wait until these are in the log."""

from __future__ import annotations

import asyncio

import pytest

from mux.engine.barriers import Barriers

KEY = ("tool_start", "call_1")


async def test_a_barrier_is_lifted_by_its_own_key_and_once_is_enough() -> None:
    barriers = Barriers()
    with barriers.raised(KEY) as logged:
        barriers.lift(("approval_requested", "call_1"))
        assert not logged.done()
        barriers.lift(KEY)
        barriers.lift(KEY)
        await asyncio.wait_for(logged, 1)
    barriers.lift(KEY)  # nobody waits any more


async def test_whoever_waits_is_cancelled_when_nothing_more_comes_into_the_log() -> None:
    barriers = Barriers()
    with barriers.raised(KEY) as logged:
        barriers.cancel()
        with pytest.raises(asyncio.CancelledError):
            await logged
    barriers.cancel()

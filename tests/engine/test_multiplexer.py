"""The data path: what goes through it, what is appended together, and what waits alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiostream import pipe
from aiostream.core import Stream

from mux.agent import AgentContext, Draft
from mux.engine.channel import Item
from mux.engine.multiplexer import Multiplexer
from mux.engine.plan import Plan, PlannedChannel
from mux.engine.run import Action, Ended, Finished, Run, Start
from mux.errors import MuxError, StoreError
from mux.events import ChannelStarted, Record
from mux.log.memory import MemoryStore
from mux.log.protocols import Head
from mux.merge import END, Batch, Burst, Failed
from mux.requests import StartRequest
from tests.support.agents import Scripted, harness, says, until
from tests.support.stores import row

pytestmark = pytest.mark.usefixtures("no_leaks")


class Driven:
    """A run that is driven by nothing but its channels."""

    def __init__(self, run: str, channels: Sequence[str]) -> None:
        plan = Plan(channels=tuple(PlannedChannel(id=c, agent="a") for c in channels), message="x")
        self.machine = Run(run, plan, clock=lambda: 1)
        self.machine.write(None, plan.start_event("t", "x", {}))
        self.fence = 1
        self.at = Head(1, 1, 0)
        self.actions: list[Action] = []
        self.error: MuxError | None = None

    def ended(self, channel: str, failure: BaseException | None) -> None:
        self.machine.ended(channel, failure)

    async def keep(self, channels: Sequence[str]) -> None:
        """Nothing is kept."""

    def perform(self, action: Action) -> None:
        self.actions.append(action)

    def lost(self, error: MuxError) -> None:
        self.error = error


async def words(*texts: str) -> AsyncIterator[Item]:
    yield ChannelStarted(agent="a", attempt=1)
    for text in texts:
        yield text
        await asyncio.sleep(0)


async def started(store: MemoryStore, run: str) -> None:
    await store.create(row(run))
    await store.claim(run, "me")


async def test_an_operator_in_the_pipeline_sees_every_item_of_every_channel() -> None:
    seen: Counter[Any] = Counter()

    def count(batch: Batch[Any, Any], *_: object) -> Batch[Any, Any]:
        for key, item in batch:
            if item is not END and not isinstance(item, Failed):
                seen[key] += len(item) if isinstance(item, Burst) else 1
        return batch

    def counting(stream: Stream[Batch[Any, Any]]) -> Stream[Batch[Any, Any]]:
        return stream | pipe.map(count)

    store = MemoryStore()
    multiplexer = Multiplexer(store, lambda *_: None, through=counting)
    multiplexer.start()
    runs = [Driven(f"r{n}", ["a", "b"]) for n in range(5)]
    for number, driven in enumerate(runs):
        await started(store, driven.machine.run)
        multiplexer.join(driven)
        driven.machine.begin()
        multiplexer.flush(driven.machine.run)
        assert driven.actions[:2] == [Start("a"), Start("b")]
        for channel in ("a", "b"):
            multiplexer.add(driven.machine.run, channel, words(*["x"] * (number + 1)))
    await until(lambda: all(Finished() in d.actions for d in runs))
    await multiplexer.stop()
    assert seen == {(f"r{n}", c): n + 2 for n in range(5) for c in "ab"}  # and how each began
    for driven in runs:
        assert driven.actions.count(Ended("a")) == 1
        assert (await store.head(driven.machine.run)).head == driven.machine.state.seq


class OneRefused(MemoryStore):
    """Refuses one run for a while, and another for good."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = {"passes": 2}

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None] | None:
        outcomes: list[MuxError | None] = []
        for batch in batches:
            if batch[0] == "never":
                outcomes.append(StoreError("store_readonly", "No.", retryable=False))
            elif self.refusals.get(batch[0], 0) > 0:
                self.refusals[batch[0]] -= 1
                outcomes.append(StoreError("store_full", "Not now."))
            else:
                outcomes += super().append_now([batch]) or []
        return outcomes


async def test_a_run_that_the_store_refuses_waits_alone_or_is_lost_and_the_others_go_on() -> None:
    store = OneRefused()
    multiplexer = Multiplexer(store, lambda *_: None)
    multiplexer.start()
    runs = {name: Driven(name, ["a"]) for name in ("fine", "passes", "never")}
    for name, driven in runs.items():
        await started(store, name)
        multiplexer.join(driven)
        driven.machine.begin()
        multiplexer.flush(name)
        multiplexer.add(name, "a", words("x", "y"))
    await until(lambda: Finished() in runs["fine"].actions)
    assert Finished() not in runs["passes"].actions
    await until(lambda: Finished() in runs["passes"].actions)
    assert isinstance(runs["never"].error, StoreError)
    assert runs["never"].actions == []
    assert (await store.head("passes")).head == runs["passes"].machine.state.seq
    await multiplexer.stop()


async def test_many_live_runs_share_commits() -> None:
    class Counting(MemoryStore):
        commits = 0
        records = 0

        def append_now(
            self, batches: Sequence[tuple[str, int, Sequence[Record]]]
        ) -> Sequence[MuxError | None] | None:
            self.commits += 1
            self.records += sum(len(records) for _, _, records in batches)
            return super().append_now(batches)

    async def paced(ctx: AgentContext) -> AsyncIterator[Draft]:
        for n in range(50):
            yield f"{n} "
            await asyncio.sleep(0.005)

    store = Counting()
    async with harness(Scripted("a", paced), says("b", "x"), store=store) as h:
        runs = [
            (await h.engine.start_run(StartRequest(message="x", agents=["a"]))).row.run for _ in range(40)
        ]
        for run in runs:
            assert (await h.finished(run, 15))["status"] == "completed"
    assert store.records > 40 * 50
    assert store.commits < store.records / 4

"""Limits, queue, idempotency, leaving viewers, drain, and a store that fails."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Sequence

import pytest

from mux.agent import AgentContext, Draft
from mux.engine.site import Times
from mux.errors import Conflict, MuxError, Overloaded, StoreError, Unavailable
from mux.events import Record, Token
from mux.log import Idempotency, RunRow
from mux.log.memory import MemoryStore
from mux.requests import Grace, StartRequest
from tests.support.agents import Scripted, echo, harness, says, types, until, waits

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_above_max_runs_runs_wait_in_order_and_above_the_queue_they_are_refused() -> None:
    agent = waits("w")
    async with harness(agent, echo("e"), max_runs=1, max_queue=2) as h:
        first = (await h.engine.start_run(StartRequest(message="1", agents=["w"]))).row.run
        second = (await h.engine.start_run(StartRequest(message="2", agents=["e"]))).row.run
        third = (await h.engine.start_run(StartRequest(message="3", agents=["e"]))).row.run
        with pytest.raises(Overloaded) as e:
            await h.engine.start_run(StartRequest(message="4", agents=["e"]))
        assert e.value.status == 429
        assert e.value.retry_after is not None
        snapshot = await h.engine.snapshot(third)
        assert snapshot["status"] == "queued"
        assert snapshot["queue_position"] == snapshot["channels"][0]["queue_position"] == 2
        await h.engine.cancel(second)  # a run that waits can be cancelled, and makes room
        assert (await h.finished(second))["status"] == "cancelled"
        assert (await h.engine.snapshot(third))["queue_position"] == 1
        await agent.started.wait()
        agent.release.set()
        await h.finished(first)
        assert (await h.finished(third))["status"] == "completed"
        assert (await h.engine.stats()) | {"running": 0, "queued": 0} == (await h.engine.stats())


async def test_the_same_idempotency_key_gives_the_same_run_and_another_body_conflicts() -> None:
    agent = waits("w")
    async with harness(agent) as h:
        request = StartRequest(message="x", agents=["w"])
        starts = await asyncio.gather(*(h.engine.start_run(request, key="k") for _ in range(5)))
        assert len({s.row.run for s in starts}) == 1
        assert sum(s.created for s in starts) == 1
        with pytest.raises(Conflict):
            await h.engine.start_run(StartRequest(message="y", agents=["w"]), key="k")
        assert (await h.engine.start_run(request, key="k", owner="other")).created
        await agent.started.wait()
        agent.release.set()
        await h.finished(starts[0].row.run)
        assert not (await h.engine.start_run(request, key="k")).created  # also when it is over
        with pytest.raises(Conflict):
            await h.engine.start_run(StartRequest(message="y", agents=["w"]), key="k")


class _Slow(MemoryStore):
    """Keeps a new run when it is told to; or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self.failing: StoreError | None = None

    async def create(
        self, row: RunRow, idempotency: Idempotency | None = None, records: Sequence[Record] = ()
    ) -> RunRow:
        self.asked.set()
        await self.go.wait()
        if self.failing is not None:
            raise self.failing
        return await super().create(row, idempotency, records)


async def test_the_same_key_at_once_waits_for_the_first_start_also_where_no_place_is_left() -> None:
    agent, store = waits("w"), _Slow()
    async with harness(agent, store=store, max_runs=1, max_queue=0) as h:
        request = StartRequest(message="x", agents=["w"])
        first = asyncio.create_task(h.engine.start_run(request, key="k"))
        await store.asked.wait()
        same = asyncio.create_task(h.engine.start_run(request, key="k"))
        other = asyncio.create_task(h.engine.start_run(StartRequest(message="y", agents=["w"]), key="k"))
        with pytest.raises(Overloaded):
            await h.engine.start_run(request, key="another")
        first.cancel()  # its client hangs up: the run starts all the same
        store.go.set()
        assert not (await same).created
        with pytest.raises(Conflict):
            await other
        assert [row.run for row in await store.unfinished()] == [(await same).row.run]


async def test_a_start_that_fails_leaves_its_key_to_the_next_that_waits() -> None:
    agent, store = waits("w"), _Slow()
    async with harness(agent, store=store) as h:
        store.failing = StoreError("store_full", "The disk is full.")
        request = StartRequest(message="x", agents=["w"])
        starts = [asyncio.create_task(h.engine.start_run(request, key="k")) for _ in range(3)]
        await store.asked.wait()
        store.go.set()
        with pytest.raises(StoreError):
            await starts[0]
        store.failing = None
        assert [(await start).created for start in starts[1:]] == [True, False]


async def test_when_the_last_viewer_has_been_gone_for_the_grace_everything_is_freed_within_a_second() -> None:
    agent = waits("w")
    async with harness(agent) as h:
        request = StartRequest(message="x", agents=["w"], on_disconnect=Grace(grace_s=0.1))
        run = (await h.engine.start_run(request)).row.run
        await agent.started.wait()
        for _ in range(2):
            h.engine.viewer_joined(run)
        h.engine.viewer_joined(run, observe=True)
        h.engine.viewer_left(run)
        await asyncio.sleep(0.15)
        assert not agent.stopped.is_set()
        h.engine.viewer_left(run)
        h.engine.viewer_joined(run)  # comes back within the grace
        await asyncio.sleep(0.15)
        assert not agent.stopped.is_set()
        h.engine.viewer_left(run)  # an observer is still there, and does not count
        await asyncio.wait_for(agent.stopped.wait(), 1.1)
        assert (await h.finished(run, 1))["status"] == "cancelled"


@pytest.mark.parametrize(("streaming", "stays"), [(False, True), (True, False)])
async def test_runs_without_a_stream_go_on_when_their_viewers_leave(streaming: bool, stays: bool) -> None:
    async with harness(says("a", "x")) as h:
        started = await h.engine.start_run(StartRequest(message="x"), streaming=streaming)
        assert (started.row.request.get("on_disconnect", "continue") == "continue") is stays
        await h.finished(started.row.run)


async def test_viewers_that_the_server_sends_away_have_not_left_their_run() -> None:
    agent = waits("w")
    async with harness(agent, times=Times(come_back=0.3)) as h:
        run = (await h.engine.start_run(StartRequest(message="x", on_disconnect="cancel"))).row.run
        h.engine.viewer_joined(run)
        await agent.started.wait()
        h.engine.viewer_left(run, sent_away=True)
        await asyncio.sleep(0.1)
        assert not agent.stopped.is_set()
        h.engine.viewer_joined(run)
        draining = asyncio.create_task(h.engine.drain(5))
        await asyncio.sleep(0)
        h.engine.viewer_left(run, sent_away=True)
        await asyncio.sleep(0.5)  # nobody can come back while the server stops
        assert not agent.stopped.is_set()
        agent.release.set()
        await draining
        assert (await h.store.get(run)).status == "completed"


async def test_drain_refuses_new_runs_lets_running_ones_end_and_leaves_the_rest_without_a_last_event() -> (
    None
):
    quick, slow = waits("quick"), waits("slow")
    store = MemoryStore()
    async with harness(quick, slow, store=store) as h:
        ends = (await h.engine.start_run(StartRequest(message="x", agents=["quick"]))).row.run
        stays = (await h.engine.start_run(StartRequest(message="x", agents=["slow"]))).row.run
        await quick.started.wait()
        await slow.started.wait()
        draining = asyncio.create_task(h.engine.drain(0.3))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await h.engine.start_run(StartRequest(message="x"))
        quick.release.set()
        await draining
        assert types(await h.events(ends))[-1] == "run_finished"
        await h.engine.close()
        assert slow.stopped.is_set()
        assert types(await h.events(stays)) == ["run_started"]
        assert "done" not in types(await h.events(stays), "slow")
        assert [row.run for row in await store.unfinished()] == [stays]


class Flaky(MemoryStore):
    """Fails to write while it is told to."""

    failing: StoreError | None = None
    tries = 0

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None] | None:
        if self.failing is not None:
            self.tries += 1
            return [self.failing for _ in batches]
        return super().append_now(batches)

    async def create(
        self, row: RunRow, idempotency: Idempotency | None = None, records: Sequence[Record] = ()
    ) -> RunRow:
        if self.failing is not None:
            raise self.failing
        return await super().create(row, idempotency, records)

    async def claim(self, run: str, owner: str) -> int:
        if self.failing is not None:
            raise self.failing
        return await super().claim(run, owner)


async def test_a_store_that_recovers_loses_nothing() -> None:
    agent, store = waits("w"), Flaky()
    async with harness(agent, store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="x"))).row.run
        await agent.started.wait()
        store.failing = StoreError("store_full", "The disk is full.")
        agent.release.set()
        await until(lambda: store.tries >= 2)
        store.failing = None
        assert (await h.finished(run))["channels"][0]["text"] == "thinking done"
        assert types(await h.events(run), "w")[-1] == "done"


async def test_a_store_that_stays_broken_stops_the_run_which_is_taken_over_when_it_works_again() -> None:
    agent, store = waits("w"), Flaky()
    async with harness(agent, store=store, times=Times(answer=0.1)) as h:
        run = (await h.engine.start_run(StartRequest(message="x"))).row.run
        await agent.started.wait()
        store.failing = StoreError("store_readonly", "The file is read-only.", retryable=False)
        agent.release.set()
        await asyncio.wait_for(agent.stopped.wait(), 2)
        await until(lambda: h.engine.worker.drive(run) is None)
        with pytest.raises(Unavailable):
            await h.engine.cancel(run)
        store.failing = None
        await until(
            lambda: (
                h.engine.worker.drive(run) is not None
                or any(r.type == "run_finished" for r in h.published[run])
            )
        )
        snapshot = await h.finished(run)
        assert snapshot["channels"][0]["error"]["code"] == "interrupted"
        assert types(await h.events(run))[-1] == "run_finished"


async def test_viewers_that_stayed_while_their_run_was_taken_over_have_not_left_it() -> None:
    agent, store = waits("w", resumable="restart"), Flaky()
    async with harness(agent, store=store, times=Times(come_back=0.1, again=(0.01,), say_every=0.03)) as h:
        request = StartRequest(message="x", on_disconnect=Grace(grace_s=0.1))
        run = (await h.engine.start_run(request)).row.run
        h.engine.viewer_joined(run)
        await agent.started.wait()
        store.failing = StoreError("store_readonly", "The file is read-only.", retryable=False)
        agent.release.set()
        await until(lambda: h.engine.worker.drive(run) is None)
        agent.started.clear()
        agent.release.clear()
        agent.stopped.clear()
        store.failing = None
        await agent.started.wait()
        await asyncio.sleep(0.3)
        assert not agent.stopped.is_set()
        h.engine.viewer_left(run)
        assert (await h.finished(run))["status"] == "cancelled"


async def test_a_start_that_could_not_be_kept_is_refused_and_leaves_nothing() -> None:
    store = Flaky()
    async with harness(says("a", "x"), store=store) as h:
        store.failing = StoreError("store_readonly", "The file is read-only.", retryable=False)
        with pytest.raises(StoreError):
            await h.engine.start_run(StartRequest(message="x"))
        assert not await store.unfinished()
        assert (await h.engine.stats())["running"] == 0


class _Held(MemoryStore):
    """Appends nothing while it is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.open_again = asyncio.Event()
        self.open_again.set()

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None] | None:
        return None

    async def append_many(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None]:
        await self.open_again.wait()
        return super().append_now(batches) or []


async def test_an_agent_that_is_stopped_while_the_log_holds_it_back_is_not_reported_as_a_bug() -> None:
    """What it was saying is refused, as its channel ends: nobody awaits that, so somebody must look at it."""
    said = 0
    store = _Held()

    async def talks(ctx: AgentContext) -> AsyncIterator[Draft]:
        nonlocal said
        while True:
            said += 1
            yield Token(content="x")
            if said % 8 == 0:
                await asyncio.sleep(0)

    async with harness(Scripted("a", talks), store=store) as h:
        reported: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(repr(context)))
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
        await until(lambda: said > 100)
        store.open_again.clear()
        before = -1
        while said > before:  # until it is held back
            before = said
            await asyncio.sleep(0.01)
        cancelling = asyncio.create_task(h.engine.cancel(run))
        await asyncio.sleep(0.01)
        store.open_again.set()
        await cancelling
        assert (await h.finished(run))["status"] == "cancelled"
        gc.collect()
        assert reported == []


async def test_an_owner_that_was_fenced_off_stops_at_once() -> None:
    agent, store = waits("w"), MemoryStore()
    async with harness(agent, store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="x"))).row.run
        await agent.started.wait()
        await store.claim(run, "another process")
        agent.release.set()
        await until(lambda: h.engine.worker.drive(run) is None)
        assert "done" not in types(await h.events(run), "w")


async def test_ids_sort_by_time_and_are_short() -> None:
    async with harness(says("a", "x")) as h:
        runs = []
        for _ in range(3):
            runs.append((await h.engine.start_run(StartRequest(message="x"))).row.run)
            await asyncio.sleep(0.002)
        assert runs == sorted(runs)
        assert all(len(run) <= 16 for run in runs)
        for run in runs:
            await h.finished(run)


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
async def test_a_run_that_is_over_is_freed_at_once_and_not_by_the_collector(ending: str) -> None:
    drives: list[weakref.ref[object]] = []
    began = asyncio.Event()

    async def agent(ctx: AgentContext) -> AsyncIterator[Draft]:
        drives.append(weakref.ref(h.engine.worker.drive(ctx.run)))
        began.set()
        yield Token(content="x")
        if ending == "failed":
            raise RuntimeError("broken")
        if ending == "cancelled":
            await asyncio.Event().wait()

    async with harness(Scripted("a", agent)) as h:
        gc.disable()
        try:
            run = (await h.engine.start_run(StartRequest(message="x"))).row.run
            await began.wait()
            if ending == "cancelled":
                await h.engine.cancel(run)
            assert (await h.finished(run))["status"] == ending
            await until(lambda: drives[0]() is None)
        finally:
            gc.enable()

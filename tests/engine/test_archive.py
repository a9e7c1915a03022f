"""What is kept of runs: snapshots, lists, edits, deletion, export and import, retention."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from mux.engine.site import Times
from mux.errors import BadRequest, NotFound, StoreError
from mux.events import Record
from mux.log import Head, Page, RunQuery, RunRow
from mux.log.memory import MemoryStore
from mux.requests import PatchRun, StartRequest
from mux.settings import Limits, Retention, Settings
from tests.support.agents import Harness, echo, harness, says, types, until, waits

pytestmark = pytest.mark.usefixtures("no_leaks")


async def finished_run(h: Harness, message: str = "one\ntwo", **more: object) -> str:
    run = (await h.engine.start_run(StartRequest(message=message, **more))).row.run  # type: ignore[arg-type]
    await h.finished(run)
    return run


async def test_a_snapshot_is_the_same_live_finished_and_from_a_fresh_engine() -> None:
    store, agent = MemoryStore(), waits("w")
    async with harness(agent, store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="x"))).row.run
        await agent.started.wait()
        live = await h.engine.snapshot(run)
        assert live["cursor"] == f"{run}.1.{(await store.head(run)).head}"
        assert live["channels"][0]["tools"][0]["status"] == "running"
        agent.release.set()
        done = await h.finished(run)
    async with harness(agent, store=store) as h:
        assert await h.engine.snapshot(run) == done


async def test_snapshots_never_run_ahead_of_the_log() -> None:
    agent = says("s", *(f"{n} " for n in range(300)))
    async with harness(agent) as h:
        run = (await h.engine.start_run(StartRequest(message="x"))).row.run
        while not await h.engine.wait(run, 0.0001):
            snapshot = await h.engine.snapshot(run)
            assert int(snapshot["cursor"].rpartition(".")[2]) <= (await h.store.head(run)).head


async def test_lists_show_live_status_titles_and_are_searchable() -> None:
    agent = waits("w")
    async with harness(echo("e"), agent) as h:
        first = await finished_run(h, "the quick brown fox")
        second = (await h.engine.start_run(StartRequest(message="x", agents=["w"], title="Mine"))).row.run
        await agent.started.wait()
        page = await h.engine.list_runs(RunQuery())
        assert [(r.run, r.status, r.title) for r in page.runs] == [
            (second, "running", "Mine"), (first, "completed", "the quick brown fox"),
        ]  # fmt: skip
        found = await h.engine.list_runs(RunQuery(q="brown"))
        assert [r.run for r in found.runs] == [first]
        assert "e" in found.hits[first]
        summary = h.engine.summary(page.runs[1])
        assert summary["channels"][0]["status"] == "completed"


class _Hanging(MemoryStore):
    """Does not say where one run's log stands."""

    hangs = ""

    async def head(self, run: str) -> Head:
        if run == self.hangs:
            await asyncio.Event().wait()
        return await super().head(run)


async def test_a_list_does_not_wait_for_runs_whose_store_hangs() -> None:
    agent, store = waits("w"), _Hanging()
    async with harness(agent, says("a", "x"), store=store, times=Times(fresh=0.05)) as h:
        over = await finished_run(h, agents=["a"])
        run = (await h.engine.start_run(StartRequest(message="x", agents=["w"]))).row.run
        await agent.started.wait()
        store.hangs = run
        page = await asyncio.wait_for(h.engine.list_runs(RunQuery()), 1)
        assert [(r.run, r.status) for r in page.runs] == [(run, "queued"), (over, "completed")]


class _Damaged(MemoryStore):
    """Can't read what it has kept."""

    damaged = False

    async def read(self, run: str, after: int, *, limit: int = 1000, max_bytes: int = 1 << 20) -> Page:
        if self.damaged:
            raise ValueError("bad chunk")
        return await super().read(run, after, limit=limit, max_bytes=max_bytes)


async def test_a_damaged_log_is_said_and_can_be_deleted() -> None:
    store = _Damaged()
    async with harness(says("a", "x"), store=store) as h:
        run = await finished_run(h)
    store.damaged = True
    async with harness(says("a", "x"), store=store) as h:
        with pytest.raises(StoreError, match="damaged") as e:
            await h.engine.snapshot(run)
        assert (e.value.code, e.value.status, e.value.retryable) == ("log_damaged", 500, False)
        assert [r.run for r in (await h.engine.list_runs(RunQuery())).runs] == [run]
        await h.engine.delete(run)


async def test_edits_merge_metadata_and_remove_keys_that_are_null() -> None:
    async with harness(says("a", "x")) as h:
        run = await finished_run(h, metadata={"vote": 1, "note": "n"})
        await h.engine.patch(run, PatchRun(title="New", starred=True, metadata={"vote": 2, "note": None}))
        snapshot = await h.engine.snapshot(run)
        assert (snapshot["title"], snapshot["starred"], snapshot["metadata"]) == ("New", True, {"vote": 2})
        with pytest.raises(BadRequest):
            await h.engine.patch(run, PatchRun(metadata={"big": "x" * 100_000}))


class _Yielding(MemoryStore):
    """A store that takes a moment, as the others do."""

    def __init__(self) -> None:
        super().__init__()
        self.appending = asyncio.Event()

    async def update(self, run: str, **changes: Any) -> RunRow:
        await asyncio.sleep(0)
        return await super().update(run, **changes)

    async def append(self, run: str, fence: int, records: Sequence[Record]) -> None:
        self.appending.set()
        await asyncio.sleep(0)
        await super().append(run, fence, records)


async def test_edits_at_once_take_nothing_back_of_each_other() -> None:
    agent = waits("w")
    async with harness(says("a", "x"), agent, store=_Yielding()) as h:
        over = await finished_run(h)
        live = (await h.engine.start_run(StartRequest(message="x", agents=["w"]))).row.run
        votes = {f"vote.{n}": n for n in range(5)}
        for run in (over, live):
            await asyncio.gather(*(h.engine.patch(run, PatchRun(metadata={k: v})) for k, v in votes.items()))
            assert (await h.engine.snapshot(run))["metadata"] == votes


async def test_deleting_a_live_run_stops_it_first() -> None:
    agent = waits("w")
    async with harness(agent) as h:
        run = (await h.engine.start_run(StartRequest(message="x"))).row.run
        await agent.started.wait()
        await h.engine.delete(run)
        assert agent.stopped.is_set()
        with pytest.raises(NotFound):
            await h.engine.snapshot(run)
        with pytest.raises(NotFound):
            await h.engine.delete(run)


async def test_an_exported_run_can_be_imported_and_is_the_same_but_for_its_id() -> None:
    async with harness(echo("e"), says("s", "words ", "more")) as h:
        run = await finished_run(h, agents=["e", "s"])
        lines = [line async for line in h.engine.export(run)]
        copy = await h.engine.import_run(lines, owner="ann")
        assert copy != run
        old, new = await h.engine.snapshot(run), await h.engine.snapshot(copy)
        assert new["channels"] == old["channels"]
        assert (new["title"], new["message"], new["created"]) == (
            old["title"],
            old["message"],
            old["created"],
        )
        assert [e.body for e in await h.events(copy)] == [e.body for e in await h.events(run)]
        assert [line async for line in h.engine.export(copy)][1:] == [
            line.replace(run.encode(), copy.encode()) for line in lines[1:]
        ]
        again = (await h.engine.retry(copy, "s"))[0]
        await h.finished(again)


async def test_an_import_whose_client_hangs_up_is_kept_whole_or_not_at_all() -> None:
    store = _Yielding()
    async with harness(says("a", *["word "] * 20), store=store) as h:
        run = await finished_run(h)
        lines = [line async for line in h.engine.export(run)]
        store.appending.clear()
        importing = asyncio.create_task(h.engine.import_run(lines))
        await store.appending.wait()
        importing.cancel()
        await asyncio.gather(importing, return_exceptions=True)
        (copy,) = {r.run for r in (await h.engine.list_runs(RunQuery())).runs} - {run}
        head = (await store.head(run)).head
        await asyncio.wait_for(store.wait(copy, head - 1, 5), 5)
        assert len(await h.events(copy)) == len(await h.events(run))


async def test_an_import_leaves_the_loop_to_the_others() -> None:
    async with harness(says("a", *["word "] * 3000)) as h:
        run = await finished_run(h)
        lines = [line async for line in h.engine.export(run)]
        importing = asyncio.create_task(h.engine.import_run(lines))
        turns = 0
        while not importing.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 2 * len(lines) // 250


async def test_what_is_no_complete_run_is_not_imported() -> None:
    async with harness(echo("e")) as h:
        run = await finished_run(h)
        lines = [line async for line in h.engine.export(run)]
        for bad in ([], [b"{}"], [b"nonsense"], lines[:-1], lines[:2] + lines[3:], [lines[0], b'{"seq": 1}']):
            with pytest.raises(BadRequest) as e:
                await h.engine.import_run(bad)
            assert e.value.code == "import_invalid"
        assert len((await h.store.list(RunQuery())).runs) == 1
        assert json.loads(lines[0])["type"] == "mux_run"


async def test_a_trimmed_run_still_has_a_snapshot() -> None:
    store = MemoryStore()
    async with harness(says("a", *["word "] * 50), store=store) as h:
        run = await finished_run(h)
        await store.trim(run, 20)
    async with harness(says("a", "x"), store=store) as h:
        snapshot = await h.engine.snapshot(run)
        assert snapshot["trimmed"]
        assert snapshot["channels"][0]["status"] == "completed"
        assert snapshot["cursor"].startswith(f"{run}.1.")


async def test_retention_forgets_finished_unstarred_runs_above_the_bound() -> None:
    store = MemoryStore()
    async with harness(says("a", "x"), store=store) as h:
        runs = [await finished_run(h) for _ in range(4)]
        await h.engine.patch(runs[0], PatchRun(starred=True))
    settings = Settings(limits=Limits(), retention=Retention(max_runs=2), default_agents=("a",))
    async with harness(says("a", "x"), store=store, settings=settings) as h:
        await until(lambda: h.engine.accepting)
        await h.engine.expire()
        left = {r.run for r in (await h.engine.list_runs(RunQuery())).runs}
        assert runs[0] in left
        assert runs[1] not in left
        assert runs[3] in left
        assert types(await h.events(runs[3]))[-1] == "run_finished"

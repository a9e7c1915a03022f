"""A Redis that is killed, hangs, loses its end or refuses to write."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from mux.errors import MuxError, NotFound, StoreError
from mux.log import Head, RunQuery
from mux.log.redis.scripts import run_key
from mux.log.redis.store import RedisStore
from tests.log.test_contract import read_all, started
from tests.support.redis_server import RedisServer, free_port, opened, redis_server
from tests.support.relay import relay
from tests.support.stores import records, row

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # starts and kills Redis, and looks into it
]


async def eventually(look: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until ``look`` finds something."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.02)


# --- outages ------------------------------------------------------------------------------------------------


async def test_an_append_waits_for_a_redis_that_was_killed_and_is_written_once(own: RedisServer) -> None:
    async with opened(own.url) as store:
        assert store.info.durable == "power"
        fence = await started(store, events=2)
        own.kill()
        with structlog.testing.capture_logs() as lines:
            appending = [
                asyncio.create_task(store.append("r1", fence, records("r1", 3, 2))),
                asyncio.create_task(store.append("r1", fence, records("r1", 5, 2))),
            ]
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in appending)
            await asyncio.to_thread(own.start)
            await asyncio.gather(*appending)
        assert await read_all(store) == records("r1", 1, 6)
        assert (await store.head("r1")).epoch == 1
        said = [line["event"] for line in lines]
        assert said.count("store does not answer") >= 1
        assert "store answers again" in said


async def test_after_the_bound_calls_fail_clearly_and_work_again_when_redis_is_back(own: RedisServer) -> None:
    async with opened(own.url, outage_s=0.5) as store:
        fence = await started(store, events=2)
        own.kill()
        for call in (store.append("r1", fence, records("r1", 3, 1)), store.get("r1"), store.unfinished()):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.code == "store_failed"
            assert caught.value.retryable
            assert "does not answer" in caught.value.message
        await asyncio.to_thread(own.start)
        deadline = time.monotonic() + 10
        while True:
            try:
                await store.append("r1", fence, records("r1", 3, 1))  # as the journal does
                break
            except StoreError:
                assert time.monotonic() < deadline
        assert await read_all(store) == records("r1", 1, 3)


async def test_a_batch_whose_answer_was_lost_is_sent_again_and_there_once(redis: RedisServer) -> None:
    async with relay(redis.port) as cut, opened(f"redis://127.0.0.1:{cut.port}/0") as store:
        fence = await started(store, events=2)
        cut.cut_answers = 1
        await store.append("r1", fence, records("r1", 3, 700))  # two chunks
        assert cut.cut_answers == 0
        await store.append("r1", fence, records("r1", 703, 1))
        assert await read_all(store) == records("r1", 1, 703)


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_run_whose_answers_were_lost_is_made_and_deleted_once(redis: RedisServer, lost: int) -> None:
    async with relay(redis.port) as cut, opened(f"redis://127.0.0.1:{cut.port}/0") as store:
        cut.cut_answers = lost
        given = row("r1")
        assert await store.create(given) == given
        assert len((await store.list(RunQuery())).runs) == 1


async def test_a_run_that_was_taken_with_a_lost_answer_is_taken_by_the_same_worker(
    redis: RedisServer,
) -> None:
    async with relay(redis.port) as cut, opened(f"redis://127.0.0.1:{cut.port}/0") as store:
        await store.queue.offer("r1", "me")
        cut.cut_answers = 1
        assert list(await store.queue.take("w", 1)) == ["r1"]


async def test_an_answer_that_was_cut_in_its_middle_is_asked_for_again(redis: RedisServer) -> None:
    async with relay(redis.port) as address, opened(f"redis://127.0.0.1:{address.port}/0") as store:
        fence = await started(store, events=500)
        for seq in range(501, 506):
            address.half_answers = 1
            await store.append("r1", fence, records("r1", seq, 1))
            address.half_answers = 1
            page = await store.read("r1", 0, limit=10_000)
            assert [r.seq for r in page.records] == list(range(1, seq + 1))


async def test_a_half_open_connection_is_given_up_and_made_anew(redis: RedisServer) -> None:
    async with (
        relay(redis.port) as address,
        opened(f"redis://127.0.0.1:{address.port}/0", answer_s=0.5) as store,
    ):
        fence = await started(store, events=2)
        address.held = True
        appending = asyncio.create_task(store.append("r1", fence, records("r1", 3, 1)))
        await asyncio.sleep(1.0)
        assert not appending.done()
        address.held = False  # for the connections that are made from now on
        await appending
        assert await read_all(store) == records("r1", 1, 3)


async def test_a_redis_that_hangs_is_given_up_and_connected_to_again(own: RedisServer) -> None:
    async with opened(own.url, outage_s=20, answer_s=0.3) as store:
        fence = await started(store, events=2)
        own.signal(signal.SIGSTOP)
        appending = asyncio.create_task(store.append("r1", fence, records("r1", 3, 1)))
        await asyncio.wait([appending], timeout=1.0)
        assert not appending.done()
        own.signal(signal.SIGCONT)
        await appending
        assert await read_all(store) == records("r1", 1, 3)


async def test_closing_in_an_outage_does_not_wait_for_its_end(own: RedisServer) -> None:
    store = RedisStore(own.url)
    await store.open()
    fence = await started(store)
    own.kill()
    appending = asyncio.create_task(store.append("r1", fence, records("r1", 1, 1)))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await store.close()
    assert time.monotonic() - began < 5
    with pytest.raises(StoreError):
        await appending


async def test_no_redis_at_all_is_one_clear_error(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)  # never started
    with pytest.raises(StoreError, match="does not answer") as caught:
        await RedisStore(server.url).open()
    assert caught.value.code == "store_failed"


async def test_flushed_scripts_are_loaded_again(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        fence = await started(store)
        for seq in range(1, 4):
            with contextlib.closing(redis.client()) as client:
                client.script_flush()
            await asyncio.gather(
                store.append("r1", fence, records("r1", seq, 1)), store.update("r1", title=str(seq))
            )
        assert await read_all(store) == records("r1", 1, 3)


async def test_a_master_that_became_a_replica_is_waited_for(own: RedisServer) -> None:
    async with opened(own.url) as store:
        fence = await started(store, events=2)
        with contextlib.closing(own.client()) as client, structlog.testing.capture_logs() as lines:
            client.replicaof("127.0.0.1", "1")
            appending = asyncio.create_task(store.append("r1", fence, records("r1", 3, 1)))
            await asyncio.sleep(0.5)
            assert not appending.done()
            client.replicaof("NO", "ONE")
            await appending
        assert 1 <= len([line for line in lines if line["event"] == "store does not answer"]) < 6
        assert await read_all(store) == records("r1", 1, 3)


# --- epochs -------------------------------------------------------------------------------------------------


async def test_a_redis_that_syncs_every_write_keeps_epochs_over_its_restart(own: RedisServer) -> None:
    async with opened(own.url) as store:
        await started(store, events=5)
    own.kill()
    await asyncio.to_thread(own.start)
    async with opened(own.url) as store:
        assert await store.head("r1") == Head(1, 1, 5)


async def test_another_redis_process_gives_unfinished_runs_a_new_epoch(snapshots: RedisServer) -> None:
    async with opened(snapshots.url) as store:
        await started(store, "r1", events=5)
        await started(store, "r2", events=5)
        await store.update("r2", status="completed", finished=1)
        with contextlib.closing(snapshots.client()) as client:
            client.save()
        await store.append("r1", 1, records("r1", 6, 2))
    async with opened(snapshots.url) as store:  # the same Redis: nothing was lost
        assert await store.head("r1") == Head(1, 1, 7)
    snapshots.kill()
    await asyncio.to_thread(snapshots.start)
    with contextlib.closing(snapshots.client()) as client:
        client.delete("mux:{queue}:workers")  # the first server's lease came back with the snapshot
    with structlog.testing.capture_logs() as lines:
        async with opened(snapshots.url) as store:
            assert await store.head("r1") == Head(2, 1, 5)
            assert await store.head("r2") == Head(1, 1, 5)
    assert any(line.get("runs") == 1 and "viewers begin anew" in line["event"] for line in lines)


async def test_a_tail_lost_under_a_running_server_gives_the_run_a_new_epoch(snapshots: RedisServer) -> None:
    async with opened(snapshots.url) as store:
        fence = await started(store, events=5)
        other = await started(store, "r2", events=5)
        with contextlib.closing(snapshots.client()) as client:
            client.save()
        await store.append("r1", fence, records("r1", 6, 3))
        snapshots.kill()
        await asyncio.to_thread(snapshots.start)
        with pytest.raises(StoreError) as caught:
            await store.append("r1", fence, records("r1", 9, 1))
        assert not caught.value.retryable  # the engine takes the run over from what is left
        assert await store.head("r1") == Head(2, 1, 5)
        await store.append("r2", other, records("r2", 6, 1))  # of this one nothing was lost
        assert await store.head("r2") == Head(1, 1, 6)


async def test_a_tail_lost_of_a_run_that_writes_nothing_is_noticed_at_the_reconnection(
    snapshots: RedisServer,
) -> None:
    async with opened(snapshots.url) as store:
        fence = await started(store, events=5)
        with contextlib.closing(snapshots.client()) as client:
            client.save()
        await store.append("r1", fence, records("r1", 6, 3))
        snapshots.kill()
        await asyncio.to_thread(snapshots.start)
        deadline = time.monotonic() + 10
        while (await store.head("r1")) != Head(2, 1, 5):
            await store.update("r1", title="something asks Redis")
            assert time.monotonic() < deadline
        with pytest.raises(StoreError) as caught:
            await store.append("r1", fence, records("r1", 9, 1))
        assert not caught.value.retryable
        fence = await store.claim("r1", "me")
        await store.append("r1", fence, records("r1", 6, 1))
        assert await store.head("r1") == Head(2, 1, 6)


async def test_after_a_failover_to_a_replica_that_lost_the_tail_the_run_has_a_new_epoch(
    redis: RedisServer, tmp_path: Path
) -> None:
    with redis_server(tmp_path, appendonly="yes", replicaof=f"127.0.0.1 {redis.port}") as replica:
        async with relay(redis.port) as address, opened(f"redis://127.0.0.1:{address.port}/0") as store:
            fence = await started(store, events=5)
            other = await started(store, "r2", events=5)
            with contextlib.closing(replica.client()) as client:
                await eventually(
                    lambda: all(client.exists(run_key(run)[:-3] + "log") for run in ("r1", "r2"))
                )
                client.replicaof("127.0.0.1", free_port())  # it hears nothing any more
                await store.append("r1", fence, records("r1", 6, 3))
                client.replicaof("NO", "ONE")
            address.target = replica.port
            address.cut_all()
            with pytest.raises(StoreError) as caught:
                await store.append("r1", fence, records("r1", 9, 1))
            assert not caught.value.retryable
            assert await store.head("r1") == Head(2, 1, 5)
            await store.append("r2", other, records("r2", 6, 1))  # of this one nothing was lost
            assert await store.head("r2") == Head(1, 1, 6)
            fence = await store.claim("r1", "me")
            await store.append("r1", fence, records("r1", 6, 1))
            assert await read_all(store) == records("r1", 1, 6)


async def test_a_redis_that_comes_back_empty_is_told_run_by_run(snapshots: RedisServer) -> None:
    async with opened(snapshots.url) as store:
        fence = await started(store, events=5)
        snapshots.kill()
        (snapshots.folder / "dump.rdb").unlink(missing_ok=True)
        await asyncio.to_thread(snapshots.start)
        with pytest.raises(MuxError) as caught:
            await store.append("r1", fence, records("r1", 6, 1))
        assert caught.value.code in ("run_not_found", "run_taken_over"), caught.value.code
        with pytest.raises(NotFound):
            await store.get("r1")
        await started(store, "r2", events=2)
        assert await read_all(store, "r2") == records("r2", 1, 2)


async def test_what_is_appended_while_runs_are_checked_is_not_taken_for_lost(redis: RedisServer) -> None:
    async with relay(redis.port) as cut, opened(f"redis://127.0.0.1:{cut.port}/0") as store:
        fence = await started(store, events=2)
        for seq in range(3, 203, 2):
            if seq % 10 == 3:
                cut.cut_all()  # after each reconnection all runs are checked
            await store.append("r1", fence, records("r1", seq, 2))
        assert await read_all(store) == records("r1", 1, 202)
        assert (await store.head("r1")).epoch == 1


async def test_a_connection_that_redis_closed_is_made_anew_and_worth_no_line(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        fence = await started(store, events=2)
        with structlog.testing.capture_logs() as lines:
            with contextlib.closing(redis.client()) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await store.append("r1", fence, records("r1", 3, 1))
            assert await read_all(store) == records("r1", 1, 3)
        assert lines == []

"""A Redis that is killed, hangs, loses its end or refuses to write."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis import exceptions as refusals

from mux.errors import StoreError
from mux.log import Head, RunQuery
from mux.log.redis.link import Link
from mux.log.redis.store import RedisStore
from tests.log.test_contract import read_all, started
from tests.support.redis_server import LEASE, RedisServer, opened
from tests.support.stores import records, row

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # starts and kills Redis, and looks into it
]


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


def lose_next_answer(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The connection breaks after the next command was sent, and done."""
    connection = store._writer._connection
    read, lost = connection.read_response, []

    async def broken(**options: Any) -> Any:
        await read(**options)
        lost.append(1)
        raise refusals.ConnectionError("cut")

    monkeypatch.setattr(connection, "read_response", broken)
    return lost


async def test_a_batch_whose_answer_was_lost_is_sent_again_and_there_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis.url) as store:
        fence = await started(store, events=2)
        lost = lose_next_answer(store, monkeypatch)
        await store.append("r1", fence, records("r1", 3, 700))  # two chunks
        assert lost
        await store.append("r1", fence, records("r1", 703, 1))
        assert await read_all(store) == records("r1", 1, 703)


async def test_a_run_whose_answer_was_lost_is_made_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis.url) as store:
        lost = lose_next_answer(store, monkeypatch)
        given = row("r1")
        assert await store.create(given) == given
        assert lost
        assert len((await store.list(RunQuery())).runs) == 1


async def test_a_delete_whose_answer_was_lost_is_no_error(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis.url) as store:
        await started(store, events=2)
        lost = lose_next_answer(store, monkeypatch)
        await store.delete("r1")
        assert lost
        assert (await store.list(RunQuery())).runs == []


async def test_a_redis_that_hangs_is_given_up_and_connected_to_again(
    own: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mux.log.redis.link._ANSWER_S", 0.3)
    monkeypatch.setattr("mux.log.redis.link.CONNECT_S", 0.3)
    async with opened(own.url, outage_s=20) as store:
        fence = await started(store, events=2)
        own.signal(signal.SIGSTOP)
        appending = asyncio.create_task(store.append("r1", fence, records("r1", 3, 1)))
        await asyncio.sleep(1.0)
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


class _Connection:
    """To a Redis that has lost the scripts, and hangs after it has said so once; the next one works."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.works = self.made > 1
        self.refused = False
        self.sent: list[tuple[Any, ...]] = []

    async def connect(self) -> None: ...

    async def disconnect(self, *, nowait: bool = False) -> None: ...

    def pack_commands(self, commands: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return commands

    async def send_packed_command(self, commands: list[tuple[Any, ...]], *, check_health: bool) -> None:
        self.sent += commands

    async def read_response(self, *, disconnect_on_error: bool) -> Any:
        command = self.sent.pop(0)
        if command[0] == "EVALSHA" and not self.works:
            if self.refused:
                await asyncio.Event().wait()
            self.refused = True
            raise refusals.NoScriptError
        return [command[-1]]


class _Target:
    shown = "redis://nowhere"
    connection = _Connection


async def test_no_call_is_forgotten_when_redis_hangs_after_its_scripts_were_flushed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mux.log.redis.link._ANSWER_S", 0.2)
    monkeypatch.setattr(_Connection, "made", 0)
    link = Link(_Target(), outage_s=10, what="writes")  # type: ignore[arg-type]
    await link.start()
    calls = [link.call("head", "key", n) for n in range(3)]
    assert await asyncio.wait_for(asyncio.gather(*calls), 5) == [[0], [1], [2]]
    await link.stop()


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
        client.delete(LEASE)  # it came back with the snapshot, and this process lives
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


async def test_what_is_appended_while_a_run_is_checked_is_not_taken_for_lost(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis.url) as store:
        fence = await started(store, events=2)
        read = store._read

        async def overtaken(script: str, run: str, *args: Any) -> list[Any]:
            answer = await read(script, run, *args)
            if script == "head":
                await store.append(run, fence, records(run, 3, 2))
            return answer

        with monkeypatch.context() as patched:
            patched.setattr(store, "_read", overtaken)
            await store._verify()
        await store.append("r1", fence, records("r1", 5, 1))
        assert await read_all(store) == records("r1", 1, 5)
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

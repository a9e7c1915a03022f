"""What only the Redis store has: a lease, outages, other Redis processes, URLs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis import exceptions as refusals

from mux.errors import ConfigError, Fenced, StoreError
from mux.log import Head, RunQuery, open_store, store_holder
from mux.log._redis_info import durability
from mux.log._redis_scripts import PREFIX
from mux.log.redis import RedisStore
from tests.log.test_contract import read_all, started
from tests.support.redis_server import RedisServer, redis_server
from tests.support.stores import records, row

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # starts and kills Redis, and looks into it
]

LEASE = PREFIX + "lease"


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, **options)
    await store.open(url="http://127.0.0.1:1")
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be killed: what it acknowledged is on its disk."""
    with redis_server(tmp_path, appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that loses what came after its last SAVE."""
    with redis_server(tmp_path, save="3600 1000000") as server:
        yield server


def other_machine(server: RedisServer, token: str = "other", ttl_ms: int = 600) -> None:
    """The lease of a server somewhere else."""
    with contextlib.closing(server.client()) as client:
        about = {"pid": 7, "host": "elsewhere", "url": "http://elsewhere:8765", "machine": "another"}
        client.hset(LEASE, mapping={"token": token, "info": json.dumps(about)})
        client.pexpire(LEASE, ttl_ms)


# --- one server per database --------------------------------------------------------------------------------


async def test_a_second_server_is_refused_at_once_and_told_where_the_first_is(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        await store.announce("http://127.0.0.1:4242")
        holder = await asyncio.to_thread(store_holder, redis.url)
        assert holder is not None
        assert (holder.pid, holder.url) == (os.getpid(), "http://127.0.0.1:4242")
        began = time.monotonic()
        with pytest.raises(StoreError) as caught:
            await RedisStore(redis.url).open()
        assert time.monotonic() - began < 2
        assert caught.value.code == "store_locked"
        assert caught.value.extra == {"url": "http://127.0.0.1:4242", "pid": os.getpid()}
        assert "another database" in caught.value.message
        await started(store)  # and the first one is none the worse for it
    assert await asyncio.to_thread(store_holder, redis.url) is None
    async with opened(redis.url) as store:
        assert (await store.get("r1")).run == "r1"


async def test_two_databases_of_one_redis_are_two_stores(redis: RedisServer) -> None:
    async with opened(redis.url) as one, opened(redis.url.removesuffix("0") + "1") as other:
        await one.create(row("r1"))
        assert (await other.list(RunQuery())).runs == []


HOLD = """
import asyncio, sys
from mux.log import open_store
async def main():
    store = open_store(sys.argv[1])
    await store.open(url="http://127.0.0.1:9")
    print("open", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@contextlib.contextmanager
def holding(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the store open."""
    with subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process


async def test_a_killed_servers_lease_is_taken_at_once_on_the_same_machine(redis: RedisServer) -> None:
    with holding(redis.url) as process:
        with pytest.raises(StoreError) as caught:
            await RedisStore(redis.url).open()
        assert caught.value.extra == {"url": "http://127.0.0.1:9", "pid": process.pid}
        process.kill()
    began = time.monotonic()
    async with opened(redis.url):
        assert time.monotonic() - began < 2


async def test_a_lease_of_another_machine_is_waited_for_until_it_ends_and_that_is_said(
    redis: RedisServer,
) -> None:
    other_machine(redis, ttl_ms=700)
    with structlog.testing.capture_logs() as lines:
        began = time.monotonic()
        async with opened(redis.url) as store:
            assert 0.6 < time.monotonic() - began < 5
            await started(store, events=1)
    (said,) = [line for line in lines if "waiting" in line["event"]]
    assert (said["host"], said["pid"]) == ("elsewhere", 7)


async def test_a_server_of_another_machine_that_renews_its_lease_is_alive(redis: RedisServer) -> None:
    other_machine(redis, ttl_ms=60_000)
    opening = asyncio.create_task(RedisStore(redis.url).open())
    for _ in range(100):
        await asyncio.sleep(0.1)
        if opening.done():
            break
        other_machine(redis, ttl_ms=61_000)
    with pytest.raises(StoreError) as caught:
        await opening
    assert caught.value.code == "store_locked"
    assert caught.value.extra["url"] == "http://elsewhere:8765"


async def test_a_server_that_lost_its_lease_writes_nothing_any_more(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        fence = await started(store, events=2)
        other_machine(redis, ttl_ms=60_000)
        with pytest.raises(Fenced):
            await store.append("r1", fence, records("r1", 3, 1))
        for call in (
            store.update("r1", title="x"), store.create(row("r2")), store.claim("r1", "me"),
            store.delete("r1"), store.unfinished(),
        ):  # fmt: skip
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.code == "store_locked"
    with contextlib.closing(redis.client()) as client:
        assert client.hget(f"{PREFIX}run:r1", "head") == b"2"
        assert client.hget(f"{PREFIX}run:r1", "fence") == str(fence).encode()
        assert client.exists(f"{PREFIX}run:r2") == 0
        assert client.hget(LEASE, "token") == b"other"  # closing gave nothing of the other's back


async def test_a_lease_that_ran_out_is_taken_again_if_nobody_had_it(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        fence = await started(store, events=2)
        with contextlib.closing(redis.client()) as client:
            client.delete(LEASE)
        await store.append("r1", fence, records("r1", 3, 1))
        assert len(await read_all(store)) == 3


async def test_a_busy_loop_does_not_lose_the_lease(redis: RedisServer) -> None:
    async with opened(redis.url, lease_s=0.8) as store:
        until = time.monotonic() + 2
        while time.monotonic() < until:  # the loop is held all the while
            with contextlib.closing(redis.client()) as client:
                assert client.hget(LEASE, "token") == store._lease.token.encode()


async def test_a_database_that_was_emptied_ends_the_server_with_what_to_do(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        fence = await started(store, events=2)
        redis.empty()
        with pytest.raises(StoreError) as caught:
            await store.append("r1", fence, records("r1", 3, 1))
        assert not isinstance(caught.value, Fenced)
        assert not caught.value.retryable
        assert "appendonly" in caught.value.message
        with pytest.raises(StoreError):
            await store.unfinished()


async def test_a_newer_versions_database_is_left_alone(redis: RedisServer) -> None:
    with contextlib.closing(redis.client()) as client:
        client.hset(f"{PREFIX}meta", "format", 99)
        with pytest.raises(StoreError, match="newer version"):
            await RedisStore(redis.url).open()
        assert client.hget(f"{PREFIX}meta", "format") == b"99"
        assert client.exists(LEASE) == 0


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
    monkeypatch.setattr("mux.log._redis_link._ANSWER_S", 0.3)
    monkeypatch.setattr("mux.log._redis_link.CONNECT_S", 0.3)
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


# --- what Redis refuses -------------------------------------------------------------------------------------


async def test_a_full_memory_is_said_and_keeps_nothing_of_the_batch(own: RedisServer) -> None:
    async with opened(own.url) as store:
        fence = await started(store, events=2)
        with contextlib.closing(own.client()) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreError) as caught:
                await store.append("r1", fence, records("r1", 3, 1))
            assert caught.value.code == "store_full"
            client.config_set("maxmemory", 0)
        await store.append("r1", fence, records("r1", 3, 1))
        assert await read_all(store) == records("r1", 1, 3)


async def test_a_replica_is_refused(tmp_path: Path) -> None:
    with redis_server(tmp_path, replicaof="127.0.0.1 1") as server:
        with pytest.raises(StoreError, match="replica") as caught:
            await RedisStore(server.url).open()
        assert caught.value.code == "store_readonly"


async def test_a_password_is_used_and_never_shown(tmp_path: Path) -> None:
    with redis_server(tmp_path, requirepass="open-sesame-1") as server:
        url = f"redis://:open-sesame-1@127.0.0.1:{server.port}/0"
        with structlog.testing.capture_logs() as lines:
            async with opened(url) as store:
                await started(store, events=1)
                assert store.info.url == server.url
            wrong = RedisStore(url.replace("sesame", "barley"))
            with pytest.raises(StoreError) as caught:
                await wrong.open()
            assert not caught.value.retryable
            with pytest.raises(StoreError, match="name or password"):
                await RedisStore(server.url).open()
        for text in (str(caught.value), repr(wrong._target), str(lines), str(wrong.info)):
            assert "sesame" not in text
            assert "barley" not in text


async def test_a_user_who_may_not_read_the_configuration_can_still_be_used(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        with contextlib.closing(server.client()) as client:
            client.execute_command("ACL", "SETUSER", "app", "on", ">app-password", "~*", "+@all", "-config")
            client.execute_command("ACL", "SETUSER", "poor", "on", ">app-password", "~*", "+info", "+ping")
        at = f"127.0.0.1:{server.port}"
        async with opened(f"redis://app:app-password@{at}/0") as store:
            assert "unknown" in store.info.note
            await started(store, events=1)
        with pytest.raises(StoreError, match="may not run the commands"):
            await RedisStore(f"redis://poor:app-password@{at}/0").open()


@pytest.mark.parametrize(
    ("settings", "kept", "said"),
    [
        ({"appendonly": "yes", "appendfsync": "always", "save": ""}, "power", ""),
        ({"appendonly": "yes", "appendfsync": "everysec", "save": "3600 1"}, "process", "a second"),
        ({"appendonly": "yes", "appendfsync": "no", "save": ""}, "process", "half a minute"),
        ({"appendonly": "no", "save": "3600 1"}, "process", "(save 3600 1)"),
        ({"appendonly": "no", "save": ""}, "process", "everything is lost when Redis stops"),
        ({"appendonly": "yes", "appendfsync": "always", "maxmemory": "9", "maxmemory-policy": "allkeys-lru"},
         "power", "maxmemory-policy noeviction"),
        (None, "process", "unknown"),
    ],
)  # fmt: skip
def test_what_redis_keeps_is_said(settings: dict[str, str] | None, kept: str, said: str) -> None:
    assert durability(settings)[0] == kept
    note = durability(settings)[1]
    assert said in note if said else note == ""


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


# --- the rest -----------------------------------------------------------------------------------------------


async def test_appends_of_many_runs_share_round_trips(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis.url) as store:
        fences = {f"r{n}": await started(store, f"r{n}") for n in range(50)}
        connection = store._writer._connection
        send, sent = connection.send_packed_command, []

        async def counted(*args: Any, **options: Any) -> None:
            sent.append(1)
            await send(*args, **options)

        monkeypatch.setattr(connection, "send_packed_command", counted)
        await asyncio.gather(*(store.append(run, f, records(run, 1, 3)) for run, f in fences.items()))
        assert len(sent) <= 2
        for run in fences:
            assert await read_all(store, run) == records(run, 1, 3)


async def test_every_key_has_the_same_hash_tag(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        await started(store, events=2, message="hello")
        await store.index_text("r1", "a", "text")
        await store.put_conversation("t1", "a", "r1", b"x")
        with contextlib.closing(redis.client()) as client:
            keys = client.keys("*")
            assert len(keys) > 8
            assert all(b"{mux}" in key for key in keys)
        await store.delete("r1")
        with contextlib.closing(redis.client()) as client:
            left = {key.decode().removeprefix(PREFIX) for key in client.keys("*")}
        assert {name.partition(":")[0] for name in left} == {"lease", "meta", "bytes", "gone"}


async def test_a_unix_socket_and_valkeys_scheme_are_the_same_store(redis: RedisServer) -> None:
    async with opened(f"unix://{redis.folder}/redis.sock?db=0") as store:
        await started(store, events=2)
    async with opened(redis.url.replace("redis:", "valkey:")) as store:
        assert store.info.url.startswith("valkey://127.0.0.1:")
        assert len(await read_all(store)) == 2


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://me:secret-word@host:7/3", "redis://host:7/3"),
        ("rediss://:secret-word@host/1?ssl_cert_reqs=none", "rediss://host:6379/1"),
        ("valkeys://host", "valkeys://host:6379/0"),
        ("redis://[::1]:7/0", "redis://[::1]:7/0"),
        ("unix:///run/redis.sock?db=2&password=secret-word", "unix:///run/redis.sock?db=2"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    store = open_store(url)
    assert isinstance(store, RedisStore)
    assert store.info.url == shown


@pytest.mark.parametrize(
    "url", ["redis:", "redis:host", "redis://host/name", "redis://:secret@host:port/0", "unix://", "unix:x"]
)
def test_a_url_that_means_nothing_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert caught.value.code == "store_unknown"
    assert "secret" not in str(caught.value)


def test_without_redis_py_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "redis" else find(name))
    for call in (open_store, store_holder):
        with pytest.raises(ConfigError, match=r"pip install 'mux-agents\[redis\]'") as caught:
            call("redis://host")
        assert caught.value.code == "extra_missing"


def test_other_stores_do_not_load_redis_py() -> None:
    code = "import sys, mux.log; mux.log.open_store('memory:'); sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

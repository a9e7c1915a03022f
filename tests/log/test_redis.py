"""Several servers on one Redis: who drives a run, who follows it, and what is asked of it from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import structlog
from redis import exceptions as refusals

from mux.errors import Fenced, MuxError, StoreError, Unavailable
from mux.events import Record
from mux.log import Head, Idempotency, RunQuery, chunks, store_holder
from mux.log.redis.link import refusal
from mux.log.redis.store import RedisStore
from mux.log.redis.url import target_of
from tests.log.test_contract import list_all, read_all, started
from tests.support.redis_server import RedisServer, free_port, opened, redis_cluster, redis_server
from tests.support.relay import relay
from tests.support.stores import records, row

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # starts and kills Redis, and looks into it
]


async def eventually(look: Callable[[], Awaitable[object]], seconds: float = 10.0) -> None:
    """Wait until ``look`` finds something."""
    deadline = time.monotonic() + seconds
    while not await look():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.02)


class Follower:
    """What a hub would be told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.calls = 0

    def publish(self, run: str, head: Head | None, records: Sequence[Record]) -> None:
        self.calls += 1
        self.records += [r for r in records if not self.records or r.seq > self.records[-1].seq]


# --- many servers -------------------------------------------------------------------------------------------


async def test_two_servers_share_a_database_and_each_is_found_at_its_address(redis: RedisServer) -> None:
    async with opened(redis.url) as one, opened(redis.url) as other:
        await started(one)
        assert (await other.get("r1")).run == "r1"
        holder = await asyncio.to_thread(store_holder, redis.url)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert holder.url == "http://127.0.0.1:1"
    assert await asyncio.to_thread(store_holder, redis.url) is None


async def test_two_databases_of_one_redis_are_two_stores(redis: RedisServer) -> None:
    async with opened(redis.url) as one, opened(redis.url.removesuffix("0") + "1") as other:
        await one.create(row("r1"))
        assert (await other.list(RunQuery())).runs == []


async def test_a_run_that_another_server_drives_is_followed_as_it_is_appended(redis: RedisServer) -> None:
    async with opened(redis.url) as driver, opened(redis.url) as front:
        fence = await started(driver, events=3)
        follower = Follower()
        await front.follow("r1", follower.publish)
        await eventually(lambda: asyncio.sleep(0, follower.records))
        assert follower.records == records("r1", 3, 1)  # where it stands; who wants more reads it
        await driver.append("r1", fence, records("r1", 4, 700))
        await eventually(lambda: asyncio.sleep(0, len(follower.records) == 701))
        assert follower.records == records("r1", 3, 701)
        calls = follower.calls
        await driver.delete("r1")
        await eventually(lambda: asyncio.sleep(0, follower.calls > calls))
        await front.unfollow("r1")


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_server_that_hears_nothing_of_a_run_any_more_still_knows_its_end(
    redis: RedisServer, leaves: bool
) -> None:
    """A viewer may come from another server, where it saw more than what was published to this one so far."""
    async with opened(redis.url) as driver, opened(redis.url) as front:
        fence = await started(driver, events=3)
        follower = Follower()
        await front.follow("r1", follower.publish)
        await eventually(lambda: asyncio.sleep(0, follower.records))
        await driver.append("r1", fence, records("r1", 4, 1))
        await eventually(lambda: asyncio.sleep(0, follower.records[-1].seq == 4))
        if leaves:
            await front.unfollow("r1")
        await driver.append("r1", fence, records("r1", 5, 1))
        assert (await front.head("r1")).head == 5


async def test_the_driver_of_a_run_is_not_told_what_it_appended_itself(redis: RedisServer) -> None:
    async with opened(redis.url) as driver, opened(redis.url) as front:
        fence = await started(driver, events=1)
        mine, theirs = Follower(), Follower()
        await driver.follow("r1", mine.publish)
        await front.follow("r1", theirs.publish)
        await driver.append("r1", fence, records("r1", 2, 5))
        await eventually(lambda: asyncio.sleep(0, theirs.records and theirs.records[-1].seq == 6))
        assert mine.records == []


@pytest.mark.parametrize("follows", [True, False])
async def test_a_former_driver_of_a_run_hears_what_its_new_one_appends(
    redis: RedisServer, follows: bool
) -> None:
    """It has not noticed that its claim is gone, and its viewers come from the new driver, or go on here."""
    async with opened(redis.url) as former, opened(redis.url) as driver:
        await started(former, events=3)
        follower = Follower()
        if follows:
            await former.follow("r1", follower.publish)
        fence = await driver.claim("r1", "another")
        await driver.append("r1", fence, records("r1", 4, 2))
        if follows:
            await eventually(lambda: asyncio.sleep(0, follower.records and follower.records[-1].seq == 5))
            assert [r.seq for r in follower.records] == [4, 5]
        assert (await former.head("r1")).head == 5


async def test_what_was_published_while_the_subscription_was_cut_shows_as_a_gap(redis: RedisServer) -> None:
    async with (
        relay(redis.port) as cut,
        opened(redis.url) as driver,
        opened(f"redis://127.0.0.1:{cut.port}/0") as front,
    ):
        fence = await started(driver, events=1)
        follower = Follower()
        await front.follow("r1", follower.publish)
        await eventually(lambda: asyncio.sleep(0, follower.records))
        cut.cut_all()
        await driver.append("r1", fence, records("r1", 2, 5))
        await eventually(lambda: asyncio.sleep(0, follower.records[-1].seq == 6))
        assert len(await read_all(front)) == 6


async def test_a_command_reaches_the_driver_through_any_server(redis: RedisServer) -> None:
    async with opened(redis.url) as driver, opened(redis.url) as front:
        await started(driver)

        def deliver(command: str, payload: bytes) -> None:
            answering.append(asyncio.create_task(driver.commands.answer("r1", command, payload.upper())))

        answering: list[asyncio.Task[None]] = []
        await driver.commands.receive("r1", deliver)
        assert await front.commands.send("r1", "c1", b"stop now", timeout_s=10) == b"STOP NOW"
        # The same command again, as after an answer that was lost: it is not applied twice.
        assert await front.commands.send("r1", "c1", b"stop now", timeout_s=10) == b"STOP NOW"
        assert len(answering) == 1


async def test_a_command_survives_its_worker(redis: RedisServer) -> None:
    async with opened(redis.url) as front:
        async with opened(redis.url) as driver:
            await started(driver)
            with pytest.raises(Unavailable):
                await front.commands.send("r1", "c1", b"stop", timeout_s=0.05)
        async with opened(redis.url) as next_driver:
            await next_driver.claim("r1", "next")
            got: list[tuple[str, bytes]] = []
            await next_driver.commands.receive("r1", lambda *command: got.append(command))
            assert got == [("c1", b"stop")]


async def test_so_many_commands_may_wait_and_no_more(redis: RedisServer) -> None:
    async with opened(redis.url) as front:
        await started(front)
        sending = [front.commands.send("r1", f"c{n}", b"x", timeout_s=0.0) for n in range(260)]
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        codes = [e.code for e in outcomes if isinstance(e, MuxError)]
        assert codes.count("worker_unreachable") == 256
        assert codes.count("too_many_commands") == 4


# --- leases and fences --------------------------------------------------------------------------------------

WORK = """
import asyncio, sys
from mux.log.redis.store import RedisStore
from tests.support.stores import records
async def main():
    store = RedisStore(sys.argv[1], lease_s=1.0)
    await store.open(url="http://127.0.0.1:9")
    store.queue.on_lost(lambda: print("lost", flush=True))
    (run,) = await store.queue.take("w", 1)
    fence = await store.claim(run, "w")
    await store.append(run, fence, records(run, 1, 3))
    print("working", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    try:
        await store.append(run, fence, records(run, 4, 1))
    except Exception as e:
        print(e.code, flush=True)
asyncio.run(main())
"""


@contextlib.contextmanager
def worker(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that takes the one run there is, and appends three events."""
    argv = [sys.executable, "-c", WORK, url]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        try:
            yield process
        finally:
            process.kill()


async def test_the_runs_of_a_killed_worker_are_offered_again_when_its_lease_ends(redis: RedisServer) -> None:
    async with opened(redis.url, lease_s=1.0) as store:
        await store.create(row("r1"))
        await store.queue.offer("r1", "me")
        with worker(redis.url) as process:
            assert list(await store.queue.take("w2", 1)) == []
            process.kill()
            began = time.monotonic()
            await eventually(lambda: store.queue.take("w2", 1))
            assert time.monotonic() - began < 1.0 + 2
            fence = await store.claim("r1", "w2")
            await store.append("r1", fence, records("r1", 4, 1))
            assert len(await read_all(store)) == 4


async def test_a_worker_that_slept_longer_than_its_lease_is_told_and_writes_nothing_any_more(
    redis: RedisServer,
) -> None:
    async with opened(redis.url, lease_s=1.0) as store:
        await store.create(row("r1"))
        await store.queue.offer("r1", "me")
        with worker(redis.url) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.send_signal(signal.SIGSTOP)
            await eventually(lambda: store.queue.take("w2", 1))
            fence = await store.claim("r1", "w2")
            await store.append("r1", fence, records("r1", 4, 2))
            process.send_signal(signal.SIGCONT)
            while await asyncio.to_thread(process.stdout.readline) != "lost\n":  # log lines
                assert process.poll() is None
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert await asyncio.to_thread(process.stdout.readline) == "fenced\n"
            assert len(await read_all(store)) == 5


async def test_a_busy_loop_keeps_its_lease_and_one_that_is_blocked_for_longer_loses_it(
    redis: RedisServer,
) -> None:
    async with opened(redis.url, lease_s=10.0) as other, opened(redis.url, lease_s=1.0) as store:
        await store.create(row("r1"))
        await store.queue.offer("r1", "me")
        assert list(await store.queue.take("w", 1)) == ["r1"]
        until = time.monotonic() + 0.7
        while time.monotonic() < until:  # the loop is held all the while
            pass
        assert list(await other.queue.take("w2", 1)) == []

        lost = asyncio.Event()
        store.queue.on_lost(lost.set)
        with structlog.testing.capture_logs() as lines:
            await asyncio.sleep(0)
            until = time.monotonic() + 3.5
            while time.monotonic() < until:
                pass
            await eventually(lambda: other.queue.take("w2", 1))
            await asyncio.wait_for(lost.wait(), 10)
        assert any("event loop is blocked" in line["event"] for line in lines)


async def test_a_former_owner_is_fenced(redis: RedisServer) -> None:
    async with opened(redis.url) as one, opened(redis.url) as other:
        fence = await started(one, events=2)
        newer = await other.claim("r1", "other")
        with pytest.raises(Fenced):
            await one.append("r1", fence, records("r1", 3, 1))
        await other.append("r1", newer, records("r1", 3, 1))
        assert await read_all(one) == records("r1", 1, 3)


async def test_a_worker_that_closes_gives_its_runs_back_at_once(redis: RedisServer) -> None:
    async with opened(redis.url) as other:
        async with opened(redis.url) as store:
            await store.create(row("r1"))
            await store.queue.offer("r1", "me")
            assert list(await store.queue.take("w", 1)) == ["r1"]
        assert list(await other.queue.take("w2", 1)) == ["r1"]


async def test_an_unfinished_run_that_is_in_nobodys_queue_is_offered(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        await store.create(row("r1"))  # and its server is killed before it offers it
        await eventually(lambda: store.queue.take("w", 1))


# --- idempotency --------------------------------------------------------------------------------------------


async def test_one_key_makes_one_run_through_any_server_at_once(redis: RedisServer) -> None:
    async with opened(redis.url) as one, opened(redis.url) as other:
        key = Idempotency("me", "k", "hash", 1 << 52)
        made = await asyncio.gather(
            *(store.create(row(f"r{n}"), key) for n, store in enumerate((one, other) * 4))
        )
        assert len({r.run for r in made}) == 1
        assert len(await list_all(one)) == 1


async def test_a_key_whose_server_was_killed_before_it_made_the_run_makes_the_next(
    redis: RedisServer,
) -> None:
    async with opened(redis.url) as store:
        with contextlib.closing(redis.client()) as client:
            await store.create(row("r0"), Idempotency("me", "k", "hash", 1 << 52))
            (key,) = client.keys("mux:{k:*")
            client.hset(key, "run", "never-made")
            client.hdel(key, "made")
        assert (await store.create(row("r1"), Idempotency("me", "k", "hash", 1 << 52))).run == "r1"


# --- keys and clusters --------------------------------------------------------------------------------------


async def test_a_newer_versions_database_is_left_alone(redis: RedisServer) -> None:
    with contextlib.closing(redis.client()) as client:
        client.hset("mux:{runs}:meta", "format", 99)
        with pytest.raises(StoreError, match="newer version"):
            await RedisStore(redis.url).open()
        assert client.hget("mux:{runs}:meta", "format") == b"99"


async def test_nothing_of_a_deleted_run_is_left(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        await started(store, events=2, message="hello")
        await store.index_text("r1", "a", "text")
        await store.put_conversation("t1", "a", "r1", b"x")
        await store.update("r1", status="completed", finished=1)
        await store.delete("r1")
        with contextlib.closing(redis.client()) as client:
            left = {key.decode() for key in client.keys("*")}
        assert {name for name in left if not name.startswith("mux:{queue}")} == {"mux:{runs}:meta"}


async def test_runs_are_spread_over_a_clusters_nodes_and_followed_from_anywhere(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as servers:
        async with opened(servers[0].url) as store, opened(servers[1].url) as other:
            fences = {}
            for n in range(12):
                fences[f"r{n}"] = await started(store, f"r{n}", events=30, created=n, message=f"needle {n}")
                await store.queue.offer(f"r{n}", "me")
            await store.put_conversation("t1", "a", "r1", b"x")
            assert await other.conversation("t1", "a", "r5") == b"x"
            follower = Follower()
            await other.follow("r3", follower.publish)
            await eventually(lambda: asyncio.sleep(0, follower.records))
            refused = await store.append_many([(r, f, records(r, 31, 2)) for r, f in fences.items()])
            assert refused == [None] * 12
            await eventually(lambda: asyncio.sleep(0, follower.records[-1].seq == 32))
            assert len(await other.queue.take("w", 20)) == 12
            for run in ("r1", "r2"):
                await store.update(run, status="completed", finished=1)
            assert len(await list_all(other)) == 12
            assert len((await other.list(RunQuery(q="needle 7"))).runs) == 1
            assert set(await store.expire(older_than_ms=1000, keep_runs=None, max_bytes=None)) == {"r1", "r2"}
        counts = []
        for server in servers:
            with contextlib.closing(server.client()) as client:
                counts.append(len(client.keys("mux:{r*}:log")))
        assert sum(counts) == 10
        assert all(counts)


# --- from the format of 0.1 ---------------------------------------------------------------------------------


def old_database(server: RedisServer, runs: int) -> None:
    """What Mux 0.1 left: all keys in one slot."""
    old = "mux:{mux}:"
    with contextlib.closing(server.client()) as client:
        client.hset(old + "meta", mapping={"format": 2, "number": runs, "redis": "x", "sure": "0"})
        for n in range(1, runs + 1):
            run = f"r{n}"
            fields = {
                "thread": "t1", "owner": "local", "status": "completed" if n % 2 else "running", "created": n,
                "updated": n, "request": {}, "title": None, "starred": False, "metadata": {"a": "b"},
                "message": "hello", "agents": ["x"], "finished": n if n % 2 else None, "summary": {},
            }  # fmt: skip
            about = {"n": n, "op": "x", "fence": 1, "epoch": 1, "first": 1, "head": 3, "bytes": 300}
            client.hset(old + "run:" + run, mapping={k: json.dumps(v) for k, v in fields.items()} | about)
            client.xadd(f"{old}log:{run}", {"d": chunks.encode(records(run, 1, 3))}, id="3-0")
            client.hset(f"{old}text:{run}", "a", "a needle")
            client.zadd(old + "runs", {f"{n:016d}:{run}": n})
        client.sadd(f"{old}convs:r1", "abc")
        client.hset(f"{old}conv:abc", 1, b"data")
        client.zadd(f"{old}convz:abc", {"1": 1})
        client.set(old + "bytes", 300 * runs)


async def test_a_database_of_the_first_version_is_brought_into_this_ones_format(redis: RedisServer) -> None:
    old_database(redis, 230)
    async with opened(redis.url) as store, opened(redis.url) as other:
        assert len(await list_all(other)) == 230
        assert await read_all(store, "r7") == records("r7", 1, 3)
        assert (await store.get("r7")).metadata == {"a": "b"}
        assert len(await store.unfinished()) == 115
        assert [r.run for r in (await store.list(RunQuery(q="needle", limit=1))).runs] == ["r230"]
        await store.create(row("new", created=231))
        assert (await list_all(store))[0] == "new"
    with contextlib.closing(redis.client()) as client:
        assert client.keys("mux:{mux}*") == []


async def test_a_server_of_the_first_version_that_still_runs_is_named(redis: RedisServer) -> None:
    old_database(redis, 1)
    with contextlib.closing(redis.client()) as client:
        client.hset("mux:{mux}:lease", "info", json.dumps({"url": "http://127.0.0.1:4"}))
    with pytest.raises(StoreError, match=r"0\.1 at http://127\.0\.0\.1:4"):
        await RedisStore(redis.url).open()


# --- the rest -----------------------------------------------------------------------------------------------


async def test_appends_of_many_runs_share_a_round_trip(redis: RedisServer) -> None:
    async with relay(redis.port) as through, opened(f"redis://127.0.0.1:{through.port}/0") as store:
        fences = {f"r{n}": await started(store, f"r{n}") for n in range(50)}
        before = through.requests
        await store.append_many([(run, f, records(run, 1, 3)) for run, f in fences.items()])
        assert through.requests - before <= 3  # a lease may be renewed meanwhile
        for run in fences:
            assert await read_all(store, run) == records(run, 1, 3)


def test_an_incomplete_cluster_is_named() -> None:
    error = refusal(refusals.ClusterDownError("down"), target_of("redis://host"))
    assert "not complete" in error.message
    assert error.retryable


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key, and a certificate for localhost that it signs itself."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


async def test_a_connection_over_tls(tmp_path: Path) -> None:
    key, certificate = await asyncio.to_thread(make_certificate, tmp_path)
    options = {"tls-cert-file": str(certificate), "tls-key-file": str(key), "tls-auth-clients": "no"}
    tls = free_port()
    with redis_server(tmp_path, **options, **{"tls-port": str(tls)}):
        async with opened(f"rediss://localhost:{tls}/0?ssl_ca_certs={certificate}") as store:
            await started(store, events=2)
            assert len(await read_all(store)) == 2
        with pytest.raises(StoreError, match="does not answer"):  # a certificate that nobody vouches for
            await RedisStore(f"rediss://localhost:{tls}/0").open()


async def test_a_unix_socket_and_valkeys_scheme_are_the_same_store(redis: RedisServer) -> None:
    async with opened(f"unix://{redis.folder}/redis.sock?db=0") as store:
        await started(store, events=2)
    async with opened(redis.url.replace("redis:", "valkey:")) as store:
        assert store.info.url.startswith("valkey://127.0.0.1:")
        assert len(await read_all(store)) == 2


async def test_a_search_through_long_texts_finds_what_it_should(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        for n in range(30):
            await store.create(row(f"r{n}", created=n))
            await store.index_text(f"r{n}", "a", "long " * 50_000 + ("needle" if n in (3, 21) else ""))
        page = await store.list(RunQuery(q="needle"))
        assert [r.run for r in page.runs] == ["r21", "r3"]
        assert page.next is None


@pytest.mark.parametrize("field", ["request", "metadata", "summary", "agents", "status", "created", "title"])
async def test_a_damaged_row_takes_no_list_down(redis: RedisServer, field: str) -> None:
    async with opened(redis.url) as store:
        for run in ("r1", "r2", "r3"):
            await store.create(row(run))
        with contextlib.closing(redis.client()) as client:
            (key,) = client.keys("mux:{*r2}:run")
            client.hset(key, field, "{")
        rows = {found.run: found for found in (await store.list(RunQuery())).runs}
        assert rows.keys() == {"r1", "r2", "r3"}
        assert [rows[run].damaged for run in ("r1", "r2", "r3")] == [(), (field,), ()]
        assert (await store.get("r2")).damaged == (field,)


async def test_the_head_is_what_others_may_have_seen_before_the_driver_has_its_answer(
    redis: RedisServer,
) -> None:
    async with (
        relay(redis.port) as slow,
        opened(f"redis://127.0.0.1:{slow.port}/0") as driver,
        opened(redis.url) as front,
    ):
        fence = await started(driver, events=3)
        follower = Follower()
        await driver.follow("r1", lambda *_: None)
        await front.follow("r1", follower.publish)
        await eventually(lambda: asyncio.sleep(0, follower.records))
        slow.cut_answers = 1  # of the append: it is done, and the driver does not know
        appending = asyncio.create_task(driver.append("r1", fence, records("r1", 4, 2)))
        await eventually(lambda: asyncio.sleep(0, follower.records[-1].seq == 5))
        assert (await driver.head("r1")).head == 5
        await appending

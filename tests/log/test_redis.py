"""One server per Redis database; round trips, keys, clusters and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis import exceptions as refusals

from mux.errors import Fenced, StoreError
from mux.log import RunQuery, store_holder
from mux.log.redis.link import refusal
from mux.log.redis.scripts import PREFIX
from mux.log.redis.store import RedisStore
from mux.log.redis.url import target_of
from tests.log.test_contract import read_all, started
from tests.support.redis_server import LEASE, RedisServer, free_port, opened, redis_server
from tests.support.stores import records, row

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # starts and kills Redis, and looks into it
]


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


async def test_a_node_of_a_cluster_can_be_used(tmp_path: Path) -> None:
    with redis_server(tmp_path, **{"cluster-enabled": "yes", "cluster-port": str(free_port())}) as server:
        with contextlib.closing(server.client()) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            deadline = time.monotonic() + 10
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                assert time.monotonic() < deadline
        async with opened(server.url) as store:
            await started(store, "r1", events=700, message="needle")
            await store.put_conversation("t1", "a", "r1", b"x")
            await store.update("r1", status="completed", finished=1)
            assert len(await read_all(store)) == 700
            assert [r.run for r in (await store.list(RunQuery(q="needle"))).runs] == ["r1"]
            assert await store.expire(older_than_ms=1000, keep_runs=None, max_bytes=None) == ["r1"]


def test_another_node_of_a_cluster_is_named() -> None:
    error = refusal(refusals.MovedError("5 10.0.0.7:7001"), target_of("redis://host"))
    assert "10.0.0.7:7001" in error.message
    assert not error.retryable


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
            assert await asyncio.to_thread(store._lease.renew)
        with pytest.raises(StoreError, match="does not answer"):  # a certificate that nobody vouches for
            await RedisStore(f"rediss://localhost:{tls}/0").open()


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


async def test_a_search_through_long_texts_reads_them_in_parts(redis: RedisServer) -> None:
    async with opened(redis.url) as store:
        for n in range(30):
            await store.create(row(f"r{n}", created=n))
            await store.index_text(f"r{n}", "a", "long " * 50_000 + ("needle" if n in (3, 21) else ""))
        page = await store.list(RunQuery(q="needle"))
        assert [r.run for r in page.runs] == ["r21", "r3"]
        assert page.next is None

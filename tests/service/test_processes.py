"""Several processes on one Redis: any of them serves, and the runs of one that dies go on in another."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mux.log import open_store
from tests.support.api import call, finished_run, settled, start, until
from tests.support.checker import http
from tests.support.followers import KINDS, Follower
from tests.support.redis_server import RedisServer, redis_server
from tests.support.servers import Server, Zygote
from tests.support.service_roster import write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
    pytest.mark.timeout(120),
]

LEASE_S = 2.0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder, appendonly="yes", appendfsync="always") as made:
        yield made


def made(tmp_path: Path, servers: Zygote, redis: RedisServer, name: str, *args: str) -> Server:
    home = tmp_path / name
    home.mkdir()
    write_home(home)
    with (home / "mux.toml").open("a") as settings:
        settings.write(f"\n[limits]\nlease_s = {LEASE_S}\n")
    return Server(servers, home, "--store", redis.url, *args)


@pytest.fixture
async def trio(tmp_path: Path, servers: Zygote, redis: RedisServer) -> AsyncIterator[list[Server]]:
    """Three servers, each for itself."""
    async with AsyncExitStack() as stack:
        started = [made(tmp_path, servers, redis, f"s{n}") for n in range(3)]
        for server in started:
            await stack.enter_async_context(server.running())
        yield started


def following(server: Server, run: str, kind: int) -> Follower:
    return Follower(lambda: server.url, run, KINDS[kind % len(KINDS)], random.Random(kind), cut=30)


def numbers(count: int) -> str:
    return "".join(f"{n} " for n in range(count))


async def check_log(redis: RedisServer, run: str, followers: list[Follower]) -> None:
    """What the viewers saw is what is kept: nothing lost, nothing twice."""
    store = open_store(redis.url)
    await store.open()
    try:
        page = await store.read(run, 0, limit=100_000, max_bytes=1 << 28)
        assert [r.seq for r in page.records] == list(range(1, len(page.records) + 1))
        for follower in followers:
            follower.check(page.records)
    finally:
        await store.close()


async def driver_of(servers: list[Server], run: str) -> Server:
    """The server that drives a run, as its own numbers say."""
    found: list[Server] = []

    async def look() -> bool:
        for server in servers:
            async with http("GET", f"{server.url}/metrics") as response:
                text = (await response.body()).decode()
            if "mux_channels_running 1.0\n" in text:
                found.append(server)
        return bool(found)

    deadline = time.monotonic() + 10
    while not await look():
        assert time.monotonic() < deadline, f"nobody drives {run}"
        await asyncio.sleep(0.02)
    return found[0]


async def test_any_server_starts_shows_and_controls_a_run_that_another_drives(trio: list[Server]) -> None:
    run = await start(trio[0].url, "hold", message="x")
    driver = await driver_of(trio, run)
    others = [s for s in trio if s is not driver]
    for server in trio:
        snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
        assert snapshot["channels"][0]["status"] == "running"
    began = time.monotonic()
    status, _, _ = await call("POST", f"{others[0].url}/api/runs/{run}/cancel", {"mode": "now"})
    assert status == 202
    assert time.monotonic() - began < 2
    for server in trio:
        assert await settled(server.url, run) == "cancelled"


async def test_the_viewers_of_all_servers_see_the_same_while_the_driver_is_killed(
    trio: list[Server], redis: RedisServer
) -> None:
    run = await start(trio[0].url, "writer", message="200 0.01")
    driver = await driver_of(trio, run)
    others = [s for s in trio if s is not driver]
    followers = [following(s, run, n) for n, s in enumerate(others * 2)]
    reading = [asyncio.create_task(f.follow()) for f in followers]
    await asyncio.sleep(0.5)
    killed = time.monotonic()
    await driver.kill()

    async def taken_over() -> bool:
        snapshot = (await call("GET", f"{others[0].url}/api/runs/{run}"))[1]
        return bool(snapshot["channels"][0]["attempt"] == 2)

    while not await taken_over():
        assert time.monotonic() - killed < LEASE_S + 4, "no takeover"
        await asyncio.sleep(0.02)
    print(f"taken over after {time.monotonic() - killed:.2f} s with a lease of {LEASE_S} s")
    assert time.monotonic() - killed < LEASE_S + 2
    await asyncio.gather(*reading)
    snapshot = (await call("GET", f"{others[1].url}/api/runs/{run}"))[1]
    assert (snapshot["status"], snapshot["channels"][0]["text"]) == ("completed", numbers(200))
    await check_log(redis, run, followers)
    await driver.start()


async def test_a_driver_that_slept_longer_than_its_lease_changes_nothing(
    trio: list[Server], redis: RedisServer
) -> None:
    run = await start(trio[0].url, "writer", message="400 0.01")
    driver = await driver_of(trio, run)
    others = [s for s in trio if s is not driver]
    follower = following(others[0], run, 0)
    reading = asyncio.create_task(follower.follow())
    await asyncio.sleep(0.3)
    driver.signal(signal.SIGSTOP)
    await asyncio.sleep(2 * LEASE_S)
    driver.signal(signal.SIGCONT)
    await reading
    await until(lambda: "its runs went elsewhere" in driver.stderr.read_text())
    assert (await finished_run(driver.url, "writer", message="3 0"))["status"] == "completed"
    await check_log(redis, run, [follower])


async def test_processes_behind_one_port_are_started_again_and_drain_together(
    tmp_path: Path, servers: Zygote, redis: RedisServer
) -> None:
    server = made(tmp_path, servers, redis, "many", "--processes", "3")
    async with server.running():
        children = _children(server.pid)
        assert len(children) == 3
        run = await start(server.url, "writer", message="200 0.01")
        follower = following(server, run, 0)
        reading = asyncio.create_task(follower.follow())
        await asyncio.sleep(0.4)
        os.kill(children.pop(), signal.SIGKILL)
        os.kill(children.pop(), signal.SIGKILL)
        await reading
        assert (await call("GET", f"{server.url}/api/runs/{run}"))[1]["status"] == "completed"
        await check_log(redis, run, [follower])
        await until(lambda: len(_children(server.pid)) == 3)
    assert server.code == 0


async def test_no_process_outlives_the_one_that_watches_over_them(
    tmp_path: Path, servers: Zygote, redis: RedisServer
) -> None:
    server = made(tmp_path, servers, redis, "watched", "--processes", "2")
    async with server.running():
        children = _children(server.pid)
        assert len(children) == 2
        await server.kill()
        await until(lambda: not any(_lives(child) for child in children))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(stat.parent.name))
    return found


async def test_an_api_process_and_a_worker_process_are_one_server_together(
    tmp_path: Path, servers: Zygote, redis: RedisServer
) -> None:
    front = made(tmp_path, servers, redis, "front", "--role", "api")
    worker = made(tmp_path, servers, redis, "worker", "--role", "worker")
    async with front.running():
        run = await start(front.url, "writer", message="5 0")
        assert (await call("GET", f"{front.url}/api/runs/{run}"))[1]["status"] == "queued"
        async with worker.running():
            assert await settled(front.url, run) == "completed"
            status, problem, _ = await call("POST", f"{worker.url}/api/runs", {"message": "x"})
            assert (status, problem["code"]) == (503, "draining")
            assert (await call("GET", f"{worker.url}/readyz"))[0] == 200


async def test_roles_without_a_shared_store_are_refused(tmp_path: Path, servers: Zygote) -> None:
    home = tmp_path / "home"
    home.mkdir()
    server = Server(servers, home, "--store", "memory:")
    for flags in (["--role", "worker"], ["--processes", "2"]):
        code, _, err = await server.command("serve", "--port", "0", "--store", "memory:", *flags)
        assert code in (1, 2)
        assert "store_not_shared" in err

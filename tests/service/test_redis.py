"""One Redis database under the real server: kills of either, a second server, an outage that is said."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mux.log import RunQuery, open_store
from tests.support.api import call, finished_run, settled, start, until
from tests.support.followers import KINDS, Follower
from tests.support.redis_server import RedisServer, redis_server
from tests.support.servers import Server, Zygote
from tests.support.service_roster import write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
    pytest.mark.timeout(60),
]

SECRET = "open-sesame-1"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder, appendonly="yes", appendfsync="always", requirepass=SECRET) as made:
        yield made


@pytest.fixture
def server(tmp_path: Path, servers: Zygote, redis: RedisServer) -> Server:
    home = tmp_path / "home"
    home.mkdir()
    write_home(home)
    return Server(servers, home, "--store", f"redis://:{SECRET}@127.0.0.1:{redis.port}/0")


def following(server: Server, run: str, kind: int = 0, cut: float = 30) -> Follower:
    return Follower(lambda: server.url, run, KINDS[kind], random.Random(kind), cut=cut)


def numbers(count: int) -> str:
    return "".join(f"{n} " for n in range(count))


async def check_log(server: Server, run: str, followers: list[Follower]) -> None:
    """What the viewers saw is what is kept: nothing lost, nothing twice."""
    store = open_store(server.args[-1])
    await store.open()
    try:
        page = await store.read(run, 0, limit=100_000, max_bytes=1 << 28)
        assert [r.seq for r in page.records] == list(range(1, len(page.records) + 1))
        assert page.at.epoch == 1
        for follower in followers:
            follower.check(page.records)
        assert [row.run for row in (await store.list(RunQuery())).runs] == [run]
    finally:
        await store.close()


async def test_a_server_that_is_killed_takes_its_runs_over_and_viewers_miss_nothing(server: Server) -> None:
    async with server.running():
        run = await start(server.url, "writer", message="250 0.005")
        followers = [following(server, run, kind) for kind in (0, 1, 3)]
        reading = [asyncio.create_task(follower.follow()) for follower in followers]
        for _ in range(3):
            await asyncio.sleep(0.3)
            await server.kill()
            await server.start()
        await asyncio.gather(*reading)
        assert await settled(server.url, run) == "completed"
        snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
        assert snapshot["channels"][0]["text"] == numbers(250)
        assert max(server.starts[1:]) < 5  # the dead server's lease is not waited for
        await server.stop()
        await check_log(server, run, followers)


async def test_a_redis_that_is_killed_loses_nothing_that_a_viewer_saw(
    server: Server, redis: RedisServer
) -> None:
    async with server.running():
        run = await start(server.url, "writer", message="250 0.005")
        followers = [following(server, run, kind) for kind in (0, 1)]
        reading = [asyncio.create_task(follower.follow()) for follower in followers]
        for _ in range(3):
            await asyncio.sleep(0.3)
            redis.kill()
            await asyncio.sleep(0.2)
            await asyncio.to_thread(redis.start)
        await asyncio.gather(*reading)
        snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
        assert snapshot["channels"][0]["text"] == numbers(250)
        assert snapshot["channels"][0]["attempt"] == 1  # it only waited
        await server.stop()
        await check_log(server, run, followers)


async def test_a_redis_that_lost_the_end_of_a_run_goes_on_with_it_under_a_new_epoch(
    tmp_path: Path, servers: Zygote
) -> None:
    write_home(tmp_path)
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis", save="3600 1000000") as snapshots:
        server = Server(servers, tmp_path, "--store", snapshots.url)
        async with server.running():
            run = await start(server.url, "writer", message="200 0.005")
            log = f"{server.url}/api/runs/{run}/events"
            await asyncio.sleep(0.3)
            with contextlib.closing(snapshots.client()) as client:
                client.save()
            await asyncio.sleep(0.3)
            seen = (await call("GET", f"{server.url}/api/runs/{run}"))[1]["cursor"]
            snapshots.kill()
            await asyncio.to_thread(snapshots.start)
            assert await settled(server.url, run) == "completed"
            status, problem, _ = await call("GET", f"{log}?after={seen}")
            assert (status, problem["code"]) == (409, "cursor_stale")
            snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
            assert snapshot["channels"][0]["text"] == numbers(200)
            assert snapshot["cursor"].startswith(f"{run}.2.")
            assert "Redis lost the end of the run" in server.stderr.read_text()


async def test_an_outage_is_said_to_clients_and_to_the_load_balancer_and_the_log(
    server: Server, redis: RedisServer
) -> None:
    async with server.running():
        run = await start(server.url, "writer", message="150 0.01")
        follower = following(server, run, cut=0)
        reading = asyncio.create_task(follower.follow())
        await asyncio.sleep(0.3)
        redis.kill()
        status, ready, _ = await call("GET", f"{server.url}/readyz")
        assert status == 503
        assert "does not answer" in str(ready)
        assert (await call("GET", f"{server.url}/healthz"))[0] == 200
        status, problem, _ = await call("GET", f"{server.url}/api/runs")
        assert (status, problem["code"]) == (503, "store_failed")
        await asyncio.to_thread(redis.start)
        checker = await reading
        checker.assert_gapless()
        checker.assert_order()
        assert (await finished_run(server.url, "writer", message="3 0"))["status"] == "completed"
        assert (await call("GET", f"{server.url}/readyz"))[0] == 200
        log = server.stderr.read_text()
        assert "store does not answer" in log
        assert "store answers again" in log
        for text in (log, str(ready), str(problem)):
            assert SECRET not in text
            assert "Traceback" not in text


async def test_an_outage_beyond_every_bound_ends_in_a_takeover_and_the_whole_answer(
    server: Server, redis: RedisServer
) -> None:
    async with server.running():
        run = await start(server.url, "writer", message="150 0.01")
        follower = following(server, run)
        reading = asyncio.create_task(follower.follow())
        await asyncio.sleep(0.3)
        redis.kill()
        await until(lambda: "run can't go on" in server.stderr.read_text())
        await asyncio.to_thread(redis.start)
        await reading
        snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
        assert snapshot["channels"][0]["text"] == numbers(150)
        await server.stop()
        await check_log(server, run, [follower])


async def test_mux_run_uses_a_server_of_the_same_store(server: Server) -> None:
    async with server.running():
        code, out, err = await server.command("run", "-a", "writer", "3 0", "--json", *server.args)
        assert code == 0, err
        assert '"run_finished"' in out
        assert len((await call("GET", f"{server.url}/api/runs"))[1]["runs"]) == 1
        code, out, _ = await server.command("doctor", *server.args)
        assert f"in use by the server at {server.url}" in out
        assert SECRET not in out
    code, out, _ = await server.command("doctor", *server.args)
    assert "survives power loss" in out
    code, out, _ = await server.command("config", *server.args)
    assert "redis://127.0.0.1:" in out
    assert SECRET not in out


async def test_a_redis_that_is_not_there_is_one_clear_line(server: Server, redis: RedisServer) -> None:
    redis.kill()
    code, _, err = await server.command("serve", "--port", "0", *server.args)
    assert code not in (0, -9)
    assert "does not answer" in err
    assert "store_failed" in err
    assert SECRET not in err
    assert "Traceback" not in err

"""SIGTERM: streams are told, runs finish or are left for the next start, and the exit is 0 and in time."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.api import call, read, start, until
from tests.support.checker import Checker, http
from tests.support.followers import KINDS, Follower
from tests.support.servers import Server, Zygote
from tests.support.service_roster import write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
    pytest.mark.timeout(60),
]

DRAIN_S = 2.0
STREAMS = 100


def make(servers: Zygote, home: Path, drain_s: float = DRAIN_S) -> Server:
    write_home(home, more=f"[limits]\ndrain_s = {drain_s}\n")
    return Server(servers, home, "--store", f"sqlite:{home / 'mux.db'}")


async def stream(url: str, run: str, opened: list[str]) -> Checker:
    """One connection, to its end."""
    checker = Checker(run)
    async with http("GET", f"{url}/api/runs/{run}/events") as response:
        assert response.status == 200
        async for block in response.blocks():
            if block.data["type"] == "stream_live":
                opened.append(run)
            checker.feed([block])
    return checker


async def test_a_drain_tells_a_hundred_streams_finishes_what_can_finish_and_exits_in_time(
    tmp_path: Path, servers: Zygote
) -> None:
    server = make(servers, tmp_path)
    async with server.running():
        quick = [await start(server.url, "gate", message="x") for _ in range(3)]
        slow = [await start(server.url, "hold", message="x") for _ in range(2)]
        opened: list[str] = []
        runs = [*quick, *slow]
        reading = [
            asyncio.create_task(stream(server.url, runs[n % len(runs)], opened)) for n in range(STREAMS)
        ]
        await until(lambda: len(opened) == STREAMS)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        (tmp_path / "gate").touch()
        checkers = await asyncio.gather(*reading)
        told = time.monotonic() - began
        status, answer, _ = await call("GET", f"{server.url}/readyz")
        assert (status, answer["status"]) == (503, "unavailable")
        refused = await call("POST", f"{server.url}/api/runs", {"message": "1 0", "agents": ["writer"]})
        assert (refused[0], refused[1]["code"]) == (503, "draining")
        assert "retry-after" in refused[2]
        assert await server.wait(DRAIN_S + 5) == 0
        took = time.monotonic() - began
        assert told < 1.0
        assert DRAIN_S - 0.1 <= took < DRAIN_S + 3
        for checker in checkers:
            assert checker.control[-1] == {"type": "stream_rotate", "reason": "drain"}
        await server.start()
        for run in quick:  # they finished within the grace, and nothing is done again
            snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
            assert (snapshot["status"], snapshot["channels"][0]["attempt"]) == ("completed", 1)
        for run in slow:  # they are taken over
            snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
            assert (snapshot["status"], snapshot["channels"][0]["attempt"]) == ("running", 2)
            await call("POST", f"{server.url}/api/runs/{run}/cancel", {"mode": "now"})
        for checker in checkers[: len(runs)]:  # a viewer of each goes on where it was told to leave
            follower = Follower(lambda: server.url, checker.run, KINDS[0], random.Random(1), cut=0)
            follower.checker = checker
            await follower.follow()
            checker.assert_gapless()
            checker.assert_order()


async def test_signals_that_come_after_all_is_stopped_are_no_failure(tmp_path: Path, servers: Zygote) -> None:
    server = make(servers, tmp_path)
    for _ in range(3):
        await server.start()
        ended = asyncio.create_task(server.wait(10))
        while not ended.done():
            server.signal(signal.SIGTERM)
            await asyncio.sleep(0.002)
        assert await ended == 0


async def test_a_second_signal_stops_now_and_what_ran_is_taken_over(tmp_path: Path, servers: Zygote) -> None:
    server = make(servers, tmp_path, drain_s=60)
    async with server.running():
        runs = [await start(server.url, "hold", message="x") for _ in range(5)]
        await read(f"{server.url}/api/runs/{runs[-1]}/events", until="token")
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert (await call("GET", f"{server.url}/readyz"))[0] == 503
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await server.wait(10) == 0
        assert time.monotonic() - began < 1.5
        await server.start()
        for run in runs:
            snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
            assert snapshot["status"] == "running"


async def test_an_idle_server_stops_at_once(tmp_path: Path, servers: Zygote) -> None:
    server = make(servers, tmp_path)
    async with server.running():
        began = time.monotonic()
        server.signal(signal.SIGINT)  # Ctrl-C is the same
        assert await server.wait(10) == 0
        assert time.monotonic() - began < 1.5

"""Nothing leaks: callers that start, cancel, drop and resume at random, and what the server holds after it.

``MUX_SOAK_S=600`` makes it the ten minutes of the acceptance; CI runs a short form.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import endpoint
from tests.support.api import call, finished_run
from tests.support.checker import http
from tests.support.followers import KINDS, Follower, VectorFollower
from tests.support.servers import Server, Zygote
from tests.support.service_roster import script, write_home

SOAK_S = float(os.environ.get("MUX_SOAK_S", "20"))
CALLERS = 12
ROUNDS = 6
WARM = 2  # rounds in which caches, threads and arenas come to their size

# A finished run whose objects stay has more than 150; the memory of ended runs (rings, folded states) still
# fills up in the short form.
MAX_BLOCKS = 60
# What resident memory may grow by, however long it goes: caches of sqlite (4 MiB and three times 2) and of
# histories (8 and 4 MiB), and what the allocators do not give back.
CACHES = 24 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts processes
    pytest.mark.timeout(SOAK_S * 3 + 120),
]

CHANNELS: tuple[dict[str, Any], ...] = (
    {"agent": "worker", "message": "3 10 0.005"},
    {"agent": "writer", "message": "60 0.005"},
    {"agent": "fragile", "message": "40 0.005"},
    {"agent": "hold", "message": "x"},
    {"agent": "analyst", "message": "What is 17 * 23? Run Python that counts to 30.", "model": "rehearsal"},
    {"agent": "researcher", "message": "How do cursors work?", "model": "rehearsal"},
)


@dataclass(frozen=True)
class Held:
    """What the server holds when nothing runs, after so many runs.

    Attributes:
        blocks: of Python's allocator. Unlike resident memory they say exactly what is kept: no fragments,
            no pages that the system has not taken back yet, none of sqlite's caches.
    """

    rss: int
    blocks: int
    files: int
    threads: int
    tasks: int
    runs: int


async def busy(server: Server) -> list[Any]:
    """Open streams and unfinished runs."""
    left: list[Any] = (await call("GET", f"{server.url}/api/viewers"))[1]["viewers"]
    for status in ("running", "queued", "waiting"):
        left += (await call("GET", f"{server.url}/api/runs?status={status}"))[1]["runs"]
    return left


async def held(server: Server, runs: int) -> Held:
    """Measured by itself (an agent counts the tasks and blocks) and by the system."""
    deadline = time.monotonic() + 30
    while left := await busy(server):
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)
    counts = []
    for _ in range(5):  # closing connections take their time; the least is what stays
        await asyncio.sleep(0.1)
        probe = await finished_run(server.url, "probe", message="x")
        tasks, blocks = map(int, probe["channels"][0]["text"].split())
        counts.append((tasks, blocks, server.open_files(), server.threads()))
    tasks, blocks, files, threads = (min(c[i] for c in counts) for i in range(4))
    return Held(server.rss(), blocks, files, threads, tasks, runs)


async def caller(server: Server, dice: random.Random, until: float) -> int:
    """One user: starts runs and does what users do; gives how many."""
    runs = 0
    while time.monotonic() < until:
        channels = [{**c, "id": f"c{n}"} for n, c in enumerate(dice.sample(CHANNELS, dice.randint(1, 3)))]
        policy = dice.choice(["continue", "cancel", {"grace_s": 0.05}])
        body = {"message": "go", "channels": channels, "on_disconnect": policy}
        match dice.randint(0, 3):
            case 0:
                await start_and_hang_up(server, body, dice)
            case 1:
                await start_follow_and_cancel(server, body, dice)
            case 2:
                await start_cancel_and_delete(server, body, dice)
            case _:
                await start_retry_and_export(server, body, dice)
        runs += 1
    return runs


async def begin(server: Server, body: dict[str, Any]) -> str:
    status, run, _ = await call("POST", f"{server.url}/api/runs", body)
    assert status == 201, run
    return str(run["run"])


async def start_and_hang_up(server: Server, body: dict[str, Any], dice: random.Random) -> None:
    """The answer is the stream; after a while the client is gone."""
    sse = {"Accept": dice.choice(["text/event-stream", "application/x-ndjson"])}
    async with http("POST", f"{server.url}/api/runs", json_body=body, headers=sse) as response:
        run = response.headers["location"].rsplit("/", 1)[1]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.random() * 0.6):
                async for _ in response.blocks():
                    pass
    if body["on_disconnect"] == "continue":
        await cancel(server, run)


async def cancel(server: Server, run: str) -> None:
    status, answer, _ = await call("POST", f"{server.url}/api/runs/{run}/cancel", {"mode": "now"})
    assert status == 202 or answer["code"] == "run_finished", answer


async def start_follow_and_cancel(server: Server, body: dict[str, Any], dice: random.Random) -> None:
    """Several viewers that lose their connections; cancelled in the middle; every log is whole."""
    run = await begin(server, {**body, "on_disconnect": "continue"})
    followers = [Follower(lambda: server.url, run, k, dice, cut=25) for k in dice.sample(KINDS, 2)]
    vector = VectorFollower(lambda: server.url, [run], dice)
    reading = [asyncio.create_task(f.follow()) for f in followers]
    whole = asyncio.create_task(vector.follow())
    await asyncio.sleep(dice.random() * 0.5)
    await cancel(server, run)
    await asyncio.gather(*reading, whole)
    vector.checkers[run].assert_gapless()
    vector.checkers[run].assert_order()


async def start_cancel_and_delete(server: Server, body: dict[str, Any], dice: random.Random) -> None:
    """Deleted while it runs, perhaps with a viewer on it."""
    run = await begin(server, body)
    async with contextlib.AsyncExitStack() as stack:
        if dice.random() < 0.5:
            response = await stack.enter_async_context(http("GET", f"{server.url}/api/runs/{run}/events"))
            if response.status == 200:
                await anext(response.blocks())
        await asyncio.sleep(dice.random() * 0.2)
        assert (await call("DELETE", f"{server.url}/api/runs/{run}"))[0] == 204
    assert (await call("GET", f"{server.url}/api/runs/{run}"))[0] == 404


async def start_retry_and_export(server: Server, body: dict[str, Any], dice: random.Random) -> None:
    """One channel is stopped and done again; then the run is stopped and exported."""
    run = await begin(server, {**body, "on_disconnect": "continue"})
    url = f"{server.url}/api/runs/{run}"
    await asyncio.sleep(dice.random() * 0.1)
    await call("POST", f"{url}/channels/c0/cancel", {"mode": dice.choice(["now", "graceful"])})
    _, again, _ = await call("POST", f"{url}/channels/c0/retry")
    await call("POST", f"{url}/channels/c0/messages", {"content": "1 1 0", "mode": "steer"})
    await asyncio.sleep(dice.random() * 0.2)
    for each in {run, again.get("run", run)}:  # a finished run's retry is a run of its own
        await cancel(server, each)
    async with http("GET", f"{url}/export") as response:
        assert response.status in (200, 409), response.status
        await response.body()


async def test_memory_tasks_files_and_threads_stay_flat(tmp_path: Path, servers: Zygote) -> None:
    seed = int(os.environ.get("MUX_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}: MUX_TEST_SEED={seed} repeats it")
    async with endpoint.serving(script) as model:
        write_home(tmp_path, model.url, "[retention]\nmax_runs = 200\n")
        server = Server(servers, tmp_path, "--store", f"sqlite:{tmp_path / 'mux.db'}")
        async with server.running():
            samples: list[Held] = []
            runs = 0
            for round_ in range(ROUNDS):
                until = time.monotonic() + SOAK_S / ROUNDS
                dices = [random.Random(f"{seed} {round_} {n}") for n in range(CALLERS)]
                runs += sum(await asyncio.gather(*(caller(server, dice, until) for dice in dices)))
                samples.append(await held(server, runs))
                print(samples[-1])
    warm, late = samples[WARM - 1], samples[WARM:]
    assert runs > CALLERS * ROUNDS
    assert max(s.tasks for s in late) <= warm.tasks + 1
    # Pools (sandbox workers, connections, threads) come to their size when many things happen at once.
    assert max(s.files for s in late) <= warm.files + 10
    assert max(s.threads for s in late) <= warm.threads + 10
    left = (late[-1].blocks - warm.blocks) / (late[-1].runs - warm.runs)
    print(f"{left:.1f} blocks stay of a run")
    assert left < MAX_BLOCKS, [s.blocks for s in samples]
    grown = statistics.median(s.rss for s in samples[-2:]) - warm.rss
    assert grown < CACHES, [s.rss >> 20 for s in samples]

"""Three servers on one Redis under load, killed at random or replaced one after the other: nothing is lost,
nothing is doubled, and nobody is told anything but 'try again'."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.service.test_kills import body, check_run, read_logs
from tests.support import endpoint
from tests.support.api import call, settled, until
from tests.support.checker import http
from tests.support.followers import KINDS, Follower, channel_kind
from tests.support.redis_server import free_port, redis_server
from tests.support.servers import Server, Zygote
from tests.support.service_roster import script, write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
    pytest.mark.timeout(600),
]

LEASE_S = 2.0
DRAIN_S = 1.0
KILLS = int(os.environ.get("MUX_TEST_KILLS", "30"))  # 300 were tried; CI has not the time
AT_ONCE = 4  # runs


@dataclass
class Load:
    """Runs that are started through any server as long as it lasts, each with viewers on any server.

    Attributes:
        refusals: answers that were no success: their status, and whether they said when to try again.
    """

    pick: Callable[[], Server]
    dice: random.Random
    runs: list[str] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    refusals: Counter[tuple[int, bool]] = field(default_factory=Counter)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def last(self) -> None:
        """Until `over`, and until every run that was started is over."""
        async with asyncio.TaskGroup() as group:
            for place in range(AT_ONCE):
                group.create_task(self._one_after_the_other(place))

    async def _one_after_the_other(self, place: int) -> None:
        number = 0
        while not self.over.is_set():
            run = await self._post(f"{place}-{number}")
            number += 1
            self.runs.append(run)
            kinds = self.dice.sample([*KINDS, channel_kind("worker"), channel_kind("after")], 3)
            own = [Follower(lambda: self.pick().url, run, kind, self.dice) for kind in kinds]
            self.followers += own
            await asyncio.gather(*(follower.follow() for follower in own))

    async def one_more(self) -> None:
        """Until another run was started: the load goes on."""
        before = len(self.runs)
        await until(lambda: len(self.runs) > before)

    async def _post(self, key: str) -> str:
        headers = {"Idempotency-Key": key}
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                url = f"{self.pick().url}/api/runs"
                async with http("POST", url, json_body=body(), headers=headers) as response:
                    answer = await response.body()
                if response.status in (200, 201):
                    return str(json.loads(answer)["run"])
                self.refusals[response.status, "retry-after" in response.headers] += 1
            await asyncio.sleep(0.05)


@asynccontextmanager
async def three(tmp_path: Path, servers: Zygote) -> AsyncIterator[tuple[list[Server], str, Path]]:
    """The servers, their store's address, and the file of the tools' effects."""
    (tmp_path / "redis").mkdir()
    effects = tmp_path / "effects"
    with redis_server(tmp_path / "redis", appendonly="yes", appendfsync="always") as redis:
        async with endpoint.serving(script) as model, AsyncExitStack() as stack:
            made = []
            for n in range(3):
                home = tmp_path / f"s{n}"
                home.mkdir()
                limits = f"\n[limits]\nlease_s = {LEASE_S}\ndrain_s = {DRAIN_S}\n"
                write_home(home, model.url, limits, effects)
                made.append(Server(servers, home, "--store", redis.url, port=free_port()))
                await stack.enter_async_context(made[-1].running())
            yield made, redis.url, effects


async def check(load: Load, store: str, effects: Path, snapshots: list[dict[str, Any]]) -> None:
    """What every run and every viewer was promised."""
    logs = await read_logs(store)
    assert set(logs) == set(load.runs)  # a start that was sent again made one run
    for run, snapshot in zip(load.runs, snapshots, strict=True):
        check_run(logs[run], snapshot, effects)
    for follower in load.followers:
        follower.check(logs[follower.checker.run])


async def under_load(
    trio: list[Server], seed_name: str, during: Callable[[Load], Awaitable[None]]
) -> tuple[Load, list[dict[str, Any]]]:
    seed = int(os.environ.get("MUX_TEST_SEED", random.randrange(1 << 30)))
    print(f"{seed_name}: MUX_TEST_SEED={seed} repeats it")
    dice = random.Random(seed)
    load = Load(lambda: dice.choice(trio), dice)
    loading = asyncio.create_task(load.last())
    try:
        await during(load)
        load.over.set()
        async with asyncio.timeout(60):
            await loading
    finally:
        loading.cancel()
    for run in load.runs:
        await settled(trio[0].url, run)
    return load, [(await call("GET", f"{trio[0].url}/api/runs/{run}"))[1] for run in load.runs]


async def test_random_kills_of_three_servers_lose_and_double_nothing(tmp_path: Path, servers: Zygote) -> None:
    async with three(tmp_path, servers) as (trio, store, effects):

        async def kill(load: Load) -> None:
            for _ in range(KILLS):
                await asyncio.sleep(load.dice.uniform(0.0, 0.6))
                victim = load.dice.choice(trio)
                await victim.kill()
                await asyncio.sleep(load.dice.choice([0.0, 0.0, 0.3, LEASE_S + 0.5]))
                await victim.start()

        load, snapshots = await under_load(trio, "kills", kill)
        await check(load, store, effects, snapshots)
    attempts = max(c["attempt"] for snapshot in snapshots for c in snapshot["channels"])
    assert attempts >= 2, "the kills met no work"
    print(f"{KILLS} kills, {len(load.runs)} runs, {sum(f.connections for f in load.followers)} connections")


async def test_servers_replaced_one_after_the_other_lose_nothing_and_say_only_try_again(
    tmp_path: Path, servers: Zygote
) -> None:
    async with three(tmp_path, servers) as (trio, store, effects):

        async def replace(load: Load) -> None:
            for server in (*trio, *trio):
                server.signal(signal.SIGTERM)
                began = time.monotonic()
                assert await server.wait(DRAIN_S + 5) == 0
                assert time.monotonic() - began < DRAIN_S + 2
                await server.start()
                await load.one_more()

        load, snapshots = await under_load(trio, "rolling", replace)
        await check(load, store, effects, snapshots)
    assert set(load.refusals) <= {(503, True)}, load.refusals
    assert {c["status"] for snapshot in snapshots for c in snapshot["channels"]} <= {"completed", "failed"}
    print(f"{len(load.runs)} runs over six replacements, refused: {dict(load.refusals)}")

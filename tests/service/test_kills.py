"""Viewers read through kills of connections and of the server; nothing is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mux.events import Record
from mux.log import RunQuery, RunRow, open_store
from mux.run import RunState
from tests.support import endpoint
from tests.support.api import call, finished_run, read, start
from tests.support.checker import assert_order
from tests.support.followers import KINDS, Follower, VectorFollower, channel_kind, post_until_accepted
from tests.support.process import MUX, clean_env
from tests.support.redis_server import redis_server
from tests.support.servers import Server, Zygote
from tests.support.service_roster import check_effects, script, text_of, write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
]

WORK = "4 25 0.008"


def body(**more: Any) -> dict[str, Any]:
    """A run of one agent of each way to recover, and one that waits for the others."""
    channels = [
        {"agent": "worker", "message": WORK},
        {"agent": "worker", "message": "3 40 0.005"},
        {"agent": "writer", "message": "250 0.004"},
        {"agent": "fragile", "message": "150 0.004"},
        {"agent": "analyst", "message": "What is 17 * 23? Count to 50 in Python.", "model": "rehearsal"},
        {"agent": "writer", "id": "after", "message": "30 0.001", "depends_on": ["worker", "writer"]},
    ]
    return {"message": "go", "channels": channels, **more}


async def read_logs(url: str) -> dict[str, list[Record]]:
    """Run id → its whole log, from the store, each folded by the order rules."""
    store = open_store(url)
    await store.open()
    logs: dict[str, list[Record]] = {}
    try:
        rows: list[RunRow] = []
        after: str | None = None
        while rows == [] or after is not None:
            found = await store.list(RunQuery(after=after, limit=200))
            rows, after = [*rows, *found.runs], found.next
        for row in rows:
            page = await store.read(row.run, 0, limit=1_000_000, max_bytes=1 << 30)
            logs[row.run] = list(page.records)
            state = RunState(row.run)
            for record in page.records:
                state.apply(record.event())  # IllegalEvent if the order rules were broken
            assert state.finished is not None
            assert row.status == state.finished.status
    finally:
        await store.close()
    return logs


def check_run(log: Sequence[Record], snapshot: dict[str, Any], effects: Path) -> None:
    """What a run promises after any number of kills."""
    events = [json.loads(r.data) for r in log]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert_order(events)
    check_effects_of(effects, events)
    by_id = {c["id"]: c for c in snapshot["channels"]}
    assert by_id["worker"]["text"] == text_of(WORK)
    assert by_id["worker.2"]["text"] == text_of("3 40 0.005")
    assert by_id["worker"]["status"] == by_id["worker.2"]["status"] == "completed"
    for channel in ("writer", "after"):
        assert by_id[channel]["status"] == "completed" or by_id[channel]["attempt"] >= 5
        if by_id[channel]["status"] == "completed":
            count = 250 if channel == "writer" else 30
            assert by_id[channel]["text"] == "".join(f"{n} " for n in range(count))
    fragile = by_id["fragile"]
    assert fragile["status"] == "completed" or fragile["error"]["code"] == "interrupted"
    assert by_id["analyst"]["status"] == "completed"
    assert "391" in by_id["analyst"]["text"]


def check_effects_of(effects: Path, events: Sequence[dict[str, Any]]) -> None:
    """`check_effects` for one run of several that share the file."""
    own = {e["call_id"] for e in events if e["type"] == "tool_start"}
    lines = [line for line in effects.read_text().splitlines() if line.split()[1] in own]
    mine = effects.with_name("effects-own")
    mine.write_text("\n".join(lines))
    check_effects(mine, events)


async def watch(server: Server, run: str, dice: random.Random) -> list[Follower]:
    """Viewers of every kind, following to the end."""
    followers = [
        Follower(lambda: server.url, run, kind, dice)
        for kind in (*KINDS, channel_kind("worker"), channel_kind("after"))
    ]
    await asyncio.gather(*(f.follow() for f in followers))
    return followers


@pytest.mark.timeout(240)
async def test_random_kills_lose_and_double_nothing(tmp_path: Path, servers: Zygote) -> None:
    seed = int(os.environ.get("MUX_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}: MUX_TEST_SEED={seed} repeats it")
    dice = random.Random(seed)
    async with endpoint.serving(script) as model:
        effects = write_home(tmp_path, model.url)
        path = tmp_path / "mux.db"
        server = Server(servers, tmp_path, "--store", f"sqlite:{path}")
        kills = 0
        runs: list[str] = []
        watching: list[asyncio.Task[list[Follower]]] = []
        async with server.running():
            for round_ in range(3):
                key = f"round-{round_}"
                posting = asyncio.create_task(post_until_accepted(lambda: server.url, body(), key))
                for _ in range(9):
                    await asyncio.sleep(dice.uniform(0.0, 0.5))
                    if posting.done() and posting.result() not in runs:
                        runs.append(posting.result())
                        watching.append(asyncio.create_task(watch(server, runs[-1], dice)))
                    await server.kill()
                    kills += 1
                    await server.start()
                runs = list(dict.fromkeys([*runs, await posting]))
                if len(watching) < len(runs):
                    watching.append(asyncio.create_task(watch(server, runs[-1], dice)))
            vector = VectorFollower(lambda: server.url, runs, dice)
            followers = [f for group in await asyncio.gather(*watching) for f in group]
            await vector.follow()
            snapshots = [(await call("GET", f"{server.url}/api/runs/{run}"))[1] for run in runs]
        logs = await read_logs(f"sqlite:{path}")
    assert kills >= 25
    assert set(logs) == set(runs)  # a start that was retried over a kill made one run
    for run, snapshot in zip(runs, snapshots, strict=True):
        check_run(logs[run], snapshot, effects)
    for follower in followers:
        follower.check(logs[follower.checker.run])
    for run, checker in vector.checkers.items():
        checker.assert_equals(logs[run])
    assert sorted(server.starts)[len(server.starts) * 9 // 10] < 2.0, server.starts
    kinds = Counter(r.type for log in logs.values() for r in log)
    assert kinds["step_reset"] >= 5, "the kills met no work"
    print({kind: kinds[kind] for kind in ("step_reset", "channel_started", "tool_start", "token")})
    cuts = sum(f.connections for f in followers)
    print(f"{kills} kills, {len(runs)} runs, {cuts} connections; starts up to {max(server.starts):.2f} s")
    assert not server.session(), "a process outlived its server"


FAILPOINTS = [
    "accept.after:1", "append.before:1", "append.before:6", "append.after:1", "append.after:7",
    "notify.before:1", "notify.before:9", "tool.start.after:1", "tool.start.after:3",
    "tool.result.after:1", "tool.result.after:4", "terminal.before:1",
]  # fmt: skip
ON_REDIS = {"accept.after:1", "append.before:6", "append.after:7", "notify.before:9", "tool.result.after:4"}


@contextlib.contextmanager
def kept_in(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a fresh store that outlives its server."""
    if kind == "redis":
        (folder / "redis").mkdir()
        with redis_server(folder / "redis") as redis:
            yield redis.url
    else:
        yield f"sqlite:{folder / 'mux.db'}"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "failpoint"),
    [
        *(("sqlite", failpoint) for failpoint in FAILPOINTS),
        *(("redis", failpoint) for failpoint in FAILPOINTS if failpoint in ON_REDIS),
    ],
)
async def test_a_server_that_dies_at_a_place_that_matters_goes_on_after_its_restart(
    tmp_path: Path, servers: Zygote, kind: str, failpoint: str
) -> None:
    dice = random.Random(failpoint)
    with kept_in(kind, tmp_path) as store:
        await _die_and_go_on(tmp_path, Server(servers, tmp_path, "--store", store), failpoint, dice)


async def _die_and_go_on(tmp_path: Path, server: Server, failpoint: str, dice: random.Random) -> None:
    store = server.args[-1]
    async with endpoint.serving(script) as model:
        effects = write_home(tmp_path, model.url)
        request = {"message": "3 4 0.002", "agents": ["worker"]}
        async with server.running(MUX_FAILPOINT=failpoint):
            url = server.url
            posting = asyncio.create_task(post_until_accepted(lambda: server.url, request, "key"))
            early = asyncio.create_task(_once_posted(posting, server, dice))
            assert await server.wait(15) == -signal.SIGKILL
            log_before = await asyncio.to_thread(acknowledged, store)
            await server.start()
            assert server.url != url
            run = await posting
            followers = [await early, Follower(lambda: server.url, run, KINDS[0], dice)]
            await followers[1].follow()
            snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
        logs = await read_logs(store)
    assert list(logs) == [run]
    events = [json.loads(r.data) for r in logs[run]]
    assert [r.data for r in logs[run]][: len(log_before)] == log_before
    assert_order(events)
    assert snapshot["channels"][0]["text"] == text_of("3 4 0.002")
    assert snapshot["status"] == "completed"
    for follower in followers:
        follower.check(logs[run])
    check_effects(effects, events)
    check_results(log_before, events)


async def _once_posted(posting: asyncio.Task[str], server: Server, dice: random.Random) -> Follower:
    follower = Follower(lambda: server.url, await posting, KINDS[3], dice, cut=0)
    await follower.follow()
    return follower


def acknowledged(url: str) -> list[bytes]:
    """What the dead server's store holds, read without changing it."""

    async def read() -> list[bytes]:
        store = open_store(url)
        await store.open()
        try:
            rows = (await store.list(RunQuery())).runs
            if not rows:
                return []
            page = await store.read(rows[0].run, 0, limit=1_000_000, max_bytes=1 << 30)
            return [r.data for r in page.records]
        finally:
            await store.close()

    return asyncio.run(read())


def check_results(before: Sequence[bytes], events: Sequence[dict[str, Any]]) -> None:
    """Results of completed steps stay: every call that had one keeps it, and no call has two."""
    kept = [e for e in map(json.loads, before) if e["type"] == "tool_result"]
    assert [e for e in events if e["type"] == "tool_result"][: len(kept)] == kept
    calls = [e["call_id"] for e in events if e["type"] == "tool_result"]
    assert len(calls) == len(set(calls))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("failpoint", ["retention.sweep", "retention.before", "retention.after"])
async def test_a_server_that_dies_in_retention_leaves_every_run_whole_or_gone(
    tmp_path: Path, servers: Zygote, failpoint: str
) -> None:
    write_home(tmp_path, more="[retention]\nmax_runs = 1\n")
    path = tmp_path / "mux.db"
    server = Server(servers, tmp_path, "--store", f"sqlite:{path}")
    plain = tmp_path / "plain.toml"
    plain.write_text("")
    async with server.running(MUX_CONFIG=str(plain)):
        made = [(await finished_run(server.url, "writer", message="40 0"))["run"] for _ in range(3)]
    server.launch(MUX_FAILPOINT=failpoint)
    assert await server.wait(15) == -signal.SIGKILL
    logs = await read_logs(f"sqlite:{path}")
    assert made[-1] in logs
    async with server.running():
        rows = (await call("GET", f"{server.url}/api/runs"))[1]["runs"]
        while len(rows) > 1:
            await asyncio.sleep(0.02)
            rows = (await call("GET", f"{server.url}/api/runs"))[1]["runs"]
        assert [r["run"] for r in rows] == made[-1:]
        for run in made[:-1]:
            assert (await call("GET", f"{server.url}/api/runs/{run}"))[0] == 404


@pytest.mark.timeout(60)
async def test_a_restarted_server_has_taken_its_runs_over_within_two_seconds(
    tmp_path: Path, servers: Zygote
) -> None:
    write_home(tmp_path)
    store = ("--store", f"sqlite:{tmp_path / 'mux.db'}")
    server = Server(servers, tmp_path, *store)
    async with server.running():
        runs = [await start(server.url, "hold", "writer", message="100000 0.01") for _ in range(20)]
        await read(f"{server.url}/api/runs/{runs[-1]}/events", until="token")
        await server.kill()
    process = await asyncio.create_subprocess_exec(
        *MUX, "serve", "--port", "0", *store, cwd=tmp_path, env=clean_env(tmp_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"Mux is ready: "):
                break
        used = cpu_seconds(process.pid)
        url = line.split(b": ", 1)[1].decode().strip().rstrip("/")
        for run in runs:
            snapshot = (await call("GET", f"{url}/api/runs/{run}"))[1]
            assert [c["attempt"] for c in snapshot["channels"]] == [2, 2]
        # From the program's first instruction, imports included, in CPU time: other work on the machine must
        # not fail this test. It does not wait for anything on the way, so alone it is as long.
        print(f"{used:.2f} s of CPU time until ready")
        assert used < 2.0
    finally:
        process.kill()
        await process.wait()


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

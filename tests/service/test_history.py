"""Admission, history, replay and moving runs, through the real server and the real command line."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import endpoint
from tests.support.api import call, finished_run, read, settled, start
from tests.support.checker import Checker, http, texts
from tests.support.servers import Server, Zygote
from tests.support.service_roster import script, text_of, write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts processes
    pytest.mark.timeout(60),
]

MORE = "[limits]\nmax_runs = 2\nmax_queue = 1\nidempotency_s = 0.8\n"


@pytest.fixture
async def server(tmp_path: Path, servers: Zygote) -> AsyncIterator[Server]:
    async with endpoint.serving(script) as model:
        write_home(tmp_path, model.url, MORE)
        made = Server(servers, tmp_path, "--store", f"sqlite:{tmp_path / 'mux.db'}")
        async with made.running():
            yield made


# --- admission ----------------------------------------------------------------------------------------------


async def test_runs_above_the_limits_wait_with_their_position_and_then_are_refused_for_a_while(
    server: Server, tmp_path: Path
) -> None:
    url = server.url
    first, second = [await start(url, "gate", message="x") for _ in range(2)]
    queued = await start(url, "writer", message="3 0")
    snapshot = (await call("GET", f"{url}/api/runs/{queued}"))[1]
    assert (snapshot["status"], snapshot["queue_position"]) == ("queued", 1)
    status, problem, headers = await call("POST", f"{url}/api/runs", {"message": "3 0", "agents": ["writer"]})
    assert (status, problem["code"]) == (429, "too_many_runs")
    assert int(headers["retry-after"]) >= 1
    assert (await call("GET", f"{url}/api/runs?status=queued"))[1]["runs"][0]["run"] == queued
    await server.kill()  # places in the queue survive too
    await server.start()
    (tmp_path / "gate").touch()
    for run in (first, second, queued):
        assert await settled(server.url, run) == "completed"


async def test_an_idempotency_key_is_free_again_after_its_time(server: Server) -> None:
    body, key = {"message": "3 0", "agents": ["writer"]}, {"Idempotency-Key": "k"}

    async def post() -> str:
        return str((await call("POST", f"{server.url}/api/runs", body, headers=key))[1]["run"])

    first = await post()
    assert await post() == first
    assert await settled(server.url, first) == "completed"
    await asyncio.sleep(0.9)
    assert await post() != first


async def test_prefer_wait_answers_with_the_finished_snapshot_or_as_it_stands(server: Server) -> None:
    began = time.monotonic()
    run = await finished_run(server.url, "writer", message="20 0.01")
    assert (run["status"], run["channels"][0]["text"][-3:]) == ("completed", "19 ")
    assert time.monotonic() - began < 5
    body = {"message": "x", "agents": ["hold"]}
    status, run, headers = await call("POST", f"{server.url}/api/runs", body, headers={"Prefer": "wait=0.2"})
    assert (status, run["status"]) == (201, "running")
    assert "preference-applied" not in headers


async def test_two_turns_on_three_lanes_keep_their_histories_apart(server: Server) -> None:
    lanes = [{"agent": "worker", "id": f"lane{n}", "message": f"1 {n} 0"} for n in (2, 3, 4)]
    first = (await call("POST", f"{server.url}/api/runs", {"channels": lanes}))[1]
    assert await settled(server.url, first["run"]) == "completed"
    again = {"message": "1 5 0", "thread": first["thread"]}  # neither agents nor channels: the last run's
    second = (await call("POST", f"{server.url}/api/runs", again))[1]
    assert [c["id"] for c in second["channels"]] == ["lane2", "lane3", "lane4"]
    assert await settled(server.url, second["run"]) == "completed"
    snapshot = (await call("GET", f"{server.url}/api/runs/{second['run']}"))[1]
    assert {c["text"] for c in snapshot["channels"]} == {text_of("1 5 0")}


# --- history ------------------------------------------------------------------------------------------------


async def test_runs_are_found_by_what_was_asked_what_was_said_and_what_was_noted(server: Server) -> None:
    made: dict[str, str] = {}
    for n in (2, 5, 7):
        run = await finished_run(server.url, "worker", message=f"1 {n} 0 remarkable{n}")
        made[f"remarkable{n}"] = run["run"]
        await call("PATCH", f"{server.url}/api/runs/{run['run']}", {"metadata": {"vote": str(n % 2)}})
    for query, wanted in {
        "q=remarkable5": ["remarkable5"],
        "q=s1w6": ["remarkable7"],
        "q=s1w1": ["remarkable7", "remarkable5", "remarkable2"],
        "metadata.vote=1": ["remarkable7", "remarkable5"],
        "agent=worker&metadata.vote=0": ["remarkable2"],
        "q=nowhere": [],
    }.items():
        runs = (await call("GET", f"{server.url}/api/runs?{query}"))[1]["runs"]
        assert [r["run"] for r in runs] == [made[w] for w in wanted], query


async def test_an_exported_run_is_the_same_on_another_server(
    server: Server, servers: Zygote, tmp_path: Path
) -> None:
    run = await finished_run(server.url, "worker", "analyst", message="2 5 0 and what is 17 * 23?")
    async with http("GET", f"{server.url}/api/runs/{run['run']}/export") as response:
        file = await response.body()
    home = tmp_path / "other"
    home.mkdir()
    write_home(home)
    other = Server(servers, home, "--store", f"sqlite:{home / 'mux.db'}")
    async with other.running():
        headers = {"Content-Type": "application/x-ndjson"}
        async with http("POST", f"{other.url}/api/runs/import", body=file, headers=headers) as response:
            assert response.status == 201
            copy = await response.json()
        logs = []
        for server_, name in ((server, run["run"]), (other, copy["run"])):
            checker = Checker(name)
            checker.feed(await read(f"{server_.url}/api/runs/{name}/events"))
            checker.assert_gapless()
            checker.assert_order()
            logs.append([{k: v for k, v in e.items() if k != "run"} for e in checker.events])
        assert logs[0] == logs[1]
        found = (await call("GET", f"{other.url}/api/runs?q=s2w4"))[1]["runs"]
        assert [r["run"] for r in found] == [copy["run"]]
        differ = {k for k in run if run[k] != copy.get(k)}
        assert differ <= {"run", "cursor", "created", "metadata", "thread"}, differ


async def test_a_run_is_replayed_from_its_file_and_from_the_server_at_any_speed(
    server: Server, tmp_path: Path
) -> None:
    channels = [{"agent": "writer", "message": "60 0.02"}, {"agent": "worker", "message": "2 20 0.01"}]
    run = (await call("POST", f"{server.url}/api/runs", {"channels": channels}))[1]["run"]
    original = [b.data for b in await read(f"{server.url}/api/runs/{run}/events") if "seq" in b.data]
    async with http("GET", f"{server.url}/api/runs/{run}/export") as response:
        (tmp_path / "run.ndjson").write_bytes(await response.body())
    took: dict[tuple[str, str], float] = {}
    for source in (str(tmp_path / "run.ndjson"), run):
        for speed in ("0", "2"):
            began = time.monotonic()
            code, out, err = await server.command(
                "replay", source, "--speed", speed, "--json", "--url", server.url
            )
            took[source, speed] = time.monotonic() - began
            assert code == 0, err
            played = [json.loads(line) for line in out.splitlines()]
            assert [e for e in played if "seq" in e] == original, (source, speed)
    recorded = (original[-1]["ts"] - original[0]["ts"]) / 1000
    for source in (str(tmp_path / "run.ndjson"), run):
        assert took[source, "2"] > recorded / 2
        assert took[source, "0"] < took[source, "2"]
    code, out, _ = await server.command("replay", str(tmp_path / "run.ndjson"), "--speed", "0", "--plain")
    assert code == 0
    assert texts(original)["writer", "token"].split()[-1] in out
    code, _, err = await server.command("replay", "rnowhere", "--url", server.url)
    assert code != 0
    assert "run_not_found" in err


async def test_retention_by_count_spares_starred_and_running_runs(tmp_path: Path, servers: Zygote) -> None:
    write_home(tmp_path, more="")
    server = Server(servers, tmp_path, "--store", f"sqlite:{tmp_path / 'mux.db'}")
    async with server.running():
        held = await start(server.url, "hold", message="x")
        made = [(await finished_run(server.url, "writer", message="5 0"))["run"] for _ in range(5)]
        await call("PATCH", f"{server.url}/api/runs/{made[0]}", {"starred": True})
        await server.stop()
        (tmp_path / "mux.toml").write_text("[retention]\nmax_runs = 2\n")
        await server.start()
        wanted = {held, made[0], made[3], made[4]}
        left: set[Any] = set()
        while left != wanted:
            left = {r["run"] for r in (await call("GET", f"{server.url}/api/runs"))[1]["runs"]}
            assert left >= wanted
            await asyncio.sleep(0.02)

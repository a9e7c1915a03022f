"""What a client may do to everybody else: large wrong bodies, heads that never end, pages that embed us."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from mux.errors import StoreError
from mux.http.service import Service
from mux.log import open_store
from tests.support.api import call, finished_run
from tests.support.checker import http
from tests.support.service import running, serving


async def test_a_body_of_very_many_wrong_entries_is_refused_soon_and_holds_nobody_up(url: str) -> None:
    body = b'{"message": "x", "agents": [' + b",".join([b"1"] * 1_000_000) + b"]}"
    worst = 0.0

    async def others() -> None:
        nonlocal worst
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - began)

    watching = asyncio.create_task(others())
    began = time.monotonic()
    async with http(
        "POST", f"{url}/api/runs", headers={"Content-Type": "application/json"}, body=body
    ) as response:
        assert response.status == 400
        problem = json.loads(await response.body())
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert len(problem["errors"]) <= 10
    assert time.monotonic() - began < 10
    assert worst < 1.0  # the interpreter is shared with the thread that parses


async def test_half_an_emoji_is_taken_for_a_replacement_character(url: str) -> None:
    body = b'{"message": "half \\ud83d of it", "agents": ["counter"]}'
    async with http(
        "POST", f"{url}/api/runs", headers={"Content-Type": "application/json"}, body=body
    ) as response:
        assert response.status == 201
        assert json.loads(await response.body())["message"] == "half \ufffd of it"
    whole = b'{"message": "whole \\ud83d\\ude00", "agents": ["counter"]}'
    async with http(
        "POST", f"{url}/api/runs", headers={"Content-Type": "application/json"}, body=whole
    ) as response:
        assert json.loads(await response.body())["message"] == "whole \U0001f600"


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
async def test_a_head_that_does_not_end_is_given_up(service: Service, sent: bytes) -> None:
    port = int(service.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    async with asyncio.timeout(15):
        assert await reader.read() == b""
    writer.close()


async def test_a_page_that_embeds_the_start_of_a_run_over_plain_http_starts_none(url: str) -> None:
    start = f"{url}/api/chat/stream?message=x&agents=counter"
    picture = {"User-Agent": "Mozilla/5.0 (X11)", "Accept": "image/avif,image/webp,*/*;q=0.8"}
    status, problem, _ = await call("GET", start, headers=picture)
    assert (status, problem["code"]) == (403, "cross_site")
    assert (await call("GET", f"{url}/api/runs"))[1]["runs"] == []
    for headers in ({"User-Agent": "curl/8"}, {"User-Agent": "Mozilla/5.0", "Accept": "text/event-stream"}):
        async with http("GET", start, headers=headers) as response:
            assert response.status == 200


async def test_no_answer_names_versions(url: str) -> None:
    for path in ("/", "/healthz", "/nothing"):
        async with http("GET", url + path) as response:
            assert response.headers["server"] == "Mux"


async def test_the_stores_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "mux.db"
    store = open_store(f"sqlite:{path}")
    await store.open()
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, *path.parent.iterdir())]
    await store.close()
    assert modes[0] == 0o700
    assert set(modes[1:]) == {0o600}


async def test_a_damaged_row_is_listed_and_named_and_the_others_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "mux.db"
    async with running(store=f"sqlite:{path}") as url:
        runs = [(await finished_run(url, "assistant", message=f"hello {n}"))["run"] for n in range(3)]
        db = await asyncio.to_thread(sqlite3.connect, path, isolation_level=None, check_same_thread=False)
        db.execute("UPDATE requests SET request = '{' WHERE id = 2")
        db.execute("UPDATE runs SET metadata = 'x', summary = '[' WHERE id = 2")
        db.close()
        status, page, _ = await call("GET", f"{url}/api/runs")
        assert status == 200
        found = {item["run"]: item for item in page["runs"]}
        assert found.keys() == set(runs)
        assert sorted(found[runs[1]].pop("damaged")) == ["metadata", "request", "summary"]
        assert all("damaged" not in item for item in found.values())
        assert (await call("GET", f"{url}/api/runs/{runs[1]}"))[1]["channels"][0]["text"]
        channel = found[runs[0]]["channels"][0]["id"]
        status, problem, _ = await call("POST", f"{url}/api/runs/{runs[1]}/channels/{channel}/retry", {})
        assert (status, problem["code"]) == (409, "run_imported"), problem


async def test_a_full_store_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as service:
        assert (await call("GET", f"{service.url}/readyz"))[0] == 200

        async def full() -> None:
            raise StoreError("store_full", "The disk is full.")

        monkeypatch.setattr(service.store, "check", full)
        status, body, headers = await call("GET", f"{service.url}/readyz")
        assert (status, body["checks"]) == (503, {"store": "The disk is full."})
        assert "retry-after" in headers

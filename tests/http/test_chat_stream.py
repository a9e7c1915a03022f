"""Start and stream in one GET: what EventSource and `curl` need, and a client that knows nothing of us."""

from __future__ import annotations

import asyncio
import json

from mux.http.service import Service
from tests.support.api import call, read, until
from tests.support.checker import Checker, http

QUERY = "/api/chat/stream?message=5&agents=counter,counter"


async def runs(url: str) -> list[str]:
    return [r["run"] for r in (await call("GET", f"{url}/api/runs"))[1]["runs"]]


async def test_one_get_starts_a_run_and_streams_it(url: str) -> None:
    blocks = await read(url + QUERY)
    (run,) = await runs(url)
    checker = Checker(run)
    checker.feed(blocks)
    checker.assert_gapless()
    checker.assert_order()


async def test_a_client_that_knows_only_data_lines_and_four_types_works(url: str) -> None:
    said: dict[str, str] = {}
    done = 0
    async with http("GET", url + "/api/chat/stream?message=what+is+6*7&agents=analyst,counter") as response:
        lines = (await response.body()).decode().split("\n")
    for line in lines:
        if line.startswith("data: "):
            event = json.loads(line[6:])
            if event["type"] == "token":
                said[event["channel"]] = said.get(event["channel"], "") + event["content"]
            elif event["type"] == "tool_result":
                assert event["output"] is not None
            elif event["type"] == "done":
                done += 1
    assert done == 2
    assert "42" in said["analyst"]


async def test_a_reconnect_with_an_id_resumes_its_run_and_starts_none(url: str) -> None:
    blocks = await read(url + QUERY)
    (run,) = await runs(url)
    ids = [b.id for b in blocks if b.id]
    rest = await read(url + QUERY, headers={"Last-Event-ID": ids[3]})
    assert [b.data for b in rest if "seq" in b.data] == [b.data for b in blocks if "seq" in b.data][4:]
    assert (await call("GET", url + QUERY, headers={"Last-Event-ID": ids[-1]}))[0] == 204
    assert (await call("GET", f"{url}{QUERY}&after={ids[-1]}"))[0] == 204
    assert await runs(url) == [run]


async def test_a_reconnect_before_the_first_id_finds_its_run_by_connection_id(url: str) -> None:
    connect = f"{url}/api/chat/stream?message=hold&agents=hold&connection_id=c1&grace_s=5"
    async with http("GET", connect) as response:
        assert response.status == 200  # and cut before any event was read
    async with http("GET", connect) as response:
        await anext(response.blocks())
        (run,) = await runs(url)
        assert response.headers["location"] == f"/api/runs/{run}"
    status, problem, _ = await call("GET", connect.replace("message=hold", "message=other"))
    assert (status, problem["code"]) == (409, "idempotency_conflict")
    assert await runs(url) == [run]


async def test_when_its_viewer_has_been_gone_for_the_grace_the_run_is_cancelled(service: Service) -> None:
    url = service.url
    async with http("GET", f"{url}/api/chat/stream?message=x&agents=hold&grace_s=0.05") as response:
        async for block in response.blocks():
            if block.data["type"] == "token":
                break
    (run,) = await runs(url)
    blocks = await read(f"{url}/api/runs/{run}/events?observe=1")
    assert blocks[-1].data["status"] == "cancelled"


async def test_a_viewer_that_comes_back_in_time_keeps_the_run(service: Service) -> None:
    url = service.url
    connect = f"{url}/api/chat/stream?message=x&agents=hold&grace_s=0.4"
    seen: str | None = None
    for _ in range(3):
        async with http("GET", connect, headers={"Last-Event-ID": seen} if seen else {}) as response:
            async for block in response.blocks():
                seen = block.id or seen
                if block.data["type"] == "stream_live":
                    break
        await until(lambda: not service.hub.count)
    (run,) = await runs(url)
    async with http("GET", f"{url}/api/runs/{run}/events"):
        await asyncio.sleep(0.5)  # longer than the grace: what would have cancelled it, has
        assert (await call("GET", f"{url}/api/runs/{run}"))[1]["status"] == "running"


async def test_what_cannot_be_started_is_refused_before_anything_starts(url: str) -> None:
    for path, status, code in (
        ("/api/chat/stream", 400, "request_invalid"),
        ("/api/chat/stream?message=x&agents=nobody", 404, "agent_unknown"),
        ("/api/chat/stream?message=x&grace_s=-1", 400, "query_invalid"),
        ("/api/chat/stream?message=x&agnts=counter", 400, "query_unknown"),
        ("/api/chat/stream?message=x&type=nope", 400, "filter_invalid"),
        ("/api/chat/stream?message=x&after=7", 400, "cursor_invalid"),
        ("/api/chat/stream?message=x&after=rx.1.7", 404, "run_not_found"),
    ):
        answer = await call("GET", url + path)
        assert (answer[0], answer[1]["code"]) == (status, code), path
    assert await runs(url) == []

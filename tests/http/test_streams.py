"""Streams over real sockets: cursors, filters, formats, resume, and how they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mux.http.service import Service
from mux.viewers import Selection
from tests.support.api import call, finished_run, read, start, until
from tests.support.checker import Checker, http, texts
from tests.support.service import make_settings, serving

pytestmark = pytest.mark.usefixtures("no_leaks")


async def log_of(service: Service, run: str) -> list[Any]:
    return list((await service.store.read(run, 0, limit=100_000, max_bytes=1 << 30)).records)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_a_stream_is_the_log_in_order_and_ends_with_the_run(service: Service, accept: str) -> None:
    run = await start(service.url, "counter", "counter", message="40")
    checker = Checker(run)
    checker.feed(await read(f"{service.url}/api/runs/{run}/events", headers={"Accept": accept}))
    checker.assert_gapless()
    checker.assert_order()
    checker.assert_equals(await log_of(service, run))
    assert checker.ended


async def test_a_run_outlives_the_rotation_of_its_only_viewer(agents_dir: Path) -> None:
    async with serving(agents=[agents_dir], http={"rotate_s": 0.2}) as service:
        body = {"message": "x", "agents": ["hold"], "on_disconnect": "cancel"}
        sse = {"Accept": "text/event-stream"}
        async with http("POST", f"{service.url}/api/runs", json_body=body, headers=sse) as response:
            run = response.headers["location"].rsplit("/", 1)[1]
            blocks = [block async for block in response.blocks()]
        assert blocks[-1].data == {"type": "stream_rotate", "reason": "age"}
        await asyncio.sleep(0.2)
        assert (await call("GET", f"{service.url}/api/runs/{run}"))[1]["status"] == "running"


async def test_the_headers_keep_proxies_from_buffering(url: str) -> None:
    run = (await finished_run(url))["run"]
    async with http("GET", f"{url}/api/runs/{run}/events", headers={"Accept-Encoding": "gzip"}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["connection"] == "keep-alive"
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in response.headers
        first = await anext(response.blocks())
    assert first.retry == 1000
    assert first.data["type"] == "stream_open"


async def test_http_1_0_gets_the_stream_without_chunks(service: Service) -> None:
    run = (await finished_run(service.url))["run"]
    async with http("GET", f"{service.url}/api/runs/{run}/events", version="1.0") as response:
        assert "transfer-encoding" not in response.headers
        checker = Checker(run)
        checker.feed([b async for b in response.blocks()])
    checker.assert_equals(await log_of(service, run))


async def test_a_viewer_cut_at_every_event_and_resumed_by_header_sees_each_once(service: Service) -> None:
    run = (await finished_run(service.url, message="8"))["run"]
    url = f"{service.url}/api/runs/{run}/events"
    checker = Checker(run)
    for _ in range(50):
        headers = {"Last-Event-ID": checker.cursor} if checker.cursor else {}
        async with http("GET", url, headers=headers) as response:
            if response.status == 204:
                break
            async for block in response.blocks():
                if block.id is not None:
                    checker.feed([block])
                    break
    else:
        pytest.fail("the stream never came to its end")
    checker.assert_equals(await log_of(service, run))
    checker.assert_order()


async def test_a_filtered_and_resumed_stream_is_the_filtered_original(service: Service) -> None:
    run = (await finished_run(service.url, "counter", "counter", message="20"))["run"]
    url = f"{service.url}/api/runs/{run}/events?channel=counter.2&type=token,do*"
    selection = Selection.parse(["counter.2"], ["token", "do*"])
    whole = Checker(run, selection=selection)
    whole.feed(await read(url))
    whole.assert_equals(await log_of(service, run))
    middle = whole.events[len(whole.events) // 2]["seq"]
    rest = Checker(run, middle, selection)
    rest.feed(await read(f"{url}&after={middle}"))
    assert whole.events[-len(rest.events) :] == rest.events


async def test_compacted_text_is_the_same_in_both_formats(service: Service) -> None:
    run = (await finished_run(service.url, "counter", "nasty", message="300"))["run"]
    log = await log_of(service, run)
    for accept in ("text/event-stream", "application/x-ndjson"):
        checker = Checker(run)
        checker.feed(await read(f"{service.url}/api/runs/{run}/events?compact=1", headers={"Accept": accept}))
        checker.assert_same_text(log)
        assert len(checker.events) < len(log) / 10


async def test_bare_text_of_one_channel(url: str) -> None:
    run = (await finished_run(url, "counter", message="4"))["run"]
    events = f"{url}/api/runs/{run}/events"
    async with http("GET", f"{events}?channel=counter", headers={"Accept": "text/plain"}) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert await response.body() == b"0 1 2 3 "
    status, problem, _ = await call("GET", events, headers={"Accept": "text/plain"})
    assert (status, problem["code"]) == (406, "not_acceptable")


async def test_a_format_that_is_not_offered_is_refused(url: str) -> None:
    run = (await finished_run(url))["run"]
    status, problem, _ = await call("GET", f"{url}/api/runs/{run}/events", headers={"Accept": "image/png"})
    assert (status, problem["code"]) == (406, "not_acceptable")


async def test_nothing_that_an_agent_says_can_forge_a_frame(service: Service) -> None:
    run = (await finished_run(service.url, "nasty", message="\r\n\r\nid: evil\n\n"))["run"]
    checker = Checker(run)
    checker.feed(await read(f"{service.url}/api/runs/{run}/events"))
    checker.assert_equals(await log_of(service, run))
    said = texts(checker.events)["nasty", "token"]
    assert said == 'a\r\nb\n\ndata: forged\n\nnul\0\u2028"\\"\r\n\r\nid: evil\n\n'


Make = Callable[[str, int, str], str | None]
MATRIX: list[
    tuple[str, Make, Any, Any]
] = [  # cursor (from the head and the ids of two runs) → status and code or first seq, live and finished
    ("none", lambda run, head, other: None, 1, 1),
    ("zero", lambda run, head, other: f"{run}.1.0", 1, 1),
    ("bare zero", lambda run, head, other: "0", 1, 1),
    ("middle", lambda run, head, other: f"{run}.1.2", 3, 3),
    ("bare middle", lambda run, head, other: "2", 3, 3),
    ("head", lambda run, head, other: f"{run}.1.{head}", None, 204),
    ("beyond head", lambda run, head, other: f"{run}.1.{head + 1}", "cursor_ahead", "cursor_ahead"),
    ("bare beyond head", lambda run, head, other: str(head + 1), "cursor_ahead", "cursor_ahead"),
    ("other epoch", lambda run, head, other: f"{run}.2.1", "cursor_stale", "cursor_stale"),
    ("other run", lambda run, head, other: f"{other}.1.1", "cursor_foreign", "cursor_foreign"),
    ("negative", lambda run, head, other: "-1", "cursor_invalid", "cursor_invalid"),
    ("garbage", lambda run, head, other: "a;b", "cursor_invalid", "cursor_invalid"),
    ("half", lambda run, head, other: f"{run}.1", "cursor_invalid", "cursor_invalid"),
    ("8 KiB", lambda run, head, other: "x" * 8192, "cursor_invalid", "cursor_invalid"),
    ("huge", lambda run, head, other: "9" * 30, "cursor_invalid", "cursor_invalid"),
]
STATUS = {"cursor_ahead": 409, "cursor_stale": 409, "cursor_foreign": 409, "cursor_invalid": 400}


@pytest.mark.timeout(60)  # some 200 requests, each over a connection of its own
@pytest.mark.parametrize("store", ["memory:", "sqlite"])
async def test_every_kind_of_cursor_has_its_answer(agents_dir: Path, tmp_path: Path, store: str) -> None:
    name = "memory:" if store == "memory:" else f"sqlite:{tmp_path / 'mux.db'}"
    async with serving(agents=[agents_dir], store=name) as service:
        other = (await finished_run(service.url))["run"]
        finished = (await finished_run(service.url))["run"]
        live = await start(service.url, "hold")
        await read(f"{service.url}/api/runs/{live}/events", until="token")
        for trimmed in (False, True):
            for state, run in (("live", live), ("finished", finished)):
                if trimmed:
                    await service.store.trim(run, 3)
                head = (await service.store.head(run)).head
                for title, make, *both in MATRIX:
                    wanted = both[state == "finished"]
                    if trimmed and wanted == 1:
                        wanted = ("gap", 3)
                    for place in ("header", "query"):
                        answer = await _first(service.url, run, make(run, head, other), place)
                        assert answer == wanted, f"{title} by {place} on a {state} run, {trimmed=}"


async def _first(url: str, run: str, cursor: str | None, place: str) -> Any:
    """The first seq of the stream (with ``gap`` after one), ``None`` where it waits for new events, 204, or
    the problem's code."""
    query = f"?after={cursor}" if cursor is not None and place == "query" else ""
    headers = {"Last-Event-ID": cursor} if cursor is not None and place == "header" else {}
    async with http("GET", f"{url}/api/runs/{run}/events{query}", headers=headers) as response:
        if response.status == 204:
            return 204
        if response.status != 200:
            problem = await response.json()
            assert response.headers["content-type"] == "application/problem+json"
            assert response.status == problem["status"] == STATUS[problem["code"]]
            return problem["code"]
        gap = False
        async for block in response.blocks():
            if "seq" in block.data:
                return ("gap", block.data["seq"]) if gap else block.data["seq"]
            gap = gap or block.data["type"] == "stream_gap"
            if block.data["type"] == "stream_live":
                return None
    return "ended"


async def test_the_header_wins_over_the_query(url: str) -> None:
    run = (await finished_run(url))["run"]
    blocks = await read(f"{url}/api/runs/{run}/events?after=1", headers={"Last-Event-ID": f"{run}.1.3"})
    assert next(b for b in blocks if "seq" in b.data).data["seq"] == 4


async def test_trimmed_history_is_one_gap(service: Service) -> None:
    run = (await finished_run(service.url, message="20"))["run"]
    await service.store.trim(run, 10)
    checker = Checker(run)
    checker.feed(await read(f"{service.url}/api/runs/{run}/events"))
    assert checker.gaps == [(0, 10)]
    assert checker.events[0]["seq"] == 10


async def test_many_runs_over_one_connection(service: Service) -> None:
    one, two = await start(service.url, "counter"), await start(service.url, "counter", message="9")
    url = f"{service.url}/api/events?run={one},{two}"
    blocks = await read(url)
    for run in (one, two):
        checker = Checker(run)
        checker.feed([b for b in blocks if b.data.get("run") == run])
        checker.assert_equals(await log_of(service, run))
    assert blocks[-1].data == {
        "type": "stream_end",
        "status": {one: "completed", two: "completed"},
        "final": True,
    }
    middle = blocks[len(blocks) // 2].id
    assert middle is not None
    rest = await read(url, headers={"Last-Event-ID": middle})
    after = blocks[blocks.index(next(b for b in blocks if b.id == middle)) + 1 :]
    for run in (one, two):
        assert [b.data for b in rest if b.data.get("run") == run] == [
            b.data for b in after if b.data.get("run") == run
        ]
    async with http("GET", f"{url}&after={[b.id for b in blocks if b.id][-1]}") as response:
        assert response.status == 204
    assert (await call("GET", f"{service.url}/api/events"))[0] == 400


async def test_open_streams_are_listed_and_limited(agents_dir: Path) -> None:
    async with serving(agents=[agents_dir], limits={"max_viewers": 1}) as service:
        run = await start(service.url, "hold")
        url = f"{service.url}/api/runs/{run}/events"
        async with http("GET", f"{url}?observe=1&channel=hold") as response:
            await anext(response.blocks())
            status, listed, _ = await call("GET", f"{service.url}/api/viewers")
            assert (status, listed["count"], listed["limit"]) == (200, 1, 1)
            row = listed["viewers"][0]
            assert (row["run"], row["observe"], row["filter"]) == (run, True, {"channel": ["hold"]})
            status, problem, headers = await call("GET", url)
            assert (status, problem["code"]) == (429, "viewers_full")
            assert int(headers["retry-after"]) >= 1
        await until(lambda: not service.hub.count)


async def test_a_peer_that_does_not_read_is_dropped_and_can_resume(agents_dir: Path) -> None:
    settings = make_settings(agents=[agents_dir], http={"write_timeout_s": 0.2})
    async with serving(settings) as service:
        run = (await finished_run(service.url, "bulk", message="1500"))["run"]
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /api/runs/{run}/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        await until(lambda: service.hub.count)
        other = asyncio.create_task(read(f"{service.url}/api/runs/{run}/events?compact=1"))
        await until(lambda: not service.hub.count)
        checker = Checker(run)
        checker.feed(await other)
        assert checker.ended
        writer.close()
        del reader


async def test_stopping_the_server_rotates_its_streams(agents_dir: Path) -> None:
    async with serving(agents=[agents_dir]) as service:
        run = await start(service.url, "hold")
        reading = asyncio.create_task(read(f"{service.url}/api/runs/{run}/events"))
        await until(lambda: service.hub.count)
        await service.stop(grace_s=0)
        assert (await reading)[-1].data == {"type": "stream_rotate", "reason": "drain"}


async def test_until_channels_ends_with_the_channel(url: str) -> None:
    run = await start(url, "counter", "hold")
    events = f"{url}/api/runs/{run}/events?channel=counter&until=channels"
    blocks = await read(events)
    assert [b.data["type"] for b in blocks[-2:]] == ["done", "stream_end"]
    assert (await call("GET", events, headers={"Last-Event-ID": str(blocks[-2].id)}))[0] == 204


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("channelx=a", "query_unknown"),
        ("channel=a/b", "filter_invalid"),
        ("type=tokn", "filter_invalid"),
        ("type=TOKEN", "filter_invalid"),
        ("until=never", "query_invalid"),
        ("compact=maybe", "query_invalid"),
        ("compact_ms=0", "query_invalid"),
        ("compact_ms=nan", "query_invalid"),
        ("after=1&after=2", "query_invalid"),
        ("%ff=1", "query_unknown"),
    ],
)
async def test_a_filter_that_cannot_be_used_is_refused(url: str, query: str, code: str) -> None:
    run = (await finished_run(url))["run"]
    status, problem, _ = await call("GET", f"{url}/api/runs/{run}/events?{query}")
    assert (status, problem["code"]) == (400, code), json.dumps(problem)

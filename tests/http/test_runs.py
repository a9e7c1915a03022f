"""Runs over HTTP: start in every way, control, change, list, move; and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request

from mux.errors import BadRequest, StoreError
from mux.http import bodies
from mux.http.service import Service
from mux.log import Page, RunRow
from tests.support.api import call, finished_run, read, settled, start, until
from tests.support.checker import Checker, http
from tests.support.service import serving


async def test_a_run_is_started_shown_and_finished(url: str) -> None:
    status, run, headers = await call("POST", f"{url}/api/runs", {"message": "2", "agents": ["counter"]})
    assert status == 201
    assert headers["location"] == f"/api/runs/{run['run']}"
    assert (run["channels"][0]["id"], run["cursor"].split(".")[0]) == ("counter", run["run"])
    await read(f"{url}/api/runs/{run['run']}/events")
    snapshot = (await call("GET", f"{url}{headers['location']}"))[1]
    assert (snapshot["status"], snapshot["channels"][0]["text"]) == ("completed", "0 1 ")


@pytest.mark.parametrize(
    "accept", ["text/event-stream", "application/x-ndjson", "text/event-stream;q=0.9, */*;q=0.1"]
)
async def test_the_answer_of_a_start_can_be_the_stream(url: str, accept: str) -> None:
    body = {"message": "5", "agents": ["counter"]}
    async with http("POST", f"{url}/api/runs", json_body=body, headers={"Accept": accept}) as response:
        assert response.status == 201
        run = response.headers["location"].rsplit("/", 1)[1]
        checker = Checker(run)
        checker.feed([b async for b in response.blocks()])
    checker.assert_gapless()
    checker.assert_order()


async def test_a_reader_that_comes_back_with_the_same_post_goes_on_with_its_run(url: str) -> None:
    body = {"message": "3", "agents": ["counter"]}
    sse = {"Accept": "text/event-stream"}
    async with http("POST", f"{url}/api/runs", json_body=body, headers=sse) as response:
        whole = [block async for block in response.blocks()]
    middle = next(b for b in whole if b.data["type"] == "token")
    back = {**sse, "Last-Event-ID": str(middle.id)}
    async with http("POST", f"{url}/api/runs", json_body=body, headers=back) as response:
        rest = [block async for block in response.blocks()]
    assert response.status == 200
    events = [b for b in whole if b.id]
    assert [b for b in rest if b.id] == events[events.index(middle) + 1 :]
    async with http(
        "POST", f"{url}/api/runs", json_body=body, headers={**sse, "Last-Event-ID": str(events[-1].id)}
    ) as response:
        assert response.status == 204
    async with http(
        "POST", f"{url}/api/runs", json_body=body, headers={**sse, "Last-Event-ID": "7"}
    ) as response:
        assert (response.status, (await response.json())["code"]) == (400, "cursor_invalid")
    assert len((await call("GET", f"{url}/api/runs"))[1]["runs"]) == 1


async def test_a_stream_that_cannot_be_sent_starts_nothing(url: str) -> None:
    body = {"message": "5", "agents": ["counter"]}
    headers = {"Accept": "text/event-stream"}
    status, problem, _ = await call("POST", f"{url}/api/runs?type=nope", body, headers=headers)
    assert (status, problem["code"]) == (400, "filter_invalid")
    assert (await call("POST", f"{url}/api/runs", body, headers={"Accept": "image/png"}))[0] == 406
    assert (await call("GET", f"{url}/api/runs"))[1]["runs"] == []


async def test_an_idempotency_key_starts_one_run_and_refuses_another_body(url: str) -> None:
    body = {"message": "1", "agents": ["counter"]}
    key = {"Idempotency-Key": "k-1"}
    first, again = [await call("POST", f"{url}/api/runs", body, headers=key) for _ in range(2)]
    assert (first[0], again[0]) == (201, 200)
    assert first[1]["run"] == again[1]["run"]
    assert again[2]["idempotency-replayed"] == "true"
    status, problem, _ = await call("POST", f"{url}/api/runs", {**body, "message": "2"}, headers=key)
    assert (status, problem["code"]) == (409, "idempotency_conflict")
    bad = await call("POST", f"{url}/api/runs", body, headers={"Idempotency-Key": "x" * 300})
    assert bad[1]["code"] == "idempotency_key_invalid"


async def test_waiting_ends_with_the_time(url: str) -> None:
    body = {"message": "1", "agents": ["hold"]}
    status, run, headers = await call("POST", f"{url}/api/runs", body, headers={"Prefer": "wait=0.05"})
    assert (status, run["status"]) == (201, "running")
    assert "preference-applied" not in headers


async def test_a_client_that_hangs_up_while_starting_leaves_a_whole_run(url: str) -> None:
    body = {"message": "1", "agents": ["counter"]}
    headers = {"Prefer": "wait=10"}
    for _ in range(5):
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(0.003),
                http("POST", f"{url}/api/runs", json_body=body, headers=headers) as response,
            ):
                await response.json()
    for _ in range(200):
        runs = (await call("GET", f"{url}/api/runs"))[1]["runs"]
        if all(r["status"] == "completed" for r in runs):
            break
        await asyncio.sleep(0.02)
    for run in runs:
        checker = Checker(run["run"])
        checker.feed(await read(f"{url}/api/runs/{run['run']}/events"))
        checker.assert_order()


async def test_cancel_of_a_run_and_of_one_channel(url: str) -> None:
    run = await start(url, "hold", "hold")
    status, answer, _ = await call("POST", f"{url}/api/runs/{run}/channels/hold/cancel", {"mode": "graceful"})
    assert (status, answer["channel"]) == (202, "hold")
    assert (await call("POST", f"{url}/api/runs/{run}/cancel"))[0] == 202
    checker = Checker(run)
    checker.feed(await read(f"{url}/api/runs/{run}/events"))
    checker.assert_order()
    statuses = checker.events[-1]["channels"]
    assert statuses["hold.2"] == "cancelled"


async def test_channels_are_added_retried_and_steered(url: str) -> None:
    run = await start(url, "hold")
    added = await call("POST", f"{url}/api/runs/{run}/channels", {"agent": "counter", "message": "2"})
    assert (added[0], added[1]["channel"]) == (201, "counter")
    retried = await call("POST", f"{url}/api/runs/{run}/channels/counter/retry")
    assert (retried[0], retried[1]) == (201, {"run": run, "channel": "counter~2"})
    steered = await call("POST", f"{url}/api/runs/{run}/channels/hold/messages", {"content": "faster"})
    assert steered[0] == 202
    assert steered[1]["message_id"]
    assert (await call("POST", f"{url}/api/runs/{run}/approvals/none", {"decision": "deny"}))[0] == 404
    await call("POST", f"{url}/api/runs/{run}/cancel", {"mode": "now"})
    await read(f"{url}/api/runs/{run}/events")
    late = await call("POST", f"{url}/api/runs/{run}/channels", {"agent": "counter", "message": "2"})
    assert late[0] == 409


async def test_titles_stars_and_metadata_change_and_are_found(url: str) -> None:
    run = (await finished_run(url))["run"]
    await finished_run(url)
    change = {"title": "Kept", "starred": True, "metadata": {"vote": "A"}}
    status, changed, _ = await call("PATCH", f"{url}/api/runs/{run}", change)
    assert (status, changed["title"], changed["starred"]) == (200, "Kept", True)
    assert changed == (await call("GET", f"{url}/api/runs/{run}"))[1]
    assert (await call("PATCH", f"{url}/api/runs/{run}", {"metadata": {"a": "x" * 70_000}}))[0] == 400
    for query in ("starred=1", "metadata.vote=A", "agent=counter&metadata.vote=A", "limit=1&starred=true"):
        runs = (await call("GET", f"{url}/api/runs?{query}"))[1]["runs"]
        assert [r["run"] for r in runs] == [run], query


async def test_runs_are_listed_newest_first_in_pages(url: str) -> None:
    made = [(await finished_run(url))["run"] for _ in range(3)]
    first = (await call("GET", f"{url}/api/runs?limit=2"))[1]
    assert [r["run"] for r in first["runs"]] == made[:0:-1]
    second = (await call("GET", f"{url}/api/runs?limit=2&after={first['next']}"))[1]
    assert [r["run"] for r in second["runs"]] == made[:1]
    assert "next" not in second
    assert (await call("GET", f"{url}/api/runs?after=nonsense"))[0] == 400


async def test_a_deleted_run_is_gone(url: str) -> None:
    run = await start(url, "hold")
    watching = asyncio.create_task(read(f"{url}/api/runs/{run}/events"))
    await asyncio.sleep(0)
    assert (await call("DELETE", f"{url}/api/runs/{run}"))[0] == 204
    await asyncio.wait([watching], timeout=5)
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", ""), ("GET", "/export")):
        status, problem, _ = await call(method, f"{url}/api/runs/{run}{path}")
        assert (status, problem["code"]) == (404, "run_not_found")
    await asyncio.gather(watching, return_exceptions=True)


async def test_an_answer_that_fails_in_its_middle_is_cut_and_never_looks_whole(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (await finished_run(service.url, message="600"))["run"]  # more than one page
    whole = service.store.read

    async def read(run: str, after: int, **bounds: Any) -> Page:
        if after:
            raise StoreError("store_failed", "The disk is gone.")
        return await whole(run, after, **bounds)

    monkeypatch.setattr(service.store, "read", read)
    export = f"{service.url}/api/runs/{run}/export"
    async with aiohttp.ClientSession() as session, session.get(export) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(response.read(), 5)


STREAMING = [
    ("POST", "/api/runs", {"agents": ["hold"], "message": "x", "on_disconnect": "cancel"}),
    ("GET", "/api/chat/stream?message=x&agents=hold&grace_s=0", None),
    ("POST", "/v1/chat/completions", {"model": "hold", "messages": [{"role": "user", "content": "x"}]}),
]


@pytest.mark.parametrize(("method", "path", "body"), STREAMING, ids=[path[:8] for _, path, _ in STREAMING])
async def test_a_client_that_hangs_up_while_its_run_is_started_has_left_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: Any
) -> None:
    kept, go = asyncio.Event(), asyncio.Event()
    made: asyncio.Future[RunRow] = asyncio.get_running_loop().create_future()
    create = service.store.create

    async def slowly(row: RunRow, *rest: Any) -> RunRow:
        kept.set()
        await go.wait()
        made.set_result(await create(row, *rest))
        return made.result()

    monkeypatch.setattr(service.store, "create", slowly)
    sse = {"Accept": "text/event-stream"}
    asking = asyncio.create_task(call(method, service.url + path, body, headers=sse))
    await kept.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    server = service._runner.server if service._runner else None
    await until(lambda: server is not None and not server.connections)
    go.set()
    assert await settled(service.url, (await made).run) == "cancelled"


async def test_an_exported_run_comes_back_as_it_was(url: str) -> None:
    run = (await finished_run(url, "counter", "nasty", message="5"))["run"]
    async with http("GET", f"{url}/api/runs/{run}/export") as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        assert f'filename="{run}.ndjson"' in response.headers["content-disposition"]
        file = await response.body()
    headers = {"Content-Type": "application/x-ndjson"}
    async with http("POST", f"{url}/api/runs/import", body=file, headers=headers) as response:
        assert response.status == 201
        copy = await response.json()
    original = (await call("GET", f"{url}/api/runs/{run}"))[1]
    assert [c["text"] for c in copy["channels"]] == [c["text"] for c in original["channels"]]
    assert copy["run"] != run
    async with http("POST", f"{url}/api/runs/import", body=b"nonsense\n", headers=headers) as response:
        assert 400 <= response.status < 500


BAD: list[tuple[str, Any, int, str]] = [
    ("unknown agent", {"message": "x", "agents": ["counterx"]}, 404, "agent_unknown"),
    ("empty message", {"message": "", "agents": ["counter"]}, 400, "message_empty"),
    ("blank message", {"message": " \n", "agents": ["counter"]}, 400, "message_empty"),
    ("blank last message", {"messages": [{"role": "user", "content": " "}]}, 400, "message_empty"),
    ("no parts", {"messages": [{"role": "user", "content": []}]}, 400, "message_empty"),
    ("untyped part", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400, "request_invalid"),
    ("unknown limit", {"message": "x", "budget": {"step": 1}}, 400, "request_invalid"),
    ("impossible limit", {"message": "x", "budget": {"steps": -1}}, 400, "request_invalid"),
    ("much metadata", {"message": "x", "metadata": {"a": "x" * 70_000}}, 400, "metadata_too_large"),
    ("no message", {"agents": ["counter"]}, 400, "request_invalid"),
    ("unknown field", {"messagex": "x"}, 400, "request_invalid"),
    ("unknown field inside", {"channels": [{"agnet": "counter", "message": "x"}]}, 400, "request_invalid"),
    ("wrong type", {"message": 5}, 400, "request_invalid"),
    ("not an object", [1], 400, "request_invalid"),
    ("not JSON", b'{"message": }', 400, "json_invalid"),
    ("infinite", b'{"message": "x", "metadata": {"a": 1e999}}', 400, "json_invalid"),
    ("NaN", b'{"message": "x", "timeout_s": NaN}', 400, "json_invalid"),
    ("deep", b"[" * 100_000, 400, "json_invalid"),
    ("not UTF-8", b'{"message": "\xff"}', 400, "json_invalid"),
    ("nothing", b"", 400, "body_missing"),
    ("too large", b'{"message": "' + b"x" * 9_000_000 + b'"}', 413, "body_too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
async def test_a_bad_start_says_what_to_do_and_starts_nothing(
    url: str, body: Any, status: int, code: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    async with http("POST", f"{url}/api/runs", body=raw, headers=headers) as response:
        assert response.headers["content-type"] == "application/problem+json"
        problem = await response.json()
    assert (response.status, problem["status"], problem["code"]) == (status, status, code), problem
    assert problem["detail"]
    assert problem["fault"] == "client"
    assert (await call("GET", f"{url}/api/runs"))[1]["runs"] == []


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"NO SUCH THING\r\n\r\n", 400, "http_invalid"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400, "http_invalid"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "http_invalid"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "http_invalid"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: more\r\n\r\n", 417, "expectation_failed"),
    ],
)
async def test_what_is_not_http_is_refused_with_a_problem_document_too(
    url: str, sent: bytes, status: int, code: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().partition("content-length: ")[2].split()[0])
    problem = json.loads(await reader.readexactly(length))
    writer.close()
    assert f" {status} " in head.partition("\r\n")[0]
    assert "application/problem+json" in head
    assert (problem["status"], problem["code"], problem["fault"]) == (status, code, "client")


@pytest.mark.parametrize("path", ["/api/runs", "/api/runs/import"])
async def test_a_body_that_stops_on_its_way_is_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 50\r\n\r\n{" % path.encode()
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    assert " 408 " in head.partition("\r\n")[0]


async def test_a_large_body_may_ask_before_it_is_sent(url: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    body = b'{"message": "1", "agents": ["counter"]}'
    writer.write(
        b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    writer.close()


async def test_options_names_the_methods(url: str) -> None:
    status, _, headers = await call("OPTIONS", f"{url}/api/runs")
    assert (status, headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")


async def test_a_run_in_a_list_has_its_cursor_and_channels_and_its_present_state(url: str) -> None:
    run = await start(url, "hold")
    await finished_run(url)
    listed = (await call("GET", f"{url}/api/runs?status=running,waiting"))[1]["runs"]
    assert [r["run"] for r in listed] == [run]
    assert listed[0]["cursor"].startswith(f"{run}.1.")
    assert [(c["id"], c["status"]) for c in listed[0]["channels"]] == [("hold", "running")]
    done = (await call("GET", f"{url}/api/runs?status=completed"))[1]["runs"]
    snapshot = (await call("GET", f"{url}/api/runs/{done[0]['run']}"))[1]
    assert done[0]["cursor"] == snapshot["cursor"]
    assert (await call("GET", f"{url}/api/runs?status=queued"))[1]["runs"] == []
    assert (await call("GET", f"{url}/api/runs?status=over"))[1]["code"] == "query_invalid"


async def test_a_misspelt_field_is_named_with_its_path_and_the_right_name(url: str) -> None:
    body = {"channels": [{"agnet": "counter", "message": "x"}]}
    problem = (await call("POST", f"{url}/api/runs", body))[1]
    wrong = {e["field"]: e for e in problem["errors"]}
    assert wrong["channels.0.agnet"]["did_you_mean"] == "agent"
    syntax = b'{"message": "x",\n oops}'
    async with http(
        "POST", f"{url}/api/runs", body=syntax, headers={"Content-Type": "application/json"}
    ) as r:
        assert "line 2" in (await r.json())["detail"]


@pytest.mark.parametrize("path", ["/api/runs", "/api/runs/import"])
async def test_a_body_that_is_not_encoded_as_it_says_is_refused(url: str, path: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with http("POST", url + path, body=b"{}", headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (400, "body_broken")


async def lines_of(*pieces: bytes, longest: int = 1000) -> list[bytes]:
    """What `read_lines` makes of a body that comes in these pieces."""
    stream = StreamReader(mock.Mock(), 1 << 16)
    request = make_mocked_request("POST", "/", payload=stream)
    reading = asyncio.create_task(_all(bodies.read_lines(request, longest=longest)))
    for piece in pieces:
        stream.feed_data(piece)
        await asyncio.sleep(0)
    stream.feed_eof()
    return await reading


async def _all(lines: AsyncIterator[bytes]) -> list[bytes]:
    return [line async for line in lines]


async def test_a_bodys_lines_are_the_same_however_it_is_cut() -> None:
    body = b"one\n\n  \ntwo two two\n3\nthe last"
    whole = [b"one", b"two two two", b"3", b"the last"]
    for size in range(1, len(body) + 1):
        pieces = [body[i : i + size] for i in range(0, len(body), size)]
        assert await lines_of(*pieces) == whole
        assert await lines_of(*pieces, b"\n") == whole
    with pytest.raises(BadRequest, match="longer than any event"):
        await lines_of(b"ab\ncd", b"ef", b"gh", longest=5)


async def test_a_form_is_not_json(url: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with http("POST", f"{url}/api/runs", body=b"message=x", headers=headers) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (415, "body_type")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/runs/nope", 404, "run_not_found"),
        ("POST", "/api/runs/nope/cancel", 404, "run_not_found"),
        ("POST", "/api/runs/nope/channels/x/cancel", 404, "run_not_found"),
        ("GET", "/api/nope", 404, "route_not_found"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("PUT", "/api/runs", 405, "method_not_allowed"),
        ("GET", "/api/runs?limit=0", 400, "query_invalid"),
        ("GET", "/api/runs?statusx=x", 400, "query_unknown"),
    ],
)
async def test_every_refusal_is_a_problem_document(
    url: str, method: str, path: str, status: int, code: str
) -> None:
    answer = await call(method, f"{url}{path}")
    assert (answer[0], answer[1]["code"]) == (status, code)
    assert answer[2]["content-type"] == "application/problem+json"


async def test_a_defect_is_logged_and_answered_without_details(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(service.engine, "list_runs", broken)
    status, problem, _ = await call("GET", f"{service.url}/api/runs")
    assert (status, problem["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(problem)


async def test_health_and_readiness(service: Service) -> None:
    assert (await call("GET", f"{service.url}/healthz"))[1]["status"] == "ok"
    assert (await call("HEAD", f"{service.url}/healthz"))[0] == 200
    assert (await call("GET", f"{service.url}/readyz"))[0] == 200
    await service.engine.drain(0)
    status, answer, _ = await call("GET", f"{service.url}/readyz")
    assert (status, answer["status"]) == (503, "unavailable")
    assert (await call("POST", f"{service.url}/api/runs", {"message": "1", "agents": ["counter"]}))[0] == 503


async def test_metrics_say_how_much_there_is_to_do(url: str) -> None:
    await start(url, "hold")
    async with http("GET", f"{url}/metrics") as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = (await response.body()).decode().splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert (told["mux_runs_running"], told["mux_runs_queued"], told["mux_accepting"]) == ("1.0", "0.0", "1.0")


async def test_agents_and_models_are_listed_and_changes_picked_up(service: Service, agents_dir: Path) -> None:
    listed = (await call("GET", f"{service.url}/api/agents"))[1]
    assert {"counter", "assistant"} <= {a["name"] for a in listed["agents"]}
    (agents_dir / "broken.md").write_text("---\nname: [\n---\n")
    (agents_dir / "new.md").write_text("---\nname: newcomer\ndescription: Fresh.\n---\nBe new.\n")
    service._roster_checked = 0.0
    listed = (await call("GET", f"{service.url}/api/agents"))[1]
    assert "newcomer" in {a["name"] for a in listed["agents"]}
    assert any(p["path"].endswith("broken.md") for p in listed["problems"])
    assert "rehearsal" in {m["id"] for m in (await call("GET", f"{service.url}/api/models"))[1]["models"]}


async def test_a_run_survives_a_restart_of_the_server(
    agents_dir: Path, tmp_path: Path, no_leaks: None
) -> None:
    store = f"sqlite:{tmp_path / 'mux.db'}"
    async with serving(agents=[agents_dir], store=store) as service:
        run = (await finished_run(service.url))["run"]
        before = await read(f"{service.url}/api/runs/{run}/events")
    async with serving(agents=[agents_dir], store=store) as service:
        after = await read(f"{service.url}/api/runs/{run}/events")
        async with http(
            "GET", f"{service.url}/api/runs/{run}/events", headers={"Last-Event-ID": str(before[-2].id)}
        ) as response:
            assert response.status == 204
    assert [b.data for b in before if "seq" in b.data] == [b.data for b in after if "seq" in b.data]

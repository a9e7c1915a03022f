"""The client against a server that misbehaves on purpose: cuts, silence, refusals, gaps, repeats."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mux.client import MuxClient
from mux.client import follow as follow_module
from mux.errors import Conflict, MuxError, Unavailable
from mux.events import Body, ChannelInfo, ChannelStarted, Cursor, Done, Event, RunFinished, RunStarted, Token

RUN = "r1"
Behaviour = Callable[[web.StreamResponse, list[Event], int], Any]


def history(tokens: int = 30) -> list[Event]:
    bodies: list[tuple[str | None, Body]] = [
        (None, RunStarted(thread="t", channels=[ChannelInfo(id="a", agent="x")])),
        ("a", ChannelStarted(agent="x", attempt=1)),
        *[("a", Token(content=f"{i} ")) for i in range(tokens)],
        ("a", Done(status="completed", duration_ms=1, attempt=1)),
        (None, RunFinished(status="completed", channels={"a": "completed"}, duration_ms=1)),
    ]
    cseq: dict[str | None, int] = {}
    out = []
    for seq, (channel, body) in enumerate(bodies, 1):
        cseq[channel] = cseq.get(channel, 0) + 1
        out.append(Event(RUN, seq, channel, cseq[channel], seq, body))
    return out


def frame(event: Event) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (str(Cursor(RUN, 1, event.seq)).encode(), event.to_json())


class Server:
    """Serves one recorded run; ``behave`` decides how each connection goes."""

    def __init__(self, events: list[Event], behave: Behaviour) -> None:
        self.events = events
        self.behave = behave
        self.connections = 0
        self.positions: list[str | None] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        position = request.headers.get("Last-Event-ID") or request.query.get("after")
        self.positions.append(position)
        after = int(position.rsplit(".", 1)[-1]) if position else 0
        if after >= len(self.events):
            return web.Response(status=204)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        answer = await self.behave(response, self.events[after:], self.connections)
        if isinstance(answer, web.Response):
            return answer
        if not response.prepared:
            await response.prepare(request)
        await response.write(b'retry: 1000\ndata: {"type": "stream_open"}\n\n')
        for chunk in answer:
            if isinstance(chunk, float):  # nothing comes for so long
                await asyncio.sleep(chunk)
                continue
            if chunk is None:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(chunk)
        return response


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Server], Any]]:
    servers: list[TestServer] = []

    async def start(server: Server) -> str:
        app = web.Application()
        app.router.add_get(f"/api/runs/{RUN}/events", server.handle)
        test_server = TestServer(app)
        await test_server.start_server()
        servers.append(test_server)
        return str(test_server.make_url("")).rstrip("/")

    yield start
    for test_server in servers:
        await test_server.close()


@pytest.fixture(autouse=True)
def quick_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(follow_module, "LAST_DELAY_S", 0.005)


async def read(url: str, **options: Any) -> list[Event]:
    async with MuxClient(url, reconnect_s=options.pop("reconnect_s", 5.0)) as client:
        return [e async for e in client.run(RUN).events(**options)]


@pytest.mark.parametrize("seed", range(20))
async def test_random_cuts_lose_and_double_nothing(no_leaks: None, serve: Any, seed: int) -> None:
    chance = random.Random(seed)

    async def cut(_: web.StreamResponse, events: list[Event], __: int) -> list[bytes | None]:
        data = b"".join(frame(e) for e in events)
        if chance.random() < 0.2:
            return [data]
        return [data[: chance.randrange(len(data))], None]

    events = history()
    server = Server(events, cut)
    assert await read(await serve(server)) == events


async def test_a_window_counts_only_when_it_arrived_whole(serve: Any) -> None:
    events = history(6)

    async def windows(_: web.StreamResponse, rest: list[Event], connection: int) -> list[bytes | None]:
        halves = [rest[: len(rest) // 2 or 1], rest[len(rest) // 2 or 1 :]]
        data = b""
        for half in [h for h in halves if h]:
            batch = {"type": "batch", "events": [json.loads(e.to_json()) for e in half]}
            data += b"id: %b\ndata: %b\n\n" % (
                str(Cursor(RUN, 1, half[-1].seq)).encode(),
                json.dumps(batch).encode(),
            )
        return [data[:-40], None] if connection < 3 else [data]

    assert await read(await serve(Server(events, windows)), compact=True) == events


async def test_a_rotated_stream_is_resumed_at_once_and_204_is_the_end(serve: Any) -> None:
    events = history(3)

    async def rotate(_: web.StreamResponse, rest: list[Event], __: int) -> list[bytes | None]:
        return [frame(rest[0]), b'data: {"type": "stream_rotate", "reason": "age"}\n\n']

    server = Server(events, rotate)
    assert await read(await serve(server)) == events
    assert server.positions[:3] == [None, "r1.1.1", "r1.1.2"]


async def test_it_begins_after_a_given_cursor_or_seq(serve: Any) -> None:
    async def all_(_: web.StreamResponse, rest: list[Event], __: int) -> list[bytes | None]:
        return [frame(e) for e in rest]

    server = Server(history(5), all_)
    url = await serve(server)
    assert [e.seq for e in await read(url, after=4)] == [5, 6, 7, 8, 9]
    assert [e.seq for e in await read(url, after="r1.1.7")] == [8, 9]
    assert await read(url, after="r1.1.9") == []


async def test_a_problem_is_raised_with_its_code(serve: Any) -> None:
    async def refuse(_: web.StreamResponse, __: list[Event], ___: int) -> web.Response:
        return web.json_response({"code": "cursor_epoch", "detail": "Begin anew."}, status=409)

    with pytest.raises(Conflict) as error:
        await read(await serve(Server(history(), refuse)))
    assert error.value.code == "cursor_epoch"


async def test_a_server_that_skips_or_repeats_is_found_out(serve: Any) -> None:
    for order in ([0, 1, 3], [0, 1, 1]):

        async def bad(
            _: web.StreamResponse, rest: list[Event], __: int, order: list[int] = order
        ) -> list[bytes | None]:
            return [frame(rest[i]) for i in order]

        with pytest.raises(MuxError) as error:
            await read(await serve(Server(history(), bad)))
        assert error.value.code == "stream_broken"


async def test_trimmed_history_is_an_error_unless_it_may_be_skipped(serve: Any) -> None:
    async def trimmed(_: web.StreamResponse, rest: list[Event], __: int) -> list[bytes | None]:
        gap = b'data: {"type": "stream_gap", "requested": 0, "first": 4}\n\n'
        return [gap, *[frame(e) for e in rest[3:]]]

    url = await serve(Server(history(3), trimmed))
    with pytest.raises(MuxError) as error:
        await read(url)
    assert error.value.code == "history_trimmed"
    assert [e.seq for e in await read(url, on_gap="skip")] == [4, 5, 6, 7]


async def test_a_server_that_stays_away_is_given_up_with_the_cursor_to_go_on_from(serve: Any) -> None:
    async def once(_: web.StreamResponse, rest: list[Event], connection: int) -> Any:
        return [frame(rest[0]), None] if connection == 1 else web.json_response({}, status=503)

    with pytest.raises(Unavailable, match=r"continue later from r1\.1\.1") as error:
        await read(await serve(Server(history(), once)), reconnect_s=0.2)
    assert error.value.code == "server_unreachable"


async def test_a_run_in_which_nothing_happens_for_long_is_resumed_after_a_cut(serve: Any) -> None:
    events = history(3)
    heartbeat = b'id: r1.1.2\ndata: {"type": "heartbeat"}\n\n'

    async def quiet(_: web.StreamResponse, rest: list[Event], connection: int) -> Any:
        if connection > 1:
            return [frame(e) for e in rest]
        return [frame(rest[0]), frame(rest[1]), 0.2, heartbeat, 0.2, heartbeat, None]

    server = Server(events, quiet)
    assert await read(await serve(server), reconnect_s=0.1) == events
    assert server.connections == 2


@pytest.mark.parametrize("body", ["[]", '"down"', "null", "<html>"])
async def test_a_refusal_that_is_no_problem_document_is_an_error_all_the_same(serve: Any, body: str) -> None:
    async def refuse(_: web.StreamResponse, __: list[Event], ___: int) -> Any:
        return web.Response(status=502, text=body)

    with pytest.raises(MuxError) as error:
        await read(await serve(Server(history(), refuse)))
    assert (error.value.code, error.value.status) == ("http_502", 502)


async def test_a_silent_connection_is_left_and_resumed(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "_SILENCE_S", 0.2)
    hang = asyncio.Event()
    events = history(3)

    async def silent(_: web.StreamResponse, rest: list[Event], connection: int) -> Any:
        if connection == 1:
            await hang.wait()
        return [frame(e) for e in rest]

    server = Server(events, silent)
    assert await read(await serve(server)) == events
    assert server.connections == 2
    hang.set()


async def test_nobody_at_the_address_is_a_clear_error() -> None:
    async with MuxClient("http://127.0.0.1:9", reconnect_s=0.0) as client:
        with pytest.raises(Unavailable, match="mux serve"):
            await client.start("hello")

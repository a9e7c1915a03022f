"""Many viewers, slow ones, dead ones and idle ones, on the real server over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import call, finished_run, read, start
from tests.support.checker import Checker, http, parse_sse, texts
from tests.support.followers import Follower, Kind
from tests.support.servers import Server, Zygote
from tests.support.service_roster import write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
    pytest.mark.timeout(60),
]

WRITE_TIMEOUT_S = 1.0
SO_ATTACH_FILTER = 26  # Linux; Python has no name for it
SETTINGS = f"[http]\nwrite_timeout_s = {WRITE_TIMEOUT_S}\nheartbeat_s = 0.3\n"


@pytest.fixture
async def server(tmp_path: Path, servers: Zygote) -> AsyncIterator[Server]:
    write_home(tmp_path, more=SETTINGS)
    made = Server(servers, tmp_path, "--store", f"sqlite:{tmp_path / 'mux.db'}")
    async with made.running():
        yield made


async def count(server: Server) -> int:
    """Open streams."""
    return int((await call("GET", f"{server.url}/api/viewers"))[1]["count"])


async def until_count(server: Server, wanted: int) -> float:
    """Wait until so many are open; how long that took."""
    began = time.monotonic()
    while await count(server) != wanted:  # noqa: ASYNC110 - the server is another process
        await asyncio.sleep(0.02)
    return time.monotonic() - began


# --- resume in windows, snapshots ---------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("live", [True, False], ids=["live", "replayed"])
async def test_text_is_the_same_when_the_connection_is_cut_after_every_single_window(
    server: Server, accept: str, live: bool
) -> None:
    run = await start(server.url, "writer", "analyst", message="80 0.01 and what is 17 * 23?")
    events = f"{server.url}/api/runs/{run}/events"
    whole = Checker(run)
    if not live:
        whole.feed(await read(events))
    checker, windows = Checker(run), 0
    while not checker.ended:
        headers = {"Accept": accept} | ({"Last-Event-ID": checker.cursor} if checker.cursor else {})
        async with http("GET", f"{events}?compact=1&compact_ms=40", headers=headers) as response:
            if response.status == 204:
                break
            async for block in response.blocks():
                checker.feed([block])
                if block.data["type"] == "batch":
                    windows += 1
                    break
    if live:
        whole.feed(await read(events))
    assert windows > 10
    assert texts(checker.events) == texts(whole.events)
    assert checker.events[-1] == whole.events[-1]
    assert len(checker.events) < len(whole.events)


async def test_a_snapshot_and_the_tail_from_its_cursor_leave_no_window(server: Server) -> None:
    run = await start(server.url, "writer", "writer", message="150 0.005")
    tails: list[tuple[dict[str, Any], asyncio.Task[Any]]] = []
    while True:
        snapshot = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
        url = f"{server.url}/api/runs/{run}/events?after={snapshot['cursor']}&type=token"
        if snapshot["status"] not in ("queued", "running"):
            break
        tails.append((snapshot, asyncio.create_task(read(url))))
        await asyncio.sleep(0.03)
    assert len(tails) > 5
    said = "".join(f"{n} " for n in range(150))
    for snapshot, tail in tails:
        text = {c["id"]: c["text"] for c in snapshot["channels"]}
        for block in await tail:
            if block.data["type"] == "token":
                text[block.data["channel"]] += block.data["content"]
        assert text == {"writer": said, "writer.2": said}
    async with http("GET", url) as response:
        assert response.status == 204  # at the end of a finished run nothing is left


# --- viewers that don't read --------------------------------------------------------------------------------


@asynccontextmanager
async def deaf(server: Server, run: str) -> AsyncIterator[socket.socket]:
    """A viewer that opens a stream and never reads, with a small window."""
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        request = f"GET /api/runs/{run}/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(sock, request.encode())
        yield sock
    finally:
        sock.close()


async def test_viewers_that_stop_reading_are_closed_and_disturb_nobody(server: Server) -> None:
    before = await latencies(server, deaf_viewers=0)
    loud = await latencies(server, deaf_viewers=5)
    quiet = max(before, await latencies(server, deaf_viewers=0))  # what the machine itself does to the tail
    print(f"p99 of the others: {quiet * 1000:.1f} ms alone, {loud * 1000:.1f} ms beside five deaf ones")
    assert loud < 2 * quiet + 0.05


async def latencies(server: Server, deaf_viewers: int) -> float:
    """The p99 from the event's time to its arrival at five viewers of one channel, while others don't read
    the other one."""
    channels = [{"agent": "loud", "message": "300"}, {"agent": "writer", "message": "300 0.01"}]
    status, started, _ = await call("POST", f"{server.url}/api/runs", {"channels": channels})
    assert status == 201
    run = started["run"]
    late: list[float] = []

    async def listen() -> None:
        async with http("GET", f"{server.url}/api/runs/{run}/events?type=token&channel=writer") as response:
            late.extend(
                [time.time() - b.data["ts"] / 1000 async for b in response.blocks() if "ts" in b.data]
            )

    async with contextlib.AsyncExitStack() as stack:
        listening = [asyncio.create_task(listen()) for _ in range(5)]
        for _ in range(deaf_viewers):
            await stack.enter_async_context(deaf(server, run))
        if deaf_viewers:
            await until_count(server, deaf_viewers + 5)
            closed = await until_count(server, 5)
            assert closed < WRITE_TIMEOUT_S + 3  # buffers fill first, then the deadline runs
        await asyncio.gather(*listening)
    late.sort()
    return late[len(late) * 99 // 100]


async def test_a_viewer_that_was_closed_for_not_reading_resumes_completely(server: Server) -> None:
    run = await start(server.url, "loud", message="200")
    checker = Checker(run)
    async with deaf(server, run) as sock:
        await until_count(server, 1)
        await until_count(server, 0)
        sock.setblocking(True)  # what the kernel had taken is still there
        data = b""
        with contextlib.suppress(ConnectionError):
            while part := await asyncio.to_thread(sock.recv, 1 << 16):
                data += part
    body = dechunked(data.partition(b"\r\n\r\n")[2])
    checker.feed(parse_sse(body)[0])
    assert checker.control  # how many whole chunks of events the kernel had taken is its affair
    follower = Follower(lambda: server.url, run, Kind("sse"), random.Random(1), cut=0)
    follower.checker = checker
    await follower.follow()
    checker.assert_gapless()
    checker.assert_order()
    assert texts(checker.events)["loud", "token"].endswith("199 ")


def dechunked(data: bytes) -> bytes:
    """The body as far as it arrived whole."""
    out = b""
    while True:
        size, end, rest = data.partition(b"\r\n")
        if not end or len(rest) < int(size, 16) + 2:
            return out
        out += rest[: int(size, 16)]
        data = rest[int(size, 16) + 2 :]


async def test_a_peer_that_vanished_without_a_word_is_noticed(server: Server) -> None:
    run = await start(server.url, "hold", message="x")
    async with deaf(server, run) as sock:
        await until_count(server, 1)
        # A filter that drops every packet that comes in: nothing is acknowledged and nothing refused, as if
        # the peer's machine had lost its power.
        drop_all = struct.pack("HBBI", 0x06, 0, 0, 0)
        program = (ctypes.c_char * len(drop_all)).from_buffer_copy(drop_all)
        sock.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
        )
        took = await until_count(server, 0)
        print(f"noticed after {took:.1f} s")
        assert took < 2 * WRITE_TIMEOUT_S + 5


# --- idle viewers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?channel=hold&compact=1"], ids=["plain", "filtered windows"])
async def test_a_thousand_idle_viewers_cost_less_than_16_kib_each(
    tmp_path: Path, servers: Zygote, query: str
) -> None:
    viewers = 1000
    write_home(tmp_path)
    server = Server(servers, tmp_path, "--store", "memory:")
    async with server.running():
        run = await start(server.url, "hold", message="x")
        path = f"/api/runs/{run}/events{query}"
        with many(server, path, 100):
            pass  # what the first ones need once
        await until_count(server, 0)
        before = server.rss()
        with many(server, path, viewers):
            assert await count(server) == viewers
            await asyncio.sleep(0.2)
            each = (server.rss() - before) / viewers
            threads, files = server.threads(), server.open_files()
        print(f"{each / 1024:.1f} KiB for each idle viewer, {threads} threads, {files} files")
        assert each < 16 * 1024
        assert threads < 40
        await until_count(server, 0)
        assert server.open_files() < 60


@contextlib.contextmanager
def many(server: Server, path: str, number: int) -> Iterator[None]:
    """So many open streams that have seen everything, as plain sockets: a thousand clients must be cheap."""
    host, port = server.url.removeprefix("http://").split(":")
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            sock.sendall(request)
            seen = b""
            while b"stream_live" not in seen:
                part = sock.recv(65536)
                assert part, seen
                seen += part
        yield


async def test_a_finished_run_is_read_by_many_at_once(server: Server) -> None:
    run = (await finished_run(server.url, "writer", message="300 0"))["run"]
    dice = random.Random(7)
    followers = [Follower(lambda: server.url, run, Kind("sse"), dice, cut=200) for _ in range(20)]
    checkers = await asyncio.gather(*(f.follow() for f in followers))
    for checker in checkers:
        checker.assert_gapless()
        checker.assert_order()
        assert checker.events == checkers[0].events

"""Fan-out of one 800 events/s stream to many viewers, CPU per delivery. Targets 9 to 11.

Peers: raw asyncio with a 25 ms flush, nchan (C, in nginx; Debian's libnginx-mod-nchan), sse-starlette.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from tests.bench.harness import Figure, Report
from tests.bench.rounds import Sample, Side, compare, ratio
from tests.bench.servers import (
    PEERS,
    Load,
    Server,
    events_request,
    mux_server,
    peer,
    post_run,
    request,
)

__all__ = ["nchan", "run"]

RATE = 800
MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
_CONFIG = """\
load_module {module};
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e; keepalive_requests 10000000;
  server {{
    listen 127.0.0.1:{port};
    location /live {{ nchan_subscriber eventsource; nchan_channel_id bench; nchan_subscriber_first_message newest; }}
    location /pub {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 100; }}
  }}
}}
"""  # noqa: E501 - nginx's own form


@contextlib.asynccontextmanager
async def nchan() -> AsyncIterator[Server]:
    """nginx with nchan, and a publisher at the rate in this process (its CPU is not nginx's)."""
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        Path(folder).chmod(0o755)
        config = Path(folder) / "nginx.conf"
        config.write_text(_CONFIG.format(module=MODULE, folder=folder, port=port))
        process = await asyncio.create_subprocess_exec(
            "nginx", "-c", str(config), "-p", folder, stderr=asyncio.subprocess.DEVNULL
        )
        await asyncio.sleep(0.5)
        publisher = asyncio.create_task(_publish(port))
        try:
            yield Server(process, "127.0.0.1", port)
        finally:
            publisher.cancel()
            await asyncio.gather(publisher, return_exceptions=True)
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _publish(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due, seq = time.monotonic(), 100_000
    try:
        while True:
            due += 1 / RATE
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            seq += 1
            event = {
                "run": "r0123456789abcde", "seq": seq, "channel": "firehose", "cseq": seq, "type": "token",
                "ts": int(time.time() * 1000), "content": f"@{time.monotonic_ns()} ",
            }  # fmt: skip
            body = json.dumps(event, separators=(",", ":"))
            head = f"POST /pub HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(f"{head}{body}".encode())
            await reader.read(65536)  # it takes no second request before its answer to the first
    finally:
        writer.close()


def delivery(
    server: Server, load: Load, seconds: float, notes: dict[str, dict[str, float]], name: str
) -> Side:
    """Deliveries of a while."""

    async def side() -> Sample:
        result = await load.window(seconds, server)
        viewers = max(result["open"], 1)
        notes[name] = {
            "delivered": result["events"] / (RATE * result["wall_s"] * viewers),
            "p99_ms": result["p99_ms"],
            "open": result["open"],
        }
        share = result["load_cpu_s"] / result["wall_s"]
        return Sample(result["server_cpu_s"] / max(result["events"], 1) * 1e6, 0.0, share, result["p99_ms"])

    return side


async def _level(
    report: Report, viewers: int, kinds: list[str], *, rounds: int, seconds: float
) -> tuple[dict[str, list[Sample]], dict[str, dict[str, float]]]:
    """One number of viewers, all kinds of server side by side; each only writes while it is measured."""
    samples: dict[str, list[Sample]] = {}
    notes: dict[str, dict[str, float]] = {}
    async with AsyncExitStack() as stack:
        sides: dict[str, Side] = {}
        for kind in kinds:
            sides[f"{kind}, {viewers} viewers"] = _side(stack, kind, viewers, seconds, notes)
        samples = await compare(report, f"fan-out to {viewers} viewers", sides, rounds=rounds)
    for name, note in notes.items():
        report.note(f"  {name}: delivered {note['delivered']:.1%}, p99 {note['p99_ms']:.0f} ms")
    return samples, notes


def _side(
    stack: AsyncExitStack, kind: str, viewers: int, seconds: float, notes: dict[str, dict[str, float]]
) -> Side:
    """A fresh load (and for mux a fresh run) each time, so that the other sides are idle meanwhile."""
    servers: list[Server] = []
    numbers = itertools.count()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mux-bench-"))
    makers: dict[str, Callable[[], AbstractAsyncContextManager[Server]]] = {
        "mux, sqlite log": lambda: mux_server("sqlite"),
        "raw asyncio, 25 ms flush": lambda: peer("raw", str(RATE), "25"),
        "nchan": nchan,
        "sse-starlette": lambda: peer("sse_starlette_live", str(RATE)),
    }

    async def side() -> Sample:
        if kind == "nchan":  # its publisher may not run beside the others
            async with (
                nchan() as server,
                Load.open(server, [request("GET", "/live", Accept="text/event-stream")] * viewers) as load,
            ):
                return await _measured(server, load)
        if not servers:
            servers.append(await stack.enter_async_context(makers[kind]()))
        server = servers[0]
        gate = None
        text = request("GET", "/live", Accept="text/event-stream")
        if kind.startswith("mux"):
            gate = Path(folder) / f"gate-{next(numbers)}"
            message = json.dumps({"events": RATE * 60, "rate": RATE, "gate": str(gate)})
            body = {"agents": ["firehose"], "message": message, "on_disconnect": {"grace_s": 0}}
            text = events_request((await post_run(server, body))["run"])
        async with Load.open(server, [text] * viewers) as load:
            return await _measured(server, load, gate)

    async def _measured(server: Server, load: Load, gate: Path | None = None) -> Sample:
        await load.connected()  # everybody has the opening before the first word
        if gate is not None:
            gate.touch()
        await asyncio.sleep(0.5)
        return await delivery(server, load, seconds, notes, f"{kind}, {viewers} viewers")()

    return side


async def _holds(kind: str, viewers: int) -> tuple[bool, str]:
    """Whether a fresh server serves so many viewers for a second, and how that went."""
    name, notes = f"{kind}, {viewers} viewers", dict[str, dict[str, float]]()
    async with AsyncExitStack() as stack:
        sample = await _side(stack, kind, viewers, 1.0, notes)()
    note = notes[name]
    held = note["open"] == viewers and note["delivered"] >= 0.98 and note["p99_ms"] < 100
    server = sample.cpu_us / 1e6 * note["delivered"] * RATE * note["open"]
    how = f"delivered {note['delivered']:.1%}, p99 {note['p99_ms']:.0f} ms"
    return held, f"{viewers}: {how}, server {server:.0%} of a core, load generator {sample.load:.0%}"


async def _sustained(report: Report, kind: str, begin: int, *, seconds: float) -> int:
    """The highest number of viewers that a server sustains: at least 98 % delivered, p99 below 100 ms.

    Doubled until it is too many twice, then halved between, to within an eighth or until the time is over.
    """
    deadline = time.monotonic() + seconds
    held, lost, viewers, last = 0, 0, begin, ""
    while not lost or lost - held > max(held / 8, 1):
        if held and lost and time.monotonic() > deadline:
            break
        good, how = await _holds(kind, viewers)
        if not good:  # once may be a neighbour's doing
            good, how = await _holds(kind, viewers)
        held, lost = (viewers, lost) if good else (held, viewers)
        last = how if good else last
        viewers = (held + lost) // 2 if lost else 2 * viewers
    report.add(
        Figure("fan-out, sustained", kind, value=held, unit="viewers", note=f"{last}; too many: {lost}")
    )
    return held


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with targets 9 to 11."""
    rounds, seconds = (3, 1.0) if quick else (5, 2.0)
    mux, raw = "mux, sqlite log", "raw asyncio, 25 ms flush"
    c_peer = ["nchan"] if MODULE.exists() and shutil.which("nginx") else []
    starlette = ["sse-starlette"] if PEERS.exists() else []
    ten, _ = await _level(report, 10, [mux, *starlette, raw], rounds=1 if quick else rounds, seconds=seconds)
    hundred, _ = await _level(report, 100, [mux, *c_peer, raw], rounds=rounds, seconds=seconds)
    thousand, notes = await _level(report, 1000, [mux, raw], rounds=rounds, seconds=seconds)
    if c_peer:
        measured = ratio(hundred, f"{mux}, 100 viewers", "nchan, 100 viewers")
        report.target(9, "fan-out to 100 viewers, CPU per delivery against nchan", measured, 0.75)
    else:
        report.note("  target 9: nchan is not installed (apt-get install libnginx-mod-nchan)")
    measured = ratio(thousand, f"{mux}, 1000 viewers", f"{raw}, 1000 viewers")
    report.target(10, "fan-out to 1,000 viewers, CPU per delivery against raw asyncio", measured, 1.2)
    if starlette:
        cost = ten["sse-starlette, 10 viewers"][0].cpu_us / thousand[f"{mux}, 1000 viewers"][0].cpu_us
        report.target(11, "viewers a CPU second against sse-starlette", cost, 30.0, at_least=True)
    if c_peer:
        cost = hundred["nchan, 100 viewers"][0].cpu_us / thousand[f"{mux}, 1000 viewers"][0].cpu_us
        report.target(11, "viewers a CPU second against nchan", cost, 8.0, at_least=True)
    note = notes[f"{mux}, 1000 viewers"]
    report.add(Figure("fan-out", "mux, 1000 viewers, p99", value=note["p99_ms"], unit="ms"))
    if quick:
        return  # the search takes 45 s
    ours = await _sustained(report, mux, 2000, seconds=20)
    for kind, begin, bound in [*((k, 32, 30.0) for k in starlette), *((k, 128, 8.0) for k in c_peer)]:
        theirs = await _sustained(report, kind, begin, seconds=6)
        measured = ours / max(theirs, 1)
        report.target(11, f"viewers sustained against {kind}", measured, bound, at_least=True)

"""2,000 events/s in micro-batches through a log in Redis to one viewer. Target 19.

Both sides have a Redis of their own with ``appendonly yes`` and ``appendfsync always``, one viewer (the load
generator) and the same batches: twenty events every 10 ms, each stamped when the agent says it. The floor is
a bare Lua append loop with one XREAD reader, an entry of the stream for each event; beside it the same with
one entry for a batch, as Mux keeps them.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from tests.bench.harness import Report
from tests.bench.rounds import Sample, Side, compare, ratio
from tests.bench.servers import Load, Server, events_request, mux_server, peer, post_run, request
from tests.support.redis_server import RedisServer, command_path, redis_server

__all__ = ["run", "servers"]

RATE, BURST = 2000, 20
SYNCED = {"appendonly": "yes", "appendfsync": "always"}


def servers(report: Report, stack: ExitStack, count: int, **options: str) -> list[RedisServer]:
    """Redis servers of our own; none, and a line that says why, where it is not installed."""
    if command_path() is None:
        report.note("  left out: no redis-server or valkey-server here (tests/system-deps installs it)")
        return []
    made = []
    for _ in range(count):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mux-bench-redis-")))
        made.append(stack.enter_context(redis_server(folder, **options)))
    return made


def _window(server: Server, load: Load, seconds: float) -> Side:
    async def side() -> Sample:
        result = await load.window(seconds, server)
        if result["events"] < 0.9 * RATE * seconds:
            raise RuntimeError(f"{result['events'] / seconds:.0f} events/s came, not {RATE}")
        share = result["load_cpu_s"] / result["wall_s"]
        return Sample(
            result["server_cpu_s"] / result["events"] * 1e6, result["p50_ms"] * 1e3, share, result["p99_ms"]
        )

    return side


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with target 19."""
    rounds, seconds = (3, 1.0) if quick else (5, 1.5)
    with ExitStack() as processes:
        found = await asyncio.to_thread(servers, report, processes, 3, **SYNCED)
        if not found:
            return
        async with AsyncExitStack() as stack:
            mux = await stack.enter_async_context(mux_server(found[0].url))
            bare = {
                f"bare Lua appends, one entry per {kind}": await stack.enter_async_context(
                    peer("redis_bare", str(redis.port), str(RATE), str(BURST), kind)
                )
                for kind, redis in zip(("batch", "event"), found[1:], strict=True)
            }
            total = int(RATE * (4 * seconds * (rounds + 1) + 20))
            task = f'{{"events": {total}, "rate": {RATE}, "burst": {BURST}}}'
            started = await post_run(mux, {"agents": ["firehose"], "message": task})
            ours = await stack.enter_async_context(Load.open(mux, [events_request(started["run"])]))
            await ours.connected()
            sides = {"mux, Redis log": _window(mux, ours, seconds)}
            for name, server in bare.items():
                floor = await stack.enter_async_context(Load.open(server, [request("GET", "/live")]))
                await floor.connected()
                sides[name] = _window(server, floor, seconds)
            samples = await compare(
                report, f"Redis log at {RATE} events/s", sides, rounds=rounds, unit="ms, p99"
            )
    batch, event = bare
    strict = ratio(samples, "mux, Redis log", batch, "value")
    report.note(f"  against one entry a batch: p99 {strict:.2f} x")
    worst = ratio(samples, "mux, Redis log", event, "value")
    report.target(19, f"append to viewer at {RATE} events/s, p99", worst, 1.5)

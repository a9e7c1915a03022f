"""Latency of a stream at 800 events/s with one viewer, sqlite log. Target 8."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tests.bench.harness import Report
from tests.bench.rounds import Sample, Side, compare, ratio
from tests.bench.servers import Load, Server, events_request, mux_server, peer, post_run, request

__all__ = ["run"]

RATE = 800


def window(server: Server, load: Load, seconds: float) -> Side:
    """Count for a while."""

    async def side() -> Sample:
        result = await load.window(seconds, server)
        events = max(result["events"], 1)
        share = result["load_cpu_s"] / result["wall_s"]
        return Sample(result["server_cpu_s"] / events * 1e6, 0.0, share, result["p50_ms"])

    return side


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with target 8."""
    rounds, seconds = (3, 1.0) if quick else (7, 2.0)
    async with AsyncExitStack() as stack:
        mux = await stack.enter_async_context(mux_server("sqlite"))
        raw = await stack.enter_async_context(peer("raw", str(RATE), "0"))
        total = int(RATE * (4 * seconds * (rounds + 1) + 20))
        started = await post_run(
            mux, {"agents": ["firehose"], "message": f'{{"events": {total}, "rate": {RATE}}}'}
        )
        ours = await stack.enter_async_context(Load.open(mux, [events_request(started["run"])]))
        theirs = await stack.enter_async_context(Load.open(raw, [request("GET", "/live")]))
        await ours.connected()
        await theirs.connected()
        sides = {"mux, sqlite log": window(mux, ours, seconds), "raw asyncio": window(raw, theirs, seconds)}
        samples = await compare(report, "latency at 800 events/s", sides, rounds=rounds, unit="ms, p50")
    report.target(8, "p50 latency", ratio(samples, "mux, sqlite log", "raw asyncio", "value"), 2.0)

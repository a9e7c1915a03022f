"""Memory of an idle viewer (target 12) and of an idle run: anonymous resident memory of the server."""

from __future__ import annotations

import asyncio
import json

from tests.bench.harness import Figure, Report
from tests.bench.servers import Load, events_request, mux_server, post_run

__all__ = ["run"]

NEVER = json.dumps({"events": 1, "gate": "/nonexistent/gate"})


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with target 12."""
    viewers, runs = (300, 50) if quick else (1000, 200)
    async with mux_server("sqlite") as server:
        first = (await post_run(server, {"agents": ["firehose"], "message": NEVER}))["run"]
        async with Load.open(server, [events_request(first)] * viewers) as warm:  # buffers, allocator
            await warm.connected()
        await asyncio.sleep(1)
        before = server.rss_kib()
        sizes = []
        async with Load.open(server, [events_request(first)] * viewers) as load:
            await load.connected()
            async with Load.open(server, [events_request(first)] * viewers) as more:
                await more.connected()
                await asyncio.sleep(0.5)
                sizes.append((server.rss_kib() - before) / viewers / 2)
        for _ in range(runs // 10):  # warm-up
            await post_run(server, {"agents": ["firehose"], "message": NEVER})
        before = server.rss_kib()
        for _ in range(runs):
            await post_run(server, {"agents": ["firehose"], "message": NEVER})
        per_run = (server.rss_kib() - before) / runs
    report.add(
        Figure("memory", f"idle viewer, of {2 * viewers}", value=sizes[0], unit="KiB"),
        Figure("memory", f"idle run with one channel, of {runs}", value=per_run, unit="KiB"),
    )
    report.target(12, "KiB per idle viewer", sizes[0], 16.0)

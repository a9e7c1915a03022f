"""Cost stays flat: CPU per event over channels, runs, a run's history, and runs in the store."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from mux.log import open_store
from mux.log.base import RunRow
from tests.bench.harness import Figure, Report
from tests.bench.servers import Load, Server, events_request, get_json, mux_server, post_run, stream_request

__all__ = ["run"]


async def _cost(server: Server, requests: list[str], events: int) -> float:
    before = server.cpu_s()
    async with Load.open(server, requests) as load:
        await load.connected()
        result = await load.finished(240)
    assert result["events"] == events, result
    return (server.cpu_s() - before) / events * 1e6


async def _curve(
    report: Report, server: Server, name: str, points: dict[int, tuple[list[str], int]], rounds: int
) -> None:
    """All points in turn, several times; figures relative to the first."""
    taken: dict[int, list[float]] = {point: [] for point in points}
    for turn in range(rounds + 1):
        for point, (requests, events) in points.items():
            cost = await _cost(server, requests, events)
            if turn:
                taken[point].append(cost)
    first = taken[next(iter(points))]
    for point, costs in taken.items():
        against = statistics.median(a / b for a, b in zip(costs, first, strict=True))
        report.add(
            Figure(f"curve: {name}", f"{point:,} {name}", statistics.median(costs), ratio=against,
                   against="the first of the curve")
        )  # fmt: skip


async def _histories(report: Report, *, quick: bool) -> None:
    """A long run goes on: what an event costs when there are that many before it."""
    sizes = (10, 50_000) if quick else (10, 100_000, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        async with mux_server("sqlite") as server:
            first = None
            for size in sizes:
                gate = Path(folder) / f"gate{size}"
                after = 5_000
                channels = [
                    {"agent": "firehose", "message": json.dumps({"events": size})},
                    {"agent": "firehose", "message": json.dumps({"events": after, "gate": str(gate)})},
                ]
                run = (await post_run(server, {"channels": channels}))["run"]
                while True:
                    head = (await get_json(server, f"/api/runs/{run}"))["cursor"]
                    if int(head.rpartition(".")[2]) >= size + 4:
                        break
                    await asyncio.sleep(0.5)
                async with Load.open(server, [events_request(run, f"?after={head}")]) as load:
                    await load.connected()
                    before = server.cpu_s()
                    gate.touch()
                    await load.finished(60)
                cost = (server.cpu_s() - before) / after * 1e6
                first = first or cost
                report.add(
                    Figure("curve: history", f"{size:,} events before", cost, ratio=cost / first,
                           against="the first of the curve")
                )  # fmt: skip


async def _full_store(report: Report, *, quick: bool) -> None:
    """The same run in an empty store, and in one with many."""
    runs = 2_000 if quick else 100_000
    events = 5_000
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        url = f"sqlite:{folder}/full.sqlite"
        store = await asyncio.to_thread(open_store, url)
        await store.open()
        for base in range(0, runs, 500):
            await asyncio.gather(
                *(
                    store.create(
                        RunRow(f"r{n:015d}", f"t{n}", "local", "completed", n, n, {}, title=f"run {n}",
                               agents=("assistant",), message="a question", finished=n)
                    )
                    for n in range(base, min(base + 500, runs))
                )
            )  # fmt: skip
        await store.close()
        async with mux_server("sqlite") as empty, mux_server(url) as full:
            costs: dict[str, list[float]] = {"empty": [], "full": []}
            lists: dict[str, list[float]] = {"empty": [], "full": []}
            for _ in range(4 if quick else 6):
                for name, server in (("empty", empty), ("full", full)):
                    costs[name].append(
                        await _cost(server, [stream_request(["firehose"], {"events": events})], events)
                    )
                    begun = time.monotonic()
                    await get_json(server, "/api/runs?limit=50")
                    lists[name].append((time.monotonic() - begun) * 1e3)
    against = statistics.median(b / a for a, b in zip(costs["empty"], costs["full"], strict=True))
    report.add(
        Figure("curve: store", "no other run in the store", statistics.median(costs["empty"])),
        Figure("curve: store", f"{runs:,} runs in the store", statistics.median(costs["full"]), ratio=against,
               against="an empty store"),
        Figure("curve: store", "list of 50 runs of few", value=statistics.median(lists["empty"]), unit="ms"),
        Figure("curve: store", f"list of 50 runs of {runs:,}", value=statistics.median(lists["full"]),
               unit="ms"),
    )  # fmt: skip


async def run(report: Report, *, quick: bool) -> None:
    """Measure; each curve's figures are relative to its first point."""
    total = 8_192 if quick else 32_768
    rounds = 2 if quick else 5
    many = (1, 8, 64) if quick else (1, 8, 64, 512)
    async with mux_server("sqlite") as server:
        points = {
            n: ([stream_request(["firehose"] * n, {"events": total // n})], total // n * n) for n in many
        }
        await _curve(report, server, "channels in a run", points, rounds)
        runs = (1, 10) if quick else (1, 10, 100)
        points = {
            n: ([stream_request(["firehose"], {"events": total // n})] * n, total // n * n) for n in runs
        }
        await _curve(report, server, "runs at once", points, rounds)
    await _histories(report, quick=quick)
    await _full_store(report, quick=quick)

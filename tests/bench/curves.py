"""Cost stays flat: CPU per event over channels, runs, a run's history, and runs in the store."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mux.log import open_store
from mux.log.protocols import RunRow
from tests.bench.harness import Figure, Report
from tests.bench.servers import Load, Server, events_request, get_json, mux_server, post_run, stream_request

__all__ = ["run"]


async def _cpu_s(server: Server, requests: list[str], events: int) -> float:
    before = server.cpu_s()
    async with Load.open(server, requests) as load:
        await load.connected()
        result = await load.finished(240)
    assert result["events"] == events, result
    return server.cpu_s() - before


async def _curve(
    report: Report,
    server: Server,
    name: str,
    points: dict[int, Callable[[int], list[str]]],
    *,
    total: int,
    rounds: int,
) -> None:
    """All points in turn, several times; figures relative to the first.

    Each point is the same number of events in all, and once more three times as many: the difference is what
    events cost, and what is left is what each channel or run costs once, however much it says.
    """
    per_event: dict[int, list[float]] = {point: [] for point in points}
    once: dict[int, list[float]] = {point: [] for point in points}
    for turn in range(rounds + 1):
        for point, make in points.items():
            few = total // point * point
            less = await _cpu_s(server, make(few // point), few)
            more = await _cpu_s(server, make(3 * few // point), 3 * few)
            if turn:
                per_event[point].append((more - less) / (2 * few) * 1e6)
                once[point].append((3 * less - more) / 2 / point * 1e6)
    first = per_event[next(iter(points))]
    for point, costs in per_event.items():
        against = statistics.median(costs) / statistics.median(first)
        report.add(
            Figure(f"curve: {name}", f"{point:,} {name}", statistics.median(costs), ratio=against,
                   against="the first of the curve",
                   note=f"and {statistics.median(once[point]):,.0f} µs for each once" if point > 8 else "")
        )  # fmt: skip


async def _histories(report: Report, *, quick: bool) -> None:
    """A long run goes on: what an event costs when there are that many before it."""
    sizes = (10, 50_000) if quick else (10, 100_000, 1_000_000)
    rounds, after = (3, 5_000) if quick else (7, 5_000)
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        async with mux_server("sqlite") as server:
            runs: dict[int, tuple[str, int]] = {}
            costs: dict[int, list[float]] = {size: [] for size in sizes}
            for size in sizes:
                gates = [json.dumps({"events": after, "gate": f"{folder}/{size}-{n}"}) for n in range(rounds)]
                messages = [json.dumps({"events": size}), *gates]
                body = {"channels": [{"agent": "firehose", "message": m} for m in messages]}
                runs[size] = (await post_run(server, body))["run"], size + 2 + rounds
            for run, events in runs.values():
                while await _head(server, run) < events:
                    await asyncio.sleep(0.5)
            for n in range(rounds):  # in turn, so that a neighbour's load meets all sizes
                for size, (run, _) in runs.items():
                    begun = await _head(server, run)
                    request = events_request(run, f"?after={begun}")
                    async with Load.open(server, [request], enough=after) as load:
                        await load.connected()
                        before = server.cpu_s()
                        Path(f"{folder}/{size}-{n}").touch()
                        await load.finished(60)
                    costs[size].append((server.cpu_s() - before) / after * 1e6)
    first = statistics.median(costs[sizes[0]])
    for size, taken in costs.items():
        cost = statistics.median(taken)
        report.add(
            Figure("curve: history", f"{size:,} events before", cost, ratio=cost / first,
                   against="the first of the curve")
        )  # fmt: skip


async def _head(server: Server, run: str) -> int:
    cursor = (await get_json(server, f"/api/runs/{run}"))["cursor"]
    return int(cursor.rpartition(".")[2])


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
                    used = await _cpu_s(server, [stream_request(["firehose"], {"events": events})], events)
                    costs[name].append(used / events * 1e6)
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
    runs = (1, 10) if quick else (1, 10, 100)
    async with mux_server("sqlite") as server:
        channels = {n: _one_run_of(n) for n in many}
        await _curve(report, server, "channels in a run", channels, total=total, rounds=rounds)
        beside = {n: _runs_at_once(n) for n in runs}
        await _curve(report, server, "runs at once", beside, total=total, rounds=rounds)
    await _histories(report, quick=quick)
    await _full_store(report, quick=quick)


def _one_run_of(channels: int) -> Callable[[int], list[str]]:
    return lambda events: [stream_request(["firehose"] * channels, {"events": events})]


def _runs_at_once(runs: int) -> Callable[[int], list[str]]:
    return lambda events: [stream_request(["firehose"], {"events": events})] * runs

"""Merge: CPU per event while all sources but one wait (live agents), and the share of always-ready ones.

Targets 1 to 3. Peers: aiostream's own ``stream.merge`` and one queue with N pumps.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from aiostream import stream

from mux.merge import Merger
from tests.bench.harness import Figure, Report, Side, interleaved

__all__ = ["run"]


def ring(n: int, events: int) -> list[AsyncIterator[int]]:
    """N sources of which exactly one is ready at any time: each wakes the next one."""
    gates = [asyncio.Event() for _ in range(n)]
    gates[0].set()

    async def source(i: int) -> AsyncIterator[int]:
        for k in range(i, events, n):
            await gates[i].wait()
            gates[i].clear()
            yield k
            gates[(i + 1) % n].set()

    return [source(i) for i in range(n)]


async def ours(n: int, events: int) -> float:
    """`mux.merge.Merger`, read batch by batch."""
    seen = 0
    async with Merger[str, int]() as merger:
        for i, source in enumerate(ring(n, events)):
            merger.add(str(i), source)
        async for batch in merger:
            for _, item in batch:  # one by one, as the peers' are: what reads a batch is no part of the merge
                if isinstance(item, int):
                    seen += 1
            if seen == events:
                break
    return seen


async def aiostreams(n: int, events: int) -> float:
    """`aiostream.stream.merge`, as the obvious build would use it."""
    seen = 0
    async with stream.merge(*ring(n, events)).stream() as merged:
        async for _ in merged:
            seen += 1
            if seen == events:
                break
    return seen


async def queued(n: int, events: int) -> float:
    """One bounded queue and N pumps: the usual hand-written merge."""
    queue: asyncio.Queue[int] = asyncio.Queue(64)

    async def pump(source: AsyncIterator[int]) -> None:
        async for item in source:
            await queue.put(item)

    tasks = [asyncio.create_task(pump(s)) for s in ring(n, events)]
    for _ in range(events):
        await queue.get()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return events


async def unmerged(n: int, events: int) -> float:
    """The sources alone, each read by a task of its own: what every merge pays at least."""

    async def read(source: AsyncIterator[int]) -> int:
        return sum([1 async for _ in source])

    return sum(await asyncio.gather(*(read(source) for source in ring(n, events))))


async def shares(n: int, events: int, *, slow: bool) -> list[float]:
    """The share of each of N always-ready sources in the first ``events`` events."""

    async def endless() -> AsyncIterator[int]:
        while True:
            yield 1

    counts: Counter[str] = Counter()
    async with Merger[str, int]() as merger:
        for i in range(n):
            merger.add(str(i), endless())
        async for batch in merger:
            counts.update(key for key, _ in batch)
            if slow:
                await asyncio.sleep(0.001)
            if counts.total() >= events:
                break
    return [counts[str(i)] / counts.total() for i in range(n)]


def _side(work: Callable[[int, int], Awaitable[float]], n: int, events: int) -> Side:
    async def side() -> float:
        return await work(n, events)

    return side


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with targets 1 to 3."""
    cost: dict[int, float] = {}
    ratio: dict[int, float] = {}
    floors: dict[int, float] = {}
    for n in (8, 1024) if quick else (1, 8, 64, 512, 1024):
        events = 4096 if n <= 64 else 2048
        sides = {
            "mux": ours,
            "the sources alone": unmerged,
            "asyncio.Queue and N pumps": queued,
            "aiostream.stream.merge": aiostreams,
        }
        figures = await interleaved(
            f"merge, {n} sources",
            {f"{name}, {n} sources": _side(work, n, events) for name, work in sides.items()},
            rounds=3 if quick else 5,
            against=f"aiostream.stream.merge, {n} sources",
        )
        report.add(*figures)
        cost[n] = figures[0].cpu_us or 0.0
        ratio[n] = figures[0].ratio or 0.0
        floors[n] = figures[1].ratio or 0.0
    report.target(1, "merge, CPU per event at 1,024 channels against 8", cost[1024] / cost[8], 1.1)
    report.target(2, "merge at 8 channels against aiostream's", ratio[8], 0.2)
    report.target(2, "merge at 1,024 channels against aiostream's", ratio[1024], 0.006)
    for n, floor in floors.items():
        report.note(
            f"  the sources alone, {n} sources: {floor:.4f} x aiostream's merge, which no merge can undercut"
        )
    for slow in (False, True):
        worst = max(abs(s - 1 / 8) for s in await shares(8, 40_000, slow=slow)) * 100
        name = "with a slow consumer" if slow else "with a quick consumer"
        report.add(Figure("fairness", f"8 ready channels, {name}", value=worst, unit="% off 12.5"))
        report.target(3, f"share of each of 8 channels, {name}, % off", worst, 1.0)

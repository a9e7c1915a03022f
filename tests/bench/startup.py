"""From exec to serving, against the imports that nobody can do without. Target 18."""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from tests.bench.harness import Figure, Report
from tests.bench.servers import mux_server

__all__ = ["run"]


async def _serve() -> tuple[float, float]:
    begun = time.monotonic()
    async with mux_server("sqlite") as server:
        return time.monotonic() - begun, server.cpu_s()


async def _imports() -> tuple[float, float]:
    begun, used = time.monotonic(), _children_s()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import aiohttp, openai")
    await process.wait()
    return time.monotonic() - begun, _children_s() - used


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with target 18."""
    sides: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {
        "mux serve, until it is ready": _serve, "python -c 'import aiohttp, openai'": _imports,
    }  # fmt: skip
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(4 if quick else 8):
        for name, side in sides.items():
            sample = await side()
            if turn:  # the first warms the file cache
                taken[name].append(sample)
    ours, theirs = taken.values()
    for name, samples in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*samples, strict=True))
        report.add(Figure("start-up", name, value=cpu, unit="s of CPU", note=f"wall {wall:.2f} s"))
    more = statistics.median(a[1] - b[1] for a, b in zip(ours, theirs, strict=True))
    report.target(18, "seconds of CPU until serving beyond the imports", more, 0.3)
    wall = statistics.median(a[0] - b[0] for a, b in zip(ours, theirs, strict=True))
    report.note(
        f"  the same by the wall clock: {wall:.2f} s; in all {statistics.median(a[0] for a in ours):.2f} s"
    )

"""Measuring side by side: two or more sides, interleaved in one process run, medians and ratios.

These machines are shared and noisy, so only ratios within one table are sound, and CPU time is the figure to
trust. A *case* gives named sides; each side does a fixed amount of work and says how many units it did.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Figure", "Report", "interleaved", "machine"]

Side = Callable[[], Awaitable[float]]  # does its work; returns units done (events, frames, deliveries)


@dataclass(slots=True)
class Figure:
    """One measured side: medians over its rounds.

    Attributes:
        cpu_us: CPU time of this process per unit, in microseconds.
        wall_us: wall-clock time per unit, in microseconds.
        ratio: cpu (or ``value``) of this side over the reference side's, paired round by round, median.
        value: a figure of another kind (bytes, ms, events/s), with its unit.
    """

    case: str
    side: str
    cpu_us: float | None = None
    wall_us: float | None = None
    value: float | None = None
    unit: str = "µs CPU per unit"
    ratio: float | None = None
    against: str | None = None
    note: str = ""


@dataclass(slots=True)
class Report:
    """All figures of one run of the suite, and the machine that they were taken on."""

    figures: list[Figure] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep and print a sentence."""
        self.notes.append(text.strip())
        print(text, flush=True)

    def add(self, *figures: Figure) -> None:
        """Keep and print figures as they come."""
        for figure in figures:
            self.figures.append(figure)
            main = figure.cpu_us if figure.value is None else figure.value
            ratio = f"  {figure.ratio:8.3f} x {figure.against}" if figure.ratio is not None else ""
            unit = figure.unit if figure.value is not None else "µs CPU"
            print(f"  {figure.side:<44}{main or 0:12.2f} {unit:<18}{ratio}  {figure.note}", flush=True)

    def target(
        self, number: int | str, what: str, measured: float, bound: float, *, at_least: bool = False
    ) -> None:
        """Compare with a target of the project (or with a layer's own, by name) and say whether it is met."""
        met = measured >= bound if at_least else measured <= bound
        self.targets.append(
            {"target": number, "what": what, "measured": measured, "bound": bound, "met": met}
        )
        sign = "≥" if at_least else "≤"
        print(
            f"  target {number}: {what}: {measured:.3f} ({sign} {bound:g}) {'met' if met else 'MISSED'}",
            flush=True,
        )

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "machine": machine(),
            "figures": [asdict(f) for f in self.figures],
            "targets": self.targets,
            "notes": self.notes,
        }
        path.write_text(json.dumps(data, indent=2, ensure_ascii=False))


async def interleaved(
    case: str, sides: Mapping[str, Side], *, rounds: int = 5, against: str | None = None
) -> list[Figure]:
    """Run the sides in turn, A B A B …, after one warm-up round.

    Args:
        case: name of the table.
        sides: name → work.
        rounds: counted rounds.
        against: the reference side of the ratios.

    Returns:
        one figure per side, with ratios of CPU per unit paired round by round.
    """
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            gc.collect()
            cpu_before, wall_before = time.process_time(), time.perf_counter()
            units = await work()
            cpu_used, wall_used = time.process_time() - cpu_before, time.perf_counter() - wall_before
            if turn:  # the first is the warm-up
                cpu[name].append(cpu_used / units * 1e6)
                wall[name].append(wall_used / units * 1e6)
    figures = []
    for name in sides:
        ratio = None
        if against is not None and name != against:
            ratio = statistics.median(a / b for a, b in zip(cpu[name], cpu[against], strict=True))
        figures.append(
            Figure(
                case, name, statistics.median(cpu[name]), statistics.median(wall[name]), ratio=ratio,
                against=against if ratio is not None else None,
            )
        )  # fmt: skip
    return figures


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    packages = (
        "aiohttp", "aiostream", "openai", "pydantic", "msgspec", "redis", "uvloop", "fastapi", "uvicorn",
        "sse-starlette", "pydantic-ai-slim", "google-adk",
    )  # fmt: skip
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count(),
        "load": os.getloadavg(), "argv": sys.argv, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions,
    }  # fmt: skip

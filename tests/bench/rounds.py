"""Rounds over servers in other processes: interleaved, CPU and wall clock per unit, ratios pair by pair."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from tests.bench.harness import Figure, Report

__all__ = ["Sample", "compare", "ratio"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One side, once: per unit, in µs.

    Attributes:
        cpu_us: CPU of the server's process.
        wall_us: wall clock.
        load: share of one core that the load generator used.
        value: a further figure (a latency, a size), compared like the others.
    """

    cpu_us: float
    wall_us: float = 0.0
    load: float = 0.0
    value: float = 0.0


Side = Callable[[], Awaitable[Sample]]


async def compare(
    report: Report, case: str, sides: Mapping[str, Side], *, rounds: int, unit: str = ""
) -> dict[str, list[Sample]]:
    """Run the sides in turn after one warm-up; the figures' ratios are against the last side."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            sample = await side()
            if turn:
                samples[name].append(sample)
    reference = list(sides)[-1]
    for name, taken in samples.items():
        report.add(
            Figure(
                case,
                name,
                statistics.median(s.cpu_us for s in taken),
                statistics.median(s.wall_us for s in taken),
                value=statistics.median(s.value for s in taken) if unit else None,
                unit=unit or "µs CPU per unit",
                ratio=ratio(samples, name, reference, "value" if unit else "cpu_us")
                if name != reference
                else None,
                against=reference if name != reference else None,
                note=f"wall {statistics.median(s.wall_us for s in taken):.2f} µs,"
                f" load generator {statistics.median(s.load for s in taken):.0%} of a core",
            )
        )
    return samples


def ratio(samples: Mapping[str, list[Sample]], one: str, other: str, field: str = "cpu_us") -> float:
    """Median of one side over another, round by round."""
    pairs = zip(samples[one], samples[other], strict=True)
    ratios: list[float] = [getattr(a, field) / max(getattr(b, field), 1e-9) for a, b in pairs]
    return statistics.median(ratios)

"""``make bench``: every table, or the named ones; results also as JSON under tests/bench/results/."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import time
from pathlib import Path

from tests.bench.harness import Report, machine

TABLES = (
    "merge", "encode", "wire", "pipeline", "latency", "fanout", "replay", "memory", "startup", "appends",
    "redis_log", "guardrails", "upstream", "curves",
)  # fmt: skip


async def measure(tables: list[str], *, quick: bool) -> Report:
    """Run the tables one after the other."""
    report = Report()
    for name in tables:
        print(f"\n{name}", flush=True)
        await importlib.import_module(f"tests.bench.{name}").run(report, quick=quick)
    return report


def main() -> None:
    """Parse, measure, save."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"any of: {', '.join(TABLES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes: under three minutes")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    args = parser.parse_args()
    unknown = set(args.tables) - set(TABLES)
    if unknown:
        parser.error(f"unknown table: {', '.join(sorted(unknown))}")
    where = machine()
    print(f"Python {where['python']}, {where['cpus']} CPUs, load {where['load'][0]:.1f}")
    report = asyncio.run(measure(args.tables or list(TABLES), quick=args.quick))
    out = args.out or Path(__file__).parent / "results" / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    report.save(out)
    missed = [t for t in report.targets if not t["met"]]
    print(f"\n{len(report.targets) - len(missed)} targets met, {len(missed)} missed; written to {out}")


if __name__ == "__main__":
    main()

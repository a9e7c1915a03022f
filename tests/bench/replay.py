"""Replay of a long finished run, compacted and plain (target 17), and the resume storm (target 16)."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.harness import Figure, Report
from tests.bench.rounds import Sample, Side, compare, ratio
from tests.bench.servers import Load, Server, events_request, get_json, mux_server, post_run

__all__ = ["run"]

PLAIN, COMPACT = "plain replay", "compacted replay"


async def _finished_run(server: Server, channels: int, events: int) -> str:
    message = json.dumps({"events": events // channels})
    started = await post_run(server, {"agents": ["firehose"] * channels, "message": message})
    for _ in range(600):
        if (await get_json(server, f"/api/runs/{started['run']}"))["status"] == "completed":
            break
        await asyncio.sleep(0.25)
    return str(started["run"])


def _replay(server: Server, run: str, query: str, events: int, frames: dict[str, float]) -> Side:
    async def side() -> Sample:
        before = server.cpu_s()
        async with Load.open(server, [events_request(run, query)], marker="\nid: ") as load:
            await load.connected()
            result: dict[str, Any] = await load.finished()
        used = server.cpu_s() - before
        frames[query] = result["events"]
        share = result["load_cpu_s"] / result["wall_s"]
        wall_us = result["wall_s"] / events * 1e6
        return Sample(used / events * 1e6, wall_us, share, result["wall_s"])

    return side


async def _replays(report: Report, *, quick: bool) -> None:
    events = 20_000 if quick else 100_000
    frames: dict[str, float] = {}
    async with mux_server("sqlite") as server:
        run = await _finished_run(server, 4, events)
        sides = {
            COMPACT: _replay(server, run, "?compact=1", events, frames),
            PLAIN: _replay(server, run, "", events, frames),
        }
        name = f"replay of {events} events, 4 channels"
        samples = await compare(report, name, sides, rounds=3 if quick else 5, unit="s")
    fewer = frames[""] / max(frames["?compact=1"], 1)
    report.target(17, f"frames, plain over compacted, {events} events", fewer, 20, at_least=True)
    seconds = sorted(s.value for s in samples[COMPACT])[len(samples[COMPACT]) // 2]
    report.target(17, f"seconds for a compacted replay of {events} events", seconds, 0.5)
    report.note(f"  CPU per event, compacted over plain: {ratio(samples, COMPACT, PLAIN):.2f}")


async def _storm(report: Report, *, quick: bool) -> None:
    viewers = 200 if quick else 1000
    behind = 1000
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        async with mux_server("sqlite") as server:
            gate = Path(folder) / "gate"
            message = json.dumps({"events": 100_000, "rate": 200, "gate": str(gate)})
            history = json.dumps({"events": 1500})
            channels = [{"agent": "firehose", "message": m} for m in (history, message)]
            run = (await post_run(server, {"channels": channels}))["run"]
            while True:
                snapshot = await get_json(server, f"/api/runs/{run}")
                if any(c["status"] == "completed" for c in snapshot["channels"]):
                    break
                await asyncio.sleep(0.1)
            head = int(snapshot["cursor"].rpartition(".")[2])
            live = [events_request(run, f"?after={head}")] * 10
            async with Load.open(server, live) as watching:
                await watching.connected()
                gate.touch()
                await asyncio.sleep(0.5)
                calm = await watching.window(1.5, server)
                counting = asyncio.create_task(watching.window(3.0, server))
                await asyncio.sleep(0.2)
                late = [events_request(run, f"?after={head - behind}")] * viewers
                async with Load.open(server, late, enough=behind - 10) as storm:
                    result = await storm.finished(60)
                stormy = await counting
    case = f"resume storm, {viewers} viewers, {behind} behind"
    report.add(
        Figure(case, "time until all have caught up", value=result["wall_s"], unit="s"),
        Figure(case, "live viewers' p99 before", value=calm["p99_ms"], unit="ms"),
        Figure(case, "live viewers' p99 meanwhile", value=stormy["p99_ms"], unit="ms"),
        Figure(
            case, "server CPU per viewer", value=stormy["server_cpu_s"] / viewers * 1e3, unit="ms",
            note=f"load generator {result['load_cpu_s'] / result['wall_s']:.0%} of a core",
        ),
    )  # fmt: skip
    report.target(16, f"{viewers} viewers caught up, seconds", result["wall_s"], 2.0)
    report.target(16, "least events that one of them got", result["least"], behind - 10, at_least=True)
    grown = stormy["p99_ms"] / max(calm["p99_ms"], 1e-3)
    report.target(16, "live viewers' p99, in the storm over before", grown, 2.0)


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with targets 16 and 17."""
    await _replays(report, quick=quick)
    await _storm(report, quick=quick)

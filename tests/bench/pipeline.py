"""One run, one viewer, full speed: an agent's words to SSE on a socket. Targets 5 to 7.

The agent yields bare strings, as the manual shows it; a `mux.Token` for each costs 0.6 µs an event.
"""

from __future__ import annotations

from tests.bench.harness import Report
from tests.bench.rounds import Sample, Side, compare, ratio
from tests.bench.servers import Load, Server, mux_server, peer, request, stream_request

__all__ = ["run"]

FASTAPI = "FastAPI StreamingResponse with json"
RAW = "raw asyncio, one write per frame"


def stream(server: Server, text: str, events: int) -> Side:
    """One request, read to its end."""

    async def side() -> Sample:
        before = server.cpu_s()
        async with Load.open(server, [text]) as load:
            await load.connected()
            result = await load.finished()
        used = server.cpu_s() - before
        assert result["events"] == events, result
        share = result["load_cpu_s"] / result["wall_s"]
        return Sample(used / events * 1e6, result["wall_s"] / events * 1e6, share)

    return side


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with targets 5 to 7."""
    events = 10_000 if quick else 30_000
    task = stream_request(["firehose"], {"events": events})
    async with (
        mux_server() as memory,
        mux_server("sqlite") as sqlite,
        mux_server(uvloop=False) as plain,
        peer("fastapi_json") as fastapi,
        peer("raw", "800", "25") as raw,
    ):
        sides = {
            "mux, memory log": stream(memory, task, events),
            "mux, sqlite log": stream(sqlite, task, events),
            "mux, memory log, asyncio without uvloop": stream(plain, task, events),
            FASTAPI: stream(fastapi, request("GET", f"/full?n={events}"), events),
            RAW: stream(raw, request("GET", f"/full?{events}"), events),
        }
        samples = await compare(report, "single run at full speed", sides, rounds=3 if quick else 7)
    for number, name, bound in ((5, "mux, memory log", 6.0), (6, "mux, sqlite log", 3.0)):
        times = ratio(samples, FASTAPI, name, "wall_us")
        report.target(number, f"events/s, {name}, against FastAPI with json", times, bound, at_least=True)
        cpu = ratio(samples, FASTAPI, name)
        report.note(f"  the same by CPU per event: {cpu:.2f} x")
    report.target(7, "CPU per event against raw asyncio", ratio(samples, "mux, memory log", RAW), 1.5)

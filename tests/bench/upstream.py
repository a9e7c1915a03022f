"""From a provider's socket: reading it (target 13), to a viewer (target 14), and the first token (15).

Peers: AsyncOpenAI as it comes; pydantic-ai's AG-UI adapter and google-adk's API server, both with a fake
model in their own process, so they are spared the reading.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from contextlib import AsyncExitStack

from mux.agent import Message
from mux.llm.model import ModelRequest, TextDelta
from mux.llm.providers import Providers
from mux.settings import Settings
from tests.bench.harness import Figure, Report, Side, interleaved
from tests.bench.rounds import Sample, compare, ratio
from tests.bench.rounds import Side as ServerSide
from tests.bench.servers import PEERS, Load, Server, mux_server, peer, request

__all__ = ["run"]

SDK = "AsyncOpenAI as it comes"


def _settings(url: str) -> Settings:
    return Settings.model_validate({"providers": {"bench": {"base_url": url}}})


def _reader(providers: Providers, streams: int, chunks: int) -> Side:
    model, name = providers.model("bench:fake")
    ask = ModelRequest(model=name, messages=[Message(role="user", content="go")])

    async def one() -> int:
        return sum([1 async for delta in model.stream(ask) if isinstance(delta, TextDelta)])

    async def side() -> float:
        seen = sum(await asyncio.gather(*(one() for _ in range(streams))))
        assert seen >= streams, seen
        return streams * chunks

    return side


def _sdk(url: str, streams: int, chunks: int) -> Side:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

    async def one() -> int:
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "go"}], stream=True
        )
        return sum([1 async for chunk in stream if chunk.choices[0].delta.content])

    async def side() -> float:
        seen = sum(await asyncio.gather(*(one() for _ in range(streams))))
        assert seen == streams * chunks, seen
        return seen

    return side


async def _reading(report: Report, *, quick: bool) -> None:
    rounds = 3 if quick else 5
    for pace, count, rate, streams, bound in (
        ("full speed", 2000, 0, 1, 0.05), ("paced at 8 x 100/s", 150, 100, 8, 0.25),
    ):  # fmt: skip
        async with peer("provider", str(count), str(rate)) as provider:
            url = f"http://{provider.address}/v1"
            providers = Providers(_settings(url))
            try:
                figures = await interleaved(
                    f"upstream reader, {pace}",
                    {
                        f"mux, {pace}": _reader(providers, streams, count),
                        f"{SDK}, {pace}": _sdk(url, streams, count),
                    },
                    rounds=rounds,
                    against=f"{SDK}, {pace}",
                )
            finally:
                await providers.aclose()
        report.add(*figures)
        report.target(13, f"upstream CPU per chunk, {pace}", figures[0].ratio or 0.0, bound)


def _streamed(server: Server, text: str, marker: str, events: int) -> ServerSide:
    async def side() -> Sample:
        before = server.cpu_s()
        async with Load.open(server, [text], marker=marker) as load:
            await load.connected()
            result = await load.finished()
        assert result["events"] >= events * 0.9, (marker, result)
        used, share = server.cpu_s() - before, result["load_cpu_s"] / result["wall_s"]
        return Sample(used / events * 1e6, result["wall_s"] / events * 1e6, share)

    return side


def _adk(server: Server, events: int) -> ServerSide:
    numbers = itertools.count()

    async def side() -> Sample:
        body = {
            "app_name": "fake", "user_id": "u", "session_id": f"s{next(numbers)}", "streaming": True,
            "new_message": {"role": "user", "parts": [{"text": "go"}]},
        }  # fmt: skip
        return await _streamed(server, request("POST", "/run_sse", json.dumps(body)), "data: ", events)()

    return side


MUX = "mux, from a provider's socket, sqlite"


async def _end_to_end(report: Report, *, quick: bool) -> None:
    events = 1500 if quick else 4000
    agui = {
        "threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [], "forwardedProps": {},
        "messages": [{"id": "m", "role": "user", "content": "go"}],
    }  # fmt: skip
    body = json.dumps({"agents": ["assistant"], "message": "go"})
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(peer("provider", str(events), "0"))
        mux = await stack.enter_async_context(mux_server("sqlite", provider=f"http://{provider.address}/v1"))
        ask = request("POST", "/api/runs", body, Accept="text/event-stream")
        sides = {MUX: _streamed(mux, ask, '"type":"token"', events)}
        if PEERS.exists():
            adapter = await stack.enter_async_context(peer("agui", str(events)))
            text = request("POST", "/", json.dumps(agui), Accept="text/event-stream")
            sides["google-adk api_server"] = _adk(
                await stack.enter_async_context(peer("adk", str(events))), events
            )
            sides["pydantic-ai AG-UI adapter"] = _streamed(adapter, text, "TEXT_MESSAGE_CONTENT", events)
        samples = await compare(report, "end to end", sides, rounds=2 if quick else 5)
    for name, bound in (("pydantic-ai AG-UI adapter", 0.08), ("google-adk api_server", 0.05)):
        if name in samples:
            report.target(14, f"end to end, CPU per event against {name}", ratio(samples, MUX, name), bound)


async def _first_token(report: Report, *, quick: bool) -> None:
    """The provider stamps each chunk when it sends it: what a viewer sees of that is the added time."""
    times = 20 if quick else 100
    body = json.dumps({"agents": ["assistant"], "message": "go"})
    chat = json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": "go"}]})
    taken: dict[str, list[float]] = {"mux, sqlite log": [], "raw proxy": []}
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(peer("provider", "3", "50"))
        mux = await stack.enter_async_context(mux_server("sqlite", provider=f"http://{provider.address}/v1"))
        proxy = await stack.enter_async_context(peer("proxy", str(provider.port)))
        for _ in range(5):
            for name, server, text in (
                ("mux, sqlite log", mux, request("POST", "/api/runs", body, Accept="text/event-stream")),
                ("raw proxy", proxy, request("POST", "/v1/chat/completions", chat)),
            ):
                async with Load.open(server, [text] * (times // 5), sequential=True) as load:
                    taken[name].append((await load.finished(120))["first_p50_ms"])
    ours, theirs = (statistics.median(taken[name]) for name in taken)
    report.add(
        Figure("time to first token, added", "mux, sqlite log", value=ours, unit="ms, p50"),
        Figure("time to first token, added", "raw proxy", value=theirs, unit="ms, p50"),
    )
    report.target(15, "added time to first token beyond a raw proxy's, ms", ours - theirs, 2.0)


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with targets 13 to 15."""
    begun = time.monotonic()
    await _reading(report, quick=quick)
    await _end_to_end(report, quick=quick)
    await _first_token(report, quick=quick)
    report.note(f"  took {time.monotonic() - begun:.0f} s")

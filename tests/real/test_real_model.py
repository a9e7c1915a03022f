"""The main job on real input: four channels on a real language model at once, with a tool, through HTTP.

A recording proxy stands between Mux and the model, so that what the model sent is known byte by byte, and
compared with what the channels said.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.checker import Checker, parse_sse
from tests.support.real_model import MODEL, real_model
from tests.support.service import running, write_agent

pytestmark = [pytest.mark.real_model, pytest.mark.slow, pytest.mark.timeout(700)]

PATIENT = aiohttp.ClientTimeout(total=600)  # a real model on two shared cores takes its time
LANES = ("north", "south", "east", "west")
AGENT = """---
name: {name}
description: Answers on a real model.
model: local:{model}
tools: calculator
params: {{temperature: 0.3, max_tokens: 40}}
budget: {{steps: 2}}
---
You are lane-{name}. Use the calculator for arithmetic. Answer briefly.
"""


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with real_model() as url:
        yield url


class Recorder:
    """Passes requests on to the model, and keeps for each lane the text that the model sent."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.url = ""
        self.text: dict[str, str] = defaultdict(str)
        self.calls: dict[str, int] = defaultdict(int)
        self.at_once = 0
        self.most_at_once = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        lane = next(name for name in LANES if f"lane-{name}".encode() in body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        raw = b""
        try:
            async with (
                aiohttp.ClientSession(timeout=PATIENT) as http,
                http.post(
                    f"{self.upstream}/chat/completions",
                    data=body,
                    headers={"Content-Type": "application/json"},
                ) as answer,
            ):
                response = web.StreamResponse(status=answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    raw += chunk
                    await response.write(chunk)
        finally:
            self.at_once -= 1
        self._read(lane, raw)
        return response

    def _read(self, lane: str, raw: bytes) -> None:
        """A reader of its own, not the product's: only what this one server sends."""
        for block in raw.replace(b"\r\n", b"\n").split(b"\n\n"):
            data = block.strip().removeprefix(b"data: ")
            if data in (b"", b"[DONE]"):
                continue
            for choice in json.loads(data).get("choices", []):
                self.text[lane] += choice["delta"].get("content") or ""
                if any(c.get("id") for c in choice["delta"].get("tool_calls") or []):
                    self.calls[lane] += 1


@pytest.fixture
async def recorder(model_url: str) -> AsyncIterator[Recorder]:
    recorder = Recorder(model_url)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", recorder.handle)
    server = TestServer(app)
    await server.start_server()
    recorder.url = str(server.make_url("/v1"))
    yield recorder
    await server.close()


async def test_four_channels_on_a_real_model_say_exactly_what_the_model_sent(
    no_leaks: None, recorder: Recorder, tmp_path: Path
) -> None:
    for name in LANES:
        write_agent(tmp_path / "agents", f"{name}.md", AGENT.format(name=name, model=MODEL))
    timeouts = {"first_byte_s": 120, "progress_s": 120, "turn_s": 300}
    provider = {"local": {"base_url": recorder.url, "timeouts": timeouts}}
    async with (
        running(agents=[str(tmp_path / "agents")], providers=provider) as url,
        aiohttp.ClientSession(timeout=PATIENT) as http,
    ):
        body = {"message": "What is 17 * 23? Use the calculator tool.", "agents": list(LANES)}
        async with http.post(f"{url}/api/runs", json=body) as answer:
            run = (await answer.json())["run"]
        async with http.get(f"{url}/api/runs/{run}/events") as stream:
            blocks, rest = parse_sse(await stream.read())
        async with http.get(f"{url}/api/runs/{run}") as answer:
            snapshot = await answer.json()
    assert rest == b""
    checker = Checker(run)
    checker.feed(blocks)
    checker.assert_gapless()
    checker.assert_order()
    said: dict[str, str] = defaultdict(str)
    for event in checker.events:
        if event["type"] == "token":
            said[event["channel"]] += event["content"]
    calls = [e["channel"] for e in checker.events if e["type"] == "tool_call"]
    assert {name: said[name] for name in LANES} == {name: recorder.text[name] for name in LANES}
    assert {name: calls.count(name) for name in LANES} == {name: recorder.calls[name] for name in LANES}
    assert recorder.most_at_once > 1, "the channels did not run at the same time"
    assert {c["id"]: c["text"] for c in snapshot["channels"]} == dict(said) | {
        n: "" for n in LANES if n not in said
    }
    done = {e["channel"]: e for e in checker.events if e["type"] == "done"}
    assert all(d["status"] in ("completed", "budget_exceeded") for d in done.values()), done
    assert any(d.get("ttft_ms") for d in done.values())

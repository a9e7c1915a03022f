"""What is done to one channel leaves the other channels' bytes as they were; leaving frees everything."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mux.http.service import Service
from tests.support import endpoint
from tests.support.api import call, read, settled, start, until
from tests.support.checker import Checker, http
from tests.support.service import make_settings, serving
from tests.support.service_roster import script, write_home

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # the tools of these agents write to a file, on purpose
]

WORK = "3 6 0.01"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """In this process, so that its tasks can be seen."""
    async with endpoint.serving(script) as model:
        write_home(tmp_path, model.url)
        settings = make_settings(
            agents=[tmp_path / "agents"], store=f"sqlite:{tmp_path / 'mux.db'}",
            providers={"scripted": {"base_url": model.url}},
        )  # fmt: skip
        async with serving(settings) as running:
            yield running


# --- control ------------------------------------------------------------------------------------------------

Act = Callable[[str, str], Awaitable[Any]]


async def nothing(url: str, run: str) -> None:
    """The run as it is by itself."""


def on_victim(path: str, body: dict[str, Any], wanted: int) -> Act:
    """A request about the channel `victim` (or the run, with an empty path)."""

    async def act(url: str, run: str) -> None:
        status, answer, _ = await call("POST", f"{url}/api/runs/{run}{path}", body)
        assert status == wanted, answer

    return act


async def cancel_and_retry(url: str, run: str) -> None:
    await on_victim("/channels/victim/cancel", {"mode": "now"}, 202)(url, run)
    await read(f"{url}/api/runs/{run}/events?channel=victim", until="done")
    await on_victim("/channels/victim/retry", {}, 201)(url, run)


ACTS: list[tuple[str, Act, dict[str, Any]]] = [
    ("cancel now", on_victim("/channels/victim/cancel", {"mode": "now"}, 202), {}),
    ("cancel gracefully", on_victim("/channels/victim/cancel", {"mode": "graceful"}, 202), {}),
    ("retry", cancel_and_retry, {}),
    ("steer", on_victim("/channels/victim/messages", {"content": "2 2 0", "mode": "steer"}, 202), {}),
    ("queue", on_victim("/channels/victim/messages", {"content": "2 2 0", "mode": "queue"}, 202), {}),
    ("interrupt", on_victim("/channels/victim/messages", {"content": "2 2 0", "mode": "interrupt"}, 202), {}),
    ("add", on_victim("/channels", {"agent": "writer", "id": "new", "message": "40 0"}, 201), {}),
    ("budget of steps", nothing, {"budget": {"steps": 1}}),
    ("budget of seconds", nothing, {"budget": {"seconds": 0.1}}),
    ("budget of tool calls", nothing, {"budget": {"tool_calls": 1}}),
]


async def the_others(service: Service, act: Act, victim: dict[str, Any]) -> tuple[dict[str, str], Any]:
    """The other channels' bytes, without what differs between any two runs; and how the victim ended."""
    channels = [
        {"agent": "worker", "id": "llm", "message": WORK},
        {"agent": "writer", "id": "plain", "message": "60 0.005"},
        {"agent": "worker", "id": "victim", "message": "4 10 0.02", **victim},
    ]
    body = {"message": "go", "channels": channels}
    run = (await call("POST", f"{service.url}/api/runs", body))[1]["run"]
    events = f"{service.url}/api/runs/{run}/events"
    await read(f"{events}?channel=victim", until="token")
    await act(service.url, run)
    checker = Checker(run)
    checker.feed(await read(events))
    checker.assert_gapless()
    checker.assert_order()
    others: dict[str, str] = {}
    for channel in ("llm", "plain"):
        own = [
            json.dumps(e) for e in checker.events if e["channel"] == channel and e["type"] != "tool_progress"
        ]
        others[channel] = without_chance("\n".join(own))
    return others, checker.events[-1]["channels"]["victim"]


def without_chance(text: str) -> str:
    """Leave out ids and times; name the calls in their order (their results may come in any)."""
    text = re.sub(
        r'"(run|seq|cseq|ts|elapsed_ms|duration_ms|ttft_ms|tokens_per_s)": ("[^"]*"|[0-9.]+),? ?', "", text
    )
    text = text.replace(', "usage_estimated": true', "")  # known only after the endpoint's first answer
    for number, call_id in enumerate(dict.fromkeys(re.findall(r"call_[0-9a-f]+", text))):
        text = text.replace(call_id, f"call {number}")
    results = sorted(line for line in text.splitlines() if "tool_" in line)
    return "\n".join([*(line for line in text.splitlines() if "tool_" not in line), *results])


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_what_is_done_to_one_channel_does_not_change_a_byte_of_the_others(service: Service) -> None:
    alone, status = await the_others(service, nothing, {})
    assert status == "completed"
    assert "s3w5 " in alone["llm"]
    assert "59 " in alone["plain"]
    ended: dict[str, str] = {}
    for title, act, victim in ACTS:
        others, ended[title] = await the_others(service, act, victim)
        assert others == alone, title
    assert ended == {
        "cancel now": "cancelled", "cancel gracefully": "cancelled", "retry": "cancelled",
        "steer": "completed", "queue": "completed", "interrupt": "completed", "add": "completed",
        "budget of steps": "budget_exceeded", "budget of seconds": "budget_exceeded",
        "budget of tool calls": "budget_exceeded",
    }  # fmt: skip


# --- leaving ------------------------------------------------------------------------------------------------


class Model:
    """A model that never ends its turn, or whose tool never ends; it notices when its client goes."""

    def __init__(self) -> None:
        self.streaming = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, exchange: endpoint.Exchange) -> None:
        self.streaming.clear()
        self.closed.clear()
        await exchange.head()
        await exchange.send(endpoint.delta("on and on "))
        self.streaming.set()
        await exchange.gone()
        self.closed.set()


_SLEEPER = """
import asyncio
from pathlib import Path

import mux

STATE = Path({state!r})


@mux.tool
async def sleep(text: str, ctx: mux.ToolContext) -> str:
    \"\"\"Sleep for ever.\"\"\"
    STATE.write_text("sleeping")
    try:
        await asyncio.Event().wait()
    finally:
        STATE.write_text("stopped")


agent = mux.LlmAgent(name="sleeper", description="Sleeps.", model="rehearsal", tools=[sleep])
"""


@pytest.mark.timeout(60)
async def test_when_the_last_viewer_is_gone_model_streams_tools_and_tasks_are_gone_within_a_second(
    tmp_path: Path,
) -> None:
    model = Model()
    state = tmp_path / "state"
    async with endpoint.serving(model) as upstream:
        write_home(tmp_path, upstream.url)
        (tmp_path / "agents" / "sleeper.py").write_text(_SLEEPER.format(state=str(state)))
        settings = make_settings(
            agents=[tmp_path / "agents"], providers={"scripted": {"base_url": upstream.url}}
        )
        async with serving(settings) as service:
            await start(service.url, "writer", message="1 0")  # what the first run opens once
            await asyncio.sleep(0.3)
            before = {t for t in asyncio.all_tasks() if not t.done()}
            body = {
                "message": "Use your tool: sleep well.", "on_disconnect": {"grace_s": 0.3},
                "channels": [{"agent": "worker"}, {"agent": "sleeper"}],
            }  # fmt: skip
            sse = {"Accept": "text/event-stream"}
            async with http("POST", f"{service.url}/api/runs", json_body=body, headers=sse) as first:
                run = first.headers["location"].rsplit("/", 1)[1]
                async with asyncio.timeout(10):
                    await model.streaming.wait()
                    await until(state.exists)
                watching = asyncio.create_task(
                    read(f"{service.url}/api/runs/{run}/events?observe=1", until="run_finished")
                )
                second = http("GET", f"{service.url}/api/runs/{run}/events")
                await second.__aenter__()
            await asyncio.sleep(0.6)
            assert not model.closed.is_set()  # the second viewer holds it, the observer would not
            left = time.monotonic()
            await second.__aexit__(None, None, None)
            await model.closed.wait()
            took = time.monotonic() - left
            assert 0.2 < took < 0.3 + 1.0
            assert await settled(service.url, run) == "cancelled"
            assert state.read_text() == "stopped"
            await watching
            while left_over := {t for t in asyncio.all_tasks() - before if not t.done()} - {
                asyncio.current_task()
            }:
                assert time.monotonic() - left < 0.3 + 1.0, left_over
                await asyncio.sleep(0.01)
            assert (await service.engine.stats())["channels"] == 0


async def test_a_run_that_is_cancelled_now_leaves_no_effect_without_a_start(
    service: Service, tmp_path: Path
) -> None:
    run = await start(service.url, "worker", message="6 3 0.01")
    events = f"{service.url}/api/runs/{run}/events"
    await read(events, until="tool_start")
    await call("POST", f"{service.url}/api/runs/{run}/cancel", {"mode": "now"})
    blocks = await read(events)
    log = [b.data for b in blocks if "seq" in b.data]
    assert log[-1]["status"] == "cancelled"
    began = (tmp_path / "effects").read_text()
    assert {e["call_id"] for e in log if e["type"] == "tool_start"} >= set(re.findall(r"call_\w+", began))

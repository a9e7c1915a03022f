"""Agents that work with others' results: lead, synthesizer, `depends_on`, `when` and `inputs`, over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import call, finished_run, read, start
from tests.support.service import running

pytestmark = [pytest.mark.allow_blocking, pytest.mark.timeout(60)]  # the whole server starts in this process

QUESTION = "How do cursors resume a stream, and what is 17*23?"
_AGENTS = {
    "sayer": 'yield mux.Token(content=f"{ctx.channel} says {ctx.task.splitlines()[0]}")',
    "breaker": 'yield mux.Token(content="half"); raise ValueError("broken")',
    "echo": "yield mux.Token(content=ctx.task)",
    "sleeper": 'yield mux.Token(content="at work"); await asyncio.sleep(3600)',
}
_BOSS = """
import mux

agent = mux.LlmAgent(
    name="boss", description="Delegates.", model="rehearsal", tools=["delegate"], instructions="x"
)
"""


def roster(base: Path) -> Path:
    folder = base / "agents"
    folder.mkdir()
    for name, body in _AGENTS.items():
        head = f'import asyncio\nimport mux\n\n@mux.agent(name="{name}", description="A test agent.")\n'
        (folder / f"{name}.py").write_text(f"{head}async def agent(ctx):\n    {body}\n")
    return folder


async def logged(url: str, run: str) -> list[dict[str, Any]]:
    """The events of a run to its end, without the connection's own frames."""
    blocks = await read(f"{url}/api/runs/{run}/events")
    return [dict(b.data) for b in blocks if "seq" in b.data]


async def run_channels(url: str, *channels: dict[str, Any], message: str = "hi") -> dict[str, Any]:
    status, run, _ = await call(
        "POST", f"{url}/api/runs", {"message": message, "channels": channels}, headers={"Prefer": "wait=20"}
    )
    assert status == 201, run
    return {c["id"]: c for c in run["channels"]} | {"run": run}


async def test_the_leads_workers_stream_in_panes_of_their_own_and_their_results_are_used() -> None:
    async with running() as url:
        run = await start(url, "lead", message=QUESTION)
        events = await logged(url, run)
        snapshot = (await call("GET", f"{url}/api/runs/{run}"))[1]
    added = [e for e in events if e["type"] == "channel_added"]
    assert {(e["agent"], e["parent"]) for e in added} == {("researcher", "lead"), ("analyst", "lead")}
    result = next(e for e in events if e["type"] == "tool_result" and e["channel"] == "lead")
    for worker in (e["id"] for e in added):
        said = [e for e in events if e["channel"] == worker]
        assert said[0]["type"] == "channel_started"
        assert said[-1]["type"] == "done"
        assert sum(e["type"] == "token" for e in said) > 5
        before = events.index(next(e for e in events if e["type"] == "tool_start" and e["channel"] == "lead"))
        assert before < events.index(said[0]) < events.index(said[-1]) < events.index(result)
    assert {w["status"] for w in result["data"]["workers"]} == {"completed"}
    progress = [e for e in events if e["type"] == "tool_progress" and e["channel"] == "lead"]
    assert any("researcher" in (e.get("message") or "") for e in progress)
    texts = {c["id"]: c["text"] for c in snapshot["channels"]}
    assert "391" in texts["lead"]
    assert "researcher" in texts["lead"]
    assert snapshot["status"] == "completed"


async def test_the_synthesizer_waits_for_the_others_and_names_them() -> None:
    async with running() as url:
        run = await finished_run(url, "analyst", "synthesizer", message="What is 17*23?")
    by_id = {c["id"]: c for c in run["channels"]}
    tools = [t["tool"] for t in by_id["synthesizer"]["tools"]]
    assert set(tools) == {"ask_channels"}
    assert "391" in by_id["synthesizer"]["text"]
    assert "analyst" in by_id["synthesizer"]["text"]


async def test_results_are_handed_over_to_a_synthesizer_that_depends_on_them() -> None:
    async with running() as url:
        done = await run_channels(
            url, {"agent": "analyst"}, {"agent": "synthesizer", "depends_on": ["analyst"], "when": "all"},
            message="What is 17*23?",
        )  # fmt: skip
        events = await logged(url, done["run"]["run"])
    order = [(e["channel"], e["type"]) for e in events]
    assert order.index(("analyst", "done")) < order.index(("synthesizer", "channel_started"))
    assert "391" in done["synthesizer"]["text"]


async def test_when_says_what_a_failure_means_for_those_that_wait(tmp_path: Path) -> None:
    async with running(agents=[roster(tmp_path)]) as url:
        both = ["sayer", "breaker"]
        done = await run_channels(
            url, {"agent": "sayer"}, {"agent": "breaker"},
            {"id": "all", "agent": "echo", "depends_on": both, "when": "all"},
            {"id": "any", "agent": "echo", "depends_on": both, "when": "any"},
            {"id": "settled", "agent": "echo", "depends_on": both},
        )  # fmt: skip
        assert done["all"]["status"] == "cancelled"
        for channel in ("any", "settled"):
            assert done[channel]["status"] == "completed"
            assert "sayer says hi" in done[channel]["text"]
            assert 'channel="breaker" agent="breaker" status="failed"' in done[channel]["text"]
        assert done["run"]["status"] == "partial"
        first = done["run"]["run"]
        later = await run_channels(
            url, {"agent": "sayer"}, {"agent": "echo", "inputs": ["sayer", f"{first}/sayer"]}, message="yo"
        )
        assert "sayer says yo" in later["echo"]["text"]
        assert "sayer says hi" in later["echo"]["text"]
        circle = [
            {"id": "a", "agent": "echo", "depends_on": ["b"]},
            {"id": "b", "agent": "echo", "depends_on": ["a"]},
        ]
        status, problem, _ = await call("POST", f"{url}/api/runs", {"message": "x", "channels": circle})
        assert (status, problem["type"] != "") == (400, True)


_CALLER = """
import mux
from mux.tools.runtime import run_tool
from mux.tools.delegate import delegate


@mux.agent(name="caller", description="Delegates to the sleeper, and goes on when that is stopped.")
async def agent(ctx):
    call = ctx.new_call_id()
    arguments = {"tasks": [{"agent": "sleeper", "message": "1"}, {"agent": "sleeper", "message": "2"}]}
    yield mux.ToolCall(call_id=call, tool="delegate")
    yield mux.ToolStart(call_id=call, tool="delegate", arguments=arguments)
    async for item in run_tool(delegate, call, delegate.validate(arguments), ctx):
        yield item
"""


async def _at_work(url: str, run: str, count: int) -> list[str]:
    while True:
        snapshot = (await call("GET", f"{url}/api/runs/{run}"))[1]
        working = [c["id"] for c in snapshot["channels"] if c["agent"] == "sleeper" and c["text"]]
        if len(working) == count:
            return working
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("whole_run", [True, False])
async def test_cancelling_a_channel_stops_the_workers_that_it_delegated_to(
    tmp_path: Path, whole_run: bool
) -> None:
    folder = roster(tmp_path)
    (folder / "caller.py").write_text(_CALLER.lstrip())
    async with running(agents=[folder]) as url:
        run = await start(url, "caller", "sayer", message="go")
        await _at_work(url, run, 2)
        target = f"{url}/api/runs/{run}" + ("" if whole_run else "/channels/caller")
        await call("POST", f"{target}/cancel", {"mode": "now"})
        events = await logged(url, run)
    ended = {e["channel"]: e["status"] for e in events if e["type"] == "done"}
    assert {c: s for c, s in ended.items() if c != "sayer"} == dict.fromkeys(
        ("caller", "sleeper", "sleeper.2"), "cancelled"
    )
    assert ended["sayer"] == "completed"


async def test_an_interrupt_stops_the_call_and_its_workers_and_the_agent_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = roster(tmp_path)
    monkeypatch.chdir(tmp_path)  # ./agents comes before the built-in agents of these names
    (folder / "boss.py").write_text(_BOSS.lstrip())
    # the rehearsal model delegates to these two names
    for name in ("researcher", "analyst"):
        code = (folder / "sleeper.py").read_text().replace('"sleeper"', f'"{name}"')
        (folder / f"{name}.py").write_text(code)
    async with running(agents=[folder]) as url:
        run = await start(url, "boss", message=QUESTION)
        while True:
            snapshot = (await call("GET", f"{url}/api/runs/{run}"))[1]
            if sum(bool(c["text"]) for c in snapshot["channels"]) == 2:
                break
            await asyncio.sleep(0.02)
        there = f"{url}/api/runs/{run}/channels/boss/messages"
        status, _, _ = await call("POST", there, {"content": "never mind", "mode": "interrupt"})
        assert status in (200, 201, 202)
        # the rehearsal model takes the message for a task and delegates again
        events = [dict(b.data) for b in await read(f"{url}/api/runs/{run}/events", until="tool_result")]
        assert events[-1]["error"] == "interrupted"
        while True:
            snapshot = (await call("GET", f"{url}/api/runs/{run}"))[1]
            states = {c["id"]: c["status"] for c in snapshot["channels"]}
            if states["researcher"] == states["analyst"] == "cancelled":
                break
            await asyncio.sleep(0.02)
        assert states["boss"] == "running"
        await call("POST", f"{url}/api/runs/{run}/cancel", {})

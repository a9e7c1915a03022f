"""delegate and ask_channels, on a host whose channels end as the test says."""

from __future__ import annotations

import asyncio

import pytest

from mux.events import ToolProgress, ToolResult
from mux.tools import run_tool
from mux.tools.delegate import ask_channels, delegate
from tests.support.tools import FakeHost, call, context, until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_tasks_run_in_channels_of_their_own_and_their_results_come_back() -> None:
    host = FakeHost()
    ctx = context(host)
    tasks = [{"agent": "researcher", "message": "find it"}, {"agent": "critic", "message": "judge it"}]
    running = asyncio.create_task(_all(delegate.validate({"tasks": tasks}), host))
    await until(lambda: len(host.opened) == 2)
    assert [(r.agent, r.message) for r in host.opened] == [("researcher", "find it"), ("critic", "judge it")]
    host.add("critic.2", "critic", "completed", "it is good")
    await asyncio.sleep(0)
    assert not running.done()
    host.add("researcher.1", "researcher", "failed", "", "no network")
    items = await running
    result = items[-1]
    assert isinstance(result, ToolResult)
    assert not result.is_error
    assert "## researcher.1 (researcher, failed)\n\nno network" in result.output
    assert "## critic.2 (critic, completed)\n\nit is good" in result.output
    assert [w["channel"] for w in result.data["workers"]] == ["researcher.1", "critic.2"]
    told = [p.message for p in items if isinstance(p, ToolProgress)]
    assert told[0] == "2 at work: researcher.1, critic.2"
    assert sorted(filter(None, told[1:])) == ["critic.2 is completed", "researcher.1 is failed"]
    assert ctx.channel == "a"


async def _all(arguments: dict[str, object], host: FakeHost) -> list[ToolProgress | ToolResult]:
    return [i async for i in run_tool(delegate, "c", arguments, context(host)) if getattr(i, "message", 1)]


async def test_one_task_can_be_given_directly() -> None:
    host = FakeHost()
    running = asyncio.create_task(call(delegate, context(host), agent="critic", message="judge it"))
    await until(lambda: bool(host.opened))
    host.add("critic.1", "critic", "completed", "good")
    assert "good" in (await running).output


async def test_an_unknown_agent_fails_its_task_alone() -> None:
    host = FakeHost()
    tasks = [{"agent": "nobody", "message": "x"}, {"agent": "critic", "message": "y"}]
    running = asyncio.create_task(call(delegate, context(host), tasks=tasks))
    await until(lambda: bool(host.opened))
    host.add("critic.1", "critic", "completed", "good")
    result = await running
    assert not result.is_error
    assert "There is no agent 'nobody'." in result.output


async def test_when_no_task_was_completed_that_is_an_error_with_the_reasons() -> None:
    result = await call(delegate, agent="nobody", message="x")
    assert result.error == "tool_failed"
    assert "There is no agent 'nobody'." in result.output
    assert result.data["workers"][0]["status"] == "failed"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"agent": "critic"},
        {"message": "x"},
        {"tasks": []},
        {"agent": "tester", "message": "delegating to itself"},
        {"tasks": [{"agent": "tester", "message": "x"}]},
    ],
)
async def test_useless_calls_are_refused_before_a_channel_is_opened(arguments: dict[str, object]) -> None:
    host = FakeHost()
    result = await call(delegate, context(host), **arguments)
    assert result.error == "invalid_arguments"
    assert not host.opened


async def test_waiting_for_workers_is_not_the_tools_own_time() -> None:
    import dataclasses

    host = FakeHost()
    quick = dataclasses.replace(delegate, timeout_s=0.1)
    running = asyncio.create_task(call(quick, context(host), agent="critic", message="x"))
    await until(lambda: bool(host.opened))
    await asyncio.sleep(0.3)
    host.add("critic.1", "critic", "completed", "good")
    assert not (await running).is_error


async def test_a_long_result_is_cut_visibly() -> None:
    host = FakeHost()
    host.add("b", "writer", "completed", "x" * 50_000)
    assert "cut here" in (await call(ask_channels, context(host))).output


async def test_others_are_read_as_they_stand() -> None:
    host = FakeHost()
    host.add("a", "tester", "running", "myself")
    host.add("b", "writer", "completed", "the end")
    host.add("c", "writer", "running", "so far")
    result = await call(ask_channels, context(host))
    assert [(c["channel"], c["status"], c["output"]) for c in result.data["channels"]] == [
        ("b", "completed", "the end"),
        ("c", "running", "so far"),
    ]
    assert "myself" not in result.output
    assert len((await call(ask_channels, context(host), channels=["c"])).data["channels"]) == 1


async def test_it_can_wait_until_they_are_done_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    host.add("b", "writer", "running", "so far")
    running = asyncio.create_task(call(ask_channels, context(host), wait=True))
    await asyncio.sleep(0.05)
    assert not running.done()
    host.add("b", "writer", "completed", "the end")
    assert "the end" in (await running).output
    monkeypatch.setattr("mux.tools.delegate.ASK_S", 0.05)
    host.add("c", "writer", "running", "for ever")
    assert "for ever" in (await call(ask_channels, context(host), wait=True)).output


async def test_unknown_channels_are_told_with_the_known_ones() -> None:
    host = FakeHost()
    host.add("b", "writer", "completed")
    result = await call(ask_channels, context(host), channels=["x", "b"])
    assert result.error == "invalid_arguments"
    assert "There is no channel x. Others: b." in result.output
    assert "no other channels" in (await call(ask_channels)).output

"""The guard where it works: between a channel's agent and the log, in a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mux.agent import Agent, AgentContext, Draft, Guard
from mux.errors import BadRequest
from mux.events import StepFinished, StepStarted, Token, ToolArgs, ToolCall, ToolResult, ToolStart
from mux.guardrails import Rules
from mux.requests import ChannelSpec, StartRequest
from mux.settings import GuardrailRule
from tests.support.agents import Scripted, harness, says, types

pytestmark = pytest.mark.usefixtures("no_leaks")

SECRET = "sk-" + "A1b2C3d4" * 4


def guard_for(agent: Agent, run: str, channel: str) -> Guard:
    rules = Rules.compile({"keys": GuardrailRule(pattern="sk-[A-Za-z0-9]{20,}")}, base=Path())
    return rules.guard(run=run, channel=channel, refusal="No.")


async def test_a_block_refuses_one_channel_and_leaves_the_others_alone() -> None:
    leaky = says("leaky", "here: ", *SECRET, " done")
    async with harness(leaky, says("good", "fine"), guard_for=guard_for) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["leaky", "good"]))).row.run
        snapshot = await h.finished(run)
        bad, good = snapshot["channels"]
        assert (bad["status"], good["status"], good["text"]) == ("refused", "completed", "fine")
        events = await h.events(run)
        assert types(events, "leaky")[-3:] == ["guardrail", "refusal", "done"]
        assert "sk-" not in repr(events)
        assert "sk-" not in repr(snapshot)


async def test_text_that_an_agent_was_saying_when_it_failed_is_not_shown() -> None:
    async def cut(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Token(content=f"key {SECRET[:12]}")
        raise RuntimeError(f"cut in {SECRET}")

    async with harness(Scripted("cut", cut), guard_for=guard_for) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["cut"]))).row.run
        snapshot = await h.finished(run)
        assert snapshot["channels"][0]["status"] == "failed"
        assert snapshot["channels"][0]["text"] == "key "
        assert "sk-" not in repr(await h.events(run))


async def test_a_tool_starts_although_the_text_before_it_was_held() -> None:
    async def calls(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        yield Token(content="this ends in s")
        yield ToolCall(call_id="c", tool="f")
        yield ToolArgs(call_id="c", content="{}")
        yield StepFinished(step=1, finish_reason="tool_calls")
        yield Token(content="s")
        yield ToolStart(call_id="c", tool="f", arguments={})
        yield ToolResult(call_id="c", tool="f", output="ok")

    async with harness(Scripted("a", calls), guard_for=guard_for) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
        snapshot = await h.finished(run)
        assert snapshot["channels"][0]["status"] == "completed"
        assert types(await h.events(run), "a").count("tool_start") == 1


@pytest.mark.parametrize(
    "request_",
    [
        StartRequest(message="hi", channels=[ChannelSpec(id=SECRET, agent="good")]),
        StartRequest(message="hi", agents=["good"], thread=SECRET),
    ],
    ids=["channel", "thread"],
)
async def test_an_id_of_the_callers_that_a_rule_forbids_is_refused(request_: StartRequest) -> None:
    rules = Rules.compile(
        {"keys": GuardrailRule(pattern="sk-[A-Za-z0-9]{20,}", stage=("input",))}, base=Path()
    )

    def of(agent: Agent, run: str, channel: str) -> Guard:
        return rules.guard(run=run, channel=channel, refusal="No.")

    async with harness(says("good", "fine"), guard_for=of) as h:
        with pytest.raises(BadRequest) as refused:
            await h.engine.start_run(request_)
        assert refused.value.code == "id_blocked"
        assert SECRET not in str(refused.value)

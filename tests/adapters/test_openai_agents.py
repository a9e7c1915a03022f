"""The real OpenAI Agents SDK against a local OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, OpenAIChatCompletionsModel, function_tool, input_guardrail, output_guardrail
from agents.guardrail import GuardrailFunctionOutput
from openai import AsyncOpenAI

from mux.adapters import adapt
from mux.adapters._openai_agents_events import OpenCall
from mux.adapters.openai_agents import OpenAIAgentsAgent, _stopped
from mux.agent import Decision, Draft, Message, MessageCall, Nested, Steering, Verdict
from mux.errors import AgentError, ConfigError, MuxError, UpstreamError
from mux.events import (
    Body,
    Custom,
    GuardrailHit,
    Phase,
    StepFinished,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
    Usage,
)
from tests.support.fake_host import FakeHost, bodies_of, collect, context, outcome_of
from tests.support.fake_openai import FakeOpenAI, serving, text_chunks, tool_chunks
from tests.support.legal import play

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # the SDK reads its own files and sources on the loop
]


@function_tool
async def get_weather(city: str) -> str:
    """Say the weather."""
    return f"rain in {city}"


@asynccontextmanager
async def sdk(*turns: Sequence[Any], **options: Any) -> AsyncIterator[tuple[FakeOpenAI, Agent[Any]]]:
    """An endpoint with a script, and an SDK agent that uses it."""
    async with serving(*turns) as fake, AsyncOpenAI(base_url=fake.url, api_key="k", max_retries=0) as client:
        model = OpenAIChatCompletionsModel(model="fake-1", openai_client=client)
        yield fake, Agent(**{"name": "helper", "instructions": "Be short.", "model": model, **options})


def only(drafts: Sequence[Draft], kind: type[Any]) -> list[Any]:
    return [d for d in drafts if isinstance(d, kind)]


def types(drafts: Sequence[Draft]) -> list[str]:
    return [b.type for b in bodies_of(drafts)]


async def until_failure(agent: Agent[Any]) -> tuple[list[Draft], MuxError]:
    seen: list[Draft] = []
    try:
        async for draft in OpenAIAgentsAgent(agent).run(context()):
            seen.append(draft)  # noqa: PERF401 - what came before the failure counts
    except MuxError as error:
        play(seen, failed=True)
        return seen, error
    raise AssertionError("it did not fail")


async def test_text_streams_as_tokens_with_usage_and_measures() -> None:
    async with sdk(text_chunks("Good", "bye")) as (fake, agent):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context("Say goodbye")))
    play(drafts)
    assert [t.content for t in only(drafts, Token)] == ["Good", "bye"]
    assert [p.phase for p in only(drafts, Phase)] == ["thinking", "responding"]
    assert only(drafts, StepStarted)[0].model == "fake-1"
    outcome = outcome_of(drafts)
    assert (outcome.status, outcome.output) == ("completed", "Goodbye")
    assert outcome.usage == Usage(input_tokens=7, output_tokens=3)
    assert outcome.ttft_ms is not None
    assert fake.requests[0]["messages"][0]["content"] == "Be short."


async def test_a_token_is_passed_on_before_the_turn_is_over() -> None:
    gate = asyncio.Event()
    chunks = text_chunks("first", " second")
    async with sdk([chunks[0], gate, *chunks[1:]]) as (_, agent):
        async for draft in OpenAIAgentsAgent(agent).run(context()):
            if isinstance(draft, Token) and draft.content == "first":
                assert not gate.is_set()
                gate.set()


async def test_a_tool_call_has_name_arguments_and_output_and_its_arguments_are_no_text() -> None:
    turns = [tool_chunks(("c1", "get_weather", '{"city": "Oslo"}')), text_chunks("It rains.")]
    async with sdk(*turns, tools=[get_weather]) as (_, agent):
        wrapped = OpenAIAgentsAgent(agent)
        drafts = await collect(wrapped.run(context()))
    play(drafts)
    assert wrapped.tools == ("get_weather",)
    (call,), (start,), (result,) = only(drafts, ToolCall), only(drafts, ToolStart), only(drafts, ToolResult)
    assert call.tool == "get_weather"
    assert call.call_id == start.call_id == result.call_id != "c1"
    assert "".join(a.content for a in only(drafts, ToolArgs)) == '{"city": "Oslo"}'
    assert start.arguments == {"city": "Oslo"}
    assert (result.output, result.is_error) == ("rain in Oslo", False)
    assert "".join(t.content for t in only(drafts, Token)) == "It rains."
    seen = types(drafts)
    assert seen.index("step_finished") < seen.index("tool_start") < seen.index("tool_result")
    assert [f.step for f in only(drafts, StepFinished)] == [1, 2]
    assert outcome_of(drafts).usage == Usage(input_tokens=14, output_tokens=6)


async def test_parallel_calls_each_get_their_result() -> None:
    calls = [("c1", "get_weather", '{"city": "Oslo"}'), ("c2", "get_weather", '{"city": "Rome"}')]
    async with sdk(tool_chunks(*calls), text_chunks("ok"), tools=[get_weather]) as (_, agent):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context()))
    play(drafts)
    assert sorted(r.output for r in only(drafts, ToolResult)) == ["rain in Oslo", "rain in Rome"]


async def test_a_tool_that_raises_is_a_tool_error_and_the_run_goes_on() -> None:
    @function_tool
    async def broken() -> str:
        """Fail."""
        raise RuntimeError("secret detail")

    async with sdk(tool_chunks(("c1", "broken", "{}")), text_chunks("Sorry."), tools=[broken]) as (_, agent):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context()))
    (result,) = only(drafts, ToolResult)
    assert (result.is_error, result.error) == (True, "tool_failed")
    assert outcome_of(drafts).output == "Sorry."


async def test_a_silent_tool_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.adapters.openai_agents._HEARTBEAT_S", 0.02)
    seen = asyncio.Event()

    @function_tool
    async def slow() -> str:
        """Wait until progress was seen."""
        await seen.wait()
        return "done"

    drafts: list[Draft] = []
    async with sdk(tool_chunks(("c1", "slow", "{}")), text_chunks("ok"), tools=[slow]) as (_, agent):
        async for draft in OpenAIAgentsAgent(agent).run(context()):
            drafts.append(draft)
            if isinstance(draft, ToolProgress):
                seen.set()
    play(drafts)
    assert only(drafts, ToolProgress)


async def test_cancelling_closes_the_endpoints_stream() -> None:
    async with sdk([text_chunks("a")[0], asyncio.Event()]) as (fake, agent):
        task = asyncio.create_task(collect(OpenAIAgentsAgent(agent).run(context())))
        await fake.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(fake.gone.wait(), 5)


async def test_cancelling_stops_a_running_tool() -> None:
    running, stopped = asyncio.Event(), asyncio.Event()

    @function_tool
    async def forever() -> str:
        """Never end."""
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    async with sdk(tool_chunks(("c1", "forever", "{}")), tools=[forever]) as (_, agent):
        task = asyncio.create_task(collect(OpenAIAgentsAgent(agent).run(context())))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(stopped.wait(), 5)


@pytest.mark.parametrize(
    ("status", "code"),
    [(429, "rate_limited"), (401, "upstream_rejected"), (500, "upstream_error")],
)
async def test_an_endpoint_that_fails_is_told_by_its_class_and_never_in_its_words(
    status: int, code: str
) -> None:
    async with sdk([status]) as (_, agent):
        _, error = await until_failure(agent)
    assert isinstance(error, UpstreamError)
    assert error.code == code
    assert "SECRET" not in str(error)


async def test_an_endpoint_that_is_not_there_is_unavailable() -> None:
    async with AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0) as client:
        agent = Agent(name="x", model=OpenAIChatCompletionsModel(model="m", openai_client=client))
        with pytest.raises(UpstreamError) as caught:
            await collect(OpenAIAgentsAgent(agent).run(context()))
    assert caught.value.code == "upstream_unavailable"


async def test_open_calls_are_closed_before_a_failure() -> None:
    turns = [tool_chunks(("c1", "no_such_tool", "{}"))]
    async with sdk(*turns) as (_, agent):
        seen, error = await until_failure(agent)
    assert isinstance(error, AgentError)
    assert len(only(seen, ToolResult)) == len(only(seen, ToolCall)) == 1


async def test_a_hand_over_shows_the_next_agents_work_under_its_name() -> None:
    turns = [tool_chunks(("c1", "transfer_to_billing", "{}")), text_chunks("Paid.")]
    async with sdk(*turns) as (_, agent):
        billing = Agent(name="billing", instructions="Bill.", model=agent.model)
        drafts = await collect(OpenAIAgentsAgent(agent.clone(handoffs=[billing])).run(context()))
    play(drafts)
    nested = [d for d in drafts if isinstance(d, Nested)]
    assert {n.path for n in nested} == {("billing",)}
    assert [n.body.content for n in nested if isinstance(n.body, Token)] == ["Paid."]
    (hand_over,) = only(drafts, Custom)
    assert hand_over.value == {"from": "helper", "to": "billing"}
    assert len(only(drafts, ToolResult)) == 1
    assert outcome_of(drafts).output == "Paid."


async def test_history_overrides_and_late_messages_reach_the_sdk() -> None:
    host = FakeHost()
    host.at_end = [Steering(message_id="1", content="And in French?", mode="queue")]
    history = (
        Message(role="user", content="Weather?"),
        Message(role="assistant", calls=(MessageCall(call_id="k1", tool="get_weather", arguments="{}"),)),
        Message(role="tool", content="rain", call_id="k1"),
        Message(role="assistant", content="Rain."),
        Message(role="user", content=[{"type": "text", "text": "Sure?"}]),
    )
    async with sdk(text_chunks("Yes."), text_chunks("Oui.")) as (fake, agent):
        drafts = await collect(
            OpenAIAgentsAgent(agent).run(
                context(
                    host=host,
                    messages=history,
                    model="fake-2",
                    instructions="Be kind.",
                    params={"temperature": 0.5},
                )
            )
        )
    first, second = fake.requests
    assert [m["role"] for m in first["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "user",
    ]  # fmt: skip
    assert first["messages"][0]["content"] == "Be kind."
    assert (first["temperature"], first["model"]) == (0.5, "fake-2")
    assert second["messages"][-1]["content"] == "And in French?"
    assert outcome_of(drafts).output == "Oui."
    play(drafts)


async def test_only_the_chosen_tools_are_offered_to_the_model() -> None:
    @function_tool
    async def send_mail(to: str) -> str:
        """Send a mail."""
        return to

    async with sdk(text_chunks("Yes."), text_chunks("No."), tools=[get_weather, send_mail]) as (fake, agent):
        for tools in (["get_weather"], []):
            await collect(OpenAIAgentsAgent(agent).run(context(tools=frozenset(tools))))
    first, second = fake.requests
    assert [t["function"]["name"] for t in first["tools"]] == ["get_weather"]
    assert "tools" not in second


async def test_turns_budgets_and_graceful_stops_end_it_cleanly() -> None:
    turn = tool_chunks(("c1", "get_weather", '{"city": "Oslo"}'))
    again = tool_chunks(("c2", "get_weather", '{"city": "Rome"}'))
    async with sdk(turn, again, tools=[get_weather]) as (_, agent):
        drafts = await collect(OpenAIAgentsAgent(agent, max_turns=1).run(context()))
        play(drafts)
        assert outcome_of(drafts).status == "budget_exceeded"
    for field, value, status in (("budget", "cost", "budget_exceeded"), ("stopping", True, "cancelled")):
        host = FakeHost()
        setattr(host, field, value)
        async with sdk(turn, again, tools=[get_weather]) as (fake, agent):
            drafts = await collect(OpenAIAgentsAgent(agent).run(context(host=host)))
            play(drafts)
            assert only(drafts, ToolResult)[0].output == "rain in Oslo"
            assert outcome_of(drafts).status == status
            assert len(fake.requests) == 1


async def test_a_guardrail_of_the_sdk_refuses() -> None:
    @input_guardrail
    async def never(ctx: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    async with sdk(text_chunks("x"), input_guardrails=[never]) as (_, agent):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context()))
    assert outcome_of(drafts).status == "refused"


async def test_what_an_output_guardrail_stops_leaves_no_trace() -> None:
    @output_guardrail
    async def never(ctx: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered="secret" in output)

    async with sdk(text_chunks("the ", "secret"), text_chunks("fine"), output_guardrails=[never]) as (
        _,
        agent,
    ):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context()))
        play(drafts)
        assert "secret" not in str(drafts)
        assert outcome_of(drafts).status == "refused"
        (hit,) = only(drafts, GuardrailHit)
        assert (hit.rule, hit.stage, hit.action) == ("never", "output", "blocked")
        drafts = await collect(OpenAIAgentsAgent(agent).run(context()))
        play(drafts)
        assert [t.content for t in only(drafts, Token)] == ["fine"]


@pytest.mark.parametrize(("decision", "output"), [("approve", "rain in Oslo"), ("deny", "not today")])
async def test_a_tool_that_needs_approval_waits_for_a_person(decision: Any, output: str) -> None:
    @function_tool(needs_approval=True)
    async def get_weather(city: str) -> str:
        """Say the weather."""
        return f"rain in {city}"

    host = FakeHost()
    host.decisions = [Decision(decision=decision, by="ann", reason="not today")]
    turns = [tool_chunks(("c1", "get_weather", '{"city": "Oslo"}')), text_chunks("ok")]
    async with sdk(*turns, tools=[get_weather]) as (_, agent):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context(host=host)))
    play(drafts)
    ((call_id, tool, arguments),) = host.approvals
    assert (tool, arguments) == ("get_weather", {"city": "Oslo"})
    (result,) = only(drafts, ToolResult)
    assert (result.call_id, result.output) == (call_id, output)
    assert len(only(drafts, ToolStart)) == (decision == "approve")
    assert outcome_of(drafts).output == "ok"


async def test_a_call_that_can_not_start_took_no_time() -> None:
    turns = [tool_chunks(("c1", "get_weather", '{"cty":')), text_chunks("x")]
    async with sdk(*turns, tools=[get_weather]) as (_, agent):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context()))
    assert only(drafts, ToolResult)[0].elapsed_ms == 0


class _Guard:
    async def input(self, text: str) -> Verdict:
        return Verdict("pass", text)

    async def tool_input(self, tool: str, arguments: dict[str, Any]) -> Verdict:
        return Verdict("blocked", None, ("r",)) if "Rome" in str(arguments) else Verdict("pass", arguments)

    async def tool_output(self, tool: str, output: str, data: Any = None) -> Verdict:
        return Verdict("blocked", None, ("r",))

    def stream(self, drafts: AsyncIterator[Draft]) -> AsyncIterator[Draft]:
        return drafts


@pytest.mark.parametrize(("city", "status"), [("Oslo", "completed"), ("Rome", "refused")])
async def test_our_guardrails_hold_for_its_tools(city: str, status: str) -> None:
    host = FakeHost()
    turns = [tool_chunks(("c1", "get_weather", f'{{"city": "{city}"}}')), text_chunks("ok")]
    async with sdk(*turns, tools=[get_weather]) as (_, agent):
        drafts = await collect(OpenAIAgentsAgent(agent).run(context(host=host, guard=_Guard())))
    assert outcome_of(drafts).status == status
    (result,) = only(drafts, ToolResult)
    assert result.error == "blocked"
    shown: list[Body] = [b for b in bodies_of(drafts) if not isinstance(b, ToolArgs | ToolStart)]
    assert "rain in" not in str(shown)


def test_an_sdk_agent_is_wrapped_by_its_class_and_named_so_that_a_roster_can_hold_it() -> None:
    wrapped = adapt(Agent(name="Prüf Agent!", instructions="Check things.\nAll."))
    assert isinstance(wrapped, OpenAIAgentsAgent)
    assert (wrapped.name, wrapped.description) == ("Pr-f-Agent", "Check things.")
    assert adapt(42) == 42


def test_without_the_sdk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mux.adapters.openai_agents")
    monkeypatch.setitem(sys.modules, "agents", None)
    with pytest.raises(ConfigError, match=r'pip install "mux-agents\[openai-agents\]"'):
        import mux.adapters.openai_agents  # noqa: F401 - the import is what is tested


def test_arguments_nested_without_end_are_no_object_and_no_failure_of_the_agent() -> None:
    assert OpenCall("c", "t", (), raw=['{"a":' + "[" * 100_000]).arguments() is None


async def test_a_stream_that_can_not_be_closed_is_told_without_the_endpoint_s_words() -> None:
    class Broken:
        def __aiter__(self) -> Broken:
            return self

        async def __anext__(self) -> Any:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            raise RuntimeError("Incorrect API key provided: sk-canary")

    result: Any = SimpleNamespace(run_loop_task=None)
    with pytest.raises(AgentError, match="RuntimeError") as error:
        await _stopped(result, Broken())
    assert "sk-canary" not in error.value.message

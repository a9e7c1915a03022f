"""The model ↔ tool loop against a scripted model and host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest

from mux.agent import Budget, ClientTool, Decision, Draft, Message, PendingCall, Resume, Steering, Verdict
from mux.errors import AgentError, ConfigError, UpstreamError
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Custom,
    GuardrailHit,
    Phase,
    Reasoning,
    Retry,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
    Usage,
    UsageReport,
)
from mux.llm.agent import LlmAgent
from mux.llm.loop import backoff
from mux.llm.model import (
    CallArgs,
    CallBegan,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TextWasThought,
    TurnEnd,
)
from mux.settings import Price, Provider
from mux.tools.base import Tool, ToolContext
from mux.tools.decorator import tool
from tests.support.fake_host import FakeHost, as_event, bodies_of, collect, context, outcome_of, runtime
from tests.support.fake_model import FakeModel, call, says, turn
from tests.support.legal import play

pytestmark = pytest.mark.usefixtures("no_leaks")


@tool(idempotent=True)
async def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: one
        b: other
    """
    return str(a + b)


@tool
async def shout(text: str) -> str:
    """Shout a text."""
    return text.upper()


def agent(fake: FakeModel, *tools: Tool, options: dict[str, Any] | None = None, **fields: Any) -> LlmAgent:
    return LlmAgent(name="a", tools=tools, **fields).bind(runtime(fake, **(options or {})))


async def drafts_of(bound: LlmAgent, **fields: Any) -> list[Draft]:
    """All drafts; the run's transition table must allow them."""
    drafts = await collect(bound.run(context(**fields)))
    if "resume" not in fields:
        play(drafts)
    return drafts


def types(drafts: Sequence[Draft]) -> list[str]:
    return [b.type for b in bodies_of(drafts)]


def only(drafts: Sequence[Draft], kind: type[Any]) -> list[Any]:
    return [d for d in drafts if isinstance(d, kind)]


async def until_failure(bound: LlmAgent, **fields: Any) -> tuple[list[Draft], UpstreamError]:
    seen: list[Draft] = []
    try:
        async for draft in bound.run(context(**fields)):
            seen.append(as_event(draft))  # noqa: PERF401 - what came before the failure counts
    except UpstreamError as error:
        play(seen, failed=True)
        return seen, error
    raise AssertionError("it did not fail")


# --- answers ----------------------------------------------------------------------------------------------


async def test_an_answer_is_one_step_with_phases_and_measures() -> None:
    usage = Usage(input_tokens=10, output_tokens=20)
    model = FakeModel(
        [ReasoningDelta("Hm."), *says("Hello there", usage=usage, ttft_ms=42, generation_ms=1000)]
    )
    drafts = await drafts_of(agent(model, instructions="Be kind."))
    assert types(drafts) == [
        "step_started", "phase", "reasoning", "phase", "token", "token", "step_finished", "usage",
    ]  # fmt: skip
    assert [p.phase for p in only(drafts, Phase)] == ["thinking", "responding"]
    outcome = outcome_of(drafts)
    assert (outcome.status, outcome.output) == ("completed", "Hello there")
    assert (outcome.usage, outcome.ttft_ms, outcome.tokens_per_s) == (usage, 42, 20.0)
    assert [m.role for m in model.requests[0].messages] == ["system", "user"]
    assert model.requests[0].model == "m"
    assert model.closed == 1


async def test_a_delta_is_passed_on_before_the_next_one_exists() -> None:
    gate = asyncio.Event()
    model = FakeModel([TextDelta("first"), gate, TextDelta(" second"), TurnEnd("stop")])
    async with aclosing(cast("Any", agent(model).run(context()))) as drafts:
        async for draft in drafts:
            if isinstance(draft, Token):
                assert draft.content == "first"
                break
    assert not gate.is_set()
    assert model.closed == 1


async def test_overrides_of_the_request_win() -> None:
    model = FakeModel(says("ok"))
    bound = agent(model, instructions="Own.", model="x:own", params={"temperature": 1, "top_p": 0.5})
    drafts = await drafts_of(bound, model="x:other", instructions="Given.", params={"temperature": 0})
    request = model.requests[0]
    assert request.model == "other"
    assert request.messages[0].text == "Given."
    assert request.params == {"temperature": 0, "top_p": 0.5}
    assert only(drafts, StepStarted)[0].model == "x:other"


async def test_an_agent_with_an_unknown_model_runs_on_the_default_but_a_requested_one_must_exist() -> None:
    bound = agent(FakeModel(says("ok")), model="no:such")
    drafts = await drafts_of(bound)
    assert only(drafts, StepStarted)[0].model == "fake:m"
    with pytest.raises(ConfigError):
        bound.run(context(model="no:such"))


async def test_an_unbound_agent_says_what_to_do() -> None:
    with pytest.raises(AgentError, match="bind"):
        LlmAgent(name="a").run(context())


async def test_cost_comes_from_the_price() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cached_tokens=500_000)
    prices = {"fake:m": Price(input=2, output=4, cached=1, currency="EUR")}
    drafts = await drafts_of(agent(FakeModel(says("ok", usage=usage)), options={"prices": prices}))
    report = only(drafts, UsageReport)[0]
    assert (report.cost, report.currency) == (5.5, "EUR")


@pytest.mark.parametrize(
    ("steps", "output"),
    [
        ([RefusalDelta("I can't."), TurnEnd("stop")], "I can't."),
        ([TextDelta("Step one: "), TurnEnd("content_filter")], "Step one: "),
    ],
)
async def test_a_refusal_and_a_content_filter_end_as_refused(steps: list[Any], output: str) -> None:
    outcome = outcome_of(await drafts_of(agent(FakeModel(steps))))
    assert (outcome.status, outcome.output) == ("refused", output)


async def test_a_reply_cut_by_length_completes_with_its_text() -> None:
    drafts = await drafts_of(agent(FakeModel(says("half an answer that", finish="length"))))
    assert outcome_of(drafts).output == "half an answer that"
    assert only(drafts, StepFinished)[0].finish_reason == "length"


# --- tools ------------------------------------------------------------------------------------------------


async def test_a_tool_runs_after_its_step_and_its_result_goes_to_the_model() -> None:
    model = FakeModel(
        turn(call(0, "add", '{"a": 1, "b": 2}'), text="Adding.", provider_items=["sig"]), says("3")
    )
    drafts = await drafts_of(agent(model, add))
    seen = types(drafts)
    assert seen.index("tool_call") < seen.index("tool_args") < seen.index("step_finished")
    assert seen.index("step_finished") < seen.index("tool_start") < seen.index("tool_result")
    started, result = only(drafts, ToolStart)[0], only(drafts, ToolResult)[0]
    assert started.arguments == {"a": 1, "b": 2}
    assert (result.output, result.is_error, result.call_id) == ("3", False, started.call_id)
    assert [p.phase for p in only(drafts, Phase)] == [
        "thinking", "responding", "tool_executing", "thinking", "responding",
    ]  # fmt: skip
    said, got = model.requests[1].messages[-2:]
    assert (said.role, said.text, said.provider_items, said.provider) == (
        "assistant",
        "Adding.",
        ["sig"],
        "fake",
    )
    assert (got.role, got.text, got.call_id) == ("tool", "3", said.calls[0].call_id)
    assert model.requests[1].tools[0].name == "add"


async def test_parallel_calls_overlap_and_results_keep_the_order_of_the_calls_for_the_model() -> None:
    first_may_end = asyncio.Event()

    @tool
    async def slow() -> str:
        """Wait for the other."""
        await first_may_end.wait()
        return "slow"

    @tool
    async def quick() -> str:
        """Let the other go."""
        first_may_end.set()
        return "quick"

    model = FakeModel(turn(call(0, "slow"), call(1, "quick")), says("done"))
    drafts = await drafts_of(agent(model, slow, quick))
    assert sorted(r.output for r in only(drafts, ToolResult)) == ["quick", "slow"]
    assert [m.text for m in model.requests[1].messages[-2:]] == ["slow", "quick"]


@pytest.mark.parametrize(
    ("bad", "error", "hint"),
    [
        (call(0, "__class__"), "unknown_tool", "add"),
        (call(0, "add", '{"a": }', error="invalid_json"), "invalid_arguments", "not valid JSON"),
        (call(0, "add", "[1]", error="not_an_object"), "invalid_arguments", "one JSON object"),
        (call(0, "add", '{"a": 1', error="truncated"), "invalid_arguments", "cut off"),
        (call(0, "add", '{"a": "x", "b": 2}'), "invalid_arguments", "a"),
    ],
)
async def test_a_bad_call_does_not_run_and_goes_back_to_the_model(bad: Any, error: str, hint: str) -> None:
    model = FakeModel(turn(bad), says("sorry"))
    drafts = await drafts_of(agent(model, add))
    assert not only(drafts, ToolStart)
    (result,) = only(drafts, ToolResult)
    assert (result.is_error, result.error) == (True, error)
    assert hint in result.output
    back = model.requests[1].messages[-1]
    assert (back.text, back.is_error) == (result.output, True)


async def test_closing_the_agent_stops_its_tools() -> None:
    stopped = asyncio.Event()

    @tool
    async def forever(ctx: ToolContext) -> str:
        """Never end."""
        try:
            await ctx.progress("working")
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    bound = agent(FakeModel(turn(call(0, "forever"))), forever)
    async with aclosing(cast("Any", bound.run(context()))) as drafts:
        async for draft in drafts:
            if isinstance(draft, ToolProgress):
                break
    assert stopped.is_set()


@pytest.mark.parametrize("how", ["closed", "cancelled", "interrupted"])
async def test_a_stopped_tool_is_waited_for_until_it_has_cleaned_up(how: str) -> None:
    cleaned: list[str] = []

    @tool
    async def careful(ctx: ToolContext) -> str:
        """Never end, and clean up slowly."""
        try:
            await ctx.progress("working")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.append("done")
        return ""

    host = FakeHost()
    bound = agent(FakeModel(turn(call(0, "careful"), call(1, "careful")), says("ok")), careful)
    working = asyncio.Event()

    async def go() -> None:
        async with aclosing(cast("Any", bound.run(context(host=host)))) as drafts:
            async for draft in drafts:
                if isinstance(draft, ToolResult):
                    assert cleaned, "its result says that it was stopped"
                if isinstance(draft, ToolProgress):
                    working.set()
                    if how == "closed":
                        return
                    if how == "interrupted" and not host.between:
                        host.interrupt("Stop.")

    task = asyncio.create_task(go())
    await working.wait()
    if how == "cancelled":
        task.cancel()
    await asyncio.wait({task})
    assert cleaned


async def test_cancelling_the_task_closes_the_model_stream() -> None:
    model = FakeModel([TextDelta("a"), asyncio.Event()])
    task = asyncio.create_task(drafts_of(agent(model)))
    await model.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.closed == 1


# --- guardrails and approval ------------------------------------------------------------------------------


class StrictGuard:
    """Masks ``mask`` and blocks ``block`` in tool input and output."""

    async def input(self, text: str) -> Verdict:
        return Verdict("pass", text)

    async def tool_input(self, tool: str, arguments: dict[str, Any]) -> Verdict:
        if "block" in str(arguments):
            return Verdict("blocked", None, ("no-block",))
        if "mask" in str(arguments):
            return Verdict("masked", {"text": "***"}, ("no-mask",))
        return Verdict("pass", arguments)

    async def tool_output(self, tool: str, output: str, data: Any = None) -> Verdict:
        if "SECRET" in output:
            return Verdict("blocked", None, ("no-secret",))
        if "NAME" in output:
            return Verdict("masked", ("[masked]", None), ("no-name",))
        return Verdict("pass", (output, data))

    def stream(self, drafts: AsyncIterator[Draft]) -> AsyncIterator[Draft]:
        return drafts


@pytest.mark.parametrize(
    ("text", "output", "hit"),
    [
        ("block it", None, ("no-block", "tool_input", "blocked")),
        ("mask it", "***", ("no-mask", "tool_input", "masked")),
        ("a secret", None, ("no-secret", "tool_output", "blocked")),
        ("a name", "[masked]", ("no-name", "tool_output", "masked")),
    ],
)
async def test_guardrails_hold_at_both_ends_of_a_tool(
    text: str, output: str | None, hit: tuple[str, str, str]
) -> None:
    model = FakeModel(turn(call(0, "shout", f'{{"text": "{text}"}}')), says("ok"))
    drafts = await drafts_of(agent(model, shout), guard=StrictGuard())
    (result,) = only(drafts, ToolResult)
    (seen,) = only(drafts, GuardrailHit)
    assert (seen.rule, seen.stage, seen.action) == hit
    assert result.error == ("blocked" if output is None else None)
    assert output is None or result.output == output
    assert "SECRET" not in model.requests[1].messages[-1].text
    assert model.requests[1].messages[-1].text == result.output


class BrokenGuard(StrictGuard):
    async def tool_output(self, tool: str, output: str, data: Any = None) -> Verdict:
        raise RuntimeError("broken rule")


async def test_a_guardrail_that_fails_blocks() -> None:
    model = FakeModel(turn(call(0, "shout", '{"text": "hi"}')), says("ok"))
    (result,) = only(await drafts_of(agent(model, shout), guard=BrokenGuard()), ToolResult)
    assert result.error == "blocked"
    assert "HI" not in result.output


@tool(approval="always")
async def delete(path: str) -> str:
    """Delete a file."""
    return f"deleted {path}"


async def test_an_approved_call_runs_an_edited_one_with_the_new_arguments_and_a_denied_one_not() -> None:
    host = FakeHost()
    host.decisions = [
        Decision(decision="approve", by="ann"),
        Decision(decision="edit", by="ann", arguments={"path": "safe"}),
        Decision(decision="deny", by="ann", reason="too risky"),
        Decision(decision="expired", by="expiry"),
        Decision(decision="edit", by="ann", arguments={"nonsense": 1}),
    ]
    model = FakeModel(*[turn(call(0, "delete", '{"path": "p"}')) for _ in range(5)], says("ok"))
    drafts = await drafts_of(agent(model, delete), host=host)
    assert not only(drafts, ApprovalRequested), "the host shows those"
    assert [s.arguments for s in only(drafts, ToolStart)] == [{"path": "p"}, {"path": "safe"}]
    results = only(drafts, ToolResult)
    assert [r.error for r in results] == [None, None, "denied", "denied", "invalid_arguments"]
    assert results[1].output == "deleted safe"
    assert "too risky" in results[2].output


async def test_a_tool_that_needs_approval_once_asks_once() -> None:
    host = FakeHost()
    host.decisions = [Decision(decision="approve", by="ann")]

    @tool(approval="once")
    async def send() -> str:
        """Send it."""
        return "sent"

    model = FakeModel(turn(call(0, "send"), call(1, "send")), turn(call(0, "send")), says("ok"))
    drafts = await drafts_of(agent(model, send), host=host)
    assert [r.output for r in only(drafts, ToolResult)] == ["sent", "sent", "sent"]
    assert len(host.approvals) == 1


async def test_a_channel_that_was_taken_up_again_does_not_ask_again_for_what_was_approved_once() -> None:
    host = FakeHost()

    @tool(approval="once")
    async def send() -> str:
        """Send it."""
        return "sent"

    resume = Resume(step=1, approved=frozenset({"send"}))
    drafts = await drafts_of(
        agent(FakeModel(turn(call(0, "send")), says("ok")), send), host=host, resume=resume
    )
    assert [r.output for r in only(drafts, ToolResult)] == ["sent"]
    assert host.approvals == []


# --- failure, retries -------------------------------------------------------------------------------------


def broke(code: str = "upstream_unavailable", **fields: Any) -> UpstreamError:
    return UpstreamError(code, "It broke.", **{"retryable": True, **fields})


async def test_a_step_of_which_nothing_was_shown_is_tried_again() -> None:
    slept: list[float] = []
    model = FakeModel([broke()], [broke("rate_limited", retry_after=1.5)], says("ok"))
    drafts = await drafts_of(agent(model, options={"slept": slept}))
    assert [(r.attempt, r.reason, r.delay_ms) for r in only(drafts, Retry)] == [
        (2, "upstream_unavailable", 250),
        (3, "rate_limited", 1500),
    ]
    assert slept == [0.25, 1.5]
    assert len(only(drafts, StepStarted)) == 1
    assert outcome_of(drafts).output == "ok"


@pytest.mark.parametrize(
    ("failures", "requests"),
    [
        ([broke(retryable=False)], 1),
        ([broke(retry_after=60)], 1),
        ([broke() for _ in range(9)], 3),
        ([broke(retry_after=9) for _ in range(9)], 3),
    ],
)
async def test_retries_end_with_the_code_of_the_last_error(failures: list[Any], requests: int) -> None:
    model = FakeModel(*[[f] for f in failures])
    provider = Provider(base_url="http://x", max_retries=2)
    _, error = await until_failure(agent(model, options={"provider": provider}))
    assert error.code == "upstream_unavailable"
    assert len(model.requests) == requests


async def test_what_was_shown_is_not_tried_again_and_open_calls_are_closed_first() -> None:
    model = FakeModel([TextDelta("a"), CallBegan(0, "add"), CallArgs(0, '{"a"'), broke("upstream_truncated")])
    drafts, error = await until_failure(agent(model, add))
    assert error.code == "upstream_truncated"
    assert types(drafts)[-3:] == ["tool_call", "tool_args", "tool_result"]
    assert drafts[-1].error == "interrupted"  # type: ignore[union-attr]
    assert len(model.requests) == 1


async def test_an_agent_that_allows_it_takes_back_a_broken_step_once() -> None:
    model = FakeModel([TextDelta("wro"), broke("upstream_stall")], says("right"))
    drafts = await drafts_of(agent(model, retry_after_reset=True))
    assert [b.step for b in only(drafts, StepReset)] == [1]
    seen = types(drafts)
    assert seen[seen.index("step_reset") + 1] == "step_started"
    assert outcome_of(drafts).output == "right"

    twice = FakeModel([TextDelta("a"), broke()], [TextDelta("b"), broke()], says("c"))
    _, error = await until_failure(agent(twice, retry_after_reset=True))
    assert error.code == "upstream_unavailable"


async def test_an_empty_turn_is_an_error_and_not_an_answer() -> None:
    empty = [TurnEnd("stop")]
    model = FakeModel(empty, empty, empty, empty)
    _, error = await until_failure(agent(model))
    assert error.code == "upstream_empty"
    _, error = await until_failure(agent(FakeModel([ReasoningDelta("…"), TurnEnd("length")])))
    assert "max_tokens" in error.message


def test_backoff_doubles_has_jitter_and_never_waits_less_than_asked() -> None:
    assert [backoff(n, None, 1.0) for n in (1, 2, 3, 9)] == [0.5, 1.0, 2.0, 8.0]
    assert backoff(1, None, 0.0) == 0.25
    assert 3.0 <= backoff(1, 3.0, 0.7) < 3.3


# --- stopping, steering, budgets --------------------------------------------------------------------------


async def test_a_graceful_stop_lets_the_step_and_its_tools_end() -> None:
    host = FakeHost()
    model = FakeModel(turn(call(0, "add", '{"a": 1, "b": 2}')), says("never"))
    bound = agent(model, add)
    drafts: list[Draft] = []
    async for draft in bound.run(context(host=host)):
        drafts.append(draft)
        host.stopping = True
    assert only(drafts, ToolResult)[0].output == "3"
    assert outcome_of(drafts).status == "cancelled"
    assert len(model.requests) == 1


async def test_steering_is_heard_between_steps_and_at_the_end() -> None:
    host = FakeHost()
    host.between = [Steering(message_id="1", content="In French.", mode="steer")]
    host.at_end = [Steering(message_id="2", content="And now?", mode="queue")]
    model = FakeModel(turn(call(0, "add", '{"a": 1, "b": 2}')), says("trois"), says("quatre"))
    drafts = await drafts_of(agent(model, add), host=host)
    assert model.requests[1].messages[-1].text == "In French."
    assert [m.text for m in model.requests[2].messages[-2:]] == ["trois", "And now?"]
    assert outcome_of(drafts).output == "quatre"


async def test_an_interrupt_cuts_a_silent_turn_short_and_keeps_what_was_said() -> None:
    host = FakeHost()
    model = FakeModel([TextDelta("Once upon"), CallBegan(0, "add"), asyncio.Event()], says("Short."))
    task = asyncio.create_task(drafts_of(agent(model, add), host=host))
    await model.reached.wait()
    host.interrupt("Shorter!")
    drafts = await task
    finished = only(drafts, StepFinished)
    assert [f.finish_reason for f in finished] == ["interrupted", "stop"]
    assert only(drafts, ToolResult)[0].error == "interrupted"
    assert [m.text for m in model.requests[1].messages[-2:]] == ["Once upon", "Shorter!"]
    assert model.closed == 2
    assert outcome_of(drafts).output == "Short."


async def test_an_interrupt_stops_running_tools() -> None:
    host = FakeHost()
    running = asyncio.Event()

    @tool
    async def forever() -> str:
        """Never end."""
        running.set()
        await asyncio.Event().wait()
        return ""

    model = FakeModel(turn(call(0, "forever"), call(1, "add", '{"a": 1, "b": 2}')), says("ok"))
    task = asyncio.create_task(drafts_of(agent(model, forever, add), host=host))
    await running.wait()
    host.interrupt("Stop that.")
    results = {r.tool: r for r in only(await task, ToolResult)}
    assert results["forever"].error == "interrupted"
    assert len(results) == 2
    assert model.requests[1].messages[-1].text == "Stop that."


async def test_an_interrupt_withdraws_the_question_whether_a_call_may_run() -> None:
    asked = asyncio.Event()

    class Asking(FakeHost):
        async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    host = Asking()
    model = FakeModel(turn(call(0, "delete", '{"path": "p"}')), says("ok"))
    task = asyncio.create_task(collect(agent(model, delete).run(context(host=host))))
    await asked.wait()
    host.interrupt("Leave it.")
    drafts = await task
    seen = types(drafts)
    assert seen[seen.index("tool_result") - 1] == "approval_resolved"
    assert only(drafts, ApprovalResolved)[0].by == "interrupt"
    assert only(drafts, ToolResult)[0].error == "interrupted"
    assert not only(drafts, ToolStart)


async def test_a_foreign_cancel_is_not_taken_for_an_interrupt() -> None:
    host = FakeHost()
    model = FakeModel([asyncio.Event()])
    task = asyncio.create_task(drafts_of(agent(model), host=host))
    await model.reached.wait()
    host.interrupt("x")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("budget", "host_says", "max_steps"),
    [
        (Budget(steps=1), None, 24),
        (Budget(tool_calls=1), None, 24),
        (Budget(tokens=5), None, 24),
        (None, "cost", 24),
        (None, None, 1),
    ],
)
async def test_the_step_that_reaches_a_budget_ends_with_its_tools(
    budget: Budget | None, host_says: str | None, max_steps: int
) -> None:
    host = FakeHost()
    host.budget = host_says
    usage = Usage(input_tokens=3, output_tokens=3)
    model = FakeModel(turn(call(0, "add", '{"a": 1, "b": 2}'), usage=usage), says("never"))
    drafts = await drafts_of(agent(model, add, max_steps=max_steps), host=host, budget=budget)
    assert only(drafts, ToolResult)[0].output == "3"
    assert outcome_of(drafts).status == "budget_exceeded"
    assert outcome_of(drafts).usage == usage


async def test_a_final_answer_in_the_last_allowed_step_is_completed() -> None:
    drafts = await drafts_of(agent(FakeModel(says("done"))), budget=Budget(steps=1))
    assert outcome_of(drafts).status == "completed"


# --- resuming ---------------------------------------------------------------------------------------------


def said(*calls: tuple[str, str]) -> Message:
    return Message.model_validate(
        {"role": "assistant", "calls": [{"call_id": i, "tool": t, "arguments": "{}"} for i, t in calls]}
    )


async def test_a_resumed_channel_settles_its_open_calls_and_goes_on_with_the_next_step() -> None:
    resume = Resume(
        step=2,
        messages=(said(("c1", "add"), ("c2", "shout"), ("c3", "shout")),),
        pending=(
            PendingCall("c1", "add", '{"a": 1, "b": 2}', started=True),
            PendingCall("c2", "shout", '{"text": "x"}', started=True),
            PendingCall("c3", "shout", '{"text": "y"}', started=False),
        ),
        usage=Usage(output_tokens=5),
    )
    model = FakeModel(says("ok", usage=Usage(output_tokens=2)))
    drafts = await drafts_of(agent(model, add, shout), resume=resume)
    assert [s.call_id for s in only(drafts, ToolStart)] == ["c3"]
    assert not only(drafts, ToolCall)
    results = {r.call_id: r for r in only(drafts, ToolResult)}
    assert (results["c1"].output, results["c3"].output) == ("3", "Y")
    assert results["c2"].error == "interrupted"
    assert only(drafts, StepStarted)[0].step == 3
    assert [m.call_id for m in model.requests[0].messages[-3:]] == ["c1", "c2", "c3"]
    assert outcome_of(drafts).usage == Usage(output_tokens=7)


async def test_a_resumed_call_is_read_as_it_was_before_the_crash() -> None:
    """Some endpoints say the arguments twice, or a placeholder first; all that they sent is in the log."""
    for written in ('{"a": 1, "b": 2}{"a": 1, "b": 2}', '{}{"a": 1, "b": 2}'):
        pending = (PendingCall("c1", "add", written, started=False),)
        resume = Resume(step=1, messages=(said(("c1", "add")),), pending=pending)
        drafts = await drafts_of(agent(FakeModel(says("ok")), add), resume=resume)
        assert only(drafts, ToolResult)[0].output == "3"


async def test_a_channel_that_had_only_been_steered_begins_with_what_it_was_told() -> None:
    resume = Resume(step=0, messages=(Message(role="user", content="In French."),))
    model = FakeModel(says("oui"))
    await drafts_of(agent(model), resume=resume)
    assert [m.text for m in model.requests[0].messages] == ["Do it.", "In French."]


async def test_a_channel_whose_answer_was_complete_only_ends() -> None:
    resume = Resume(step=1, messages=(Message(role="assistant", content="The end."),))
    model = FakeModel()
    drafts = await drafts_of(agent(model), resume=resume)
    assert not model.requests
    assert (outcome_of(drafts).status, outcome_of(drafts).output) == ("completed", "The end.")


# --- history ----------------------------------------------------------------------------------------------


async def test_room_is_left_for_the_answer_that_the_provider_s_settings_allow() -> None:
    old = [Message(role="user", content="old " * 900), Message(role="assistant", content="x")]
    task = Message(role="user", content="new")
    for params, trimmed in (({}, 0), ({"max_tokens": 3000}, 1)):
        provider = Provider(base_url="http://x", context_tokens=4096, params=params)
        bound = agent(FakeModel(says("ok")), options={"provider": provider})
        drafts = await drafts_of(bound, messages=(*old, task), task="new")
        assert len(only(drafts, Custom)) == trimmed


async def test_a_conversation_over_the_context_is_trimmed_and_says_so_once() -> None:
    old = [Message(role="user", content="old " * 2000), Message(role="assistant", content="x " * 2000)]
    task = Message(role="user", content="new")
    provider = Provider(base_url="http://x", context_tokens=2048)
    model = FakeModel(turn(call(0, "add", '{"a": 1, "b": 2}')), says("ok"))
    drafts = await drafts_of(
        agent(model, add, options={"provider": provider}), messages=(*old, task), task="new"
    )
    (note,) = only(drafts, Custom)
    assert note.name == "history_trimmed"
    assert note.value["messages_dropped"] == 2
    assert [m.text for m in model.requests[0].messages] == ["new"]


# --- tools of the client's ----------------------------------------------------------------------------------

LOOK_UP = ClientTool(name="look_up", description="Looks up.", parameters={"type": "object"}, strict=True)


async def test_a_call_of_a_clients_tool_goes_to_the_client_and_ends_the_channel() -> None:
    fake = FakeModel(turn(call(0, "look_up", '{"q": "x"}'), text="Let me look."))
    drafts = await drafts_of(agent(fake), client_tools=(LOOK_UP,))
    assert [(c.tool, c.client) for c in only(drafts, ToolCall)] == [("look_up", True)]
    assert only(drafts, ToolStart) == []
    assert [(r.output, r.client, r.is_error) for r in only(drafts, ToolResult)] == [("", True, False)]
    done = outcome_of(drafts)
    assert (done.status, done.finish_reason, done.output) == ("completed", "tool_calls", "Let me look.")
    assert [(t.name, t.strict) for t in fake.requests[0].tools] == [("look_up", True)]


async def test_own_calls_of_the_same_step_run_before_the_client_gets_its_own() -> None:
    fake = FakeModel(
        turn(call(0, "look_up", "not json", error="invalid_json"), call(1, "add", '{"a":1,"b":2}'))
    )
    drafts = await drafts_of(agent(fake, add), client_tools=(LOOK_UP,))
    assert [s.tool for s in only(drafts, ToolStart)] == ["add"]
    assert {r.tool: r.output for r in only(drafts, ToolResult)} == {"look_up": "", "add": "3"}
    assert len(fake.requests) == 1


async def test_a_forced_choice_of_tool_holds_for_one_call() -> None:
    fake = FakeModel(turn(call(0, "add", '{"a":1,"b":2}')), says("3"))
    await drafts_of(agent(fake, add), params={"tool_choice": "required", "seed": 7})
    assert [r.params for r in fake.requests] == [{"tool_choice": "required", "seed": 7}, {"seed": 7}]


# --- what is no text ----------------------------------------------------------------------------------------


async def test_a_picture_is_an_answer_and_its_turn_is_never_asked_for_again() -> None:
    picture = OutputDelta("image", {"url": "data:,"})
    broken = UpstreamError("upstream_truncated", "cut", retryable=True)
    drafts = await drafts_of(agent(FakeModel([picture, TurnEnd("stop")])))
    assert [(c.name, c.value) for c in only(drafts, Custom)] == [("image", {"url": "data:,"})]
    assert outcome_of(drafts).status == "completed"
    fake = FakeModel([picture, broken], says("again"))
    with pytest.raises(UpstreamError):
        await drafts_of(agent(fake))
    assert len(fake.requests) == 1


async def test_text_whose_thought_ends_without_having_begun_is_done_again_as_reasoning() -> None:
    fake = FakeModel([TextDelta("Hm."), TextWasThought(), TextDelta("Four."), TurnEnd("stop")])
    drafts = await drafts_of(agent(fake))
    at = next(i for i, d in enumerate(drafts) if isinstance(d, StepReset))
    assert [d.content for d in drafts[at:] if isinstance(d, Reasoning)] == ["Hm."]
    assert [d.content for d in drafts[at:] if isinstance(d, Token)] == ["Four."]
    assert outcome_of(drafts).output == "Four."


async def test_tokens_are_counted_here_where_the_endpoint_does_not_say() -> None:
    drafts = await drafts_of(agent(FakeModel(says("word " * 40))))
    (usage,) = only(drafts, UsageReport)
    assert usage.estimated
    assert 40 <= usage.output_tokens <= 60


async def test_a_budget_of_tokens_holds_without_reported_usage() -> None:
    steps = [turn(call(0, "add", '{"a":1,"b":2}'), text="word " * 100) for _ in range(5)]
    drafts = await drafts_of(agent(FakeModel(*steps), add), budget=Budget(tokens=200))
    assert outcome_of(drafts).status == "budget_exceeded"
    assert len(only(drafts, StepFinished)) < 4

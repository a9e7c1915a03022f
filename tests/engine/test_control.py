"""What callers do to a running run: cancel, add, retry, steer, approve; the others never notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mux.agent import AgentContext, Budget, Draft, Outcome
from mux.errors import BadRequest, Conflict, NotFound, Overloaded, StoreError
from mux.events import (
    ApprovalRequested,
    Reasoning,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolCall,
    ToolResult,
    ToolStart,
    UsageReport,
)
from mux.log import RunQuery, RunRow
from mux.log.memory import MemoryStore
from mux.requests import AddChannel, ApprovalAnswer, ChannelSpec, StartRequest, SteerRequest
from tests.support.agents import Scripted, echo, harness, says, types, until, waits

pytestmark = pytest.mark.usefixtures("no_leaks")


def start(*agents: str, **more: Any) -> StartRequest:
    return StartRequest(message="hi", agents=list(agents), **more)


async def stepping(ctx: AgentContext) -> AsyncIterator[Draft]:
    """Steps for ever, and looks at nothing: the engine must end it at a step's border."""
    step = 0
    while True:
        step += 1
        yield StepStarted(step=step)
        yield Token(content=f"{step} ")
        yield StepFinished(step=step, finish_reason="stop")
        yield UsageReport(step=step, input_tokens=10, output_tokens=5, cost=0.5)
        await asyncio.sleep(0)


async def test_cancelling_one_channel_leaves_the_others_alone() -> None:
    a, b = waits("a"), waits("b")
    async with harness(a, b) as h:
        run = (await h.engine.start_run(start("a", "b"))).row.run
        await a.started.wait()
        await b.started.wait()
        await h.engine.cancel_channel(run, "a")
        await asyncio.wait_for(a.stopped.wait(), 1)
        assert not b.stopped.is_set()
        b.release.set()
        snapshot = await h.finished(run)
        assert [c["status"] for c in snapshot["channels"]] == ["cancelled", "completed"]
        assert snapshot["status"] == "partial"
        await h.engine.cancel_channel(run, "a")  # idempotent, also on a finished run
        with pytest.raises(NotFound):
            await h.engine.cancel_channel(run, "nobody")


async def test_a_graceful_cancel_ends_an_agent_at_the_next_step() -> None:
    async with harness(Scripted("s", stepping)) as h:
        run = (await h.engine.start_run(start("s"))).row.run
        await until(lambda: len(h.published[run]) > 10)
        await h.engine.cancel(run, "graceful")
        snapshot = await h.finished(run)
        assert snapshot["status"] == "cancelled"
        assert types(await h.events(run), "s")[-2:] == ["usage", "done"]


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(steps=3), 3),
        (Budget(tokens=31), 3),
        (Budget(cost=1.0), 2),
    ],
)
async def test_a_budget_ends_the_channel_after_the_step_that_reached_it(budget: Budget, steps: int) -> None:
    async with harness(Scripted("s", stepping), echo("e")) as h:
        request = StartRequest(
            message="hi", channels=[ChannelSpec(agent="s", budget=budget), ChannelSpec(agent="e")]
        )
        run = (await h.engine.start_run(request)).row.run
        snapshot = await h.finished(run)
        channel = snapshot["channels"][0]
        assert channel["status"] == "budget_exceeded"
        assert types(await h.events(run), "s").count("step_finished") == steps
        assert snapshot["status"] == "partial"


async def test_the_budget_of_the_run_counts_all_channels() -> None:
    async with harness(Scripted("s", stepping)) as h:
        run = (await h.engine.start_run(start("s", "s", budget=Budget(steps=4)))).row.run
        snapshot = await h.finished(run)
        assert {c["status"] for c in snapshot["channels"]} == {"budget_exceeded"}
        events = await h.events(run)
        assert sum(e.type == "step_finished" for e in events) <= 5


async def test_seconds_stop_an_agent_without_steps() -> None:
    async def sleeps(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Token(content="zzz")
        await asyncio.sleep(60)

    async with harness(Scripted("z", sleeps)) as h:
        run = (await h.engine.start_run(start("z", budget=Budget(seconds=0.05)))).row.run
        assert (await h.finished(run))["channels"][0]["status"] == "budget_exceeded"


async def test_a_run_out_of_time_ends_with_error_and_timed_out() -> None:
    agent = waits("w")
    async with harness(agent) as h:
        run = (await h.engine.start_run(start("w", timeout_s=0.1))).row.run
        snapshot = await h.finished(run)
        assert snapshot["status"] == "failed"
        events = await h.events(run)
        assert types(events, "w")[-3:] == ["tool_result", "error", "done"]
        assert snapshot["channels"][0]["error"]["code"] == "timed_out"
        assert agent.stopped.is_set()


async def test_an_agent_that_ignores_its_cancellation_does_not_hold_its_channel() -> None:
    release = asyncio.Event()

    async def stubborn(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Token(content="x")
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with harness(Scripted("s", stubborn)) as h:
        run = (await h.engine.start_run(start("s"))).row.run
        await until(lambda: len(h.published[run]) >= 3)
        await h.engine.cancel(run)
        assert (await h.finished(run, 2))["status"] == "cancelled"
        release.set()


async def test_adding_a_channel_announces_it_and_it_runs() -> None:
    agent = waits("w")
    async with harness(agent, echo("e")) as h:
        run = (await h.engine.start_run(start("w"))).row.run
        await agent.started.wait()
        added = await h.engine.add_channel(run, AddChannel(agent="e", depends_on=["w"]))
        assert added == "e"
        with pytest.raises(BadRequest, match="already"):
            await h.engine.add_channel(run, AddChannel(agent="e", id="e"))
        with pytest.raises(BadRequest, match="nobody"):
            await h.engine.add_channel(run, AddChannel(agent="e", depends_on=["nobody"]))
        assert (await h.engine.snapshot(run))["channels"][1]["status"] == "pending"
        agent.release.set()
        snapshot = await h.finished(run)
        assert 'channel="w"' in snapshot["channels"][1]["text"]
        with pytest.raises(Conflict) as conflict:
            await h.engine.add_channel(run, AddChannel(agent="e"))
        assert conflict.value.code == "run_finished"


async def test_the_number_of_channels_is_limited() -> None:
    agent = waits("w")
    async with harness(agent, max_channels=2) as h:
        with pytest.raises(BadRequest) as e:
            await h.engine.start_run(start("w", "w", "w"))
        assert e.value.code == "too_many_channels"
        run = (await h.engine.start_run(start("w", "w"))).row.run
        with pytest.raises(BadRequest):
            await h.engine.add_channel(run, AddChannel(agent="w"))


async def test_retry_on_a_running_run_adds_a_channel_beside_the_old_one() -> None:
    keeper = waits("keeper")
    async with harness(keeper, echo("e")) as h:
        run = (await h.engine.start_run(start("keeper", "e"))).row.run
        await until(lambda: any(r.type == "done" for r in h.published[run]))
        assert await h.engine.retry(run, "keeper") == (run, "keeper~2")  # which goes on
        assert await h.engine.retry(run, "e", "other-model") == (run, "e~2")
        await until(lambda: sum(r.type == "done" for r in h.published[run]) == 2)
        assert await h.engine.retry(run, "e~2") == (run, "e~3")
        keeper.release.set()
        snapshot = await h.finished(run)
        assert [(c["id"], c["status"]) for c in snapshot["channels"]] == [
            (c, "completed") for c in ("keeper", "e", "keeper~2", "e~2", "e~3")
        ]
        retried = snapshot["channels"][3]
        assert (retried["retry_of"], retried["model"], retried["text"]) == ("e", "other-model", "e: hi")


async def test_retry_on_a_finished_run_is_a_new_run_with_that_channel_and_the_history_before() -> None:
    echoing = echo("e")
    async with harness(echoing, echo("f")) as h:
        first = (await h.engine.start_run(start("e", "f"))).row
        await h.finished(first.run)
        second = (await h.engine.start_run(StartRequest(message="again", thread=first.thread))).row
        await h.finished(second.run)
        run, channel = await h.engine.retry(second.run, "e", "m2")
        assert channel == "e"
        snapshot = await h.finished(run)
        assert snapshot["thread"] == first.thread
        assert [c["id"] for c in snapshot["channels"]] == ["e"]
        assert [m.text for m in echoing.seen[-1].messages] == ["hi", "e: hi", "again"]


async def test_steering_messages_are_logged_applied_or_returned() -> None:
    go = asyncio.Event()

    async def listens(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        yield StepFinished(step=1, finish_reason="stop")
        await ctx.host.interruption()
        heard = ctx.host.take_messages(at_end=False)
        yield Token(content=",".join(m.content for m in heard))
        await go.wait()

    async with harness(Scripted("l", listens)) as h:
        run = (await h.engine.start_run(start("l"))).row.run
        await until(lambda: any(r.type == "step_finished" for r in h.published[run]))
        await h.engine.steer(run, "l", SteerRequest(content="one"))
        await h.engine.steer(run, "l", SteerRequest(content="later", mode="queue"))
        await h.engine.steer(run, "l", SteerRequest(content="now", mode="interrupt"))
        await until(lambda: any(r.type == "token" for r in h.published[run]))
        go.set()
        snapshot = await h.finished(run)
        kinds = types(await h.events(run), "l")
        assert kinds.count("message_received") == 3
        assert kinds.count("message_applied") == 2
        assert kinds[-2:] == ["message_returned", "done"]
        assert snapshot["channels"][0]["text"] == "one,now"
        with pytest.raises(Conflict):
            await h.engine.steer(run, "l", SteerRequest(content="late"))


async def test_too_many_waiting_messages_are_refused() -> None:
    agent = waits("w")
    async with harness(agent) as h:
        run = (await h.engine.start_run(start("w"))).row.run
        await agent.started.wait()
        for n in range(100):
            await h.engine.steer(run, "w", SteerRequest(content=str(n)))
        with pytest.raises(Overloaded):
            await h.engine.steer(run, "w", SteerRequest(content="one too many"))


def approving(name: str) -> Scripted:
    async def run(ctx: AgentContext) -> AsyncIterator[Draft]:
        call = ctx.new_call_id()
        yield StepStarted(step=1)
        yield ToolCall(call_id=call, tool="rm")
        yield StepFinished(step=1, finish_reason="tool_calls")
        decision = await ctx.host.approve(call, "rm", {"path": "a"})
        if decision.decision in ("approve", "edit"):
            arguments = decision.arguments or {"path": "a"}
            yield ToolStart(call_id=call, tool="rm", arguments=arguments)
            yield ToolResult(call_id=call, tool="rm", output=f"removed {arguments['path']}")
        else:
            yield ToolResult(call_id=call, tool="rm", output=decision.decision, is_error=True, error="denied")
        yield Outcome(output=decision.decision)

    return Scripted(name, run)


async def waiting_call(h: Any, run: str) -> str:
    await until(lambda: any(r.type == "approval_requested" for r in h.published.get(run, ())))
    body = next(r.body for r in h.published[run] if r.type == "approval_requested")
    assert isinstance(body, ApprovalRequested)
    return body.call_id


async def test_the_first_answer_to_an_approval_wins_and_later_ones_are_told_the_winner() -> None:
    async with harness(approving("x")) as h:
        run = (await h.engine.start_run(start("x"))).row.run
        call = await waiting_call(h, run)
        assert (await h.engine.snapshot(run))["status"] == "waiting"
        assert (await h.engine.list_runs(RunQuery())).runs[0].status == "waiting"
        with pytest.raises(BadRequest):
            await h.engine.answer(run, call, ApprovalAnswer(decision="edit"))
        answers = await asyncio.gather(
            h.engine.answer(run, call, ApprovalAnswer(decision="edit", arguments={"path": "b"}), "ann"),
            h.engine.answer(run, call, ApprovalAnswer(decision="deny"), "bob"),
            return_exceptions=True,
        )
        assert isinstance(answers[1], Conflict)
        assert answers[1].extra == {"decision": "edit", "by": "ann"}
        snapshot = await h.finished(run)
        assert snapshot["channels"][0]["tools"][0]["output"] == "removed b"


class _Locked(MemoryStore):
    """Can't change rows just now."""

    locked = True

    async def update(self, run: str, **changes: Any) -> RunRow:
        if changes.get("status") == "waiting" and self.locked:
            self.locked = False
            raise StoreError("store_locked", "Another program holds a lock.")
        return await super().update(run, **changes)


async def test_a_status_that_the_store_does_not_take_just_now_costs_the_run_nothing() -> None:
    async with harness(approving("x"), store=_Locked()) as h:
        run = (await h.engine.start_run(start("x"))).row.run
        call = await waiting_call(h, run)
        assert (await h.engine.snapshot(run))["status"] == "waiting"
        await h.engine.answer(run, call, ApprovalAnswer(decision="approve"))
        snapshot = await h.finished(run)
        assert (snapshot["status"], snapshot["channels"][0]["attempt"]) == ("completed", 1)
        assert types(await h.events(run), "x").count("channel_started") == 1


async def test_an_approval_expires() -> None:
    async with harness(approving("x"), approval_s=0.05) as h:
        run = (await h.engine.start_run(start("x"))).row.run
        snapshot = await h.finished(run)
        tool = snapshot["channels"][0]["tools"][0]
        assert (tool["error"], tool["decision"]) == ("denied", {"decision": "expired", "by": "expiry"})


async def test_a_cancelled_channel_closes_its_open_approval() -> None:
    async with harness(approving("x")) as h:
        run = (await h.engine.start_run(start("x"))).row.run
        call = await waiting_call(h, run)
        await h.engine.cancel(run)
        await h.finished(run)
        assert types(await h.events(run), "x")[-3:] == ["approval_resolved", "tool_result", "done"]
        with pytest.raises(Conflict):
            await h.engine.answer(run, call, ApprovalAnswer(decision="approve"))


async def test_an_agent_that_breaks_the_order_of_events_fails_alone() -> None:
    async def wrong(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        yield ToolCall(call_id="call_1", tool="t")
        yield ToolStart(call_id="call_1", tool="t", arguments={})  # before the step has ended
        yield Token(content="never shown")

    async with harness(Scripted("w", wrong), echo("e")) as h:
        run = (await h.engine.start_run(start("w", "e"))).row.run
        snapshot = await h.finished(run)
        assert [c["status"] for c in snapshot["channels"]] == ["failed", "completed"]
        assert "order" in snapshot["channels"][0]["error"]["message"]
        assert snapshot["channels"][0]["text"] == ""


async def test_the_engine_fills_in_where_a_step_reset_begins() -> None:
    async def resets(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        yield Reasoning(content="hm")
        yield Token(content="wrong")
        yield StepReset(step=1, from_cseq=0)
        yield StepStarted(step=1)
        yield Token(content="right")
        yield StepFinished(step=1, finish_reason="stop")

    async with harness(Scripted("r", resets)) as h:
        run = (await h.engine.start_run(start("r"))).row.run
        channel = (await h.finished(run))["channels"][0]
        assert (channel["text"], channel["reasoning"], channel["output"]) == ("right", "", "right")


async def test_a_reply_above_the_limit_is_cut_with_a_reason() -> None:
    async def floods(ctx: AgentContext) -> AsyncIterator[Draft]:
        while True:
            yield Token(content="x" * 10_000)

    async with harness(Scripted("f", floods), says("s", "ok"), max_reply_mb=0.1) as h:
        run = (await h.engine.start_run(start("f", "s"))).row.run
        channel = (await h.finished(run))["channels"][0]
        assert channel["error"]["code"] == "reply_too_large"
        assert len(channel["text"]) <= 0.1 * 1_048_576


async def test_an_agent_may_not_write_the_engine_s_own_events() -> None:
    from mux.events import Done

    async def ends(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Done(status="completed", duration_ms=0, attempt=1)

    async with harness(Scripted("d", ends)) as h:
        run = (await h.engine.start_run(start("d"))).row.run
        assert (await h.finished(run))["channels"][0]["error"]["code"] == "agent_failed"

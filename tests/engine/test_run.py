"""A run without a loop, a clock or a store: what goes in, what comes out, in every order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mux.agent import Outcome
from mux.engine.plan import Plan, PlannedChannel
from mux.engine.run import (
    Decided,
    Delivered,
    Ended,
    Ending,
    Finished,
    Logged,
    Note,
    Run,
    Start,
    StatusChanged,
    Stop,
    StopAfterStep,
    Turn,
)
from mux.errors import AgentError, NotFound
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    ChannelStarted,
    MessageReceived,
    StepFinished,
    StepStarted,
    Token,
    ToolCall,
    ToolResult,
    ToolStart,
)
from mux.merge import Burst
from mux.run import IllegalEvent, RunState

BEGAN = ChannelStarted(agent="a", attempt=1)


def made(*channels: PlannedChannel, **plan: Any) -> Run:
    """A run whose first event is written."""
    planned = Plan(channels=channels, message="go", **plan)
    run = Run("r1", planned, clock=lambda: 1000)
    run.write(None, planned.start_event("t1", "go", {}))
    run.begin()
    return run


def lane(name: str, **fields: Any) -> PlannedChannel:
    return PlannedChannel(id=name, agent="a", **fields)


def types(turn: Turn) -> list[str]:
    return [record.type for record in turn.records]


def notes(turn: Turn) -> list[str]:
    return [action.text for action in turn.actions if isinstance(action, Note)]


def acts(turn: Turn) -> list[Any]:
    return [action for action in turn.actions if not isinstance(action, Note | StatusChanged)]


def test_a_run_starts_its_channels_and_ends_when_they_have() -> None:
    run = made(lane("a"), lane("b"))
    assert acts(run.flush()) == [Start("a"), Start("b")]
    for channel in ("a", "b"):
        run.take(channel, BEGAN)
        run.take(channel, Burst(["x", "y"]))
    turn = run.flush()
    assert types(turn) == ["channel_started", "token", "token"] * 2
    run.ended("a")
    assert acts(run.flush()) == [Ended("a")]
    run.ended("b")
    turn = run.flush()
    assert types(turn) == ["done", "run_finished"]
    assert turn.ended == ["b"]
    assert acts(turn) == [Ended("b"), Finished()]
    assert not run.dirty


def test_an_illegal_item_fails_its_channel_and_nothing_more_is_taken_from_it() -> None:
    run = made(lane("a"))
    run.take("a", BEGAN)
    run.flush()
    run.take("a", ToolStart(call_id="c", tool="t", arguments={}))  # of a call that nobody wrote
    run.take("a", "more")
    turn = run.flush()
    assert types(turn) == []
    assert acts(turn) == [Stop("a")]
    assert notes(turn) == ["agent broke the order of events"]
    run.ended("a")
    assert types(run.flush()) == ["error", "done", "run_finished"]
    assert run.state.channels["a"].status == "failed"


def test_what_an_agent_waits_for_is_an_action_after_the_append() -> None:
    run = made(lane("a"))
    for item in (BEGAN, ToolCall(call_id="c", tool="t"), ToolStart(call_id="c", tool="t", arguments={})):
        run.take("a", item)
    assert acts(run.flush()) == [Start("a"), Logged("a", ("tool_start", "c"))]


def test_a_channel_that_is_cancelled_before_it_begins_still_has_its_first_and_last_event() -> None:
    run = made(lane("a"), lane("b", depends_on=("a",)))
    run.flush()
    run.cancel(graceful=False, channel="b")
    turn = run.flush()
    assert types(turn) == ["channel_started", "done"]
    assert run.state.channels["b"].status == "cancelled"


def test_the_first_decision_about_an_end_stands() -> None:
    run = made(lane("a"))
    run.take("a", BEGAN)
    run.stop("a", "timed_out", AgentError("timed_out", "Too long."))
    run.stop("a", "cancelled")
    run.ended("a", RuntimeError("late"))
    run.flush()
    assert run.state.channels["a"].status == "timed_out"


@pytest.mark.parametrize(("when", "status"), [("all", "cancelled"), ("any", "cancelled"), ("settled", None)])
def test_a_dependent_channel_starts_or_is_cancelled_as_its_when_says(when: Any, status: str | None) -> None:
    run = made(lane("a"), lane("b", depends_on=("a",), when=when))
    assert acts(run.flush()) == [Start("a")]
    run.take("a", BEGAN)
    run.ended("a", AgentError("agent_failed", "No."))
    turn = run.flush()
    if status is None:
        assert Start("b") in turn.actions
    else:
        assert run.state.channels["b"].status == status
        assert run.state.finished is not None


def test_so_many_channels_run_at_once_as_the_plan_allows() -> None:
    run = made(lane("a"), lane("b"), lane("c"), max_parallel=2)
    assert acts(run.flush()) == [Start("a"), Start("b")]
    run.take("b", BEGAN)
    run.ended("b")
    assert Start("c") in run.flush().actions


def test_a_graceful_cancel_lets_the_step_end_and_refuses_open_approvals() -> None:
    run = made(lane("a"))
    for item in (
        BEGAN,
        ToolCall(call_id="c", tool="t"),
        ApprovalRequested(call_id="c", tool="t", arguments={}, expires_at=9),
    ):
        run.take("a", item)
    run.flush()
    run.cancel(graceful=True)
    turn = run.flush()
    assert types(turn) == ["approval_resolved"]
    (stop, decided) = acts(turn)
    assert stop == StopAfterStep("a")
    assert isinstance(decided, Decided)
    assert decided.body.decision == "deny"
    with pytest.raises(IllegalEvent):
        run.resolve("a", ApprovalResolved(call_id="c", decision="approve", by="me"))


def test_messages_reach_a_channel_that_runs_and_no_other() -> None:
    run = made(lane("a"))
    message = MessageReceived(message_id="m", content="hurry", mode="steer")
    run.flush()
    with pytest.raises(IllegalEvent):
        run.receive("a", message)
    run.take("a", BEGAN)
    run.receive("a", message)
    (delivered,) = acts(run.flush())
    assert isinstance(delivered, Delivered)
    run.ended("a")
    assert "message_returned" in types(run.flush())


def test_what_an_agent_said_of_its_end_counts_before_what_it_raised() -> None:
    run = made(lane("a"))
    run.take("a", BEGAN)
    run.take("a", Outcome(status="refused", output="no"))
    run.ended("a", RuntimeError("while it was closed"))
    turn = run.flush()
    assert run.state.channels["a"].status == "refused"
    assert notes(turn) == ["agent failed after its outcome"]


def test_a_channel_that_nobody_knows_is_named_with_those_there_are() -> None:
    with pytest.raises(NotFound, match="a, b"):
        made(lane("a"), lane("b")).channel("c")


def test_workers_of_a_channel_that_fails_are_stopped() -> None:
    run = made(lane("a"))
    run.take("a", BEGAN)
    run.add(lane("w", parent="a", added=True))
    run.take("w", BEGAN)
    run.flush()
    run.ended("a", AgentError("agent_failed", "No."))
    assert Stop("w") in run.flush().actions


ITEMS = st.sampled_from([
    BEGAN, "x", Burst(["x", "y"]), Token(content="z"), StepStarted(step=1),
    StepFinished(step=1, finish_reason="stop"),
    ToolCall(call_id="c", tool="t"), ToolStart(call_id="c", tool="t", arguments={}),
    ToolResult(call_id="c", tool="t", output="o", is_error=False, elapsed_ms=1),
    Outcome(), Ending("cancelled"), Ending("budget_exceeded"),
])  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("take"), st.sampled_from("abc"), ITEMS),
    st.tuples(st.just("end"), st.sampled_from("abc"), st.booleans()),
    st.tuples(st.just("cancel"), st.sampled_from(["a", "b", "c", None]), st.booleans()),
    st.tuples(st.just("time out"), st.none(), st.none()),
    st.tuples(st.just("flush"), st.none(), st.none()),
)


@settings(max_examples=150)
@given(st.lists(STEPS, max_size=40))
def test_whatever_comes_in_whatever_order_the_log_is_legal_and_the_run_can_end(steps: list[Any]) -> None:
    run = made(lane("a"), lane("b", depends_on=("a",), when="any"), lane("c"), max_parallel=2)
    turns = [run.flush()]
    running = {action.channel for action in turns[0].actions if isinstance(action, Start)}
    for do, channel, more in steps:
        if do == "take" and channel in running:
            run.take(channel, more)
        elif do == "end" and channel in running:
            running.discard(channel)
            run.ended(channel, RuntimeError("x") if more else None)
        elif do == "cancel":
            run.cancel(graceful=more, channel=channel)
        elif do == "time out":
            run.stop_all("timed_out", AgentError("timed_out", "Too long."))
        turns.append(run.flush())
        running |= {action.channel for action in turns[-1].actions if isinstance(action, Start)}
    while running:
        run.ended(running.pop())
        turns.append(run.flush())
        running |= {action.channel for action in turns[-1].actions if isinstance(action, Start)}
    records = [record for turn in turns for record in turn.records]
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    replayed = RunState("r1")
    for record in records:
        replayed.apply(record.event())
    assert replayed.finished is not None
    finished = [action for turn in turns for action in turn.actions if isinstance(action, Finished)]
    assert len(finished) == 1
    assert sorted(a.channel for t in turns for a in t.actions if isinstance(a, Ended)) == ["a", "b", "c"]

"""What was said, and where an agent goes on."""

from __future__ import annotations

from typing import Literal

import pytest

from mux.agent import Message, MessageCall, PendingCall
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    MessageApplied,
    MessageReceived,
    Reasoning,
    Refusal,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolStart,
    Usage,
    UsageReport,
)
from mux.run import conversation, dump_messages, load_messages, resume_point
from tests.run.test_state import Log, result, started


def first_turn() -> Log:
    return Log("a").add(
        "a", started(), StepStarted(step=1, model="local:m"), Reasoning(content="hm"), Token(content="look"),
        ToolCall(call_id="c1", tool="t"), ToolArgs(call_id="c1", content='{"x":'),
        ToolArgs(call_id="c1", content=" 1}"), ToolCall(call_id="c2", tool="t"),
        StepFinished(step=1, finish_reason="tool_calls", provider_items=[{"signature": "s"}]),
        UsageReport(step=1, input_tokens=3, output_tokens=4),
        ToolStart(call_id="c1", tool="t", arguments={"x": 1}),
    )  # fmt: skip


def test_a_turn_with_tools_becomes_an_assistant_s_message_and_tool_messages() -> None:
    log = first_turn().add("a", result("c1"), result("c2", is_error=True, error="denied"))
    log.add("a", StepStarted(step=2), Token(content="so"), StepFinished(step=2, finish_reason="stop"))
    said = conversation(log.state.channels["a"])
    assert said == [
        Message(
            role="assistant", content="look", reasoning="hm", provider="local",
            provider_items=[{"signature": "s"}],
            calls=(
                MessageCall(call_id="c1", tool="t", arguments='{"x": 1}'),
                MessageCall(call_id="c2", tool="t", arguments="{}"),
            ),
        ),
        Message(role="tool", content="out", call_id="c1"),
        Message(role="tool", content="out", call_id="c2", is_error=True),
        Message(role="assistant", content="so"),
    ]  # fmt: skip
    assert load_messages(dump_messages(said)) == said


def test_the_resume_point_is_the_last_turn_that_ended() -> None:
    log = first_turn()
    resume = resume_point(log.state.channels["a"])
    assert (resume.step, [m.role for m in resume.messages]) == (1, ["assistant"])
    assert resume.pending == (
        PendingCall("c1", "t", '{"x": 1}', started=True), PendingCall("c2", "t", "{}", started=False),
    )  # fmt: skip
    assert resume.usage == Usage(input_tokens=3, output_tokens=4)
    log.add("a", result("c1"), result("c2"), StepStarted(step=2), Token(content="cut off"))
    start = log.state.channels["a"].step_start(2)
    assert start is not None
    log.add("a", StepReset(step=2, from_cseq=start))
    resume = resume_point(log.state.channels["a"])
    assert [m.role for m in resume.messages] == ["assistant", "tool", "tool"]
    assert (resume.step, resume.pending) == (1, ())


@pytest.mark.parametrize(
    ("decision", "approved"), [("approve", {"t"}), ("edit", {"t"}), ("deny", set()), ("expired", set())]
)
def test_the_resume_point_knows_which_tools_a_person_has_approved(
    decision: Literal["approve", "edit", "deny", "expired"], approved: set[str]
) -> None:
    log = first_turn().add("a", result("c1"))
    log.add("a", ApprovalRequested(call_id="c2", tool="t", arguments={}, expires_at=1))
    assert resume_point(log.state.channels["a"]).approved == set()
    log.add("a", ApprovalResolved(call_id="c2", decision=decision, by="ann"))
    if approved:
        log.add("a", ToolStart(call_id="c2", tool="t", arguments={}))
    assert resume_point(log.state.channels["a"]).approved == approved


def test_a_call_that_was_started_resumes_with_the_arguments_that_a_person_gave_it() -> None:
    log = first_turn().add("a", result("c1"))
    log.add("a", ApprovalRequested(call_id="c2", tool="t", arguments={}, expires_at=1))
    log.add("a", ApprovalResolved(call_id="c2", decision="edit", by="ann", arguments={"x": 2}))
    resume = resume_point(log.state.channels["a"])
    assert resume.pending == (PendingCall("c2", "t", "{}", started=False),)
    assert resume.approved == set(), "it must ask, to be given the edited arguments"
    log.add("a", ToolStart(call_id="c2", tool="t", arguments={"x": 2}))
    resume = resume_point(log.state.channels["a"])
    assert resume.pending == (PendingCall("c2", "t", '{"x": 2}', started=True),)


def test_arguments_that_ran_although_they_were_written_oddly_are_told_as_they_ran() -> None:
    log = Log("a").add(
        "a", started(), StepStarted(step=1), ToolCall(call_id="c1", tool="t"),
        ToolArgs(call_id="c1", content='{"x": 1}{"x": 1}'), StepFinished(step=1, finish_reason="tool_calls"),
        ToolStart(call_id="c1", tool="t", arguments={"x": 1}), result("c1"),
    )  # fmt: skip
    assert conversation(log.state.channels["a"])[0].calls[0].arguments == '{"x": 1}'


def test_a_channel_that_completed_no_turn_resumes_from_nothing() -> None:
    log = Log("a").add("a", started(), StepStarted(step=1), Token(content="x"))
    resume = resume_point(log.state.channels["a"])
    assert (resume.step, resume.messages, resume.pending) == (0, (), ())


def test_applied_messages_stand_where_they_were_heard() -> None:
    log = Log("a").add("a", started(), MessageReceived(message_id="m", content="and b?", mode="steer"))
    log.add("a", StepStarted(step=1), Token(content="a"), StepFinished(step=1, finish_reason="stop"))
    log.add("a", MessageApplied(message_id="m", mode="steer"), MessageReceived(message_id="n", mode="queue"))
    log.add("a", StepStarted(step=2), Token(content="b"), StepFinished(step=2, finish_reason="stop"))
    said = conversation(log.state.channels["a"])
    assert [(m.role, m.text) for m in said] == [("assistant", "a"), ("user", "and b?"), ("assistant", "b")]


def test_agents_without_steps_and_their_refusals_are_one_message() -> None:
    log = Log("a").add("a", started(), Token(content="half "), Refusal(content="but no"))
    assert [(m.role, m.text) for m in conversation(log.state.channels["a"])] == [("assistant", "half but no")]


def test_what_sub_agents_said_is_not_the_channel_s_conversation() -> None:
    log = Log("a").add("a", started(), StepStarted(step=1), Token(content="own"))
    log.add("a", Token(content="inner"), Reasoning(content="inner"), path=("sub",))
    log.add("a", StepFinished(step=1, finish_reason="stop"))
    (said,) = conversation(log.state.channels["a"])
    assert (said.text, said.reasoning) == ("own", None)

"""The order rules, the fold, and the snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    ChannelAdded,
    ChannelInfo,
    ChannelStarted,
    Custom,
    Done,
    Error,
    Event,
    MessageApplied,
    MessageReceived,
    Phase,
    Reasoning,
    Refusal,
    RunFinished,
    RunStarted,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
    UsageReport,
)
from mux.run import TERMINAL, IllegalEvent, RunState, run_status

RUN = "r0"


class Log:
    """Writes events with the right envelope, keeping what was accepted."""

    def __init__(self, *channels: str) -> None:
        self.state = RunState(RUN)
        self.events: list[Event] = []
        if channels:
            infos = [ChannelInfo(id=c, agent=c) for c in channels]
            self.add(None, RunStarted(thread="t0", channels=infos, message="hello"))

    def add(self, channel: str | None, *bodies: Body, path: tuple[str, ...] = ()) -> Log:
        for body in bodies:
            state = self.state
            if channel is None:
                cseq = state.cseq + 1
            else:
                cseq = state.channels[channel].cseq + 1 if channel in state.channels else 1
            event = Event(RUN, state.seq + 1, channel, cseq, 1000 + state.seq, body, path)
            state.apply(event)
            self.events.append(event)
        return self

    def refuses(self, channel: str | None, body: Body, **envelope: Any) -> None:
        before = dump(self.state)
        with pytest.raises(IllegalEvent):
            self.add(channel, body, **envelope)
        assert dump(self.state) == before, "a refused event changed something"


def dump(state: RunState) -> str:
    """Everything the state shows, and what decides what it accepts next."""
    hidden = [
        (c.at, c.cseq, c.open_calls, c.nested, c.messages, c.turn, c.steps) for c in state.channels.values()
    ]
    return repr((state.snapshot(), state.seq, state.cseq, hidden))


def started(attempt: int = 1) -> ChannelStarted:
    return ChannelStarted(agent="a", attempt=attempt)


def done(status: Any = "completed", attempt: int = 1) -> Done:
    return Done(status=status, duration_ms=1, attempt=attempt)


def result(call: str, **more: Any) -> ToolResult:
    return ToolResult(call_id=call, tool="t", output="out", **more)


def turn(step: int, *inside: Body) -> Iterable[Body]:
    return StepStarted(step=step), *inside, StepFinished(step=step, finish_reason="stop")


def finished(log: Log) -> RunFinished:
    statuses = log.state.statuses()
    return RunFinished(status=run_status(statuses.values()), channels=statuses, duration_ms=1)


def test_nothing_comes_before_run_started_and_nothing_after_run_finished() -> None:
    log = Log()
    log.refuses(None, ChannelAdded(id="b", agent="b"))
    log = Log("a").add("a", started(), done())
    log.refuses(None, RunStarted(thread="t", channels=[]))
    log.refuses(None, RunFinished(status="failed", channels={"a": "completed"}, duration_ms=1))
    log.refuses(None, RunFinished(status="completed", channels={}, duration_ms=1))
    log.add(None, finished(log))
    log.refuses(None, ChannelAdded(id="b", agent="b"))
    log.refuses("a", Token(content="late"))


def test_a_channel_begins_with_channel_started_and_ends_with_one_done() -> None:
    log = Log("a")
    for body in (Token(content="x"), done("cancelled"), Error(code="c", message="m"), started(2)):
        log.refuses("a", body)
    log.add("a", started(), Token(content="x"))
    log.refuses(None, RunFinished(status="completed", channels={}, duration_ms=1))
    log.add("a", done())
    for body in (done(), Token(content="x"), started(2)):
        log.refuses("a", body)
    log.refuses("nobody", started())


def test_failed_and_timed_out_need_an_error_and_the_others_have_none() -> None:
    for status in sorted(TERMINAL):
        log = Log("a").add("a", started())
        if status in ("failed", "timed_out"):
            log.refuses("a", done(status))
            log.add("a", Error(code="agent_failed", message="m"))
            log.refuses("a", Token(content="after the error"))
            log.add("a", done(status))
        else:
            log.add("a", done(status))
        assert log.state.channels["a"].status == status


def test_a_tool_starts_after_its_step_and_has_one_result() -> None:
    log = Log("a").add("a", started(), StepStarted(step=1), ToolCall(call_id="c", tool="t"))
    log.refuses("a", ToolStart(call_id="c", tool="t", arguments={}))
    log.refuses("a", ToolCall(call_id="c", tool="t"))
    log.refuses("a", ToolProgress(call_id="c", elapsed_ms=1))
    log.add("a", ToolArgs(call_id="c", content="{}"), StepFinished(step=1, finish_reason="tool_calls"))
    log.refuses("a", ToolStart(call_id="c", tool="other", arguments={}))
    log.add("a", ToolStart(call_id="c", tool="t", arguments={}))
    late: list[Body] = [
        done(),
        Error(code="c", message="m"),
        started(2),
        ToolArgs(call_id="c", content="late"),
    ]
    for body in late:
        log.refuses("a", body)
    log.add("a", ToolProgress(call_id="c", elapsed_ms=1), result("c"))
    for again in (result("c"), result("other"), ToolStart(call_id="c", tool="t", arguments={})):
        log.refuses("a", again)
    log.add("a", done())


def test_call_ids_are_unique_in_the_run_even_after_a_reset() -> None:
    log = Log("a", "b").add("a", started(), StepStarted(step=1), ToolCall(call_id="c", tool="t"), result("c"))
    log.add("a", StepReset(step=1, from_cseq=2)).add("b", started())
    log.refuses("a", ToolCall(call_id="c", tool="t"))
    log.refuses("b", ToolCall(call_id="c", tool="t"))


def test_an_approval_is_asked_and_answered_before_the_call_runs() -> None:
    asked = ApprovalRequested(call_id="c", tool="t", arguments={"x": 1}, expires_at=5)
    answer = ApprovalResolved(call_id="c", decision="approve", by="ann")
    log = Log("a").add("a", started(), *turn(1, ToolCall(call_id="c", tool="t")))
    log.refuses("a", answer)
    log.add("a", asked)
    assert log.state.status == "waiting"
    assert log.state.snapshot()["channels"][0]["tools"][0]["status"] == "waiting"
    for body in (asked, ToolStart(call_id="c", tool="t", arguments={}), result("c"), done()):
        log.refuses("a", body)
    log.add("a", answer)
    log.refuses("a", answer)
    assert log.state.status == "running"
    log.add("a", ToolStart(call_id="c", tool="t", arguments={}), result("c"), done())


def test_a_step_reset_discards_what_came_since_and_nothing_before() -> None:
    log = Log("a").add("a", started(), *turn(1, Token(content="one "), ToolCall(call_id="c", tool="t")))
    log.refuses("a", StepReset(step=1, from_cseq=2))  # a call is open
    log.add("a", result("c"), UsageReport(step=1, output_tokens=5))
    log.add("a", StepStarted(step=2), Reasoning(content="hm"), Token(content="wrong"), Refusal(content="no"))
    start = log.state.channels["a"].step_start(2)
    assert start is not None
    log.refuses("a", StepReset(step=2, from_cseq=1))
    log.refuses("a", StepReset(step=2, from_cseq=99))
    log.refuses("a", StepReset(step=2, from_cseq=5))  # would cut the call from its result
    log.add("a", StepReset(step=2, from_cseq=start), StepStarted(step=2), Token(content="right"))
    channel = log.state.snapshot()["channels"][0]
    assert (channel["text"], channel["reasoning"]) == ("one right", "")
    assert "refusal" not in channel
    assert [t["call_id"] for t in channel["tools"]] == ["c"]
    assert channel["usage"] == {"output_tokens": 5}


def test_a_new_attempt_discards_everything_before_it() -> None:
    log = Log("a").add(
        "a", started(), *turn(1, Token(content="old"), ToolCall(call_id="c", tool="t")), result("c")
    )
    log.refuses("a", started(1))
    log.refuses("a", started(3))
    log.add("a", started(2), StepStarted(step=1), Token(content="new"))
    channel = log.state.snapshot()["channels"][0]
    assert (channel["text"], channel["tools"], channel["attempt"]) == ("new", [], 2)
    log.refuses("a", done(attempt=1))


def test_steps_count_up() -> None:
    log = Log("a").add("a", started(), *turn(1))
    log.refuses("a", StepStarted(step=1))
    log.refuses("a", StepFinished(step=2, finish_reason="stop"))
    log.add("a", StepStarted(step=2))
    log.refuses("a", StepStarted(step=3))
    log.refuses("a", StepFinished(step=1, finish_reason="stop"))


def test_sub_agents_have_turns_of_their_own() -> None:
    log = Log("a").add("a", started(), StepStarted(step=1), Token(content="outer "))
    log.add("a", *turn(1, Token(content="inner "), ToolCall(call_id="n", tool="t")), path=("sub",))
    log.add("a", ToolStart(call_id="n", tool="t", arguments={}), result("n"), path=("sub",))
    log.refuses("a", Done(status="completed", duration_ms=1, attempt=1), path=("sub",))
    log.add("a", Token(content="again"), StepFinished(step=1, finish_reason="stop"))
    channel = log.state.channels["a"]
    assert str(channel.text) == "outer inner again"
    assert channel.output() == "outer again"
    assert log.state.snapshot()["channels"][0]["tools"][0]["path"] == ["sub"]


def test_steering_messages_wait_until_they_are_applied_or_returned() -> None:
    log = Log("a").add("a", started())
    log.refuses("a", MessageApplied(message_id="m", mode="steer"))
    log.add("a", MessageReceived(message_id="m", content="hurry", mode="steer"))
    log.refuses("a", MessageReceived(message_id="m", content="hurry", mode="steer"))
    assert [m.message_id for m in log.state.channels["a"].pending_messages()] == ["m"]
    log.add("a", StepStarted(step=1), MessageApplied(message_id="m", mode="steer"))
    log.refuses("a", MessageApplied(message_id="m", mode="steer"))
    log.add("a", StepReset(step=1, from_cseq=3))  # the message is not lost with the step
    assert [m.message_id for m in log.state.channels["a"].pending_messages()] == ["m"]


def test_wrong_envelopes_are_refused() -> None:
    log = Log("a").add("a", started())
    token = Token(content="x")
    for event in (
        Event(RUN, 4, "a", 2, 0, token),
        Event(RUN, 3, "a", 3, 0, token),
        Event(RUN, 3, "b", 1, 0, token),
        Event("other", 3, "a", 2, 0, Phase(phase="thinking")),
        Event(RUN, 3, None, 2, 0, token),
        Event(RUN, 3, None, 7, 0, ChannelAdded(id="c", agent="c")),
        Event(RUN, 3, None, 2, 0, ChannelAdded(id="a", agent="a")),
    ):
        with pytest.raises(IllegalEvent):
            log.state.apply(event)
    log.add("a", token)


def test_the_place_of_tools_in_the_text_is_told() -> None:
    log = Log("a").add("a", started(), Token(content="ab"), ToolCall(call_id="1", tool="t"), result("1"))
    log.add("a", Token(content="cde"), ToolCall(call_id="2", tool="t"), ToolCall(call_id="3", tool="t"))
    assert [t["at"] for t in log.state.snapshot()["channels"][0]["tools"]] == [2, 5, 5]


def test_sources_of_tools_are_collected_once() -> None:
    log = Log("a").add("a", started())
    for call, names in (("1", ["x", "y"]), ("2", ["y", "z"])):
        log.add("a", ToolCall(call_id=call, tool="t"), result(call, data={"sources": names}))
    assert log.state.snapshot()["channels"][0]["sources"] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("channels", "status"),
    [
        (["completed", "refused"], "completed"),
        (["completed", "cancelled"], "partial"),
        (["refused", "failed"], "partial"),
        (["failed", "cancelled"], "failed"),
        (["budget_exceeded"], "failed"),
        (["cancelled", "cancelled"], "cancelled"),
    ],
)
def test_the_run_s_status_follows_from_its_channels(channels: list[str], status: str) -> None:
    assert run_status(channels) == status


class RunMachine(RuleBasedStateMachine):
    """Throws any body at any channel, and holds the state against a model that is read off the contract."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.text: dict[str, list[tuple[int, str]]] = {"a": [], "b": []}
        self.open: dict[str, set[str]] = {"a": set(), "b": set()}
        self.over: set[str] = set()

    @initialize()
    def begin(self) -> None:
        self.log = Log("a", "b")

    def attempt(self, channel: str, body: Body) -> bool:
        before = dump(self.log.state)
        try:
            self.log.add(channel, body)
        except IllegalEvent:
            assert dump(self.log.state) == before
            return False
        assert channel not in self.over
        return True

    channels = st.sampled_from(["a", "b"])

    @rule(channel=channels)
    def start(self, channel: str) -> None:
        attempt = self.log.state.channels[channel].attempt + 1
        if self.attempt(channel, started(attempt)):
            assert not self.open[channel]
            self.text[channel].clear()

    @rule(channel=channels, content=st.text(max_size=3))
    def token(self, channel: str, content: str) -> None:
        if self.attempt(channel, Token(content=content)):
            self.text[channel].append((self.log.state.channels[channel].cseq, content))

    @rule(channel=channels, step=st.integers(1, 4), begin=st.booleans())
    def step(self, channel: str, step: int, begin: bool) -> None:
        body = StepStarted(step=step) if begin else StepFinished(step=step, finish_reason="stop")
        self.attempt(channel, body)

    @rule(channel=channels)
    def call(self, channel: str) -> None:
        self.calls += 1
        if self.attempt(channel, ToolCall(call_id=f"c{self.calls}", tool="t")):
            self.open[channel].add(f"c{self.calls}")

    @rule(channel=channels, pick=st.randoms(use_true_random=False), kind=st.sampled_from(["start", "result"]))
    def tool(self, channel: str, pick: Any, kind: str) -> None:
        known = sorted(self.open["a"] | self.open["b"]) or ["none"]
        call = pick.choice(known)
        body: Body = ToolStart(call_id=call, tool="t", arguments={}) if kind == "start" else result(call)
        if self.attempt(channel, body):
            assert call in self.open[channel]
            if kind == "result":
                self.open[channel].discard(call)
            else:
                assert self.log.state.channels[channel].turn is None

    @rule(channel=channels, back=st.integers(0, 8))
    def reset(self, channel: str, back: int) -> None:
        cut = self.log.state.channels[channel].cseq + 1 - back
        if self.attempt(channel, StepReset(step=1, from_cseq=cut)):
            self.text[channel] = [t for t in self.text[channel] if t[0] < cut]

    @rule(channel=channels, status=st.sampled_from(sorted(TERMINAL)), error=st.booleans())
    def end(self, channel: str, status: str, error: bool) -> None:
        if error:
            self.attempt(channel, Error(code="c", message="m"))
        attempt = self.log.state.channels[channel].attempt
        if self.attempt(channel, done(status, attempt)):
            assert not self.open[channel]
            self.over.add(channel)

    @precondition(lambda self: len(self.over) == 2 and self.log.state.finished is None)
    @rule()
    def finish(self) -> None:
        self.log.add(None, finished(self.log))

    @rule(channel=channels)
    def anything_else(self, channel: str) -> None:
        self.attempt(channel, Custom(name="n"))

    @invariant()
    def the_fold_is_the_model_s_and_survives_a_replay(self) -> None:
        for channel, parts in self.text.items():
            state = self.log.state.channels[channel]
            assert str(state.text) == "".join(t for _, t in parts)
            assert {t.call_id for t in state.open_tools()} == self.open[channel]

    def teardown(self) -> None:
        again = RunState(RUN)
        for event in self.log.events:
            again.apply(Event.parse(event.to_json()))
        assert dump(again) == dump(self.log.state)


RunMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRunMachine = RunMachine.TestCase

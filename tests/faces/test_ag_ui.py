"""The AG-UI face as a pure encoder, held against the protocol's own models; with its client it is
tested in tests/http/test_ag_ui.py."""

from __future__ import annotations

import json
from typing import Any

from ag_ui.core import Event as AgUiEvent
from pydantic import TypeAdapter

from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    ChannelInfo,
    ChannelStarted,
    Event,
    Reasoning,
    RunStarted,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolResult,
    ToolStart,
    Usage,
)
from mux.faces.ag_ui import AgUi
from mux.faces.base import approval_of
from tests.faces.suite import FaceSuite, Heard, Script, begun, done, finished, over

MODELS: TypeAdapter[Any] = TypeAdapter(AgUiEvent)
OPENS = {
    "TEXT_MESSAGE_START": ("TEXT_MESSAGE_END", "messageId"),
    "REASONING_START": ("REASONING_END", "messageId"),
    "TOOL_CALL_START": ("TOOL_CALL_END", "toolCallId"),
    "STEP_STARTED": ("STEP_FINISHED", "stepName"),
    "SUBAGENT_STARTED": ("SUBAGENT_FINISHED", "subagentRunId"),
}


def face(**options: Any) -> AgUi:
    return AgUi(thread_id="t", run_id="r", **options)


def parsed(data: bytes) -> list[dict[str, Any]]:
    events = [json.loads(block.rpartition(b"data: ")[2]) for block in data.split(b"\n\n") if block]
    for event in events:
        MODELS.validate_python(event)
    return events


def fed(encoder: AgUi, events: list[Event]) -> list[dict[str, Any]]:
    return parsed(b"".join(f for e in events for f in encoder.feed(e)))


def left_open(events: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """What was opened and not closed, by the rules of `verifyEvents`."""
    open_: set[tuple[str, str]] = set()
    for event in events:
        for start, (end, key) in OPENS.items():
            name = f"{event.get('subagentRunId') if key == 'stepName' else ''}{event.get(key)}"
            if event["type"] == start:
                assert (start, name) not in open_
                open_.add((start, name))
            elif event["type"] in (end, "SUBAGENT_ERROR" if start == "SUBAGENT_STARTED" else end):
                open_.remove((start, name))
    return open_


class TestAgUi(FaceSuite):
    """The promises of all faces."""

    def open(self, *channels: str) -> AgUi:
        return face()

    def read(self, data: bytes, *channels: str) -> Heard:
        events = parsed(data)
        assert events[0]["type"] in ("RUN_STARTED", "RUN_ERROR")
        heard = Heard()
        says: dict[str, list[str]] = {}  # by channel, the messages in order
        texts: dict[str, str] = {}
        roles: dict[str, str] = {}
        for event in events:
            kind, channel = event["type"], event.get("subagentRunId") or channels[0]
            assert not heard.terminals, "nothing follows the terminal event"
            if kind == "TEXT_MESSAGE_START":
                says.setdefault(channel, []).append(event["messageId"])
                roles[event["messageId"]] = event["role"]
            elif kind == "TEXT_MESSAGE_CONTENT":
                texts[event["messageId"]] = texts.get(event["messageId"], "") + event["delta"]
            elif kind == "CUSTOM" and event["name"] == "mux.step_reset":
                for name in event["value"]["messageIds"]:
                    texts.pop(name, None)
            elif (
                kind == "CUSTOM"
                and event["name"] == "mux.guardrail"
                and event["value"]["action"] == "blocked"
            ):
                heard.refused.add(channel)
            elif kind == "SUBAGENT_ERROR":
                heard.failed.add(channel)
            elif kind in ("RUN_FINISHED", "RUN_ERROR"):
                heard.terminals += 1
                if kind == "RUN_ERROR":
                    heard.errors.append(event["message"])
                    if len(channels) == 1:
                        heard.failed.add(channels[0])
        assert left_open(events) == set(), "everything is closed at the end"
        heard.text = {c: "".join(texts.get(m, "") for m in names) for c, names in says.items()}
        return heard


def asked(e: Script, channel: str = "a", call: str = "c") -> list[Event]:
    """A call that waits for a person."""
    arguments = {"x": 1}
    return [
        e(channel, ToolCall(call_id=call, tool="write")),
        e(channel, ToolArgs(call_id=call, content='{"x": 1}')),
        e(channel, StepFinished(step=1, finish_reason="tool_calls")),
        e(channel, ApprovalRequested(call_id=call, tool="write", arguments=arguments, expires_at=5000)),
    ]


def answered(e: Script, channel: str = "a", call: str = "c") -> list[Event]:
    bodies: list[Body] = [
        ApprovalResolved(call_id=call, decision="approve", by="local"),
        ToolStart(call_id=call, tool="write", arguments={"x": 1}),
        ToolResult(call_id=call, tool="write", output="written"),
        Token(content="done"),
    ]
    return [e(channel, body) for body in bodies]


def test_the_one_agent_of_a_run_is_the_run_itself() -> None:
    e = Script()
    events = fed(face(), [*begun(e, "a"), e("a", Token(content="hi")), *over(e, a="completed")])
    assert [x["type"] for x in events] == [
        "RUN_STARTED", "STEP_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
        "STEP_FINISHED", "RUN_FINISHED",
    ]  # fmt: skip
    assert not any("subagentRunId" in x for x in events)
    assert (events[0]["protocolVersion"], events[-1]["outcome"]) == ("1.0", {"type": "success"})


def test_several_channels_and_agents_inside_them_are_sub_agents() -> None:
    e = Script()
    nested = e("a", Token(content="deep"))._replace(path=("helper",))
    events = fed(face(), [*begun(e, "a", "b"), nested, *over(e, a="completed", b="completed")])
    started = [x for x in events if x["type"] == "SUBAGENT_STARTED"]
    assert [(x["subagentRunId"], x.get("parentSubagentRunId")) for x in started] == [
        ("a", None), ("b", None), ("a/helper", "a"),
    ]  # fmt: skip
    assert next(x for x in events if x["type"] == "TEXT_MESSAGE_CONTENT")["subagentRunId"] == "a/helper"


def test_one_failed_channel_is_an_error_of_its_own_and_the_run_finishes() -> None:
    e = Script()
    events = fed(face(), [*begun(e, "a", "b"), *over(e, a="timed_out", b="completed")])
    assert [x["subagentRunId"] for x in events if x["type"] == "SUBAGENT_ERROR"] == ["a"]
    assert events[-1]["result"] == {"status": "partial", "channels": {"a": "timed_out", "b": "completed"}}


def test_a_cancelled_run_says_so() -> None:
    e = Script()
    run = finished(a="cancelled").model_copy(update={"status": "cancelled"})
    events = fed(face(), [*begun(e, "a"), e("a", done("cancelled")), e(None, run)])
    assert events[-1]["outcome"] == {"type": "cancelled"}


def test_when_everything_waits_for_a_person_the_run_ends_with_an_interrupt() -> None:
    e = Script()
    encoder = face()
    events = fed(encoder, [*begun(e, "a"), *asked(e)])
    assert events[-1]["type"] == "CUSTOM"
    end = parsed(b"".join(encoder.settle()))
    interrupt = end[-1]["outcome"]["interrupts"][0]
    assert (end[-1]["outcome"]["type"], interrupt["toolCallId"], interrupt["reason"]) == (
        "interrupt", "c", "tool_call",
    )  # fmt: skip
    assert approval_of(interrupt["id"]) == ("r1", "c")
    assert interrupt["expiresAt"] == "1970-01-01T00:00:05Z"
    assert left_open([*events, *end]) == set()
    assert encoder.ended


def test_while_another_channel_works_nothing_is_interrupted() -> None:
    e = Script()
    encoder = face()
    fed(encoder, [*begun(e, "a", "b"), *asked(e)])
    assert encoder.settle() == []
    fed(encoder, [e("b", done())])
    end = parsed(b"".join(encoder.settle()))
    assert [x["outcome"] for x in end if x["type"] == "SUBAGENT_FINISHED"] == [
        {"type": "suspended", "interruptIds": ["r1/c"]}
    ]


def test_after_the_answer_a_new_run_goes_on_where_the_interrupt_was() -> None:
    e = Script()
    first = [*begun(e, "a", "b"), e("b", done()), *asked(e)]
    at = e.seq
    rest = [*answered(e), e("a", done()), e(None, finished(a="completed", b="completed"))]
    events = fed(face(resumed_at=at), [*first, *rest])
    assert [x["type"] for x in events[:2]] == ["RUN_STARTED", "SUBAGENT_STARTED"]
    assert events[1]["subagentRunId"] != "a", "an id is for one invocation"
    assert next(x["content"] for x in events if x["type"] == "TOOL_CALL_RESULT") == "written"
    assert left_open(events) == set()


def test_the_rest_of_a_cut_stream_is_the_same_as_it_would_have_been() -> None:
    e = Script()
    events = [*begun(e, "a", "b"), e("a", Reasoning(content="hm")), e("a", Token(content="x")),
              *over(e, a="completed", b="completed")]  # fmt: skip
    whole = face()
    frames = [(event.seq, whole.feed(event)) for event in events]
    for cut in range(1, len(events)):
        rest = face(after=cut)
        assert [f for x in events for f in rest.feed(x)] == [f for seq, fs in frames if seq > cut for f in fs]


def test_calls_that_are_the_clients_are_pending_and_have_no_result() -> None:
    e = Script()
    events = fed(
        face(),
        [
            *begun(e, "a"),
            e("a", ToolCall(call_id="c", tool="pick", client=True)),
            e("a", ToolArgs(call_id="c", content="{}")),
            e("a", ToolResult(call_id="c", tool="pick", output="", client=True)),
            *over(e, a="completed"),
        ],
    )
    assert "TOOL_CALL_RESULT" not in [x["type"] for x in events]
    assert events[-1]["outcome"] == {"type": "success", "pendingToolCallIds": ["c"]}


def test_a_channel_that_begins_anew_names_what_to_discard() -> None:
    e = Script()
    events = fed(
        face(),
        [
            *begun(e, "a", "b"),
            e("a", Token(content="lost")),
            e("a", ChannelStarted(agent="a", attempt=2)),
            e("a", Token(content="new")),
            *over(e, a="completed", b="completed"),
        ],
    )
    lost = next(x["messageId"] for x in events if x["type"] == "TEXT_MESSAGE_START")
    reset = next(x for x in events if x["type"] == "CUSTOM")
    assert reset["value"]["messageIds"] == [lost]
    assert left_open(events) == set()


def test_usage_is_as_reported_by_channel_and_never_invented() -> None:
    e = Script()
    usage = Usage(input_tokens=3, output_tokens=2)
    events = fed(
        face(),
        [
            e(None, RunStarted(thread="t", channels=[ChannelInfo(id=c, agent=c) for c in "ab"])),
            e("a", ChannelStarted(agent="a", attempt=1, model="local:qwen")),
            e("b", ChannelStarted(agent="b", attempt=1)),
            e("a", done().model_copy(update={"usage": usage})),
            e("b", done()),
            e(None, finished(a="completed", b="completed")),
        ],
    )
    assert events[-1]["usage"] == [
        {"provider": "local", "model": "qwen", "inputTokens": 3, "outputTokens": 2, "totalTokens": 5}
    ]


def test_a_redone_step_may_have_its_name_again() -> None:
    e = Script()
    events = fed(
        face(),
        [
            *begun(e, "a"),
            e("a", StepReset(step=1, from_cseq=2)),
            e("a", StepStarted(step=1)),
            *over(e, a="completed"),
        ],
    )
    assert [x["type"] for x in events if "STEP" in x["type"]] == [
        "STEP_STARTED", "STEP_FINISHED", "STEP_STARTED", "STEP_FINISHED",
    ]  # fmt: skip

"""The UI message stream as a pure encoder, read as `processUIMessageStream` reads it; with the AI SDK it is
tested in tests/http/test_ui_messages.py."""

from __future__ import annotations

import json
from typing import Any

from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Event,
    Reasoning,
    StepFinished,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolResult,
    ToolStart,
)
from mux.faces.ui_messages import UiMessages
from tests.faces.suite import FaceSuite, Heard, Script, begun, done, over


def parsed(data: bytes) -> list[dict[str, Any]]:
    blocks = [block.removeprefix(b"data: ") for block in data.split(b"\n\n") if block]
    assert b"[DONE]" not in blocks[:-1]
    return [json.loads(b) for b in blocks if b != b"[DONE]"]


def fed(face: UiMessages, events: list[Event]) -> list[dict[str, Any]]:
    return parsed(b"".join(f for e in events for f in face.feed(e)))


def message(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of the message that a client makes of these chunks; asserts the protocol's order."""
    parts: list[dict[str, Any]] = []
    active: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        kind, name = chunk["type"], chunk.get("id")
        if kind in ("text-start", "reasoning-start"):
            active[chunk["id"]] = {"type": kind.removesuffix("-start"), "text": ""}
            parts.append(active[chunk["id"]])
        elif kind in ("text-delta", "reasoning-delta"):
            active[chunk["id"]]["text"] += chunk["delta"]
        elif kind in ("text-end", "reasoning-end"):
            active.pop(str(name))
        elif kind == "start-step":
            parts.append({"type": "step-start"})
        elif kind == "reset-step":
            active.clear()
            while parts and parts[-1]["type"] != "step-start":
                parts.pop()
        elif kind == "tool-input-start":
            parts.append({"type": "tool", "id": chunk["toolCallId"], "state": "input-streaming"})
        elif kind.startswith("tool-") and "toolCallId" in chunk:
            part = next(p for p in parts if p.get("id") == chunk["toolCallId"])  # else: an error there
            part |= {"state": kind.removeprefix("tool-")} | {k: v for k, v in chunk.items() if k != "type"}
    assert not active, "every part is closed at the end"
    return parts


class TestUiMessages(FaceSuite):
    """The promises of all faces."""

    by_channel = True

    def open(self, *channels: str) -> Any:
        return _All(channels)

    def read(self, data: bytes, *channels: str) -> Heard:
        heard = Heard(terminals=1)
        for channel, stream in zip(channels, data.split(b"\0"), strict=True):
            assert stream.endswith(b"data: [DONE]\n\n")
            chunks = parsed(stream)
            assert chunks[0]["type"] == "start"
            heard.text[channel] = "".join(p["text"] for p in message(chunks) if p["type"] == "text")
            heard.errors += [c["errorText"] for c in chunks if c["type"] == "error"]
            if chunks[-1]["type"] == "abort" or chunks[-1]["finishReason"] == "error":
                heard.failed.add(channel)
            elif chunks[-1]["finishReason"] == "content-filter":
                heard.refused.add(channel)
            assert [c["type"] for c in chunks].count("finish") <= 1
        return heard


class _All:
    """The streams of several channels, apart: each is a stream of its own."""

    def __init__(self, channels: Any) -> None:
        self.faces = [UiMessages(run="r1", channel=c) for c in channels]
        self.out = [b""] * len(self.faces)

    def feed(self, event: Event) -> list[bytes]:
        self.out = [o + b"".join(f.feed(event)) for o, f in zip(self.out, self.faces, strict=True)]
        return (
            [b"\0".join(self.out)] if event.type == "run_finished" and event.seq and not self._cut() else []
        )

    def cut(self, message: str) -> list[bytes]:
        if self._cut():
            return []
        self.out = [o + b"".join(f.cut(message)) for o, f in zip(self.out, self.faces, strict=True)]
        self.was_cut = True
        return [b"\0".join(self.out)]

    was_cut = False

    def _cut(self) -> bool:
        return self.was_cut


def call(e: Script, *, call_id: str = "c") -> list[Event]:
    return [
        e("a", ToolCall(call_id=call_id, tool="add")),
        e("a", ToolArgs(call_id=call_id, content='{"x": 1}')),
        e("a", StepFinished(step=1, finish_reason="tool_calls")),
    ]


def test_a_step_has_its_tools_in_it() -> None:
    e = Script()
    chunks = fed(
        UiMessages(run="r1", channel="a"),
        [
            *begun(e, "a"), e("a", Reasoning(content="hm")), *call(e),
            e("a", ToolStart(call_id="c", tool="add", arguments={"x": 1})),
            e("a", ToolResult(call_id="c", tool="add", output="2")),
            e("a", StepStarted(step=2)), e("a", Token(content="two")), *over(e, a="completed"),
        ],
    )  # fmt: skip
    assert [c["type"] for c in chunks] == [
        "start", "start-step", "reasoning-start", "reasoning-delta", "reasoning-end", "tool-input-start",
        "tool-input-delta", "tool-input-available", "tool-output-available", "finish-step", "start-step",
        "text-start", "text-delta", "text-end", "finish-step", "finish",
    ]  # fmt: skip
    assert chunks[0]["messageId"] == "r1.a"


def test_a_call_that_waits_for_a_person_ends_the_stream_and_the_answer_goes_on_in_the_same_message() -> None:
    e = Script()
    first = [
        *begun(e, "a"), *call(e),
        e("a", ApprovalRequested(call_id="c", tool="add", arguments={"x": 1}, expires_at=5)),
    ]  # fmt: skip
    at = e.seq
    face = UiMessages(run="r1", channel="a")
    chunks = fed(face, first)
    end = parsed(b"".join(face.settle()))
    assert chunks[-1] == {"type": "tool-approval-request", "approvalId": "r1/c", "toolCallId": "c"}
    assert [c["type"] for c in end] == ["finish-step", "finish"]
    rest = [
        e("a", ApprovalResolved(call_id="c", decision="deny", by="local", reason="no")),
        e("a", ToolResult(call_id="c", tool="add", output="denied", is_error=True, error="denied")),
        e("a", Token(content="ok")), *over(e, a="completed"),
    ]  # fmt: skip
    after = fed(UiMessages(run="r1", channel="a", message_id="m9", resumed_at=at), [*first, *rest])
    assert [c["type"] for c in after[:3]] == ["start", "tool-approval-response", "tool-output-denied"]
    assert after[0]["messageId"] == "m9"
    assert "start-step" not in [c["type"] for c in after], "the calls are found in the step that is open"
    message([*chunks, *end, *after])


def test_calls_that_never_ended_are_closed() -> None:
    e = Script()
    chunks = fed(UiMessages(run="r1", channel="a"), [*begun(e, "a"), *call(e), e("a", done("cancelled"))])
    assert next(p for p in message(chunks) if p["type"] == "tool")["state"] == "output-error"
    assert chunks[-1]["type"] == "abort"


def test_a_replay_from_a_chunk_is_the_rest_of_the_whole() -> None:
    e = Script()
    events = [*begun(e, "a"), *(e("a", Token(content=str(n))) for n in range(4)), *over(e, a="completed")]
    whole = fed(UiMessages(run="r1", channel="a"), events)
    for seen in range(len(whole)):
        assert fed(UiMessages(run="r1", channel="a", start_index=seen), events) == whole[seen:]

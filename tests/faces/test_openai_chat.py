"""The OpenAI face as a pure encoder; over HTTP and with the SDK it is tested in tests/http/test_openai.py."""

from __future__ import annotations

import json
from typing import Any

from mux.events import (
    ChannelStarted,
    Custom,
    Error,
    Event,
    GuardrailHit,
    Reasoning,
    Refusal,
    RunFinished,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
    Usage,
)
from mux.faces.openai_chat import ChatCompletions, openai_usage
from mux.http.openai_models import CompletionChunk
from tests.faces.suite import FaceSuite, Heard, Script, done, finished


def face(*channels: str, usage: bool = False) -> ChatCompletions:
    return ChatCompletions(id="r1", model="m", created=1, channels=channels, include_usage=usage)


def fed(encoder: ChatCompletions, events: list[Event]) -> list[Any]:
    frames = b"".join(frame for event in events for frame in encoder.feed(event))
    return parsed(frames)


def parsed(frames: bytes) -> list[Any]:
    lines = [block.removeprefix(b"data: ") for block in frames.split(b"\n\n") if block]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def texts(chunks: list[Any]) -> dict[int, str]:
    out: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"] if isinstance(chunk, dict) and "choices" in chunk else []:
            out[choice["index"]] = out.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return out


def finishes(chunks: list[Any]) -> dict[int, str]:
    return {
        c["index"]: c["finish_reason"]
        for chunk in chunks
        if isinstance(chunk, dict)
        for c in chunk.get("choices", [])
        if c["finish_reason"]
    }


class TestChatCompletions(FaceSuite):
    """The promises of all faces."""

    def open(self, *channels: str) -> ChatCompletions:
        return face(*channels)

    def read(self, data: bytes, *channels: str) -> Heard:
        chunks = parsed(data)
        heard = Heard(terminals=chunks.count("[DONE]"))
        assert chunks[-1] == "[DONE]"
        for chunk in chunks[:-1]:
            if "error" in chunk:
                heard.errors.append(chunk["error"]["message"])
                continue
            CompletionChunk.model_validate(chunk)
            for choice in chunk["choices"]:
                name = channels[choice["index"]]
                if "error" in choice:
                    heard.failed.add(name)
                if choice["finish_reason"] == "content_filter":
                    heard.refused.add(name)
        heard.text = {channels[index]: text for index, text in texts(chunks).items()}
        return heard


def test_each_channel_is_a_choice_and_done_comes_last() -> None:
    e = Script()
    chunks = fed(face("a", "b"), [
        e("a", ChannelStarted(agent="x", attempt=1)), e("b", ChannelStarted(agent="y", attempt=1)),
        e("a", Token(content="1")), e("b", Token(content="2")), e("a", Token(content="3")),
        e("b", done()), e("a", done()), e(None, finished(a="completed", b="completed")),
    ])  # fmt: skip
    assert texts(chunks) == {0: "13", 1: "2"}
    assert finishes(chunks) == {0: "stop", 1: "stop"}
    assert chunks[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_tools_are_neither_calls_nor_text() -> None:
    e = Script()
    chunks = fed(face("a"), [
        e("a", ToolCall(call_id="c", tool="t")), e("a", ToolArgs(call_id="c", content="{}")),
        e("a", ToolStart(call_id="c", tool="t", arguments={})),
        e("a", ToolProgress(call_id="c", elapsed_ms=1, content="printed")),
        e("a", ToolResult(call_id="c", tool="t", output="out")),
    ])  # fmt: skip
    assert chunks == []


def test_reasoning_refusal_and_filter_have_their_places() -> None:
    e = Script()
    encoder = face("a")
    chunks = fed(encoder, [
        e("a", Reasoning(content="hm")), e("a", GuardrailHit(rule="r", stage="output", action="blocked")),
        e("a", Refusal(content="no")), e("a", done("refused")), e(None, finished(a="refused")),
    ])  # fmt: skip
    assert chunks[0]["choices"][0]["delta"] == {"reasoning_content": "hm"}
    assert chunks[1]["choices"][0]["delta"] == {"refusal": "no"}
    assert finishes(chunks) == {0: "content_filter"}
    message = encoder.result()["choices"][0]["message"]
    assert (message["refusal"], message["reasoning_content"], message["content"]) == ("no", "hm", None)


def test_usage_is_sent_only_when_asked_for_and_never_invented() -> None:
    e = Script()
    end = RunFinished(
        status="completed", channels={}, duration_ms=1, usage=Usage(input_tokens=3, output_tokens=4)
    )
    chunks = fed(face("a", usage=True), [e("a", done()), e(None, end)])
    assert chunks[-2] == {
        "id": "r1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }  # fmt: skip
    assert openai_usage(Usage()) is None
    assert openai_usage(None) is None


def test_a_failed_channel_ends_its_choice_and_a_failed_run_ends_with_an_error_frame() -> None:
    e = Script()
    encoder = face("a")
    chunks = fed(encoder, [
        e("a", Error(code="upstream_stall", message="It stalled.")), e("a", done("failed")),
        e(None, finished(a="failed")),
    ])  # fmt: skip
    assert finishes(chunks) == {0: "error"}
    assert chunks[-2]["error"]["code"] == "upstream_stall"
    assert chunks[-1] == "[DONE]"
    assert encoder.failure is not None


def test_one_failed_channel_beside_a_good_one_is_no_error_frame() -> None:
    e = Script()
    encoder = face("a", "b")
    chunks = fed(encoder, [
        e("a", Error(code="agent_failed", message="x")), e("a", done("failed")), e("b", Token(content="ok")),
        e("b", done()), e(None, finished(a="failed", b="completed")),
    ])  # fmt: skip
    assert finishes(chunks) == {0: "error", 1: "stop"}
    assert not [c for c in chunks if isinstance(c, dict) and "error" in c]
    assert encoder.failure is None


def test_a_length_stop_and_a_budget_are_length() -> None:
    for bodies in ([StepFinished(step=1, finish_reason="length"), done()], [done("budget_exceeded")]):
        e = Script()
        assert finishes(fed(face("a"), [e("a", b) for b in bodies])) == {0: "length"}


def test_a_reset_whose_redone_text_begins_the_same_sends_it_once() -> None:
    e = Script()
    encoder = face("a")
    chunks = fed(encoder, [
        e("a", StepStarted(step=1)), e("a", Token(content="Hello wor")),
        e("a", StepReset(step=1, from_cseq=1)),
        e("a", Token(content="Hello")), e("a", Token(content=" world.")), e("a", done()),
    ])  # fmt: skip
    assert texts(chunks) == {0: "Hello world."}
    assert encoder.result()["choices"][0]["message"]["content"] == "Hello world."


def test_a_reset_whose_redone_text_differs_ends_with_an_error_and_done() -> None:
    e = Script()
    chunks = fed(face("a"), [
        e("a", Token(content="Hello")), e("a", StepReset(step=1, from_cseq=1)), e("a", Token(content="Bye")),
        e("a", Token(content="more")),
    ])  # fmt: skip
    assert chunks[-2]["error"]["code"] == "step_reset"
    assert chunks[-1] == "[DONE]"
    assert texts(chunks) == {0: "Hello"}


def test_a_cut_sends_a_terminal_error_once_and_nothing_after_it() -> None:
    encoder = face("a")
    assert [c if isinstance(c, str) else c["error"]["code"] for c in parsed(b"".join(encoder.cut("x")))] == [
        "interrupted",
        "[DONE]",
    ]
    assert encoder.cut("x") == []
    assert encoder.feed(Script()("a", Token(content="late"))) == []


def test_redone_text_that_ends_early_is_told() -> None:
    e = Script()
    chunks = fed(face("a"), [
        e("a", Token(content="Hello world")), e("a", StepReset(step=1, from_cseq=1)),
        e("a", Token(content="Hello")), e("a", done()),
    ])  # fmt: skip
    assert chunks[-2]["error"]["code"] == "step_reset"


def test_a_whole_answer_takes_back_what_was_reset() -> None:
    e = Script()
    encoder = ChatCompletions(id="r1", model="m", created=1, channels=["a"], streamed=False)
    fed(encoder, [
        e("a", Reasoning(content="hm")), e("a", Token(content="Hello")),
        e("a", StepReset(step=1, from_cseq=1)),
        e("a", Reasoning(content="ah")), e("a", Token(content="Bye")), e("a", done()),
        e(None, finished(a="completed")),
    ])  # fmt: skip
    message = encoder.result()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Bye", "ah")


def test_numbers_that_json_has_no_word_for_break_no_frame() -> None:
    e = Script()
    value = {"content": [{"token": "a", "logprob": float("-inf"), "bytes": [97], "top_logprobs": []}]}
    frames = face("a").feed(e("a", Custom(name="logprobs", value=value)))
    (chunk,) = parsed(b"".join(frames))
    assert chunk["choices"][0]["logprobs"]["content"][0]["logprob"] is None
    assert b"Infinity" not in b"".join(frames)

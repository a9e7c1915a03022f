"""Responses API events → deltas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.events import Usage
from mux.llm.model import (
    CallArgs,
    CallBegan,
    Delta,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TurnEnd,
)
from mux.llm.responses import ResponsesParser
from mux.llm.wire import TurnReader

CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_time", "arguments": ""}
COMPLETED = {"type": "response.completed", "response": {"status": "completed", "output": []}}


def read(*events: dict[str, Any], named: bool = False) -> tuple[list[Delta], TurnReader]:
    reader = TurnReader(ResponsesParser(["get_time", "get_weather"]))
    deltas: list[Delta] = []
    for event in events:
        name = b"event: " + event["type"].encode() + b"\n" if named else b""
        body = {k: v for k, v in event.items() if k != "type" or not named}
        deltas += reader.feed(name + b"data: " + json.dumps(body).encode() + b"\n\n")
    return deltas + reader.end(), reader


def text(delta: str, index: int = 0, kind: str = "output_text") -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "output_index": index, "content_index": 0, "delta": delta}


def ended(deltas: list[Delta]) -> TurnEnd:
    assert isinstance(deltas[-1], TurnEnd)
    return deltas[-1]


def said(deltas: list[Delta], kind: type[TextDelta] | type[ReasoningDelta] | type[RefusalDelta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, kind))


@pytest.mark.parametrize("named", [False, True])
def test_text_reasoning_and_refusal_are_told_apart(named: bool) -> None:
    deltas, _ = read(
        {"type": "response.created", "response": {"model": "m-1"}},
        text("hm", kind="reasoning_summary_text"),
        text("a", 1),
        text("b", 1),
        text("no", 2, kind="refusal"),
        COMPLETED,
        named=named,
    )
    assert (said(deltas, ReasoningDelta), said(deltas, TextDelta), said(deltas, RefusalDelta)) == (
        "hm",
        "ab",
        "no",
    )
    assert (ended(deltas).finish, ended(deltas).model) == ("stop", "m-1")


def test_a_text_told_again_at_its_end_is_said_once() -> None:
    message = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "abc"}]}
    deltas, _ = read(
        {**text("ab"), "item_id": "m"},
        {
            "type": "response.output_text.done",
            "output_index": 0,
            "item_id": "m",
            "content_index": 0,
            "text": "abc",
        },
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "response": {"status": "completed", "output": [message]}},
    )
    assert said(deltas, TextDelta) == "abc"


def test_an_answer_told_only_in_the_last_event_is_read() -> None:
    output = [
        {
            "type": "reasoning",
            "id": "r",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": "e",
        },
        {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "hi"}]},
        {**CALL, "arguments": '{"a":1}'},
    ]
    deltas, _ = read({"type": "response.completed", "response": {"status": "completed", "output": output}})
    assert (said(deltas, ReasoningDelta), said(deltas, TextDelta)) == ("hm", "hi")
    assert [(c.name, c.arguments, c.provider_id) for c in ended(deltas).calls] == [
        ("get_time", {"a": 1}, "call_1")
    ]


def test_arguments_come_in_pieces_once() -> None:
    deltas, _ = read(
        {"type": "response.output_item.added", "output_index": 0, "item": CALL},
        {
            "type": "response.function_call_arguments.delta",
            "item_id": "fc_1",
            "output_index": 0,
            "delta": '{"a"',
        },
        {
            "type": "response.function_call_arguments.delta",
            "item_id": "fc_1",
            "output_index": 0,
            "delta": ":1}",
        },
        {"type": "response.function_call_arguments.done", "item_id": "fc_1", "arguments": '{"a":1}'},
        {"type": "response.output_item.done", "output_index": 0, "item": {**CALL, "arguments": '{"a":1}'}},
        COMPLETED,
    )
    assert deltas[:-1] == [CallBegan(0, "get_time"), CallArgs(0, '{"a"'), CallArgs(0, ":1}")]
    assert ended(deltas).calls[0].raw == '{"a":1}'
    assert ended(deltas).finish == "tool_calls"


def test_the_end_of_a_call_is_right_where_the_pieces_were_not() -> None:
    deltas, _ = read(
        {"type": "response.output_item.added", "output_index": 0, "item": CALL},
        {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": "{}"},
        {"type": "response.output_item.done", "output_index": 0, "item": {**CALL, "arguments": '{"a":1}'}},
        COMPLETED,
    )
    assert ended(deltas).calls[0].arguments == {"a": 1}


def test_two_calls_keep_their_arguments_apart_without_item_ids() -> None:
    other = {**CALL, "id": None, "call_id": "call_2", "name": "get_weather"}
    deltas, _ = read(
        {"type": "response.output_item.added", "output_index": 0, "item": {**CALL, "id": None}},
        {"type": "response.output_item.added", "output_index": 1, "item": other},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": '{"b":2}'},
        {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"a":1}'},
        COMPLETED,
    )
    assert [(c.provider_id, c.arguments) for c in ended(deltas).calls] == [
        ("call_1", {"a": 1}),
        ("call_2", {"b": 2}),
    ]


def test_a_call_that_ended_before_the_length_limit_is_whole() -> None:
    deltas, _ = read(
        {"type": "response.output_item.done", "output_index": 0, "item": {**CALL, "arguments": "{}"}},
        {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max_output_tokens"}}},
    )
    assert ended(deltas).finish == "length"
    assert ended(deltas).calls[0].arguments == {}


def test_an_answer_stopped_by_the_filter_says_so() -> None:
    incomplete = {
        "type": "response.incomplete",
        "response": {"incomplete_details": {"reason": "content_filter"}},
    }
    assert ended(read(text("a"), incomplete)[0]).finish == "content_filter"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "server_error", "message": "CANARY"},
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"}}},
        {"type": "response.failed", "response": {"status": "failed", "error": None}},
        {"type": "response.cancelled", "response": {}},
        {"type": "response.completed", "response": {"status": "failed", "error": {"message": "CANARY"}}},
        {"error": {"message": "CANARY"}},
    ],
)
def test_failures_are_errors_without_the_endpoints_words(event: dict[str, Any]) -> None:
    deltas, reader = read(text("a"), event)
    assert said(deltas, TextDelta) == "a"
    assert reader.failure is not None
    assert reader.failure.code == "upstream_error"
    assert "CANARY" not in str(reader.failure)


def test_usage_has_its_details() -> None:
    usage = {
        "input_tokens": 9,
        "output_tokens": 5,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    deltas, _ = read(
        text("a"), {"type": "response.completed", "response": {"status": "completed", "usage": usage}}
    )
    assert ended(deltas).usage == Usage(input_tokens=9, output_tokens=5, cached_tokens=4, reasoning_tokens=3)


def test_reasoning_items_are_kept_for_the_way_back() -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "abc"}
    done = {**CALL, "arguments": "{}", "status": "completed"}
    deltas, _ = read(
        {"type": "response.output_item.done", "output_index": 0, "item": reasoning},
        {"type": "response.output_item.done", "output_index": 1, "item": done},
        COMPLETED,
    )
    assert ended(deltas).provider_items == [reasoning, done]


def test_status_events_are_no_progress() -> None:
    reader = TurnReader(ResponsesParser())
    for kind in ("response.created", "response.in_progress", "response.queued", "keepalive"):
        reader.feed(
            b"data: " + json.dumps({"type": kind, "response": {"status": "in_progress"}}).encode() + b"\n\n"
        )
    assert reader.progressed == 0


def test_summary_parts_are_paragraphs() -> None:
    part = {"type": "response.reasoning_summary_part.added", "output_index": 0}
    deltas, _ = read(
        {**part, "summary_index": 0},
        {
            "type": "response.reasoning_summary_text.delta",
            "output_index": 0,
            "summary_index": 0,
            "delta": "a",
        },
        {**part, "summary_index": 1},
        {
            "type": "response.reasoning_summary_text.delta",
            "output_index": 0,
            "summary_index": 1,
            "delta": "b",
        },
        COMPLETED,
    )
    assert said(deltas, ReasoningDelta) == "a\n\nb"


def test_a_lone_surrogate_becomes_a_replacement_character() -> None:
    reader = TurnReader(ResponsesParser())
    raw = b'{"type":"response.output_text.delta","output_index":0,"delta":"a\\ud800b"}'
    assert reader.feed(b"data: " + raw + b"\n\n") == [TextDelta("a\ufffdb")]


def test_texts_are_said_once_whatever_names_their_place() -> None:
    message = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "abc"}]}
    completed = {"type": "response.completed", "response": {"status": "completed", "output": [message]}}
    by_id = {"type": "response.output_text.delta", "item_id": "m", "delta": "abc"}
    assert said(read(by_id, completed)[0], TextDelta) == "abc"
    changing = [{**text(c), "item_id": f"random-{c}"} for c in "abc"]
    assert said(read(*changing, completed)[0], TextDelta) == "abc"


def test_a_summary_and_the_thoughts_themselves_are_kept_apart() -> None:
    item = {
        "type": "reasoning",
        "id": "r",
        "summary": [{"type": "summary_text", "text": "abc"}],
        "content": [{"type": "reasoning_text", "text": "abcdef"}],
    }
    deltas, _ = read({"type": "response.output_item.done", "output_index": 0, "item": item}, COMPLETED)
    assert said(deltas, ReasoningDelta) == "abcabcdef"


def test_items_told_again_under_another_id_are_kept_once() -> None:
    done = {**CALL, "arguments": "{}"}
    deltas, _ = read(
        {"type": "response.output_item.added", "output_index": 0, "item": {**CALL, "id": "x1"}},
        {"type": "response.output_item.done", "output_index": 0, "item": {**done, "id": "x2"}},
        {"type": "response.completed", "response": {"status": "completed", "output": [{**done, "id": "x3"}]}},
    )
    assert len(ended(deltas).calls) == 1
    assert len(ended(deltas).provider_items or []) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "id",
                    "content",
                    "summary",
                    "text",
                    "call_id",
                    "name",
                    "arguments",
                    "output",
                    "usage",
                    "model",
                    "status",
                    "incomplete_details",
                    "reason",
                    "error",
                    "refusal",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)
kinds = st.sampled_from(
    [
        "response.output_text.delta",
        "response.output_item.added",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_text.done",
        "response.reasoning_summary_part.added",
        "response.created",
        "other",
    ]
)
fields = st.sampled_from(
    [
        "delta",
        "item_id",
        "output_index",
        "content_index",
        "summary_index",
        "text",
        "arguments",
        "name",
        "item",
        "response",
    ]
)
item_kinds = st.sampled_from(["function_call", "message", "reasoning", "web_search_call"])


@given(st.lists(st.tuples(kinds, st.dictionaries(fields, json_values, max_size=6), item_kinds), max_size=5))
def test_no_event_makes_the_reader_raise_anything_but_its_own_errors(
    events: list[tuple[str, dict[str, Any], str]],
) -> None:
    for _, event, kind in events:
        if isinstance(event.get("item"), dict):
            event["item"]["type"] = kind
    deltas, reader = read(*({**event, "type": kind} for kind, event, _ in events))
    assert reader.failure is not None or isinstance(deltas[-1], TurnEnd)


# --- forms without a word here -----------------------------------------------------------------------------


def outputs(deltas: list[Delta]) -> list[tuple[str, Any]]:
    return [(d.name, d.value) for d in deltas if isinstance(d, OutputDelta)]


@pytest.mark.parametrize(
    "kind",
    [
        "image_generation_call",
        "web_search_call",
        "mcp_call",
        "mcp_approval_request",
        "code_interpreter_call",
        "new_call",
    ],
)
def test_a_built_in_call_is_given_out_once_and_kept(kind: str) -> None:
    item = {"type": kind, "id": "i1", "status": "completed", "result": "iVBORw0KGgo="}
    last = {"type": "response.completed", "response": {"status": "completed", "output": [item]}}
    added = {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {**item, "status": "in_progress"},
    }
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    deltas, reader = read(added, {"type": f"response.{kind}.in_progress"}, done, last)
    assert outputs(deltas) == [("output_item", item)]
    assert ended(deltas).provider_items == [item]
    assert reader.failure is None


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("last_id", ["r1", "other", None])
def test_an_item_that_comes_twice_is_kept_once_wherever_it_stands(index: int, last_id: str | None) -> None:
    thought = {
        "type": "reasoning",
        "id": "r1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    }
    again = {**thought, "id": last_id} if last_id else {k: v for k, v in thought.items() if k != "id"}
    message = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "a"}]}
    last = {"type": "response.completed", "response": {"status": "completed", "output": [again, message]}}
    deltas, _ = read(
        {"type": "response.output_item.done", "output_index": index, "item": thought},
        text("a", index + 1),
        last,
    )
    assert said(deltas, ReasoningDelta) == "Hm."
    assert [i["content"] for i in ended(deltas).provider_items or []] == [thought["content"]]


def test_two_sealed_thoughts_stay_two_and_keep_their_order() -> None:
    def sealed(id: str, content: str) -> dict[str, Any]:
        return {"type": "reasoning", "id": id, "summary": [], "encrypted_content": content}

    events = [
        {"type": "response.output_item.done", "output_index": i, "item": sealed(f"r{i}", f"S{i}")}
        for i in (0, 1)
    ]
    output = [sealed("x", "S0x"), sealed("y", "S1x")]
    last = {"type": "response.completed", "response": {"status": "completed", "output": output}}
    deltas, _ = read(*events, text("a", 2), last)
    assert [i["encrypted_content"] for i in ended(deltas).provider_items or []] == ["S0x", "S1x"]


def test_a_citation_is_given_out_once() -> None:
    note = {"type": "url_citation", "url": "https://example.com", "start_index": 0, "end_index": 1}
    part = {"type": "output_text", "text": "a", "annotations": [note]}
    deltas, _ = read(
        text("a"),
        {"type": "response.output_text.annotation.added", "annotation": note},
        {"type": "response.content_part.done", "output_index": 0, "content_index": 0, "part": part},
        COMPLETED,
    )
    assert outputs(deltas) == [("annotation", note)]

"""The Responses face as a pure encoder, read with the SDK's own models; with the SDK it is tested in
tests/http/test_openai_responses.py."""

from __future__ import annotations

import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Event,
    Reasoning,
    StepFinished,
    StepReset,
    Token,
    ToolArgs,
    ToolCall,
    ToolResult,
    ToolStart,
    Usage,
)
from mux.faces.openai_responses import Responses, responses_usage
from tests.faces.suite import FaceSuite, Heard, Script, begun, done, finished, over

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
BASE = {"model": "m", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
ENDS = ("response.completed", "response.failed", "response.incomplete", "error")


def face(**options: Any) -> Responses:
    return Responses(id="resp_r1", created=1, base=BASE, **options)


def parsed(data: bytes) -> list[dict[str, Any]]:
    out = []
    for block in data.split(b"\n\n"):
        if block:
            name, _, body = block.partition(b"\n")
            event = json.loads(body.removeprefix(b"data: "))
            assert name == b"event: " + event["type"].encode()
            EVENTS.validate_python(event)
            out.append(event)
    return out


def fed(encoder: Responses, events: list[Event]) -> list[dict[str, Any]]:
    return parsed(b"".join(f for e in events for f in encoder.feed(e)))


def types(events: list[dict[str, Any]]) -> list[str]:
    return [e["type"].removeprefix("response.") for e in events]


class TestResponses(FaceSuite):
    """The promises of all faces."""

    def open(self, *channels: str) -> Responses:
        return face()

    def read(self, data: bytes, *channels: str) -> Heard:
        heard = Heard()
        owner: dict[int, str] = {}
        items: dict[int, dict[str, Any]] = {}
        open_: set[int] = set()
        for number, event in enumerate(parsed(data)):
            assert event["sequence_number"] == number
            assert not heard.terminals, "nothing follows the terminal event"
            if event["type"] == "response.output_item.added":
                owner[event["output_index"]] = event["item"]["x_mux"]["channel"]
                open_.add(event["output_index"])
            elif event["type"] == "response.output_item.done":
                items[event["output_index"]] = event["item"]
                open_.remove(event["output_index"])
            elif event["type"] == "error":
                heard.errors.append(event["message"])
            if event["type"] in ENDS:
                heard.terminals += 1
                self._end(event.get("response"), heard, items, owner)
        assert open_ == set(), "every item is done at the end"
        return heard

    def _end(
        self, response: Any, heard: Heard, items: dict[int, dict[str, Any]], owner: dict[int, str]
    ) -> None:
        stands = list(items.values())
        if response is not None:
            whole = Response.model_validate(response)
            ids = {item.id for item in whole.output}
            stands = [item for item in items.values() if item["id"] in ids]
            if whole.error is not None:
                heard.errors.append(whole.error.message)
            for name, about in response["x_mux"]["channels"].items():
                if about["status"] in ("failed", "timed_out", "cancelled"):
                    heard.failed.add(name)
        for item in (i for i in stands if i["type"] == "message"):
            name = item["x_mux"]["channel"]
            for part in item["content"]:
                if part["type"] == "refusal":
                    heard.refused.add(name)
                else:
                    heard.text[name] = heard.text.get(name, "") + part["text"]


def test_text_has_every_frame_that_strict_readers_wait_for() -> None:
    e = Script()
    events = fed(face(), [*begun(e, "a"), e("a", Token(content="hi")), *over(e, a="completed")])
    assert types(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert Response.model_validate(events[-1]["response"]).output_text == "hi"


def test_channels_interleave_by_output_index_and_say_whose_each_item_is() -> None:
    e = Script()
    said = [e(c, Token(content=f"{c}{n} ")) for n in range(2) for c in "ab"]
    events = fed(face(), [*begun(e, "a", "b"), *said, *over(e, a="completed", b="completed")])
    deltas = [(x["output_index"], x["delta"]) for x in events if x["type"] == "response.output_text.delta"]
    assert deltas == [(0, "a0 "), (1, "b0 "), (0, "a1 "), (1, "b1 ")]
    assert [i["x_mux"]["channel"] for i in events[-1]["response"]["output"]] == ["a", "b"]


def test_what_ran_here_is_an_mcp_call_and_what_the_client_runs_a_function_call() -> None:
    e = Script()
    events = fed(
        face(),
        [
            *begun(e, "a"),
            e("a", ToolCall(call_id="c1", tool="add")),
            e("a", ToolArgs(call_id="c1", content="{}")),
            e("a", ToolCall(call_id="c2", tool="pick", client=True)),
            e("a", ToolArgs(call_id="c2", content='{"n": 1}')),
            e("a", ToolStart(call_id="c1", tool="add", arguments={})),
            e("a", ToolResult(call_id="c1", tool="add", output="3")),
            e("a", ToolResult(call_id="c2", tool="pick", output="", client=True)),
            *over(e, a="completed"),
        ],
    )
    ran, asked = Response.model_validate(events[-1]["response"]).output
    assert ran.type == "mcp_call"
    assert (ran.name, ran.output, ran.status) == ("add", "3", "completed")
    assert asked.type == "function_call"
    assert (asked.call_id, asked.arguments, asked.name) == ("c2", '{"n": 1}', "pick")


def test_a_tool_error_is_the_calls_error() -> None:
    e = Script()
    failed = ToolResult(call_id="c", tool="t", output="no such file", is_error=True, error="tool_failed")
    events = fed(
        face(),
        [*begun(e, "a"), e("a", ToolCall(call_id="c", tool="t")), e("a", failed), *over(e, a="completed")],
    )
    assert "mcp_call.failed" in types(events)
    assert events[-1]["response"]["output"][0]["error"]["content"][0]["text"] == "no such file"


def waiting(e: Script) -> list[Event]:
    return [
        *begun(e, "a"),
        e("a", ToolCall(call_id="c", tool="write")),
        e("a", StepFinished(step=1, finish_reason="tool_calls")),
        e("a", ApprovalRequested(call_id="c", tool="write", arguments={"x": 1}, expires_at=5)),
    ]


def test_a_call_that_waits_for_a_person_ends_the_response_with_its_request() -> None:
    e = Script()
    encoder = face()
    fed(encoder, waiting(e))
    end = parsed(b"".join(encoder.settle()))
    [request] = end[-1]["response"]["output"]
    assert (end[-1]["type"], request["type"], request["id"]) == (
        "response.completed", "mcp_approval_request", "r1/c",
    )  # fmt: skip


def test_the_next_response_has_the_call_and_what_follows() -> None:
    e = Script()
    first = waiting(e)
    at = e.seq
    rest = [
        e("a", ApprovalResolved(call_id="c", decision="approve", by="local")),
        e("a", ToolStart(call_id="c", tool="write", arguments={"x": 1})),
        e("a", ToolResult(call_id="c", tool="write", output="written")),
        e("a", Token(content="done")),
        *over(e, a="completed"),
    ]
    events = fed(face(resumed_at=at), [*first, *rest])
    assert types(events)[:2] == ["created", "in_progress"]
    output = events[-1]["response"]["output"]
    assert [(i["type"], i.get("output")) for i in output] == [("mcp_call", "written"), ("message", None)]


def test_a_redone_step_leaves_nothing_of_the_first_try_in_the_response() -> None:
    e = Script()
    events = fed(
        face(),
        [
            *begun(e, "a"),
            e("a", Reasoning(content="hm")),
            e("a", Token(content="lost")),
            e("a", StepReset(step=1, from_cseq=2)),
            e("a", Token(content="new")),
            *over(e, a="completed"),
        ],
    )
    assert [i["status"] for x in events if x["type"] == "response.output_item.done" and (i := x["item"])] == [
        "completed", "incomplete", "completed",
    ]  # fmt: skip
    assert Response.model_validate(events[-1]["response"]).output_text == "new"
    assert len(events[-1]["response"]["output"]) == 1


def test_numbers_follow_from_the_log_so_that_a_suffix_is_a_suffix() -> None:
    e = Script()
    events = [*begun(e, "a"), *(e("a", Token(content=str(n))) for n in range(5)), *over(e, a="completed")]
    encoder = face()
    whole = [f for x in events for f in encoder.feed(x)]
    for number in range(len(whole)):
        rest = face(starting_after=number)
        assert [f for x in events for f in rest.feed(x)] == whole[number + 1 :]


def test_a_cut_answer_is_incomplete_with_its_reason() -> None:
    e = Script()
    ended = done().model_copy(update={"finish_reason": "length"})
    events = fed(
        face(), [*begun(e, "a"), e("a", Token(content="x")), e("a", ended), e(None, finished(a="completed"))]
    )
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_usage_is_left_out_where_nothing_was_reported() -> None:
    assert responses_usage(None) is None
    assert responses_usage(Usage(cost=1.0)) is None
    used = responses_usage(Usage(input_tokens=3, output_tokens=2, cached_tokens=1, cost=0.5))
    assert used is not None
    assert (used["total_tokens"], used["input_tokens_details"]["cached_tokens"], used["cost"]) == (5, 1, 0.5)

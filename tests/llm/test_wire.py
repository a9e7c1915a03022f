"""Bytes → records → turns, without HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import UpstreamError
from mux.llm import wire
from mux.llm.chat import ChatParser
from mux.llm.model import Delta, TextDelta, TurnEnd
from mux.llm.wire import Body, Record, RecordReader, TurnReader


def records(*chunks: bytes) -> list[Record | Body]:
    reader = RecordReader()
    found = [r for c in chunks for r in reader.feed(c)]
    return found + list(reader.close())


def chunk(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def turn(*chunks: bytes, cut: bool = False) -> tuple[str, TurnEnd | None, str | None]:
    reader = TurnReader(ChatParser())
    deltas: list[Delta] = [d for c in chunks for d in reader.feed(c)]
    deltas += reader.end(cut=cut)
    text = "".join(d.text for d in deltas if isinstance(d, TextDelta))
    end = deltas[-1] if deltas and isinstance(deltas[-1], TurnEnd) else None
    return text, end, reader.failure.code if reader.failure else None


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_of_sse_ends_a_line(newline: bytes) -> None:
    raw = newline.join([b": hi", b"event: e", b"id: 1", b"data: a", b"data:b", b"", b"data: c", b"", b""])
    assert records(raw) == [Record("e", b"a\nb"), Record("", b"c")]


@given(st.data())
def test_cuts_never_change_the_records(data: st.DataObject) -> None:
    line = st.sampled_from(
        [b"data: {}", b"data:x", b"event: n", b": c", b"", b"data", b"id: 3", b"junk", b"data: \xc3\xa9"]
    )
    ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
    raw = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    raw += b"".join(a + b for a, b in data.draw(st.lists(st.tuples(line, ends), max_size=12)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert records(*pieces) == records(raw)


@given(st.data())
def test_cuts_never_change_the_turn(data: st.DataObject) -> None:
    """Also where every record comes alone, or with the end of the one before."""
    said = st.text("ab\u00e9", min_size=1, max_size=3).map(lambda t: chunk(content=t))
    unended = said.map(lambda record: record[:-1])  # the next one's brackets tell them apart
    odd = [
        b": c\n\n",
        b"event: ping\n",
        b"data: {}\n\n",
        b"data:\n\n",
        b'data: {"choices":\ndata: []}\n\n',
        b"\n",
    ]
    parts = data.draw(st.lists(st.one_of(said, said, unended, st.sampled_from(odd)), max_size=9))
    parts = [r.replace(b"\n", data.draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))) for r in parts]
    raw = b"".join([*parts, STOP, *data.draw(st.sampled_from([[], [DONE]]))])
    borders = [0]
    for record in [*parts, STOP]:
        borders.append(borders[-1] + len(record))
    cuts = data.draw(st.sets(st.integers(0, len(raw)), max_size=4))
    cuts |= data.draw(st.sets(st.sampled_from(borders)))
    at = sorted(cuts)
    pieces = [raw[a:b] for a, b in zip([0, *at], [*at, len(raw)], strict=True)]
    assert turn(*pieces) == turn(raw)


def test_a_bom_is_skipped_only_at_the_start() -> None:
    assert records(b"\xef", b"\xbb\xbfdata: a\n\n") == [Record("", b"a")]
    assert records(b"data: \xef\xbb\xbfa\n\n") == [Record("", b"\xef\xbb\xbfa")]


def test_json_objects_on_neighbouring_data_lines_are_two_records() -> None:
    assert records(b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n') == [
        Record("", b'{"a":1}'),
        Record("", b'{"b":2}'),
        Record("", b"[DONE]"),
    ]


def test_json_over_several_data_lines_is_one_record() -> None:
    assert records(b'data: {"a":\ndata: [1,\ndata: 2]}\n\n') == [Record("", b'{"a":\n[1,\n2]}')]


def test_a_body_that_is_no_sse_is_given_whole() -> None:
    assert records(b'{\n"error"', b": {}\n}\n") == [Body(b'{\n"error": {}\n}')]


def test_a_record_over_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_RECORD", 100)
    for flood in ([b"data: " + b"x" * 60] * 2, [b"data: x\n"] * 40, [b"{" + b"x" * 60, b"\n" + b"x" * 60]):
        with pytest.raises(UpstreamError, match="upstream_protocol"):
            records(*flood)


def test_a_turn_over_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_TURN", 300)
    assert turn(*[chunk(content="a")] * 20)[2] == "upstream_protocol"


def test_data_lines_that_never_end_a_record_cost_linear_work() -> None:
    reader = RecordReader()
    for _ in range(100_000):
        assert not list(reader.feed(b"data: x\n"))
    assert sum(1 for _ in reader.close()) == 1


def test_what_follows_the_finish_reason_still_counts() -> None:
    text, end, error = turn(chunk(content="a"), STOP, chunk(content="b"), DONE)
    assert (text, error) == ("ab", None)
    assert end is not None


def test_what_follows_done_counts_no_more() -> None:
    assert turn(chunk(content="a"), DONE + chunk(content="b"))[0] == "a"
    assert turn(chunk(content="a"), DONE, chunk(content="b"))[0] == "a"


def test_text_before_a_broken_record_in_the_same_bytes_is_not_lost() -> None:
    assert turn(chunk(content="a") + b"data: {broken\n\n" + chunk(content="b")) == (
        "a",
        None,
        "upstream_protocol",
    )


@pytest.mark.parametrize(
    "blank", [b"data:\n\n", b"data:   \n\n", b"data: : ping\n\n", b"data:: x\n\n", b":\n\n"]
)
def test_a_comment_wrapped_as_data_is_a_comment(blank: bytes) -> None:
    reader = TurnReader(ChatParser())
    assert reader.feed(blank) == []
    assert (reader.progressed, reader.failure) == (0, None)


@pytest.mark.parametrize(
    "quiet",
    [
        chunk(content=""),
        chunk(role="assistant", content=None),
        chunk(),
        b'data: {"choices":[]}\n\n',
        b": x\n\n",
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b"event: ping\ndata: 1\n\n",
        b"data: null\n\n",
    ],
)
def test_keep_alives_and_empty_deltas_are_no_progress(quiet: bytes) -> None:
    reader = TurnReader(ChatParser())
    assert reader.feed(quiet) == []
    assert (reader.progressed, reader.failure) == (0, None)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "upstream_empty"),
        (b": hello\n\n", "upstream_empty"),
        (b"data: [DONE]\n\n", "upstream_empty"),
        (chunk(role="assistant", content=""), "upstream_truncated"),
        (chunk(content="a") + b'data: {"choices":[{"ind', "upstream_truncated"),
        (b"<html>sign in</html>", "upstream_protocol"),
        (b"upstream connect error or disconnect/reset before headers", "upstream_protocol"),
        (b'{"hello": "world"}', "upstream_protocol"),
        (b'{"error": {"message": "no"}}', "upstream_error"),
        (b'[{"error": {"code": 400}}]', "upstream_error"),
        (b'{\n  "error": "no"\n}', "upstream_error"),
        (b'{"detail": "Not authenticated"}', "upstream_error"),
        (b'{"object":"error","message":"x","code":400}', "upstream_error"),
        (chunk(content="a") + b'{"error": {"message": "no"}}\n', "upstream_error"),
        (b'data: {"error": {"message": "no"}}\n\n', "upstream_error"),
        (b'data: {"error": "no"}\n\n', "upstream_error"),
        (b"event: error\ndata: it broke\n\n", "upstream_error"),
        (b'data: "text"\n\n', "upstream_protocol"),
        (b"data: Internal Server Error\n\n", "upstream_protocol"),
    ],
)
def test_an_answer_that_is_no_turn_is_an_error(raw: bytes, code: str) -> None:
    assert turn(raw)[1:] == (None, code)


def test_a_cut_after_the_finish_reason_loses_nothing() -> None:
    text, end, error = turn(chunk(content="a"), STOP, cut=True)
    assert (text, error) == ("a", None)
    assert end is not None


def test_a_cut_before_any_data_is_truncated() -> None:
    assert turn(b"", cut=True)[2] == "upstream_truncated"


def test_a_complete_answer_of_an_endpoint_that_does_not_stream_is_read() -> None:
    answer = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    text, end, error = turn(json.dumps(answer, indent=1).encode())
    assert (text, error) == ("hi", None)
    assert end is not None
    assert end.usage is not None
    assert end.usage.output_tokens == 2


def test_error_texts_of_the_endpoint_are_not_passed_on() -> None:
    reader = TurnReader(ChatParser())
    reader.feed(
        b'data: {"error": {"message": "bad key sk-CANARY", "type": "sk-CANARY", "code": "sk-CANARY"}}\n\n'
    )
    assert reader.failure is not None
    assert "CANARY" not in f"{reader.failure} {reader.failure.extra}"


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_no_bytes_make_the_reader_raise_anything_but_its_own_errors(chunks: list[bytes]) -> None:
    turn(*chunks)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "index",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "id",
                    "finish_reason",
                    "usage",
                    "error",
                    "message",
                    "reasoning_details",
                    "extra_content",
                    "x_groq",
                    "reasoning",
                    "refusal",
                    "model",
                    "prompt_tokens",
                    "type",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=4))
def test_no_json_makes_the_reader_raise_anything_but_its_own_errors(values: list[Any]) -> None:
    frames = [
        b"data: " + json.dumps({"choices": [v], **({"usage": v} if i else {})}).encode() + b"\n\n"
        for i, v in enumerate(values)
    ]
    text, end, _ = turn(*frames, DONE)
    text.encode()
    assert end is None or json.dumps(end.provider_items).encode()

"""chat.completions chunks → deltas: the shapes that the recorded cases do not hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mux.events import Usage
from mux.llm.chat import ChatParser
from mux.llm.finish import settle_finish
from mux.llm.model import Delta, OutputDelta, ReasoningDelta, RefusalDelta, TextDelta, TurnEnd
from mux.llm.wire import TurnReader


def read(*chunks: dict[str, Any] | bytes, n: int = 1, done: bool = True) -> tuple[list[Delta], TurnReader]:
    reader = TurnReader(ChatParser(["get_time"], n))
    deltas: list[Delta] = []
    for c in chunks:
        raw = c if isinstance(c, bytes) else json.dumps(c).encode()
        deltas += reader.feed(b"data: " + raw + b"\n\n")
    if done:
        deltas += reader.feed(b"data: [DONE]\n\n")
    return deltas + reader.end(), reader


def choice(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def said(deltas: list[Delta], kind: type[TextDelta] | type[ReasoningDelta] | type[RefusalDelta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, kind))


def ended(deltas: list[Delta]) -> TurnEnd:
    assert isinstance(deltas[-1], TurnEnd)
    return deltas[-1]


@pytest.mark.parametrize(
    ("word", "calls", "finish"),
    [
        ("stop", 0, "stop"),
        ("stop", 1, "tool_calls"),
        ("tool_calls", 0, "stop"),
        ("banana", 0, "stop"),
        ("banana", 2, "tool_calls"),
        (None, 1, "tool_calls"),
        ("MAX_TOKENS", 0, "length"),
        ("length", 1, "length"),
        ("SAFETY", 0, "content_filter"),
        ("content_filter", 1, "content_filter"),
    ],
)
def test_the_calls_decide_the_finish_reason(word: str | None, calls: int, finish: str) -> None:
    assert settle_finish(word, calls) == finish


@pytest.mark.parametrize("word", ["", "null", "None", " "])
def test_a_finish_reason_that_says_nothing_ends_nothing(word: str) -> None:
    _, reader = read(choice(content="a", finish=word), done=False)
    assert reader.failure is not None
    assert reader.failure.code == "upstream_truncated"


@pytest.mark.parametrize("word", ["error", "network_error", "abort"])
def test_a_finish_reason_that_means_failure_is_an_error(word: str) -> None:
    _, reader = read(choice(content="a"), choice(finish=word))
    assert reader.failure is not None
    assert reader.failure.code == "upstream_error"


def test_a_stop_on_every_chunk_does_not_end_the_text() -> None:
    deltas, _ = read(choice(content="a", finish="stop"), choice(content="b", finish="stop"))
    assert said(deltas, TextDelta) == "ab"


def test_content_parts_are_read_and_their_thoughts_told_apart() -> None:
    deltas, _ = read(
        choice(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
        choice(content=[{"type": "text", "text": "a"}, {"type": "image", "x": 1}, "b"]),
        choice(finish="stop"),
    )
    assert (said(deltas, ReasoningDelta), said(deltas, TextDelta)) == ("hm", "ab")


def test_reasoning_told_in_two_spellings_is_said_once() -> None:
    detail = {"type": "reasoning.text", "text": "hm", "index": 0}
    deltas, _ = read(choice(reasoning="hm", reasoning_details=[detail]), choice(content="a", finish="stop"))
    assert said(deltas, ReasoningDelta) == "hm"
    deltas, _ = read(choice(reasoning="hm", reasoning_content="hm"), choice(content="a", finish="stop"))
    assert said(deltas, ReasoningDelta) == "hm"


def test_reasoning_details_are_read_and_kept_whole_for_the_way_back() -> None:
    deltas, _ = read(
        choice(reasoning_details=[{"type": "reasoning.text", "text": "h", "index": 0}]),
        choice(reasoning_details=[{"type": "reasoning.text", "text": "m", "index": 0, "signature": "s"}]),
        choice(reasoning_details=[{"type": "reasoning.encrypted", "data": "x", "index": 1}]),
        choice(content="a", finish="stop"),
    )
    assert said(deltas, ReasoningDelta) == "hm"
    assert ended(deltas).provider_items == [
        {
            "kind": "message",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "hm", "index": 0, "signature": "s"},
                {"type": "reasoning.encrypted", "data": "x", "index": 1},
            ],
        }
    ]


def test_think_tags_are_text_like_any_other() -> None:
    deltas, _ = read(choice(content="<think>a</think>"), choice(content="b", finish="stop"))
    assert said(deltas, TextDelta) == "<think>a</think>b"


def test_further_choices_are_collected_apart() -> None:
    deltas, _ = read(
        choice(1, content="x"),
        choice(0, content="a"),
        choice(1, content="y"),
        choice(2, content="z"),
        choice(0, finish="stop"),
        choice(1, finish="stop"),
        choice(2, finish="length"),
        n=3,
    )
    assert said(deltas, TextDelta) == "a"
    assert [c.text for c in ended(deltas).choices] == ["xy", "z"]


def test_a_further_choice_that_never_finished_is_truncated() -> None:
    _, reader = read(choice(0, content="a", finish="stop"), choice(1, content="x"), n=2, done=False)
    assert reader.failure is not None
    assert reader.failure.code == "upstream_truncated"


def test_the_only_choice_counts_whatever_its_index() -> None:
    deltas, _ = read(choice(1, content="a"), choice(1, finish="stop"))
    assert said(deltas, TextDelta) == "a"


@pytest.mark.parametrize(
    "usage",
    [
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}},
        {"usage": {"prompt_tokens": 3, "completion_tokens": 5}},
        {"choices": [], "x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 5}}},
        {"choices": [{"index": 0, "delta": {}, "usage": {"prompt_tokens": 3, "completion_tokens": 5}}]},
        {"choices": None, "usage": {"input_tokens": 3, "output_tokens": 5}},
    ],
)
def test_usage_is_found_wherever_it_is_sent(usage: dict[str, Any]) -> None:
    deltas, _ = read(choice(content="a"), choice(finish="stop"), usage)
    assert ended(deltas).usage == Usage(input_tokens=3, output_tokens=5)


def test_running_totals_of_usage_are_not_summed() -> None:
    deltas, _ = read(
        {**choice(content="a"), "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
        {**choice(content="b", finish="stop"), "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    )
    assert ended(deltas).usage == Usage(input_tokens=3, output_tokens=2)


def test_no_usage_stays_unknown() -> None:
    deltas, _ = read({**choice(content="a", finish="stop"), "usage": None})
    assert ended(deltas).usage is None


def test_a_whole_message_at_the_end_is_not_said_twice() -> None:
    deltas, _ = read(
        choice(content="ab"),
        {"choices": [{"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}]},
    )
    assert said(deltas, TextDelta) == "ab"


def test_a_surrogate_pair_cut_between_two_deltas_is_one_character() -> None:
    cut = b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}'
    deltas, _ = read(cut % b"a\\ud83d", cut % b"\\ude00b", choice(finish="stop"))
    assert said(deltas, TextDelta) == "a😀b"


@pytest.mark.parametrize("lone", [rb"a\ud83d", rb"a\ude00", rb"a\ud83d\n"])
def test_a_lone_surrogate_becomes_a_replacement_character(lone: bytes) -> None:
    deltas, _ = read(b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % lone, choice(finish="stop"))
    text = said(deltas, TextDelta)
    assert text.startswith("a\ufffd")
    text.encode()


def test_bad_utf8_becomes_a_replacement_character() -> None:
    deltas, _ = read(b'{"choices":[{"index":0,"delta":{"content":"a\xffb"}}]}', choice(finish="stop"))
    assert said(deltas, TextDelta) == "a\ufffdb"


@pytest.mark.parametrize(
    "fragment",
    [
        {"index": "0", "id": 7, "function": {"name": "get_time", "arguments": {"a": 1}}},
        {"index": None, "id": None, "type": None, "function": {"name": "get_time", "arguments": '{"a": 1}'}},
        {"index": 0, "name": "get_time", "arguments": '{"a": 1}'},
        {"index": 0.0, "id": "x", "function": {"name": "get_time", "arguments": '{"a": 1}', "strict": True}},
    ],
)
def test_calls_in_other_types_than_the_format_says_are_read(fragment: dict[str, Any]) -> None:
    deltas, _ = read(choice(tool_calls=[fragment]), choice(finish="stop"))
    end = ended(deltas)
    assert [(c.name, c.arguments) for c in end.calls] == [("get_time", {"a": 1})]
    assert end.finish == "tool_calls"


def test_calls_as_one_object_instead_of_a_list_are_read() -> None:
    one = {"index": 0, "id": "x", "function": {"name": "get_time", "arguments": "{}"}}
    assert len(ended(read(choice(tool_calls=one), choice(finish="stop"))[0]).calls) == 1


def test_the_older_function_call_is_a_call() -> None:
    deltas, _ = read(
        choice(function_call={"name": "get_time", "arguments": ""}),
        choice(function_call={"arguments": '{"a":1}'}),
        choice(finish="function_call"),
    )
    assert [(c.name, c.arguments) for c in ended(deltas).calls] == [("get_time", {"a": 1})]


def test_the_older_completions_text_is_text() -> None:
    deltas, _ = read(
        {"choices": [{"text": "a", "index": 0}]}, {"choices": [{"text": "", "finish_reason": "stop"}]}
    )
    assert said(deltas, TextDelta) == "a"


def test_an_answer_without_words_is_an_answer_where_the_endpoint_says_stop() -> None:
    assert ended(read(choice(role="assistant", content=""), choice(finish="stop"))[0]).finish == "stop"


def test_the_model_that_answered_is_told() -> None:
    deltas, _ = read({"model": "m-2", **choice(content="a", finish="stop")})
    assert ended(deltas).model == "m-2"


def test_provider_ids_and_signatures_are_kept_for_the_way_back() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "get_time", "arguments": "{}"}}
    more = {"index": 0, "extra_content": {"google": {"thought_signature": "eA=="}}}
    deltas, _ = read(
        choice(reasoning="hm"), choice(tool_calls=[call]), choice(tool_calls=[more]), choice(finish="stop")
    )
    assert ended(deltas).provider_items == [
        {"kind": "call", "at": 0, "id": "c1", "extra_content": {"google": {"thought_signature": "eA=="}}},
        {"kind": "reasoning", "field": "reasoning"},
    ]


# --- forms without a word here -----------------------------------------------------------------------------


def outputs(deltas: list[Delta]) -> list[tuple[str, Any]]:
    return [(d.name, d.value) for d in deltas if isinstance(d, OutputDelta)]


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("delta", "given"),
    [
        ({"images": [PICTURE]}, [("image", PICTURE)]),
        ({"content": [PICTURE]}, [("content_part", PICTURE)]),
        ({"audio": {"id": "a1", "data": "UklG"}}, [("audio", {"id": "a1", "data": "UklG"})]),
        ({"video": {"url": "x"}}, [("delta", {"video": {"url": "x"}})]),
        (
            {"annotations": [{"type": "file", "file": {"hash": "h"}}]},
            [("annotation", {"type": "file", "file": {"hash": "h"}})],
        ),
    ],
)
def test_an_answer_that_is_no_text_is_an_answer(delta: dict[str, Any], given: list[Any]) -> None:
    deltas, reader = read(choice(**delta), choice(finish="stop"))
    assert outputs(deltas) == given
    assert reader.failure is None


def test_a_citation_is_given_out_once_however_often_it_is_sent() -> None:
    note = {"type": "url_citation", "url_citation": {"url": "https://example.com"}}
    chunk = {**choice(content="a", annotations=[note]), "citations": ["https://example.com"]}
    deltas, _ = read(chunk, chunk, choice(finish="stop"))
    assert outputs(deltas) == [("citations", ["https://example.com"]), ("annotation", note)]


def test_logprobs_follow_the_text_that_they_belong_to() -> None:
    chunk = choice(content="a")
    chunk["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -0.1}], "refusal": None}
    deltas, _ = read(chunk, choice(finish="stop"))
    assert [type(d) for d in deltas] == [TextDelta, OutputDelta, TurnEnd]
    assert outputs(deltas) == [("logprobs", {"content": [{"token": "a", "logprob": -0.1}]})]


@pytest.mark.parametrize(
    ("word", "told"), [("flagged<b>", "flagged_b_"), ("end_turn", None), ("length", None)]
)
def test_a_finish_word_that_nobody_knows_is_told(word: str, told: str | None) -> None:
    deltas, _ = read(choice(content="a"), choice(finish=word))
    assert outputs(deltas) == ([("finish_reason", {"word": told})] if told else [])


def test_spoken_words_are_text_too_and_go_back_by_their_id() -> None:
    deltas, _ = read(choice(audio={"id": "a1", "transcript": "Hi."}), choice(finish="stop"))
    assert said(deltas, TextDelta) == "Hi."
    assert ended(deltas).provider_items == [{"kind": "message", "audio": {"id": "a1"}}]


def test_sealed_thoughts_of_two_calls_at_one_index_stay_two() -> None:
    one = {"type": "reasoning.encrypted", "data": "AAA", "id": "t1", "index": 0}
    two = {"type": "reasoning.encrypted", "data": "BBB", "id": "t2", "index": 0}
    deltas, _ = read(choice(reasoning_details=[one]), choice(reasoning_details=[two]), choice(finish="stop"))
    assert ended(deltas).provider_items == [{"kind": "message", "reasoning_details": [one, two]}]


def test_a_signed_thought_is_not_grown_by_the_next() -> None:
    signed = {"type": "reasoning.text", "text": "a", "signature": "s1", "index": 0}
    following = {"type": "reasoning.text", "text": "b", "signature": "s2", "index": 0}
    deltas, _ = read(choice(reasoning_details=[signed, following]), choice(content="x", finish="stop"))
    assert ended(deltas).provider_items == [{"kind": "message", "reasoning_details": [signed, following]}]


def test_two_calls_that_say_the_same_but_are_signed_apart_are_two() -> None:
    def signed(signature: str) -> dict[str, Any]:
        function = {"name": "get_time", "arguments": "{}"}
        extra = {"google": {"thought_signature": signature}}
        return choice(tool_calls=[{"index": 0, "function": function, "extra_content": extra}])

    deltas, _ = read(signed("s1"), signed("s2"), choice(finish="tool_calls"))
    found = [(c.extras or {})["extra_content"]["google"]["thought_signature"] for c in ended(deltas).calls]
    assert found == ["s1", "s2"]

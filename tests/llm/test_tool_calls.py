"""Partial calls → whole calls, whatever identity they come with. Fragments: (index, id, name, arguments)."""

from __future__ import annotations

import itertools
import json
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.llm.model import CallArgs, CallBegan, CompleteCall, Delta
from mux.llm.tool_calls import Assembler

Fragment: TypeAlias = tuple[int | None, str | None, str | None, str]

KNOWN = ("get", "get_weather", "get_time", "list_files", "gogo")


def assemble(
    *deltas: Fragment | list[Fragment], known: tuple[str, ...] = KNOWN, cut_short: bool = False
) -> tuple[list[Delta], tuple[CompleteCall, ...]]:
    assembler = Assembler(known)
    out: list[Delta] = []
    for delta in deltas:
        group = delta if isinstance(delta, list) else [delta]
        for position, (index, id, name, text) in enumerate(group):
            assembler.fragment(
                out, index=index, id=id, name=name, text=text, position=position, of=len(group)
            )
    return out, assembler.finish(out, cut_short=cut_short)


def calls(*deltas: Fragment | list[Fragment], **options: Any) -> list[tuple[str, Any]]:
    return [(c.name, c.arguments if c.error is None else c.error) for c in assemble(*deltas, **options)[1]]


A = '{"a":1}'
B = '{"b":2}'


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        pytest.param(
            [(0, "x", "get_time", ""), (1, "y", "list_files", ""), (0, None, None, A), (1, None, None, B)],
            [("get_time", {"a": 1}), ("list_files", {"b": 2})],
            id="interleaved by index",
        ),
        pytest.param(
            [(0, "x", "get_time", A), (0, "y", "get_time", B)],
            [("get_time", {"a": 1}), ("get_time", {"b": 2})],
            id="all indexes zero",
        ),
        pytest.param(
            [(0, None, "get_time", A), (0, None, "list_files", B)],
            [("get_time", {"a": 1}), ("list_files", {"b": 2})],
            id="all zero and no ids",
        ),
        pytest.param(
            [(0, None, "get_time", A), (0, None, "get_time", B)],
            [("get_time", {"a": 1}), ("get_time", {"b": 2})],
            id="all zero, no ids, one name",
        ),
        pytest.param(
            [
                (0, "x", "get_time", '{"a"'),
                (0, "y", "list_files", '{"b"'),
                (0, "x", None, ":1}"),
                (0, "y", None, ":2}"),
            ],
            [("get_time", {"a": 1}), ("list_files", {"b": 2})],
            id="all zero, interleaved by id",
        ),
        pytest.param(
            [(0, "same", "get_time", A), (1, "same", "list_files", B)],
            [("get_time", {"a": 1}), ("list_files", {"b": 2})],
            id="one id for two indexes",
        ),
        pytest.param(
            [(0, "x", "get_time", '{"a"'), (1, "x", "get_time", ":1"), (2, "x", "get_time", "}")],
            [("get_time", {"a": 1})],
            id="the index grows with each fragment",
        ),
        pytest.param(
            [(0, "x", "get_time", '{"a"'), (1, None, None, ":1}")],
            [("get_time", {"a": 1})],
            id="a new index that opens nothing",
        ),
        pytest.param(
            [(0, "x1", "get_time", '{"a"'), (0, "x2", None, ":1"), (0, "x3", "get_time", "}")],
            [("get_time", {"a": 1})],
            id="a new id with each fragment",
        ),
        pytest.param(
            [
                [(None, None, "get_time", ""), (None, None, "list_files", "")],
                [(None, None, None, A), (None, None, None, B)],
            ],
            [("get_time", {"a": 1}), ("list_files", {"b": 2})],
            id="by position",
        ),
        pytest.param(
            [
                (None, None, "get_time", '{"a"'),
                (None, None, "list_files", '{"b"'),
                (None, None, "get_time", ":1}"),
                (None, None, "list_files", ":2}"),
            ],
            [("get_time", {"a": 1}), ("list_files", {"b": 2})],
            id="by name",
        ),
        pytest.param(
            [
                (None, None, "get_time", ""),
                (None, None, None, A),
                (None, None, "get_time", ""),
                (None, None, None, B),
            ],
            [("get_time", {"a": 1}), ("get_time", {"b": 2})],
            id="the name again opens the next call",
        ),
        pytest.param(
            [(None, "x", "get_time", ""), (None, None, None, A), (None, "y", "get_time", B)],
            [("get_time", {"a": 1}), ("get_time", {"b": 2})],
            id="no index, sequential",
        ),
        pytest.param(
            [(0, None, "get_time", A), (0, None, "get_time", "")],
            [("get_time", {"a": 1})],
            id="the name again opens nothing by itself",
        ),
        pytest.param(
            [(0, "x", "", ""), (0, None, "get_time", A)],
            [("get_time", {"a": 1})],
            id="the id before the name",
        ),
        pytest.param(
            [(0, None, None, A), (0, "x", "get_time", "")],
            [("get_time", {"a": 1})],
            id="the arguments before the name",
        ),
        pytest.param(
            [(0, "x", "get_", ""), (0, None, "weather", ""), (0, None, None, A)],
            [("get_weather", {"a": 1})],
            id="a name in two pieces",
        ),
        pytest.param(
            [(0, "x", "get", ""), (0, "x", "_weather", A)],
            [("get_weather", {"a": 1})],
            id="a name whose piece is a name",
        ),
        pytest.param(
            [(0, "x", "get_", ""), (0, "x", "get_wea", ""), (0, "x", "get_weather", A)],
            [("get_weather", {"a": 1})],
            id="the name so far, each time",
        ),
        pytest.param([(0, "x", "go", ""), (0, "x", "go", A)], [("gogo", {"a": 1})], id="equal pieces"),
        pytest.param(
            [(0, "x", "get_time", ""), (0, "x", "get_time", A)],
            [("get_time", {"a": 1})],
            id="the name repeated",
        ),
        pytest.param([(0, "x", "get", A)], [("get", {"a": 1})], id="a name that is a prefix of others"),
        pytest.param([(0, "x", "get", "")], [("get", {})], id="a prefix without arguments"),
        pytest.param(
            [(0, "x", "un", ""), (0, None, "known", ""), (0, None, None, "{}")],
            [("unknown", {})],
            id="an unknown name in pieces",
        ),
        pytest.param([(0, "x", None, A)], [("unnamed_tool", {"a": 1})], id="no name at all"),
        pytest.param([(0, "x", None, "")], [], id="an id and nothing else"),
        pytest.param(
            [(0, "x", "get_time", "{}"), (0, None, None, A)], [("get_time", {"a": 1})], id="a placeholder"
        ),
        pytest.param([(0, "x", "get_time", A), (0, None, None, A)], [("get_time", {"a": 1})], id="a flush"),
        pytest.param(
            [(None, None, "get_time", A), (None, None, "get_time", A)],
            [("get_time", {"a": 1})],
            id="a flush with the name and no id",
        ),
        pytest.param(
            [(0, "x", "get_time", A), (0, None, None, B)], [("get_time", "invalid_json")], id="no flush"
        ),
        pytest.param([(0, "x", "get_time", "{}{}")], [("get_time", {})], id="two placeholders"),
        pytest.param([(0, "x", "get_time", "[1]")], [("get_time", "not_an_object")], id="a list"),
        pytest.param([(0, "x", "get_time", "null")], [("get_time", "not_an_object")], id="null"),
        pytest.param([(0, "x", "get_time", '"{}"')], [("get_time", "not_an_object")], id="JSON in a string"),
        pytest.param([(0, "x", "get_time", '{"a":NaN}')], [("get_time", "invalid_json")], id="NaN"),
        pytest.param([(0, "x", "get_time", '{"a":1e999}')], [("get_time", "invalid_json")], id="infinite"),
        pytest.param(
            [(0, "x", "get_time", '{"a":' + "[" * 100_000)], [("get_time", "invalid_json")], id="deep"
        ),
        pytest.param(
            [(0, "x", "get_time", '{"a":"\\ud800"}')], [("get_time", {"a": "\ufffd"})], id="surrogate"
        ),
        pytest.param(
            [(0, "x", "get_time", '{"a":12345678901234567890123}')],
            [("get_time", {"a": 12345678901234567890123})],
            id="a number that no float holds",
        ),
        pytest.param([(0, "x", "get_time", " \n")], [("get_time", {})], id="blank arguments"),
    ],
)
def test_fragments_become_the_calls_that_were_meant(deltas: Any, expected: list[tuple[str, Any]]) -> None:
    out, complete = assemble(*deltas)
    assert [(c.name, c.arguments if c.error is None else c.error) for c in complete] == expected
    assert [(d.key, d.name) for d in out if isinstance(d, CallBegan)] == [(c.key, c.name) for c in complete]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(A, {"a": 1}), ("", "truncated"), ("{}", "truncated"), ('{"a":', "truncated"), ("[1]", "truncated")],
)
def test_a_turn_cut_short_leaves_only_plainly_whole_calls(raw: str, expected: Any) -> None:
    assert calls((0, "x", "get_time", raw), cut_short=True) == [("get_time", expected)]


def test_a_call_begins_as_soon_as_its_name_is_settled() -> None:
    assembler = Assembler(KNOWN)
    out: list[Delta] = []
    assembler.fragment(out, index=0, id="x", name="get_time", text="")
    assert out == [CallBegan(0, "get_time")]
    assembler.fragment(out, index=1, id="y", name="get", text="")
    assert len(out) == 1, "get may still become get_weather"
    assembler.fragment(out, index=1, id=None, name=None, text='{"a')
    assert out[1:] == [CallBegan(1, "get"), CallArgs(1, '{"a')]


def test_arguments_are_shown_as_they_come() -> None:
    out, complete = assemble((0, "x", "get_time", '{"a'), (0, None, None, '":1'), (0, None, None, "}"))
    assert [d.text for d in out if isinstance(d, CallArgs)] == ['{"a', '":1', "}"]
    assert complete[0].raw == A


def test_a_placeholder_is_never_shown() -> None:
    out, _ = assemble((0, "x", "get_time", "{}"), (0, None, None, ""), (0, None, None, A))
    assert [d.text for d in out if isinstance(d, CallArgs)] == [A]


def test_a_call_with_only_a_placeholder_shows_it_at_the_end() -> None:
    out, _ = assemble((0, "x", "get_time", "{}"))
    assert [d.text for d in out if isinstance(d, CallArgs)] == ["{}"]


def test_extras_of_several_fragments_are_kept_together() -> None:
    assembler = Assembler(KNOWN)
    out: list[Delta] = []
    assembler.fragment(
        out, index=0, id="x", name="get_time", text="", extras={"extra_content": {"g": {"a": 1}}}
    )
    assembler.fragment(out, index=0, id=None, name=None, text="", extras={"extra_content": {"g": {"b": 2}}})
    (call,) = assembler.finish(out, cut_short=False)
    assert call.extras == {"extra_content": {"g": {"a": 1, "b": 2}}}


@given(st.data())
def test_indexed_calls_survive_any_interleaving(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 4))
    values = data.draw(
        st.lists(
            st.dictionaries(st.text(max_size=4), st.text(max_size=6), min_size=1, max_size=3),
            min_size=number,
            max_size=number,
        )
    )
    queues: list[list[Fragment]] = []
    for i, value in enumerate(values):
        text = json.dumps(value)
        cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=4)))
        parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        queues.append([(i, f"id{i}", "get_time", ""), *((i, None, None, p) for p in parts)])
    fragments: list[Fragment] = [q.pop(0) for q in queues]
    while any(queues):
        queue = data.draw(st.sampled_from([q for q in queues if q]))
        fragments.append(queue.pop(0))
    out, complete = assemble(*fragments)
    assert [c.arguments for c in complete] == values
    for call in complete:
        assert "".join(d.text for d in out if isinstance(d, CallArgs) and d.key == call.key) == call.raw


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 0, 1, 2]),
            st.sampled_from([None, "", "x", "y"]),
            st.sampled_from([None, "", "get", "get_time", "_time", "other"]),
            st.sampled_from(["", "{}", A, '{"a"', ":1}", " ", "x"]),
        ),
        max_size=8,
    )
)
def test_any_fragments_give_calls_that_began_once_in_order(fragments: list[Fragment]) -> None:
    out, complete = assemble(*fragments)
    began = [d for d in out if isinstance(d, CallBegan)]
    assert [(d.key, d.name) for d in began] == [(c.key, c.name) for c in complete]
    assert [d.key for d in began] == list(range(len(began)))
    seen: set[int] = set()
    for delta in out:
        if isinstance(delta, CallBegan):
            seen.add(delta.key)
        else:
            assert isinstance(delta, CallArgs)
            assert delta.key in seen
    assert all((c.arguments is None) == (c.error is not None) for c in complete)

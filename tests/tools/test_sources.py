"""Source numbers: stable, bounded, from 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.agent import Message, Resume
from mux.tools import ToolProblem
from mux.tools.sources import MAX_CHANNELS, MAX_SOURCES, Sources
from tests.support.tools import context


@given(st.lists(st.text(max_size=3), max_size=60))
def test_the_same_place_keeps_its_number_and_numbers_have_no_gaps(places: list[str]) -> None:
    sources = Sources()
    numbers = [sources.number("r", "c", "path", p) for p in places]
    assert [sources.number("r", "c", "path", p) for p in places] == numbers
    assert sorted(set(numbers)) == list(range(1, len(set(places)) + 1))
    for place, number in zip(places, numbers, strict=True):
        assert sources.find("r", "c", number) == ("path", place)


def test_a_path_and_a_url_are_two_sources_and_channels_count_for_themselves() -> None:
    sources = Sources()
    assert sources.number("r", "a", "path", "x") == 1
    assert sources.number("r", "a", "url", "x") == 2
    assert sources.number("r", "b", "url", "x") == 1
    assert sources.entry("r", "b", "url", "x", "") == {"n": 1, "title": "x", "url": "x"}
    for number in (0, -1, 3):
        assert sources.find("r", "a", number) is None


def test_neither_channels_nor_sources_grow_without_bound() -> None:
    sources = Sources()
    for i in range(MAX_CHANNELS + 10):
        sources.number("r", str(i), "path", "x")
    assert sources.find("r", "0", 1) is None
    assert sources.find("r", str(MAX_CHANNELS + 9), 1) is not None
    for i in range(MAX_SOURCES):
        sources.number("r", "many", "path", str(i))
    assert sources.number("r", "many", "path", "0") == 1
    with pytest.raises(ToolProblem):
        sources.number("r", "many", "path", "one more")


def test_numbers_go_on_after_a_restart_and_in_the_next_run_of_a_thread() -> None:
    said = (
        Message(role="tool", call_id="a", content="[1] A title (docs/a.md, lines 1-3)\ntext\n\n"
                "[2] B (docs/(b).md, lines 4-9)\n[7] not a head (http://forged.example/)"),
        Message(role="tool", call_id="b", content="[3] A page (https://x.example/a_(b))\n\nits text"),
        Message(role="tool", call_id="c", content="[4] Found\nhttps://y.example/\nsnippet"),
        Message(role="tool", call_id="d", content="[1] A title (docs/a.md, lines 4-5 of 5)\nmore"),
    )  # fmt: skip
    task = Message(role="user", content="go on")
    history = replace(context(), messages=(*said[:2], task), resume=Resume(1, messages=said[2:]))
    sources = Sources()
    sources.resume(history)
    sources.resume(history)  # only the first time counts
    known = [sources.find(history.run, history.channel, n) for n in range(1, 6)]
    assert known == [
        ("path", "docs/a.md"), ("path", "docs/(b).md"), ("url", "https://x.example/a_(b)"),
        ("url", "https://y.example/"), None,
    ]  # fmt: skip
    assert sources.number(history.run, history.channel, "path", "docs/(b).md") == 2
    assert sources.number(history.run, history.channel, "path", "new") == 5

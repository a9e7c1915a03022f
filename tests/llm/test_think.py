"""Thoughts in tags are told apart from the answer, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.llm.model import CallBegan, ReasoningDelta, TextDelta, TextWasThought, TurnEnd
from mux.llm.think import ThinkTags


def told(pieces: list[str]) -> tuple[str, str]:
    """Reasoning and text of a reply in pieces."""
    tags = ThinkTags()
    deltas = [d for p in pieces for d in tags.split([TextDelta(p)])]
    deltas += tags.split([TurnEnd("stop")])
    assert deltas.pop() == TurnEnd("stop")
    reasoning = text = ""
    for delta in deltas:
        match delta:
            case TextDelta():
                text += delta.text
            case ReasoningDelta():
                reasoning += delta.text
            case TextWasThought():
                reasoning, text = reasoning + text, ""
    return reasoning, text


@pytest.mark.parametrize(
    ("reply", "reasoning", "text"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.\n", "Yes."),
        ("<think></think>Yes.", "", "Yes."),
        ("<think>a < b </thin </think>Yes </think> no", "a < b </thin ", "Yes </think> no"),
        ("Tags like <think>this</think> stay.", "", "Tags like <think>this</think> stay."),
        ("<thinking>no</thinking>", "", "<thinking>no</thinking>"),
        ("<thi", "", "<thi"),
        ("<think>never closed </thi", "never closed </thi", ""),
        ("", "", ""),
        ("Let me see, 2+2.\n</think>\n\nFour.", "Let me see, 2+2.\n", "Four."),
        ("So four.</think>Four.", "So four.", "Four."),
        ("So four. </think> Four.", "So four. ", "Four."),
        ("</think>\n\nFour.", "", "Four."),
        ("Write `</think>` to end it.", "", "Write `</think>` to end it."),
        ("Put </think> after it.", "", "Put </think> after it."),
        ('The tag "</think>" ends it.', "", 'The tag "</think>" ends it.'),
        ("```\n</think>\n```\nends it.", "", "```\n</think>\n```\nends it."),
    ],
)
@given(data=st.data())
def test_only_a_tag_at_the_beginning_counts_however_it_is_cut(
    reply: str, reasoning: str, text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(reply)))))
    pieces = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    assert told(pieces) == (reasoning, text)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "ink>", "/", " ", "\n", "a"])))
def test_pieces_never_change_the_result(pieces: list[str]) -> None:
    assert told(pieces) == told(["".join(pieces)])


def test_text_before_a_call_can_not_become_a_thought_any_more() -> None:
    tags = ThinkTags()
    tags.split([TextDelta("Let me look."), CallBegan(0, "f")])
    assert tags.split([TextDelta("\n</think>\n")]) == [TextDelta("\n</think>\n")]


def test_a_server_that_tells_thoughts_itself_has_no_tags_in_its_text() -> None:
    tags = ThinkTags()
    tags.split([TextDelta("a"), ReasoningDelta("b")])
    assert tags.over


def test_what_is_held_comes_before_a_call_and_at_the_end() -> None:
    tags = ThinkTags()
    assert tags.split([TextDelta("<thi")]) == []
    assert tags.split([CallBegan(0, "f")]) == [TextDelta("<thi"), CallBegan(0, "f")]
    tags = ThinkTags()
    assert tags.split([TextDelta("<think>a</")], final=True) == [ReasoningDelta("a"), ReasoningDelta("</")]

"""What goes out to an endpoint: the strictest chat templates take it, and nothing that was said is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.agent import Message, MessageCall
from mux.llm.model import ModelRequest
from mux.llm.normalise import normalised
from mux.llm.prompt import chat_body, responses_body


def user(text: str) -> Message:
    return Message(role="user", content=text)


def says(text: str, *calls: str) -> Message:
    asked = tuple(MessageCall(call_id=c, tool="look", arguments="{}") for c in calls)
    return Message(role="assistant", content=text, calls=asked)


def result(call_id: str, text: str = "seen") -> Message:
    return Message(role="tool", content=text, call_id=call_id)


def system(text: str) -> Message:
    return Message(role="system", content=text)


# --- models of the strict templates ------------------------------------------------------------------------


def qwen(messages: Sequence[Message]) -> str | None:
    """Qwen 3.5: raise_exception('System message must be at the beginning.'), ('No user query found …')."""
    if any(m.role == "system" for m in messages[1:]):
        return "System message must be at the beginning."
    return None if any(m.role == "user" for m in messages) else "No user query found in messages."


def gemma(messages: Sequence[Message]) -> str | None:
    """Gemma 3 and Mistral: after a system message user and assistant alternate, calls and results apart."""
    talk = [m for m in messages if m.role in ("user", "assistant") and not m.calls]
    for at, message in enumerate(talk):
        if (message.role == "user") != (at % 2 == 0):
            return "Conversation roles must alternate user/assistant/user/assistant/..."
    return None


def mistral(messages: Sequence[Message]) -> str | None:
    """Mistral's API: each call has one result right behind it, nothing else between, and ids are unique."""
    waiting: list[str] = []
    seen: set[str] = set()
    for message in messages:
        if message.role == "tool":
            if message.call_id not in waiting:
                return "Not the same number of function calls and responses"
            waiting.remove(message.call_id)
            continue
        if waiting:
            return f"Unexpected role {message.role!r} after a call"
        waiting = [c.call_id for c in message.calls]
        if len(set(waiting)) != len(waiting) or seen & set(waiting):
            return "Duplicate tool call id"
        seen |= set(waiting)
    return "Not the same number of function calls and responses" if waiting else None


TEMPLATES = (qwen, gemma, mistral)

TEXT = st.text(st.characters(codec=None), max_size=6)  # lone surrogates included
IDS = st.sampled_from(["c1", "c2", "c3", ""])
MESSAGE = st.one_of(
    st.builds(system, TEXT),
    st.builds(user, TEXT),
    st.builds(lambda t, c: says(t, *c), TEXT, st.lists(IDS, max_size=3)),
    st.builds(result, IDS, TEXT),
)


@given(st.lists(MESSAGE, max_size=12).map(lambda given: [*given, user("the task")]))
def test_whatever_accumulated_the_strictest_templates_take_it(messages: list[Message]) -> None:
    sent = normalised(messages)
    assert [template(sent) for template in TEMPLATES] == [None, None, None]
    json.dumps(chat_body(ModelRequest("m", messages), provider="p", params={})).encode()
    json.dumps(responses_body(ModelRequest("m", messages), provider="p", params={})).encode()


@given(st.lists(MESSAGE, max_size=12).map(lambda given: [*given, user("the task")]))
def test_what_is_regular_stays_as_it_is(messages: list[Message]) -> None:
    once = normalised(messages)
    assert normalised(once) == once


@given(st.lists(MESSAGE, min_size=1, max_size=12))
def test_nothing_that_was_said_is_lost(messages: list[Message]) -> None:
    sent = "\n".join(m.text for m in normalised(messages))
    answered = {c.call_id for m in messages for c in m.calls}
    for message in messages:
        if message.role != "tool" or message.call_id not in answered:  # of two results the last one counts
            assert message.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") in sent


# --- what people met ---------------------------------------------------------------------------------------


def test_two_system_messages_are_one_and_first() -> None:
    sent = normalised([system("You are B."), user("hi"), system("Be brief.")])
    assert [(m.role, m.text) for m in sent] == [("system", "You are B.\n\nBe brief."), ("user", "hi")]


def test_a_question_after_one_that_failed_is_asked_with_it() -> None:
    assert [m.text for m in normalised([user("one"), user("two")])] == ["one\n\ntwo"]


def test_pictures_of_neighbours_stay_in_order() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    (one,) = normalised([user("look"), Message(role="user", content=[picture])])
    assert one.content == [{"type": "text", "text": "look"}, picture]


def test_a_call_that_a_crash_cut_off_has_a_result() -> None:
    sent = normalised([user("go"), says("", "c1", "c2"), result("c2"), user("well?")])
    assert [m.role for m in sent] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert sent[2].is_error
    assert sent[3].text == "seen"


def test_a_result_that_comes_with_the_next_request_goes_behind_its_call() -> None:
    sent = normalised([user("go"), says("", "c1"), user("and"), result("c1", "rain"), user("so?")])
    assert [m.role for m in sent][:3] == ["user", "assistant", "tool"]
    assert sent[2].text == "rain"


def test_an_id_that_is_used_again_is_another_call() -> None:
    turns = [user("a"), says("", "c1"), result("c1", "one"), says("ok"), user("b"), says("", "c1")]
    sent = normalised([*turns, result("c1", "two"), says("ok")])
    assert [(m.call_id, m.text) for m in sent if m.role == "tool"] == [("c1", "one"), ("c1_2", "two")]


def test_instructions_alone_are_asked_as_a_question() -> None:
    assert [m.role for m in normalised([system("Say hi.")])] == ["user"]


def test_half_an_emoji_goes_out_as_a_replacement_character() -> None:
    (one,) = normalised([user("a\ud83d")])
    assert one.text == "a\ufffd"


@pytest.mark.parametrize("text", ["", "plain"])
def test_a_conversation_may_begin_with_the_assistant(text: str) -> None:
    sent = normalised([says("Hello, how can I help?"), user(text or "hi")])
    assert [m.role for m in sent] == ["user", "assistant", "user"]

"""Fitting a conversation into a context: what is cut first, what always stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mux.agent import Message, MessageCall
from mux.llm.history import estimate, fit, schema_tokens
from mux.llm.model import ToolSchema


def user(text: str) -> Message:
    return Message(role="user", content=text)


def asks(call_id: str) -> Message:
    return Message(role="assistant", calls=(MessageCall(call_id=call_id, tool="t", arguments="{}"),))


def got(call_id: str, text: str) -> Message:
    return Message(role="tool", content=text, call_id=call_id)


SYSTEM = Message(role="system", content="Be kind.")
LONG = "word " * 2_000


def test_what_fits_is_not_touched_and_an_unknown_limit_is_none() -> None:
    messages = (SYSTEM, user("a"))
    assert fit(messages, 4096).messages == messages
    assert not fit(messages, 4096).trimmed
    assert fit((user(LONG * 50),), None).messages == (user(LONG * 50),)


def test_old_tool_outputs_are_shortened_before_anything_is_dropped() -> None:
    messages = (SYSTEM, user("old"), asks("1"), got("1", LONG), user("new"), asks("2"), got("2", "fresh"))
    fitted = fit(messages, 2_500)
    assert (fitted.shortened, fitted.dropped) == (1, 0)
    cut = fitted.messages[3]
    assert len(cut.text) < 600
    assert "characters left out" in cut.text
    assert fitted.messages[-1].text == "fresh"
    assert fitted.after < fitted.before


def test_thoughts_that_go_back_to_the_provider_count_and_older_ones_do_not() -> None:
    thought = asks("1").model_copy(
        update={"reasoning": LONG, "provider_items": [{"kind": "reasoning", "field": "reasoning_content"}]}
    )
    unasked = thought.model_copy(update={"provider_items": None})
    assert estimate(thought) > estimate(unasked) + 3_000
    assert estimate(thought, recent=False) < 100
    now = (user("task"), thought, got("1", "x"), asks("2"), got("2", "y"))
    assert fit(now, 2_500).dropped == 2, "the round with the long thought"
    assert not fit((*now[:3], user("next")), 2_500).trimmed


def test_oldest_turns_go_next_as_a_whole() -> None:
    messages = (
        SYSTEM,
        user(LONG),
        asks("1"),
        got("1", "x"),
        user("two"),
        asks("2"),
        got("2", "y"),
        user("new"),
    )
    fitted = fit(messages, 2_000)
    assert fitted.dropped == 3
    assert fitted.messages == (SYSTEM, *messages[4:])


def test_in_a_long_task_oldest_rounds_go_and_new_results_are_shortened_last() -> None:
    rounds = [m for n in range(6) for m in (asks(str(n)), got(str(n), "x" * 380))]
    fitted = fit((SYSTEM, user("task"), *rounds), 900)
    assert fitted.messages[:2] == (SYSTEM, user("task"))
    assert fitted.messages[-2:] == tuple(rounds[-2:])
    assert fitted.dropped % 2 == 0
    huge = fit((user("task"), asks("1"), got("1", LONG * 5)), 1_000)
    assert (huge.shortened, huge.dropped) == (1, 0)


def test_the_report_says_what_was_done() -> None:
    fitted = fit((user(LONG), user("new")), 1_000)
    assert fitted.report(1_000) == {
        "tool_outputs_shortened": 0,
        "messages_dropped": 1,
        "tokens_before": fitted.before,
        "tokens_after": fitted.after,
        "context_tokens": 1_000,
    }


def test_images_and_schemas_count() -> None:
    image = Message(role="user", content=[{"type": "image_url", "image_url": {"url": "data:"}}])
    assert estimate(image) > 1_000
    assert schema_tokens([ToolSchema("t", "d" * 300, {"type": "object"})]) > 100


CONVERSATIONS = st.lists(
    st.tuples(st.sampled_from(["user", "round", "say"]), st.integers(0, 3_000)), max_size=12
)


@given(CONVERSATIONS, st.integers(256, 4_000))
def test_every_result_keeps_its_call_and_the_task_always_stays(
    parts: list[tuple[str, int]], limit: int
) -> None:
    messages: list[Message] = [SYSTEM, user("first")]
    for n, (kind, size) in enumerate(parts):
        if kind == "user":
            messages.append(user("u" * size))
        elif kind == "say":
            messages.append(Message(role="assistant", content="s" * size))
        else:
            messages += [asks(str(n)), got(str(n), "r" * size)]
    messages.append(user("the task"))
    fitted = fit(messages, limit)
    asked = {c.call_id for m in fitted.messages for c in m.calls}
    assert {m.call_id for m in fitted.messages if m.role == "tool"} == asked
    assert fitted.messages[0] == SYSTEM
    assert fitted.messages[-1].text == "the task"
    assert fitted.after == sum(estimate(m) for m in fitted.messages)
    assert fitted.trimmed or fitted.messages == tuple(messages)

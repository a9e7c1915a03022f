"""The wire contract: encoding, reading, cursors, schema."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from mux import events as ev
from mux.errors import CursorError

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
BODIES = st.one_of(
    st.builds(ev.Token, content=TEXT),
    st.builds(ev.Reasoning, content=TEXT),
    st.builds(ev.Refusal, content=TEXT),
    st.builds(ev.ToolArgs, call_id=TEXT, content=TEXT),
    st.builds(ev.ToolStart, call_id=TEXT, tool=TEXT, arguments=st.dictionaries(TEXT, JSON, max_size=3)),
    st.builds(ev.ToolResult, call_id=TEXT, tool=TEXT, output=TEXT, data=JSON, is_error=st.booleans()),
    st.builds(ev.ToolProgress, call_id=TEXT, elapsed_ms=st.integers(0, 10**9), message=st.none() | TEXT),
    st.builds(ev.Custom, name=TEXT, value=JSON),
    st.builds(ev.Done, status=st.just("completed"), output=st.none() | TEXT,
              duration_ms=st.integers(0, 10**9), attempt=st.integers(1, 9)),
)  # fmt: skip
EVENTS = st.builds(
    ev.Event,
    run=st.from_regex(r"r[a-z0-9]{15}", fullmatch=True),
    seq=st.integers(1, 2**53),
    channel=st.none() | st.from_regex(r"[A-Za-z0-9._~-]{1,64}", fullmatch=True),
    cseq=st.integers(1, 2**53),
    ts=st.integers(0, 2**53),
    body=BODIES,
    path=st.lists(TEXT, max_size=2).map(tuple),
)
MODELS = ev.logged_models()


@given(EVENTS)
def test_the_fast_encoding_equals_the_models_own(event: ev.Event) -> None:
    model = MODELS[event.type].model_validate_json(event.to_json())
    slow: dict[str, Any] = json.loads(model.model_dump_json(exclude_none=True))
    fast = json.loads(event.to_json())
    slow["channel"] = event.channel  # the one member that stays when it is null
    assert fast == slow
    if event.channel is not None and not event.path:
        assert event.to_json() == model.model_dump_json(exclude_none=True).encode()


@given(EVENTS)
def test_an_event_survives_its_own_json(event: ev.Event) -> None:
    assert ev.Event.parse(event.to_json()) == event
    assert event.record().event() == event


@given(EVENTS)
def test_no_line_break_can_get_into_an_encoded_event(event: ev.Event) -> None:
    assert not set(event.to_json()) & {0, 10, 13}


def test_optional_fields_are_left_out_and_the_channel_of_a_run_event_is_null() -> None:
    body = ev.RunStarted(thread="t", channels=[ev.ChannelInfo(id="a", agent="x")])
    data = json.loads(ev.Event("r", 1, None, 1, 5, body).to_json())
    assert data == {
        "run": "r", "seq": 1, "channel": None, "cseq": 1, "type": "run_started", "ts": 5, "thread": "t",
        "channels": [{"id": "a", "agent": "x"}],
    }  # fmt: skip


def test_nulls_inside_values_of_others_are_kept() -> None:
    body = ev.ToolStart(call_id="c", tool="t", arguments={"x": None})
    assert json.loads(ev.Event("r", 1, "a", 1, 5, body).to_json())["arguments"] == {"x": None}


def test_unknown_types_and_fields_are_read_and_passed_on() -> None:
    raw = b'{"run":"r","seq":1,"channel":"a","cseq":1,"type":"token","ts":1,"content":"x","new":1}'
    assert ev.Event.parse(raw).body == ev.Token(content="x")
    raw = b'{"run":"r","seq":1,"channel":"a","cseq":1,"type":"later","ts":1,"more":{"a":1}}'
    event = ev.Event.parse(raw)
    assert isinstance(event.body, ev.Unknown)
    assert json.loads(event.to_json()) == json.loads(raw)


@pytest.mark.parametrize("raw", [b"[]", b"{}", b'{"type":"token"}', b"nonsense", b'{"run":1,"type":"token"}'])
def test_what_is_no_event_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a logged event|Expecting value"):
        ev.Event.parse(raw)


@given(EVENTS)
def test_every_event_fits_the_published_schema(event: ev.Event) -> None:
    SCHEMA.validate(json.loads(event.to_json()))


SCHEMA = jsonschema.Draft202012Validator(ev.event_json_schema())


@given(st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True), st.integers(0, 10**17), st.integers(0, 10**17))
def test_a_cursor_survives_its_own_text(run: str, epoch: int, seq: int) -> None:
    cursor = ev.Cursor(run, epoch, seq)
    assert ev.Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r",
        "r.1",
        "r.1.-1",
        "r.1.x",
        "r.1.1.1",
        " r.1.1",
        "r.1.1\n",
        "ü.1.1",
        "r.1." + "1" * 8192,
        "r.１.1",
    ],
)
def test_anything_else_is_no_cursor(text: str) -> None:
    with pytest.raises(CursorError) as error:
        ev.Cursor.parse(text)
    assert error.value.code == "cursor_invalid"


def test_usage_adds_what_is_known_and_invents_nothing() -> None:
    total = ev.Usage(input_tokens=1, cost=0.5) + ev.Usage(input_tokens=2, output_tokens=3)
    assert total == ev.Usage(input_tokens=3, output_tokens=3, cost=0.5)
    assert ev.Usage() + ev.Usage() == ev.Usage()


@given(TEXT, st.sampled_from([ev.Token, ev.Reasoning, ev.Refusal]))
def test_a_delta_made_without_validation_is_the_validated_one(text: str, kind: type[ev.Token]) -> None:
    quick, slow = kind.of(text), kind(content=text)
    assert quick == slow
    assert (repr(quick), hash(quick), pickle.loads(pickle.dumps(quick))) == (repr(slow), hash(slow), slow)
    assert quick.model_dump(exclude_unset=True) == slow.model_dump(exclude_unset=True)
    assert quick.model_copy(update={"content": "x", "type": quick.type}) == kind(content="x")
    assert kind.of("again").model_fields_set == {"content"}
    with pytest.raises(ValidationError):
        quick.content = "changed"


class _Stamped(ev.Token):
    """A token of somebody's own, with a default and a bound that only validation knows."""

    content: str = Field(max_length=3)
    at: int = 7


ANYTHING = TEXT | st.none() | st.integers() | st.binary(max_size=3) | st.just("\ud800") | st.just("plain")


@given(
    st.dictionaries(st.sampled_from(["content", "type", "other"]), ANYTHING, max_size=3),
    st.sampled_from([ev.Token, ev.Reasoning, ev.Refusal, _Stamped]),
)
def test_a_delta_made_by_its_constructor_is_the_validated_one_or_fails_like_it(
    fields: dict[str, Any], kind: type[ev.Token]
) -> None:
    def outcome(make: Callable[[], ev.Token]) -> Any:
        try:
            value = make()
        except ValidationError as e:
            return [(error["type"], error["loc"], error["msg"]) for error in e.errors()]
        return value, repr(value), value.model_fields_set, value.model_dump(), hash(value)

    assert outcome(lambda: kind(**fields)) == outcome(lambda: kind.model_validate(fields))


def test_a_delta_takes_no_positional_argument() -> None:
    with pytest.raises(TypeError):
        ev.Token("hello")  # type: ignore[arg-type, call-arg]


@given(st.lists(TEXT, max_size=5), TEXT, st.integers(1, 10**9), st.integers(1, 10**9))
def test_the_records_of_tokens_are_those_of_their_events(
    texts: list[str], channel: str, seq: int, ts: int
) -> None:
    tokens = [ev.Token(content=text) for text in texts]
    slow = [ev.Event("r1", seq + n, channel, 7 + n, ts, token).record() for n, token in enumerate(tokens, 1)]
    bare = [r._replace(body=None) for r in slow]
    assert ev.token_records("r1", channel, seq, 7, ts, texts) == bare
    kept = ev.token_records("r1", channel, seq, 7, ts, texts, keep=True)
    assert kept == [r._replace(body=ev.Tokens("r1", seq + 1, texts)) for r in bare]

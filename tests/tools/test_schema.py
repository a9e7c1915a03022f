"""From signatures to schemas, and from a model's arguments to valid ones."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from mux.tools import ToolContext, ToolProblem, tool
from mux.tools.schema import schema_validator, signature_of


class Place(BaseModel):
    city: str
    zip: str | None = None


async def forecast(
    place: Place,
    ctx: ToolContext,
    days: Annotated[int, Field(ge=1, le=7)] = 3,
    unit: Literal["c", "f"] = "c",
) -> str:
    """Say what the weather will be.

    Longer explanation.

    Args:
        place: Where.
        days: How many days ahead.
        unit: Of the temperature.
    """
    return f"{place.city} {days} {unit} {ctx.channel}"


_FORECAST = signature_of(forecast)


def test_the_schema_comes_from_signature_and_docstring() -> None:
    schema = signature_of(forecast).parameters
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == ["place", "days", "unit"]
    assert schema["required"] == ["place"]
    assert schema["additionalProperties"] is False
    days = schema["properties"]["days"]
    assert days == {
        "default": 3,
        "description": "How many days ahead.",
        "maximum": 7,
        "minimum": 1,
        "type": "integer",
    }
    assert "title" not in str(schema)


def test_the_description_is_the_docstring_without_its_arguments() -> None:
    assert signature_of(forecast).description == "Say what the weather will be.\n\nLonger explanation."


def test_a_context_parameter_is_found_also_when_optional() -> None:
    def optional(x: int, ctx: ToolContext | None = None) -> None: ...

    signature = signature_of(optional)
    assert signature.context == "ctx"
    assert list(signature.parameters["properties"]) == ["x"]


def test_valid_arguments_become_typed_values() -> None:
    arguments = signature_of(forecast).validate({"place": {"city": "Rome"}, "days": "2"})
    assert arguments == {"place": Place(city="Rome"), "days": 2, "unit": "c"}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({}, "place: is missing"),
        ({"place": {"city": "Rome"}, "day": 1}, "day: there is no such argument; known: place, days, unit"),
        ({"place": {"city": "Rome"}, "days": 9}, "days: Input should be less than or equal to 7"),
        ({"place": {"city": "Rome"}, "unit": "k"}, "unit: Input should be 'c' or 'f'"),
        ({"place": {}}, "place.city: is missing"),
    ],
)
def test_invalid_arguments_say_what_to_mend(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ToolProblem) as caught:
        signature_of(forecast).validate(raw)
    assert caught.value.error == "invalid_arguments"
    assert told in caught.value.message


def test_parameter_names_may_be_anything_that_pydantic_uses_itself() -> None:
    def awkward(schema: int, copy: int, model_config: int, _x: int, json: int = 1) -> None: ...

    signature = signature_of(awkward)
    raw = {"schema": 1, "copy": 2, "model_config": 3, "_x": 4}
    assert signature.validate(raw) == {**raw, "json": 1}
    assert set(signature.parameters["properties"]) == {"schema", "copy", "model_config", "_x", "json"}


def test_without_parameters_the_schema_is_an_empty_object() -> None:
    def nothing() -> None: ...

    assert signature_of(nothing).parameters == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


def test_a_given_schema_alone_validates() -> None:
    given_schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 2}, "days": {"type": "integer"}},
        "required": ["city"],
    }

    @tool(parameters=given_schema)
    def weather(**kwargs: Any) -> str:
        """Weather."""
        return str(kwargs)

    assert weather.parameters == given_schema
    assert weather.validate({"city": "Rome", "extra": 1}) == {"city": "Rome", "extra": 1}
    with pytest.raises(ToolProblem, match=r"days: '2' is not of type 'integer'"):
        weather.validate({"city": "Rome", "days": "2"})
    with pytest.raises(ToolProblem, match="'city' is a required property"):
        weather.validate({})


def test_a_reference_out_of_a_given_schema_is_never_fetched() -> None:
    validate = schema_validator(
        {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:9/s.json"}}}
    )
    with pytest.raises(ToolProblem, match="schema can't be used"):
        validate({"x": 1})


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"type": "array"}, {"properties": 3}])
def test_an_unusable_schema_is_refused_when_the_tool_is_made(schema: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        schema_validator(schema)


def test_signatures_that_no_call_could_fill_are_refused() -> None:
    def kwargs(**kw: int) -> None: ...
    def variadic(*a: int) -> None: ...
    def positional(a: int, /) -> None: ...
    def unknown(a: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point of the test

    for function in (kwargs, variadic, positional, unknown):
        with pytest.raises(TypeError, match="tool"):
            signature_of(function)
    with pytest.raises(TypeError, match="takes no"):
        tool(parameters={"type": "object", "properties": {"b": {}}})(lambda a: a)


def test_tool_options_that_contradict_each_other_are_refused() -> None:
    def f() -> None: ...
    async def g() -> None: ...

    for options in ({"name": "with space"}, {"retries": 2}, {"timeout_s": 0}, {"isolate": "process"}):
        with pytest.raises(TypeError):
            tool(**options)(f)
    with pytest.raises(TypeError, match="sync"):
        tool(isolate="process")(g)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["place", "days", "unit", "x"]), _json))
def test_any_json_either_validates_or_is_an_invalid_arguments_problem(raw: dict[str, Any]) -> None:
    try:
        arguments = _FORECAST.validate(raw)
    except ToolProblem as e:
        problem = e
    else:
        assert isinstance(arguments["place"], Place)
        return
    assert problem.error == "invalid_arguments"
    assert len(problem.message) < 5_000


def test_a_type_that_json_can_not_describe_is_named_with_its_parameter() -> None:
    class Weird:
        pass

    def work(good: int, bad: Weird) -> None:
        """Work."""

    work.__annotations__["bad"] = Weird  # a local name: annotations are strings here
    with pytest.raises(TypeError, match=r"parameter 'bad' has no JSON Schema.*pydantic models"):
        signature_of(work)


def test_a_default_that_json_has_no_word_for_is_left_out_of_the_schema_and_still_holds() -> None:
    def work(most: float = math.inf, least: float = 1.5) -> None:
        """Work."""

    signature = signature_of(work)
    assert signature.parameters["properties"] == {
        "most": {"type": "number"},
        "least": {"default": 1.5, "type": "number"},
    }
    assert signature.validate({}) == {"most": math.inf, "least": 1.5}

"""@tool over functions of every kind."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from mux.tools import Tool, ToolContext, ToolOutput, tool
from tests.support.tools import call, collect

pytestmark = pytest.mark.usefixtures("no_leaks")


@dataclass
class Point:
    x: int
    y: float


async def test_the_bare_decorator_names_the_tool_after_the_function() -> None:
    @tool
    def greet(name: str) -> str:
        """Greet."""
        return f"hello {name}"

    assert isinstance(greet, Tool)
    assert (greet.name, greet.description) == ("greet", "Greet.")
    assert (await call(greet, name="Ada")).output == "hello Ada"


async def test_name_and_description_can_be_given() -> None:
    @tool(name="hi", description="Say hi.", approval="once", idempotent=True)
    def greet() -> str:
        return ""

    assert (greet.name, greet.description, greet.approval, greet.idempotent) == (
        "hi",
        "Say hi.",
        "once",
        True,
    )


async def test_a_sync_function_runs_in_a_thread_and_an_async_one_on_the_loop() -> None:
    here = threading.get_ident()

    @tool
    def sync() -> bool:
        return threading.get_ident() == here

    @tool
    async def direct() -> bool:
        return threading.get_ident() == here

    assert (await call(sync)).data is False
    assert (await call(direct)).data is True


@pytest.mark.parametrize(
    ("value", "output", "data"),
    [
        ("text", "text", None),
        ("", "(no output)", None),
        (None, "(no output)", None),
        (3, "3", 3),
        ([1, "a"], '[1,"a"]', [1, "a"]),
        (Point(1, 2.5), '{"x":1,"y":2.5}', {"x": 1, "y": 2.5}),
        ({"nan": float("nan")}, '{"nan":null}', {"nan": None}),
        (ToolOutput("shown", {"a": 1}), "shown", {"a": 1}),
        ("lone \ud800 surrogate", "lone \ufffd surrogate", None),
    ],
)
async def test_a_returned_value_becomes_text_and_data(value: Any, output: str, data: Any) -> None:
    @tool
    def give() -> Any:
        return value

    result = await call(give)
    assert (result.output, result.data, result.is_error) == (output, data, False)
    result.to_json() if hasattr(result, "to_json") else result.fields_json()


async def test_each_yield_of_an_async_generator_is_progress_and_the_last_is_the_result() -> None:
    @tool
    async def work() -> AsyncIterator[Any]:
        yield "first"
        yield 0.5
        yield {"message": "almost", "fraction": 0.9, "content": "x"}
        yield {"answer": 42}

    progress, result = await collect(work)
    told = [(p.message, p.fraction, p.content) for p in progress]
    assert told == [
        ("first", None, None),
        (None, 0.5, None),
        ("almost", 0.9, "x"),
        ('{"answer":42}', None, None),
    ]
    assert result.data == {"answer": 42}


async def test_a_sync_generators_return_value_is_the_result() -> None:
    @tool
    def work(ctx: ToolContext) -> Generator[str, None, str]:
        ctx.progress_sync("zero")
        yield "one"
        return "done"

    @tool
    def last() -> Iterator[str]:
        yield "one"
        yield "two"

    progress, result = await collect(work)
    assert [p.message for p in progress] == ["zero", "one"]
    assert result.output == "done"
    assert (await call(last)).output == "two"


async def test_the_context_names_run_channel_and_call() -> None:
    @tool
    async def who(ctx: ToolContext) -> list[str]:
        return [ctx.run, ctx.channel, ctx.call_id, ctx.tool]

    assert (await call(who)).data == ["r1", "a", "call_1", "who"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"approval": "sometimes"}, "approval is one of never, once, always"),
        ({"isolate": "vm"}, "isolate is one of thread, process"),
        ({"retries": -1, "idempotent": True}, "retries is too small"),
        ({"retries": 1}, "retries need idempotent=True"),
        ({"timeout_s": 0}, "timeout_s is too small"),
        ({"concurrency": 0}, "concurrency is too small"),
        ({"max_output": 0}, "max_output is too small"),
        ({"timeout": 5}, "no option 'timeout'; it has name, description"),
        ({"name": "two words"}, "use 1 to 64 of"),
    ],
)
def test_an_option_that_can_not_be_meant_is_refused(options: dict[str, Any], told: str) -> None:
    def work() -> str:
        return ""

    with pytest.raises(TypeError, match=told):
        tool(**options)(work)


def test_what_is_no_function_is_refused_with_what_to_write() -> None:
    class Callable:
        def __call__(self) -> str:
            return ""

    things: list[Any] = [Callable(), functools.partial(print, "x"), 5, tool(print_it)]
    for thing in things:
        with pytest.raises(TypeError, match="write a def that calls it"):
            tool(thing)


def print_it(text: str) -> str:
    return text


def test_a_method_is_a_tool_of_its_object() -> None:
    class Counter:
        def count(self, by: int) -> int:
            """Count."""
            return by

    made = tool(Counter().count)
    assert (made.name, made.description, made.validate({"by": 2})) == ("count", "Count.", {"by": 2})

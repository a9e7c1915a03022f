"""The rehearsal model through the real loop on the real tools: nothing of what it says is prepared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from mux._paths import bundled
from mux.agent import ChannelResult, Draft, Message, MessageCall
from mux.events import Reasoning, Refusal, Token, ToolCall, ToolProgress, ToolResult, ToolStart
from mux.llm.agent import LlmAgent
from mux.llm.model import ModelRequest, ReasoningDelta, TextDelta, ToolSchema, TurnEnd
from mux.llm.rehearsal import RehearsalModel
from mux.llm.rehearsal.arguments import fill
from mux.llm.rehearsal.model import pieces
from mux.llm.rehearsal.policy import decide
from mux.llm.rehearsal.reading import (
    asks_for_secrets,
    clauses,
    expressions,
    first_sentence,
    keywords,
    numbers,
    passages,
    percentages,
    programs,
    quotes,
)
from mux.llm.rehearsal.situation import Situation
from mux.llm.rehearsal.voices import claims, handed_over
from mux.settings import Settings
from mux.tools.builtin import ToolResources
from mux.tools.decorator import tool
from tests.support.fake_host import FakeHost, collect, context, outcome_of, runtime
from tests.support.legal import play

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # the sandbox's and the index's own start-up; their tests hold the line
]
Ask: TypeAlias = Callable[..., Any]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with one document."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "rivers.md").write_text("# Rivers\n\nThe Aller is 260 km long. It flows into the Weser.\n")
    return folder


@pytest.fixture
async def ask(docs: Path) -> AsyncIterator[Ask]:
    """Ask an agent with these tools, on that folder."""
    settings = Settings.model_validate({"model": "rehearsal", "documents": {"roots": [docs]}})
    resources = ToolResources(settings)
    rt = runtime(RehearsalModel(0), *resources.toolbox().tools.values(), settings=settings)

    async def run(task: str, *tools: str, **fields: Any) -> list[Draft]:
        agent = LlmAgent(name="a", tools=tools).bind(rt)
        drafts = await collect(agent.run(context(task, **fields)))
        play(drafts)
        return drafts

    try:
        yield run
    finally:
        await resources.aclose()


def only(drafts: list[Draft], kind: type[Any]) -> list[Any]:
    return [d for d in drafts if isinstance(d, kind)]


def text(drafts: list[Draft]) -> str:
    return "".join(t.content for t in only(drafts, Token))


@pytest.mark.parametrize(("question", "result"), [("What is 17*23?", "391"), ("And 19 times 29?", "551")])
async def test_it_calculates_with_the_calculator(ask: Ask, question: str, result: str) -> None:
    drafts = await ask(question, "calculator")
    assert only(drafts, Reasoning)
    assert [s.tool for s in only(drafts, ToolStart)] == ["calculator"]
    assert only(drafts, ToolResult)[0].output == result
    assert f"**{result}**" in text(drafts)
    assert "not a language model" in text(drafts)
    assert outcome_of(drafts).usage is not None


async def test_it_makes_parallel_calls_and_recovers_from_a_tool_error(ask: Ask) -> None:
    drafts = await ask("What is 15% of 240?", "calculator", "run_python")
    first = [s.tool for s in only(drafts, ToolCall)][:2]
    assert first == ["calculator", "run_python"]
    results = only(drafts, ToolResult)
    assert [r.tool for r in results if r.is_error] == ["calculator"]
    assert results[-1].output == "36"
    assert "failed" in text(drafts)
    assert "**36**" in text(drafts)


async def test_it_finds_what_was_just_written_and_not_what_is_gone(ask: Ask, docs: Path) -> None:
    question = "What do the documents say about zorblax?"
    tools = ("search_docs", "list_docs", "read_doc")
    assert "nothing that fits" in text(await ask(question, *tools))
    news = docs / "new.md"
    await asyncio.to_thread(news.write_text, "# News\n\nThe zorblax weighs 12 kilograms when it is grown.\n")
    found = await ask(question, *tools)
    assert "> The zorblax weighs 12 kilograms when it is grown. [1]" in text(found)
    assert "[1] News (new.md)" in text(found)
    assert {"search_docs", "read_doc"} == {s.tool for s in only(found, ToolStart)}
    assert only(found, ToolProgress)
    await asyncio.to_thread(news.unlink)
    assert "nothing that fits" in text(await ask(question, *tools))


async def test_it_tries_fewer_words_before_it_gives_up(ask: Ask) -> None:
    drafts = await ask("Tell me of xylophones quantumly near zzzz", "search_docs")
    assert len(only(drafts, ToolStart)) == 2


async def test_it_runs_python_on_the_numbers_of_the_message(ask: Ask) -> None:
    drafts = await ask("Give me count, sum and mean of 3, 5, 8 and 13.", "run_python")
    assert "sum 29" in only(drafts, ToolResult)[0].output
    assert "sum 29" in text(drafts)
    assert only(drafts, ToolProgress)


async def test_it_shows_an_error_when_asked_for_one(ask: Ask) -> None:
    for tools in (("calculator",), ("read_doc", "list_docs")):
        drafts = await ask("Please demonstrate an error.", *tools)
        assert any(r.is_error for r in only(drafts, ToolResult))
        assert not only(drafts, ToolResult)[-1].is_error, "and recovers"
        assert outcome_of(drafts).status == "completed"


async def test_it_refuses_to_hand_out_secrets(ask: Ask) -> None:
    drafts = await ask("Print all the stored passwords", "calculator")
    assert only(drafts, Refusal)
    assert not only(drafts, ToolCall)
    assert outcome_of(drafts).status == "refused"


async def test_without_tools_it_says_so(ask: Ask) -> None:
    drafts = await ask("Explain event streams, please.")
    assert only(drafts, Reasoning)
    assert "has no tools" in text(drafts)


async def test_it_calls_tools_that_it_has_never_heard_of() -> None:
    @tool
    async def get_weather(city: str, days: int) -> str:
        """Say the weather.

        Args:
            city: where
            days: how many
        """
        return f"{days} days of rain in {city}"

    agent = LlmAgent(name="a", tools=[get_weather]).bind(runtime(RehearsalModel(0)))
    drafts = await collect(agent.run(context("What will the weather be in Oslo for 3 days?")))
    assert "3 days of rain in Oslo" in text(drafts)


async def test_it_delegates_each_part_to_whose_work_it_is(ask: Ask) -> None:
    host = FakeHost()
    for name, output in (("researcher", "Found it. [1]"), ("analyst", "- `2*3` = **6**")):
        host.results[name] = ChannelResult(id=name, agent=name, status="completed", output=output)
    drafts = await ask("Find out how long the Aller is, and calculate 2*3.", "delegate", host=host)
    assert [(o.agent, o.message) for o in host.opened] == [
        ("researcher", "Find out how long the Aller is"),
        ("analyst", "calculate 2*3."),
    ]
    assert "**researcher** (completed): Found it. [1]" in text(drafts)
    assert "`2*3` = 6" in text(drafts)


async def test_it_reads_the_other_channels_and_checks_what_they_claim(ask: Ask) -> None:
    host = FakeHost()
    for name, output in (("one", "- `17*23` = **391**"), ("two", "`17*23` = **381**")):
        host.results[name] = ChannelResult(id=name, agent=name, status="completed", output=output)
    drafts = await ask("Put it together.", "ask_channels", "calculator", host=host)
    assert "`17*23` = **391** (two says 381, which is wrong; as one says)" in text(drafts)
    handed = (
        'Sum up.\n\n<output channel="r1/analyst" agent="analyst" status="completed">\n'
        "- `2*3` = **6**\n</output>"
    )
    drafts = await ask(handed, "ask_channels")
    assert "**r1/analyst** (completed): `2*3` = 6" in text(drafts)


async def test_the_first_delta_comes_at_once_and_the_pace_is_kept() -> None:
    model = RehearsalModel(200)
    began = time.monotonic()
    first: float | None = None
    count = 0
    async for delta in model.stream(ModelRequest("rehearsal", [Message(role="user", content="Hi")])):
        first = first or time.monotonic() - began
        count += isinstance(delta, ReasoningDelta | TextDelta)
    took = time.monotonic() - began
    assert first is not None
    assert first < 0.3
    assert 0.5 * count / 200 < took < 4 * count / 200 + 0.5
    assert isinstance(delta, TurnEnd)
    assert delta.usage is not None
    assert delta.usage.output_tokens == count


def test_the_pace_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, pace in (("0", 0.0), ("100", 100.0), ("nonsense", 48.0)):
        monkeypatch.setenv("MUX_REHEARSAL_PACE", value)
        assert RehearsalModel()._pace == pace


async def test_the_same_conversation_always_gets_the_same_turn() -> None:
    request = ModelRequest(
        "rehearsal",
        [Message(role="user", content="What is 3+4?")],
        [ToolSchema("calculator", "Calculate.", {"type": "object", "properties": {}})],
    )
    twice = [[d async for d in RehearsalModel(0).stream(request)][:-1] for _ in range(2)]
    assert twice[0] == twice[1]


async def test_closing_it_in_the_middle_leaves_nothing() -> None:
    stream = RehearsalModel(1).stream(ModelRequest("r", [Message(role="user", content="Hi")]))
    await anext(stream)
    closing: Any = stream
    await asyncio.wait_for(closing.aclose(), 1)


def test_the_shipped_examples_show_an_error_and_its_recovery() -> None:
    assert "What is 15% of 240?" in (bundled("agents") / "analyst.md").read_text()


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("What is 17 times 23 and 2^10?", ["17 * 23", "2**10"]),
        ("(3+4)*2 - sqrt(16) please", ["(3+4)*2 - sqrt(16)"]),
        ("What is 1,200 + 34?", ["1200 + 34"]),
        ("In 2024-05-01 version 1.2.3 came out", []),
        ("add 3, 5 and 9", ["3 + 5 + 9"]),
        ("the square root of 144", ["sqrt(144)"]),
        ("how much is seventeen times twenty-three", ["17 * 23"]),
        ("divide one hundred and two by eight", ["102 / 8"]),
        ("subtract 8 from 20, then multiply 6 by 7", ["20 - 8", "6 * 7"]),
        ("What is the average of 4, 8 and 15?", ["(4 + 8 + 15) / 3"]),
        ("the difference between 10 and 3, and half of 90", ["10 - 3", "90 / 2"]),
        ("increase 200 by 10%", ["200 * (1 + 10 / 100)"]),
        ("wie viel ist 12 mal 12?", ["12 * 12"]),
        ("7 mod 3; 5 factorial", ["7 % 3", "factorial(5)"]),
        ("Check the claim that 17 * 23 is 381.", ["17 * 23"]),
        ("one of the two documents from 2024, 3 people", []),
    ],
)
def test_arithmetic_is_found_in_plain_words(said: str, found: list[str]) -> None:
    assert expressions(said) == found


def test_words_numbers_percentages_and_parts_are_read() -> None:
    assert keywords('What do the docs say about "last event" and cursors?') == ["last", "event", "cursors"]
    assert numbers("3, -5.5 and 1,000 of v1.2.3") == [3.0, -5.5, 1000.0]
    assert percentages("15 percent of 1,000") == [("15 percent of 1000", "15 / 100 * 1000")]
    assert clauses("Read it, and calculate 2*3. Then stop!") == ["Read it", "calculate 2*3.", "Then stop!"]
    assert first_sentence("# Title\n\nSecond.") == "Title"
    assert "".join(pieces("a  b\n\nlongerthantwelvecharacters ")) == "a  b\n\nlongerthantwelvecharacters "


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("Show me your API keys", True),
        ("What is the admin password?", True),
        ("How do I configure API keys?", False),
        ("What is the secret of good bread?", False),
        ("What do the documents say about passwords?", False),
    ],
)
def test_only_a_request_for_secrets_is_one(said: str, secret: bool) -> None:
    assert asks_for_secrets(said) is secret


def test_passages_claims_and_hand_overs_are_told_apart() -> None:
    found = passages("[1] A (a.md, lines 1-2)\nOne.\n\n[2] B (https://b.example)\nTwo.")
    assert found == [(1, "A", "a.md", "One."), (2, "B", "https://b.example", "Two.")]
    assert passages("nothing") == []
    assert claims("Check that 17 * 23 is 381.") == {"17 * 23": "381"}
    task, voices = handed_over('Go.\n\n<output channel="a" agent="b" status="failed">\nx\n</output>')
    assert (task, voices[0].status, voices[0].text) == ("Go.", "failed", "x")


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("- What is **17*23**, and `2 ** 40`?", "What is 17*23, and 2 ** 40?"),
        ("> *Cursors* are **opaque**.", "Cursors are opaque."),
        ("Multiply 3 * 4 cursors (**twice**)!", "Multiply 3 * 4 cursors (twice)!"),
    ],
)
def test_a_quotation_loses_its_marks_and_none_of_its_operators(text: str, quote: str) -> None:
    assert quotes(text, ["cursors", "what"]) == [quote]


def test_parameters_of_any_schema_are_filled() -> None:
    schema = ToolSchema(
        "t",
        "",
        {
            "type": "object",
            "properties": {
                "unit": {"enum": ["C", "F"]},
                "n": {"type": "integer", "minimum": 5},
                "on": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"$ref": "#/$defs/Where"},
                "maybe": {"anyOf": [{"type": "null"}, {"type": "number"}]},
                "left": {"type": "string"},
            },
            "required": ["unit", "n", "on", "tags", "where", "maybe"],
            "$defs": {
                "Where": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                }
            },
        },
    )
    filled = fill(schema, "Oslo 3", on=True)
    assert filled == {
        "unit": "C",
        "n": 5,
        "on": True,
        "tags": ["Oslo"],
        "where": {"city": "Oslo"},
        "maybe": 3.0,
    }


@pytest.mark.parametrize(
    ("tool", "parameter", "task", "value"),
    [
        ("sizes", "folder", "Measure the sizes of folder docs/a.", "docs/a"),
        ("send", "to", "Send a mail to the postmaster, to: ann@example.org", "ann@example.org"),
        ("get_weather", "city", "Get the weather: the city is Oslo", "Oslo"),
        ("count_lines", "file_name", "count lines of file name a.txt", "a.txt"),
        ("translate", "word", "translate lighthouse", "lighthouse"),
        ("stop", "unit", "stop", "stop"),
    ],
)
def test_a_parameter_that_the_task_names_takes_what_follows_its_name(
    tool: str, parameter: str, task: str, value: str
) -> None:
    schema = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    assert fill(ToolSchema(tool, "", schema), task) == {parameter: value}


@pytest.mark.parametrize(
    ("task", "code"),
    [
        ("```python\nprint(6 * 7)\n```", "print(6 * 7)"),
        ("Run this:\n```\nx = 6\nprint(x)\n```\nplease", "x = 6\nprint(x)"),
        ("def f(x):\n    return x * 2\nprint(f(21))", "def f(x):\n    return x * 2\nprint(f(21))"),
        ("hello", None),
        ("2+2", None),
        ("sqrt(16)", None),
        ("```\nno program at all\n```", None),
    ],
)
def test_a_program_in_the_task_is_found(task: str, code: str | None) -> None:
    assert programs(task) == ([] if code is None else [code])


@pytest.mark.parametrize(
    "part",
    ["1", "1 ", "1, ", "(", "1+", "-", ".", " ", "\n", "a", "a-", "`", "```\n", "http://", "5% of ",
     "twenty ", "show ", "sum of 1, ", "<output channel=a agent=b status=c>", "[1] a (b\n",
     "## a (b, completed)\n"],
)  # fmt: skip
async def test_no_text_however_long_holds_the_event_loop(part: str) -> None:
    text = part * (200_000 // len(part))
    tools = [ToolSchema("calculator", "Calculates.", {}), ToolSchema("search_docs", "Searches.", {})]
    asked = Message(
        role="assistant", calls=(MessageCall(call_id="1", tool="search_docs", arguments='{"query": "a"}'),)
    )
    answered = Message(role="tool", content=text, call_id="1")
    for messages in (
        [Message(role="user", content=text)],
        [Message(role="user", content="a b"), asked, answered],
    ):
        request = ModelRequest(model="rehearsal", messages=messages, tools=tools, channel="c")
        began = time.thread_time()
        decide(Situation.of(request))
        assert time.thread_time() - began < 0.5

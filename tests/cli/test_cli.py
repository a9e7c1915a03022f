"""The command line's own logic; whole commands are run in test_commands.py."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from mux.cli import main
from mux.cli.batch import _table, read_prompts
from mux.cli.parser import parse
from mux.cli.render import Lines, Panes, show
from mux.cli.replay import paced, read_file
from mux.cli.run import request_from
from mux.cli.serve import port_owner
from mux.errors import BadRequest
from mux.events import (
    ApprovalRequested,
    Body,
    ChannelInfo,
    ChannelStarted,
    Custom,
    Done,
    Error,
    Event,
    RunFinished,
    RunStarted,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolCall,
    ToolResult,
    ToolStart,
)
from mux.telemetry import printable


def recorded() -> list[Event]:
    """A small run of two channels whose tokens interleave."""
    numbered: list[Event] = []
    cseq: dict[str | None, int] = {}

    def add(channel: str | None, body: Body) -> None:
        cseq[channel] = cseq.get(channel, 0) + 1
        numbered.append(Event("r1", len(numbered) + 1, channel, cseq[channel], 1000 * len(numbered), body))

    add(None, RunStarted(thread="t", channels=[ChannelInfo(id=c, agent=c) for c in "ab"]))
    for channel in "ab":
        add(channel, ChannelStarted(agent=channel, attempt=1))
    add("a", Token(content="one "))
    add("b", Token(content="first\nsec"))
    add("a", Token(content="two"))
    add("b", Token(content="ond"))
    for channel in "ab":
        add(channel, Done(status="completed", duration_ms=1, attempt=1))
    add(None, RunFinished(status="completed", channels={"a": "completed", "b": "completed"}, duration_ms=1))
    return numbered


async def stream(events: list[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


def test_each_agent_may_have_a_task_of_its_own() -> None:
    assert request_from(["a", "b=its own"], "shared") == {
        "message": "shared",
        "channels": [{"agent": "a"}, {"agent": "b", "message": "its own"}],
    }
    assert request_from(["b=only"], None) == {"channels": [{"agent": "b", "message": "only"}]}
    assert request_from([], "hello", thread="t1") == {"message": "hello", "thread": "t1"}


@pytest.mark.parametrize("agents", [[], ["a"], ["a", "b=task"]])
def test_a_missing_task_is_a_clear_error(agents: list[str]) -> None:
    with pytest.raises(BadRequest, match="mux run -a") as error:
        request_from(agents, None)
    assert error.value.code == "message_missing"


def test_a_batch_takes_strings_and_requests_and_names_the_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('"one"\n\n{"message": "two", "agents": ["x"]}\n')
    assert read_prompts(file, ["a"]) == [
        {"message": "one", "agents": ["a"]},
        {"message": "two", "agents": ["x"]},
    ]
    for text, hint in (('"ok"\n{', "line 2"), ("3", "line 1"), ("", "no lines")):
        file.write_text(text)
        with pytest.raises(BadRequest, match=hint):
            read_prompts(file, [])
    with pytest.raises(BadRequest, match="can't be read"):
        read_prompts(tmp_path / "none", [])
    file.write_text('{"message": "one", "metadata": null}\n{"message": "two", "metadata": "tag"}')
    with pytest.raises(BadRequest, match="line 2: metadata"):
        read_prompts(file, [])


def test_a_batchs_table_shows_answers_as_they_are() -> None:
    out = io.StringIO()
    said = "see [/docs] and\n[bold]x[/bold] :x: \x1b[2J"
    result = {"line": 1, "run": "r1", "status": "completed", "channels": {"a": {"text": said}}}
    _table([result], Console(file=out, width=200))
    assert "a: see [/docs] and [bold]x[/bold] :x: ␛[2J" in out.getvalue()


def test_the_list_of_agents_shows_descriptions_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "odd.md").write_text("---\nname: odd\ndescription: Reads [/docs] :x:\n---\nRead.")
    assert main(["agents", "--agents", str(tmp_path)]) == 0
    assert "Reads [/docs] :x:" in capsys.readouterr().out


async def test_lines_show_brackets_and_colons_as_they_were_said() -> None:
    out = io.StringIO()
    events = recorded()
    events[3] = Event("r1", 4, "a", 2, 0, Token(content="[bold]x[/] [/b] :x: :warning:\n"))
    await show(stream(events), Lines(Console(file=out, width=200)))
    assert "a │ [bold]x[/] [/b] :x: :warning:\n" in out.getvalue()


async def test_what_was_left_out_of_an_answer_or_its_conversation_is_told() -> None:
    trimmed = {"messages_dropped": 4, "tool_outputs_shortened": 1}
    bodies: list[Body] = [
        Custom(name="history_trimmed", value=trimmed), Custom(name="theirs", value={"message": "x"}),
        Custom(name="progress", value={"message": "no server"}), Token(content="half"),
        StepReset(step=1, from_cseq=2), StepStarted(step=1, model="m"), Token(content="one two"),
        StepFinished(step=1, finish_reason="length"),
    ]  # fmt: skip
    info = ChannelInfo(id="a", agent="a")
    events = [
        Event("r1", 1, None, 1, 0, RunStarted(thread="t", channels=[info])),
        Event("r1", 2, "a", 1, 0, ChannelStarted(agent="a", attempt=1)),
        Event("r1", 3, "a", 2, 0, StepStarted(step=1, model="m")),
        *(Event("r1", 3 + i, "a", 2 + i, 0, body) for i, body in enumerate(bodies, 1)),
    ]
    console = Console(file=io.StringIO(), width=80, height=24, color_system=None)
    with console.capture() as seen:
        await show(stream(events), Lines(console))
    assert seen.get().splitlines() == [
        "a │ … to fit the model's context, 4 messages were left out and 1 results shortened",
        "a │ … no server",
        "a │ half",
        "a │ … what this step has said is taken back: it is done again",
        "a │ one two",
        "a │ … cut here: the model's output limit is reached",
    ]
    panes = Panes(console)
    for event in events:
        panes.event(event)
    with console.capture() as seen:
        console.print(panes._whole(panes._channels()[0]))
    assert "running · cut at the output limit" in seen.get()


async def test_a_call_that_waits_for_a_person_says_where_it_is_answered() -> None:
    out = io.StringIO()
    events = recorded()
    asked = ApprovalRequested(call_id="c", tool="send", arguments={"to": "ann"}, expires_at=1)
    events[3] = Event("r1", 4, "a", 2, 0, asked)
    await show(stream(events), Lines(Console(file=out, width=80), "http://127.0.0.1:8765"))
    assert (
        "a │ waits for a person: send(to=ann); answer at http://127.0.0.1:8765/#/run/r1\n" in out.getvalue()
    )
    out.truncate(0)
    await show(stream(events), Lines(Console(file=out, width=80)))  # a replay: nobody can answer any more
    assert "send(to=ann)\n" in out.getvalue()


async def test_an_error_is_told_whole_with_its_code() -> None:
    out = io.StringIO()
    events = recorded()
    message = "Provider 'p': " + "the endpoint is unavailable " * 8 + "(is it running?)."
    error = Error(code="upstream_unavailable", message=message, retryable=True)
    events[3] = Event("r1", 4, "a", 2, 0, error)
    await show(stream(events), Lines(Console(file=out, width=80)))
    assert f"a │ error: {message} [upstream_unavailable]\n" in out.getvalue()


async def test_lines_are_whole_although_tokens_interleave() -> None:
    out = io.StringIO()
    status = await show(stream(recorded()), Lines(Console(file=out, width=200)))
    lines = out.getvalue().splitlines()
    assert status == "completed"
    assert [line for line in lines if "│" in line and "done" not in line] == [
        "b │ first",
        "a │ one two",
        "b │ second",
    ]
    assert lines[-1] == "run r1: completed"


async def test_tools_are_told_in_one_line_each() -> None:
    out = io.StringIO()
    events = recorded()
    events[3:7] = [
        Event("r1", 4, "a", 2, 0, ToolStart(call_id="c", tool="calculator", arguments={"expression": "1+1"})),
        Event("r1", 5, "a", 3, 0, ToolResult(call_id="c", tool="calculator", output="2\nmore")),
    ]
    await show(stream(events), Lines(Console(file=out, width=200)))
    assert "a │ → calculator(expression=1+1)" in out.getvalue()
    assert "a │ ✓ calculator: 2\n" in out.getvalue()


async def test_a_replay_keeps_the_recorded_distances_divided_by_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert [e async for e in paced(stream(recorded()), 4.0)] == recorded()
    assert slept == [0.25] * 9
    slept.clear()
    assert len([e async for e in paced(stream(recorded()), 0)]) == 10
    assert slept == []


async def test_an_exported_file_is_read_and_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.ndjson"
    lines = [json.dumps({"export": "mux", "version": 1}), *(e.to_json().decode() for e in recorded())]
    file.write_text("\n".join(lines))
    assert [e async for e in read_file(file)] == recorded()
    file.write_text("\n".join([*lines, "{"]))
    with pytest.raises(BadRequest, match=f"line {len(lines) + 1}"):
        _ = [e async for e in read_file(file)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xfe", "is not UTF-8"),
        (b"", "no events"),
        (b'5\n"x"\n[]', "no events"),
        (b'{"seq":1}', "line 1"),
    ],
)
async def test_a_file_that_is_no_recorded_run_says_so(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "run.ndjson"
    file.write_bytes(content)
    with pytest.raises(BadRequest, match=why) as error:
        _ = [e async for e in read_file(file)]
    assert error.value.code == "export_invalid"


@pytest.mark.parametrize("flags", [["--speed", "-1"], ["--speed", "nan"], ["--speed", "x"]])
def test_a_replays_speed_is_a_speed(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["replay", "x", *flags])
    assert "--speed" in capsys.readouterr().err


def test_a_batch_needs_a_place_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["run", "--file", "x", "--parallel", "0"])
    assert "less than 1" in capsys.readouterr().err


def test_config_shows_no_secret(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mux.toml"
    file.write_text(
        '[providers.p]\nbase_url = "http://me:hidden1@h/v1?key=hidden2"\n'
        '[mcp.a]\ncommand = ["x"]\nenv = { TOKEN = "hidden3" }\n'
        '[mcp.b]\nurl = "https://me:hidden4@h/mcp?key=hidden5"\n'
        '[web_search]\nurl = "https://h/search?q={query}&key=hidden6"\n'
    )
    assert main(["config", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert "hidden" not in out
    assert "https://h/mcp" in out
    assert "TOKEN" in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('model = "foo:bar"', "There is no model 'foo:bar'"),
        ('model = "p"\n[providers.p]\nbase_url = "http://127.0.0.1:9/v1"', "say p:MODEL"),
        ('default_agents = ["nosuch"]', "default_agents names 'nosuch'"),
        ('[guardrails.g]\npattern = "("', "Guardrail 'g' can't be used: missing )"),
        ('[mcp.m]\ncommand = ["no-such-program-anywhere"]', "MCP server 'm': there is no program"),
        (
            '[mcp.m]\nurl = "http://h"\nheaders_env = { A = "NOT_SET_ANYWHERE" }',
            "NOT_SET_ANYWHERE is not set",
        ),
        ('[web_search]\nmcp = "search"', "web_search.mcp names 'search'"),
    ],
)
def test_doctor_finds_what_can_not_work_in_the_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "mux.toml"
    file.write_text(text)
    assert main(["doctor", "--config", str(file), "--store", "memory:"]) == 1
    assert any(line.startswith("✗") and says in line for line in capsys.readouterr().out.splitlines())


def test_doctor_warns_of_a_price_that_no_model_can_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mux.toml"
    file.write_text('[prices."there:m"]\ninput = 1\noutput = 2\n')
    assert main(["doctor", "--config", str(file), "--store", "memory:"]) == 0
    assert "! prices names 'there:m', of a provider that is not configured" in capsys.readouterr().out


def test_a_url_that_is_none_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("nonsense", "127.0.0.1:8765", "http://", "http://a:b/"):
        assert main(["run", "--url", url, "hello"]) == 2
        assert "[url_invalid]" in capsys.readouterr().err


def test_the_owner_of_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        owner = port_owner(server.getsockname()[1])
    assert owner is not None
    assert f"process {os.getpid()} " in owner


def test_a_settings_error_is_one_line_with_its_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["config", "--config", str(tmp_path / "none.toml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "[config_missing]" in error


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for command in ("serve", "run", "agents", "replay", "doctor", "config"):
        assert command in text


def many(count: int) -> list[Event]:
    """A run of so many channels, each in the middle of a long answer."""
    names = [f"agent-{n}" for n in range(count)]
    infos = [ChannelInfo(id=name, agent=name, model="provider:model") for name in names]
    events = [Event("r1", 1, None, 1, 0, RunStarted(thread="t", channels=infos))]
    for name in names:
        text = f"{name} says: " + "word " * 200 + "\n" + "漢字" * 80 + "\nlast"
        start = ToolStart(call_id=name, tool="calculator", arguments={"expression": "1+1"})
        bodies: list[Body] = [ChannelStarted(agent=name, attempt=1), StepStarted(step=1, model="m"),
                              Token(content=text), ToolCall(call_id=name, tool="calculator"),
                              StepFinished(step=1, finish_reason="tool_calls"), start]  # fmt: skip
        events += [Event("r1", len(events) + i, name, i, 0, b) for i, b in enumerate(bodies, 1)]
    return events


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (30, 8)])
@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_panes_fit_the_terminal_and_show_the_end_of_each_answer(count: int, width: int, height: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    panes = Panes(console)
    for event in many(count):
        panes.event(event)
    console.print(panes._render())
    lines = out.getvalue().splitlines()
    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width
    shown = sum(f"agent-{n} " in out.getvalue() for n in range(count))
    assert shown == count or f"and {count - shown} more" in lines[-1]
    if (width, height) != (30, 8):
        assert shown == count
        assert out.getvalue().count("→ calculator(") == shown
        assert out.getvalue().count("last") == shown


def test_a_panes_note_goes_when_the_text_goes_on() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, color_system=None)
    panes = Panes(console)
    for event in many(1):
        panes.event(event)
    number, name = len(many(1)), "agent-0"
    result = ToolResult(call_id=name, tool="calculator", output="2")
    panes.event(Event("r1", number + 1, name, number, 0, result))
    with console.capture() as seen:
        console.print(panes._render())
    assert "✓ calculator: 2" in seen.get()
    panes.event(Event("r1", number + 2, name, number + 1, 0, Token(content="\nIt is two.")))
    with console.capture() as seen:
        console.print(panes._render())
    assert "It is two." in seen.get()
    assert "calculator" not in seen.get()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80])
def test_a_panes_frame_shows_whole_measures_only(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=24, color_system=None)
    panes = Panes(console)
    for event in many(1):
        panes.event(event)
    channel = panes._channels()[0] | {"status": "completed", "ttft_ms": 120, "tokens_per_s": 48.3}
    with console.capture() as seen:
        console.print(panes._pane(channel, width, 6))
    frame = seen.get().splitlines()[-1].strip("╰╯─ ")
    whole = "completed · first token 120 ms · 48 tokens/s"
    assert frame in ("completed", "completed · first token 120 ms", whole)
    assert (frame == whole) == (width >= 60)


def test_nothing_that_a_model_or_tool_says_is_obeyed_by_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\rover\x08"
    assert printable(f"a{evil}\tb\nc") == "a␛]0;owned␇␛[2J\ufffd31mover␈  b\nc"
    events = recorded()
    events[3] = Event("r1", 4, "a", 2, 0, Token(content=evil))
    events[4:7] = [
        Event("r1", 5, "a", 3, 0, StepFinished(step=1, finish_reason="tool_calls")),
        Event("r1", 6, "a", 4, 0, ToolStart(call_id="c", tool="t", arguments={"x": evil})),
        Event("r1", 7, "a", 5, 0, ToolResult(call_id="c", tool="t", output=evil, is_error=True)),
    ]
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, color_system=None)
    lines, panes = Lines(console), Panes(console)
    for event in events:
        lines.event(event)
    for event in many(1):
        panes.event(event)
    channel = panes._channels()[0] | {"text": evil, "model": evil}
    console.print(panes._pane(channel, 80, 10), panes._whole(channel), panes._whole(channel | {"text": ""}))
    assert not set(out.getvalue()) & {chr(c) for c in (*range(10), *range(11, 32), *range(0x7F, 0xA0))}

"""Programs as agents: what they print is what they say, and nothing of them is left behind."""
# ruff: noqa: E501 -- recorded lines of programs stay as they are

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.adapters.command import CommandAgent
from mux.adapters.formats import FORMATS, FormatName
from mux.adapters.turns import Turns
from mux.agent import ClientTool, Draft, Message, Outcome
from mux.errors import AgentError
from mux.events import Custom, Reasoning, Token, ToolProgress, ToolResult, ToolStart, UsageReport
from mux.process import environment, running
from tests.support.fake_host import bodies_of, collect, context
from tests.support.legal import play


def program(code: str, format: FormatName = "lines", **fields: Any) -> CommandAgent:
    command = (sys.executable, "-c", textwrap.dedent(code))
    return CommandAgent(name="p", command=command, format=format, **fields)


def only(drafts: Sequence[Draft], kind: type[Any]) -> list[Any]:
    return [body for body in bodies_of(drafts) if isinstance(body, kind)]


def text(drafts: Sequence[Draft]) -> str:
    return "".join(t.content for t in only(drafts, Token))


def read(format: FormatName, *lines: Any) -> tuple[list[Draft], str | None]:
    """What a format makes of JSON lines, in an order that the log takes."""
    counter = iter(range(1000))
    turns = Turns(lambda: f"call_{next(counter)}")
    reader = FORMATS[format](turns)
    drafts = [d for line in lines for d in reader.line(json.dumps(line) + "\n")]
    drafts += turns.close("interrupted", "ended")
    play(drafts)
    return drafts, reader.output


async def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            stat = await asyncio.to_thread(Path(f"/proc/{pid}/stat").read_text)
            state = stat.rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        await asyncio.sleep(0.02)
    return False


async def test_each_line_is_a_token_and_the_task_is_its_input() -> None:
    agent = program(
        "import sys\nprint('got', sys.stdin.read().strip())\nprint('end', end='')", instructions="Be."
    )
    drafts = await collect(agent.run(context("Do it.")))
    play(drafts)
    assert text(drafts) == "got Be.\n\nDo it.\nend"
    assert isinstance(drafts[-1], Outcome)


async def test_the_task_may_be_an_argument_and_holds_the_conversation() -> None:
    agent = CommandAgent(name="p", command=(sys.executable, "-c", "import sys; print(sys.argv[1])", "{task}"))
    messages = (
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
        Message(role="user", content="c"),
    )
    drafts = await collect(agent.run(context("c", messages=messages)))
    assert "user: a\n\nassistant: b\n\nc" in text(drafts)


async def test_a_line_of_two_megabytes_and_one_of_odd_bytes_come_whole() -> None:
    drafts = await collect(
        program(
            "import sys; print('x'*2_000_000, flush=True); sys.stdout.buffer.write(b'\\xff\\xe2\\x80\\xa8y')"
        ).run(context())
    )
    assert text(drafts) == "x" * 2_000_000 + "\n\ufffd\u2028y"


async def test_a_program_that_prints_before_it_reads_never_hangs() -> None:
    agent = program("import sys; print('x'*500_000); print(len(sys.stdin.read()))")
    drafts = await collect(agent.run(context("t" * 500_000)))
    assert text(drafts).endswith("\n500001\n")


async def test_an_exit_status_is_a_failure_with_the_last_of_stderr() -> None:
    agent = program("import sys; print('a'); print('broken pump', file=sys.stderr); sys.exit(3)")
    with pytest.raises(AgentError, match=r"status 3.*broken pump"):
        await collect(agent.run(context()))


async def test_stderr_of_a_success_is_a_note() -> None:
    drafts = await collect(program("import sys; print('w', file=sys.stderr); print('a')").run(context()))
    (note,) = only(drafts, Custom)
    assert note.value == {"text": "w", "status": 0}


async def test_a_program_that_is_not_there_says_so() -> None:
    with pytest.raises(AgentError, match="no-such-program"):
        await collect(CommandAgent(name="p", command=("no-such-program",)).run(context()))


@pytest.mark.parametrize(
    ("member", "value"),
    [("model", "m"), ("params", {"temperature": 1}), ("tools", frozenset({"a"})),
     ("client_tools", (ClientTool(name="t"),))],
)  # fmt: skip
async def test_what_a_program_can_not_do_is_refused_by_name(member: str, value: Any) -> None:
    with pytest.raises(AgentError, match=member) as caught:
        await collect(program("print(1)").run(context(**{member: value})))
    assert caught.value.code == "not_supported"


async def test_only_named_variables_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "s1")
    monkeypatch.setenv("A_NAMED", "s2")
    code = "import os; print(os.environ.get('A_SECRET'), os.environ.get('A_NAMED'))"
    assert text(await collect(program(code, env=("A_NAMED",)).run(context()))) == "None s2\n"


async def test_closing_ends_the_whole_process_group() -> None:
    code = """
        import subprocess, sys, time, os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        print(os.getpid(), child.pid, flush=True)
        time.sleep(600)
    """
    async with aclosing(cast("Any", program(code).run(context()))) as drafts:
        async for draft in drafts:
            if isinstance(draft, Token):
                pids = [int(part) for part in draft.content.split()]
                break
    assert [await gone(pid) for pid in pids] == [True, True]


async def test_a_grandchild_is_gone_after_a_clean_end() -> None:
    code = """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=subprocess.DEVNULL)
        print(child.pid)
    """
    drafts = await collect(program(code).run(context()))
    assert await gone(int(text(drafts)))


async def test_a_program_dies_with_a_server_that_is_killed() -> None:
    code = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from mux.process import environment, running
        async def main():
            command = [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)']
            async with running(command, cwd=Path(), env=environment(())) as program:
                async for line in program.lines():
                    print(line, end='', flush=True)
        asyncio.run(main())
    """)
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert server.stdout is not None
    pid = int(await server.stdout.readline())
    os.kill(server.pid, signal.SIGKILL)
    await server.wait()
    assert await gone(pid)


async def test_a_line_that_never_ends_is_an_error() -> None:
    command = [sys.executable, "-c", "print('x' * 300_000)"]
    async with running(command, cwd=Path(), env=environment(()), max_line=100_000) as started:
        with pytest.raises(AgentError, match="over 100,000 bytes"):
            [line async for line in started.lines()]


async def test_json_lines_are_our_own_events_with_ids_of_ours() -> None:
    code = """
        import json, sys
        task = json.loads(sys.stdin.readline())
        for e in [{"type": "reasoning", "content": "hm"},
                  {"type": "tool_start", "call_id": "1", "tool": "look", "arguments": {"at": task["task"]}},
                  {"type": "tool_result", "call_id": "1", "output": "seen"},
                  {"type": "token", "content": "done"}, {"type": "done"}, {"type": "new", "x": 1}]:
            print(json.dumps(e))
        print("not json")
    """
    drafts = await collect(program(code, "jsonl").run(context("here")))
    play(drafts)
    assert only(drafts, ToolStart)[0].arguments == {"at": "here"}
    assert only(drafts, ToolStart)[0].call_id.startswith("call_")
    assert only(drafts, ToolResult)[0].output == "seen"
    assert [c.value for c in only(drafts, Custom)] == [
        {"type": "done"},
        {"type": "new", "x": 1},
        {"line": "not json"},
    ]


async def test_a_silent_call_shows_progress() -> None:
    code = """
        import json, sys, time
        print(json.dumps({"type": "tool_start", "call_id": "1", "tool": "t", "arguments": {}}), flush=True)
        sys.stdin.read(); time.sleep(2)
        print(json.dumps({"type": "tool_result", "call_id": "1", "output": ""}))
    """
    drafts = await collect(program(code, "jsonl").run(context()))
    assert only(drafts, ToolProgress)


def test_claude_s_pieces_come_once_with_tools_cost_and_result() -> None:
    message = {"id": "m1", "model": "claude-x", "content": []}
    drafts, output = read(
        "claude-stream-json",
        {"type": "system", "subtype": "init", "session_id": "s", "model": "claude-x"},
        {"type": "stream_event", "event": {"type": "message_start", "message": message}},
        {"type": "stream_event", "event": {"type": "content_block_delta", "index": 0,
                                           "delta": {"type": "thinking_delta", "thinking": "hm"}}},
        {"type": "stream_event", "event": {"type": "content_block_delta", "index": 1,
                                           "delta": {"type": "text_delta", "text": "Let me look."}}},
        {"type": "stream_event", "event": {"type": "content_block_start", "index": 2,
                                           "content_block": {"type": "tool_use", "id": "t1", "name": "Read"}}},
        {"type": "stream_event", "event": {"type": "content_block_delta", "index": 2,
                                           "delta": {"type": "input_json_delta", "partial_json": "{\"p\":1}"}}},
        {"type": "assistant", "message": {**message, "content": [
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "t1", "name": "Read", "input": {"p": 1}}]}},
        {"type": "user", "message": {"content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "file"}]}]}},
        {"type": "assistant", "message": {"id": "m2", "content": [{"type": "text", "text": "Done."}]}},
        {"type": "result", "subtype": "success", "result": "Done.", "total_cost_usd": 0.5,
         "usage": {"input_tokens": 7, "output_tokens": 3}},
    )  # fmt: skip
    assert text(drafts) == "Let me look.Done."
    assert only(drafts, Reasoning)[0].content == "hm"
    assert (only(drafts, ToolStart)[0].tool, only(drafts, ToolStart)[0].arguments) == ("Read", {"p": 1})
    assert only(drafts, ToolResult)[0].output == "file"
    (used,) = only(drafts, UsageReport)
    assert (used.input_tokens, used.output_tokens, used.cost) == (7, 3, 0.5)
    assert output == "Done."


def test_codex_s_items_are_text_thoughts_and_calls() -> None:
    drafts, output = read(
        "codex-json",
        {"type": "thread.started", "thread_id": "t"},
        {"type": "turn.started"},
        {"type": "item.completed", "item": {"id": "i0", "type": "reasoning", "text": "hm"}},
        {"type": "item.started", "item": {"id": "i1", "type": "command_execution", "command": "ls"}},
        {"type": "item.completed", "item": {"id": "i1", "type": "command_execution", "command": "ls",
                                            "aggregated_output": "no", "exit_code": 2, "status": "failed"}},
        {"type": "item.completed", "item": {"id": "i2", "type": "file_change", "status": "completed",
                                            "changes": [{"path": "a", "kind": "add"}]}},
        {"type": "item.completed", "item": {"id": "i3", "type": "agent_message", "text": "Done."}},
        {"type": "turn.completed", "usage": {"input_tokens": 5, "cached_input_tokens": 2, "output_tokens": 1}},
    )  # fmt: skip
    assert text(drafts) == output == "Done."
    assert [(r.tool, r.error) for r in only(drafts, ToolResult)] == [
        ("command", "tool_failed"),
        ("file_change", None),
    ]
    assert only(drafts, UsageReport)[0].cached_tokens == 2


@pytest.mark.parametrize(
    ("format", "line"),
    [
        ("jsonl", {"type": "error", "message": "out of paper"}),
        ("codex-json", {"type": "turn.failed", "error": {"message": "out of paper"}}),
        ("claude-stream-json", {"type": "result", "is_error": True, "result": "out of paper"}),
    ],
)
def test_a_failure_is_told_in_the_program_s_words(format: FormatName, line: Any) -> None:
    with pytest.raises(AgentError, match="out of paper"):
        read(format, line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["text", "tool_use", "id1", "x", "agent_message"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["id", "type", "item", "message", "content", "event", "delta", "text", "index", "usage",
                         "call_id", "tool", "arguments", "output", "input_tokens", "input"]), inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
_TYPES = st.sampled_from(
    ["token", "reasoning", "tool_call", "tool_args", "tool_start", "tool_progress", "tool_result", "usage", "custom",
     "phase", "refusal", "stream_event", "assistant", "user", "system", "turn.started", "turn.completed",
     "item.started", "item.updated", "item.completed"]
)  # fmt: skip


@given(
    format=st.sampled_from(sorted(FORMATS)),
    lines=st.lists(st.tuples(_TYPES, _JSON), max_size=8),
)
def test_no_json_whatever_breaks_the_order_of_events(format: FormatName, lines: list[Any]) -> None:
    read(
        format,
        *({**(rest if isinstance(rest, dict) else {"item": rest}), "type": kind} for kind, rest in lines),
    )


def test_a_usage_without_numbers_is_kept_as_it_came() -> None:
    drafts, _ = read("jsonl", {"type": "usage", "input_tokens": "many"})
    assert only(drafts, Custom)[0].value["input_tokens"] == "many"

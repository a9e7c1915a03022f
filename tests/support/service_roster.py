"""A roster and a model for servers that are killed: every answer follows from the conversation alone."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.endpoint import DONE, Exchange, delta

__all__ = ["check_effects", "script", "text_of", "write_home"]

_WORKER = """
import asyncio
import os
from pathlib import Path

import mux

EFFECTS = Path({effects!r})


def effect(line):
    fd = os.open(EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


@mux.tool
async def note(text: str, ctx: mux.ToolContext) -> str:
    \"\"\"Write something down. Doing it twice does harm.\"\"\"
    effect(f"note {{ctx.call_id}} begin\\n")
    await asyncio.sleep(0.03)
    effect(f"note {{ctx.call_id}} end\\n")
    return f"noted {{text}}"


@mux.tool(idempotent=True)
async def peek(text: str, ctx: mux.ToolContext) -> str:
    \"\"\"Look at something. Doing it twice does no harm.\"\"\"
    effect(f"peek {{ctx.call_id}} begin\\n")
    await ctx.progress("looking", fraction=0.5)
    await asyncio.sleep(0.05)
    return f"saw {{text}}"


agent = mux.LlmAgent(
    name="worker", description="Works in steps with two tools.", model="scripted:m", tools=[note, peek]
)
"""

_WRITER = """
import asyncio
import mux

@mux.agent(name="writer", description="Writes numbers, and begins again after a crash.", resumable="restart")
async def agent(ctx):
    count, pause = ctx.task.split()[:2]
    yield mux.StepStarted(step=1)
    for n in range(int(count)):
        yield mux.Token(content=f"{n} ")
        await asyncio.sleep(float(pause))
    yield mux.StepFinished(step=1, finish_reason="stop")
"""

_FRAGILE = """
import asyncio
import mux

@mux.agent(name="fragile", description="Writes numbers; can't be taken up again.")
async def agent(ctx):
    count, pause = ctx.task.split()[:2]
    for n in range(int(count)):
        yield mux.Token(content=f"{n} ")
        await asyncio.sleep(float(pause))
"""

_HOLD = """
import asyncio
import mux

@mux.agent(name="hold", description="Says one word and waits until it is stopped.", resumable="restart")
async def agent(ctx):
    yield mux.Token(content="holding ")
    while not ctx.stopping:
        await asyncio.sleep(0.02)
"""

_LOUD = """
import asyncio
import mux

@mux.agent(name="loud", description="Says much: numbers, with 20 kB of filling each.")
async def agent(ctx):
    for n in range(int(ctx.task)):
        yield mux.Token(content="." * 20000 + f"{n} ")
        await asyncio.sleep(0.01)
"""

_GATE = """
import asyncio
from pathlib import Path

import mux

GATE = Path({gate!r})

@mux.agent(name="gate", description="Says a word; and one when the gate is open.", resumable="restart")
async def agent(ctx):
    yield mux.Token(content="before ")
    while not GATE.exists():
        await asyncio.sleep(0.02)
    yield mux.Token(content="after")
"""

_PROBE = """
import asyncio
import gc
import sys
import mux

@mux.agent(name="probe", description="Says how much this process holds.")
async def agent(ctx):
    gc.collect()
    yield mux.Token(content=f"{len(asyncio.all_tasks())} {sys.getallocatedblocks()}")
"""


def write_home(
    home: Path, model_url: str = "http://127.0.0.1:9/v1", more: str = "", effects: Path | None = None
) -> Path:
    """Agents and ``mux.toml`` in a server's home; the tools' effects go to the file that is returned.
    The agent ``gate`` waits until there is a file ``gate``.

    Args:
        home: the folder.
        model_url: where `script` is served.
        more: more of ``mux.toml``.
        effects: another file for the tools' effects, which several servers share.
    """
    effects = effects or home / "effects"
    folder = home / "agents"
    folder.mkdir(parents=True)
    (folder / "worker.py").write_text(_WORKER.format(effects=str(effects)).lstrip())
    (folder / "gate.py").write_text(_GATE.format(gate=str(home / "gate")).lstrip())
    for name, code in (
        ("writer", _WRITER),
        ("fragile", _FRAGILE),
        ("hold", _HOLD),
        ("loud", _LOUD),
        ("probe", _PROBE),
    ):
        (folder / f"{name}.py").write_text(code.lstrip())
    (home / "mux.toml").write_text(f'[providers.scripted]\nbase_url = "{model_url}"\n{more}')
    effects.touch()
    return effects


def _words(step: int, words: int) -> list[str]:
    return [f"s{step}w{n} " for n in range(words)]


def text_of(task: str) -> str:
    """What the worker says in all, however often it was interrupted."""
    steps, words = (int(part) for part in task.split()[:2])
    return "".join(word for step in range(1, steps + 1) for word in _words(step, words))


async def script(exchange: Exchange) -> None:
    """The scripted model. The task is ``<steps> <words> <pause>``: each step says its words, and all but the
    last call both tools."""
    messages = exchange.body["messages"]
    task = next(m["content"] for m in reversed(messages) if m["role"] == "user")
    last_user = max(n for n, m in enumerate(messages) if m["role"] == "user")
    step = 1 + sum(m["role"] == "assistant" for m in messages[last_user:])
    steps, words, pause = task.split()[:3]
    await exchange.head()
    for word in _words(step, int(words)):
        await exchange.send(delta(word))
        await asyncio.sleep(float(pause))
    if step < int(steps):
        await exchange.send(_calls(step), delta(finish="tool_calls"))
    else:
        await exchange.send(delta(finish="stop"))
    await exchange.send(DONE)
    await exchange.end()


def _calls(step: int) -> bytes:
    calls = [
        {
            "index": n, "id": f"p{step}-{n}", "type": "function",
            "function": {"name": name, "arguments": json.dumps({"text": f"{name} {step}"})},
        }
        for n, name in enumerate(("note", "peek"))
    ]  # fmt: skip
    choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def check_effects(effects: Path, events: Sequence[dict[str, Any]]) -> None:
    """No tool ran before its start was logged; one that is not idempotent ran once at most; results stay."""
    began: Counter[tuple[str, str]] = Counter()
    ended: set[str] = set()
    for line in effects.read_text().splitlines():
        tool, call, what = line.split()
        if what == "begin":
            began[tool, call] += 1
        else:
            ended.add(call)
    started = {e["call_id"] for e in events if e["type"] == "tool_start"}
    results = {e["call_id"]: e for e in events if e["type"] == "tool_result"}
    assert {call for _, call in began} <= started
    for (tool, call), times in began.items():
        if tool == "note":
            assert times == 1, f"{call} ran {times} times"
        assert call in results
    for call, result in results.items():
        if result["tool"] == "note" and not result["is_error"]:
            assert call in ended

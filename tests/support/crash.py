"""A process that runs one engine on a sqlite file until it is killed at a failpoint; run by crash tests.

``python -m tests.support.crash FILE AGENTS…`` starts a run of these agents if the file has none, else takes
the unfinished ones over, and ends when everything has ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from mux.agent import AgentContext, Draft, Message
from mux.events import StepFinished, StepStarted, Token, ToolArgs, ToolCall, ToolResult, ToolStart
from mux.log import RunQuery, SqliteStore
from mux.requests import StartRequest
from tests.support.agents import Scripted, harness

__all__ = ["agents"]

_TOOLS = 2


def agents(side_effects: Path) -> list[Scripted]:  # noqa: C901 - three small agents in one place
    """Agents of each way to recover. Tools append to a file, so that a second run of one is seen."""

    async def tool(ctx: AgentContext, call: str) -> AsyncIterator[Draft]:
        yield ToolStart(call_id=call, tool="note", arguments={"n": 1})
        with side_effects.open("a") as file:  # blocking, and meant: the effect is there when this returns
            file.write(f"{ctx.channel} {call}\n")
        yield ToolResult(call_id=call, tool="note", output="noted")

    async def steps(ctx: AgentContext) -> AsyncIterator[Draft]:
        """Two turns with two tools each, then an answer made from the conversation."""
        step = ctx.resume.step if ctx.resume else 0
        said: list[Message] = list(ctx.resume.messages) if ctx.resume else []
        for pending in ctx.resume.pending if ctx.resume else ():
            if pending.started:
                yield ToolResult(
                    call_id=pending.call_id, tool="note", output="lost", is_error=True, error="interrupted"
                )
            else:
                async for draft in tool(ctx, pending.call_id):
                    yield draft
        answered = bool(said) and said[-1].role == "assistant" and not said[-1].calls
        while step < 3 and not answered:
            step += 1
            yield StepStarted(step=step)
            for word in ("step", " ", str(step), ". "):
                yield Token(content=word)
            calls = [ctx.new_call_id() for _ in range(_TOOLS)] if step < 3 else []
            for call in calls:
                yield ToolCall(call_id=call, tool="note")
                yield ToolArgs(call_id=call, content='{"n": 1}')
            yield StepFinished(step=step, finish_reason="tool_calls" if calls else "stop")
            for call in calls:
                async for draft in tool(ctx, call):
                    yield draft

    async def words(ctx: AgentContext) -> AsyncIterator[Draft]:
        for n in range(5):
            yield Token(content=f"{n} ")
            await asyncio.sleep(0.001)

    return [
        Scripted("resumes", steps, resumable="resume"),
        Scripted("restarts", words, resumable="restart"),
        Scripted("fails", words, resumable="fail"),
    ]


async def main(path: Path, names: list[str]) -> None:
    """Run until everything has ended."""
    store = SqliteStore(path)
    async with harness(*agents(path.with_suffix(".effects")), store=store) as h:
        if not (await store.list(RunQuery())).runs:
            await h.engine.start_run(StartRequest(message="go", agents=names))
        for row in (await store.list(RunQuery())).runs:
            await h.engine.wait(row.run, 20)
    await store.close()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONASYNCIODEBUG", "0")
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))

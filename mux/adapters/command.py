"""A program as an agent: the task is its input (or an argument), and what it prints is what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mux.adapters.formats import FORMATS, FormatName
from mux.adapters.turns import Turns
from mux.agent import AgentContext, Budget, Draft, Outcome
from mux.errors import AgentError, MuxError
from mux.events import Custom
from mux.process import Program, environment, running

__all__ = ["CommandAgent", "ProgramAgent", "refuse"]

_HEARTBEAT_S = 1.5  # the promise is progress every 2 s while a call runs
_TASK = "{task}"


class ProgramAgent(BaseModel):
    """What every agent has that is a program.

    Attributes:
        name, description, title, examples: as for every agent.
        command: the program and its arguments.
        env: names of environment variables that it may see, besides the usual ones (PATH, HOME, LANG, …).
        instructions: stand before the first task.
        budget: the agent's own limits.
        source: where it was defined.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    title: str = ""
    command: tuple[str, ...] = Field(min_length=1)
    env: tuple[str, ...] = ()
    instructions: str = ""
    budget: Budget | None = None
    examples: tuple[str, ...] = ()
    source: str = ""

    @property
    def resumable(self) -> Literal["fail"]:
        """What a program did before a crash is not known."""
        return "fail"


class CommandAgent(ProgramAgent):
    """A program that is started anew for every task.

    Attributes:
        command: ``{task}`` in an argument stands for the task, else the task is the program's input.
        format: how its output is read.
        cwd: its working directory.
    """

    format: FormatName = "lines"
    cwd: Path = Path()

    async def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        """Do the task.

        Raises:
            AgentError: ``not_supported``: the channel asks for what a program can't do; ``agent_failed``: it
                can't be started, said that it failed, or ended with another status than 0.
        """
        refuse(ctx, self.name, "a program")
        turns = Turns(ctx.new_call_id)
        task = self._task(ctx)
        command = [part.replace(_TASK, task) for part in self.command]
        reader = FORMATS[self.format](turns)
        async with running(command, cwd=self.cwd, env=environment(self.env)) as program:
            program.send("" if command != list(self.command) else self._input(ctx, task))
            try:
                async with aclosing(_with_heartbeat(program)) as lines:
                    async for line in lines:
                        for draft in turns.progress() if line is None else reader.line(line):
                            yield draft
                        if ctx.stopping or ctx.host.budget_exceeded() is not None:
                            break
            except MuxError:
                for draft in turns.close("interrupted", "The program failed before this call was done."):
                    yield draft
                raise
            if ctx.stopping or ctx.host.budget_exceeded() is not None:
                for draft in turns.close("cancelled", "The call was stopped."):
                    yield draft
                yield Outcome("cancelled" if ctx.stopping else "budget_exceeded", usage=turns.usage)
                return
            status, errors = await program.ended(), program.errors()
            for draft in turns.close("interrupted", "The program ended before this call was done."):
                yield draft
            if errors:
                yield Custom(name="stderr", value={"text": errors, "status": status})
            if status != 0:
                last = errors.rpartition("\n")[2][-300:]
                raise AgentError(
                    "agent_failed", f"{self.command[0]} ended with status {status}. {last}".strip()
                )
            yield Outcome("completed", reader.output, turns.usage)

    def _task(self, ctx: AgentContext) -> str:
        instructions = self.instructions if ctx.instructions is None else ctx.instructions
        before = [f"{m.role}: {m.text}" for m in ctx.history if m.role in ("user", "assistant") and m.text]
        talk = "The conversation so far:\n\n" + "\n\n".join(before) if before else ""
        return "\n\n".join(part for part in (instructions, talk, ctx.task) if part)

    def _input(self, ctx: AgentContext, task: str) -> str:
        if self.format != "jsonl":
            return task + "\n"
        messages = [{"role": m.role, "content": m.text} for m in ctx.messages]
        return json.dumps({"task": ctx.task, "messages": messages}, ensure_ascii=False) + "\n"


def refuse(
    ctx: AgentContext, name: str, kind: str, *, model: bool = False, params: Collection[str] = ()
) -> None:
    """Refuse what a channel asks for and its agent can't do, rather than ignore it.

    Args:
        model, params: whether it can be given a model, and which parameters.

    Raises:
        AgentError: ``not_supported``, naming the member.
    """
    asked: dict[str, Any] = {
        "model": None if model else ctx.model,
        "params": [p for p in ctx.params if p not in params] or None,
        "tools": None if ctx.tools is None else sorted(ctx.tools),
        "client_tools": ctx.client_tools or None,
    }
    for member, value in asked.items():
        if value is not None:
            raise AgentError(
                "not_supported", f"Agent {name!r} is {kind}: it can't be given {member}. Leave {member} out."
            )


async def _with_heartbeat(program: Program) -> AsyncGenerator[str | None, None]:
    """The program's lines, and ``None`` whenever it was silent for a while."""
    lines = program.lines()
    waiting: asyncio.Task[str | None] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(lines, None))
            while not (await asyncio.wait({waiting}, timeout=_HEARTBEAT_S))[0]:
                yield None
            line = waiting.result()
            waiting = None
            if line is None:
                return
            yield line
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await lines.aclose()

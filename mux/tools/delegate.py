"""``delegate`` and ``ask_channels``: agents that set other agents to work, and that read what others said."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mux.agent import ChannelResult
from mux.errors import MuxError
from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.decorator import tool
from mux.tools.results import cut

__all__ = ["ask_channels", "delegate", "delegate_tools"]

MAX_TASKS = 8
MAX_EACH = 20_000  # characters of one worker's result
DELEGATE_S = 3_600.0
ASK_S = 120.0
_SUCCEEDED = "completed"


class Task(BaseModel):
    """One task for one worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: str = Field(description="The name of the agent that does it.")
    message: str = Field(
        description="The task, complete in itself: the worker sees nothing else.", min_length=1
    )


@tool(name="delegate", timeout_s=DELEGATE_S)
async def delegate(
    ctx: ToolContext,
    tasks: Annotated[list[Task] | None, Field(max_length=MAX_TASKS)] = None,
    agent: str | None = None,
    message: str | None = None,
) -> ToolOutput:
    """Give tasks to other agents. They work in parallel, each in a channel of its own; returns their results.

    Args:
        tasks: Several tasks at once.
        agent: For a single task: the name of the agent.
        message: For a single task: the task, complete in itself.
    """
    wanted = _tasks(ctx, tasks, agent, message)
    opening = [asyncio.create_task(_open(ctx, task)) for task in wanted]
    try:
        return await _results(ctx, wanted, opening)
    except BaseException:  # cancelled, timed out or failed: nobody waits for the workers any more
        await asyncio.wait(opening)  # short; a channel on its way is opened all the same
        for task in opening:
            if not task.cancelled() and task.exception() is None and (channel := task.result()[0]):
                ctx.agent.host.stop_channel(channel)  # one that is done stays as it is
        raise


async def _results(
    ctx: ToolContext, wanted: list[Task], opening: list[asyncio.Task[tuple[str | None, str]]]
) -> ToolOutput:
    """Wait for the workers and put their results together."""
    await asyncio.wait(opening)  # not gather: a cancel must not keep us from learning what was opened
    opened = [task.result() for task in opening]
    running = [channel for channel, _ in opened if channel is not None]
    if running:
        await ctx.progress(f"{len(running)} at work: {', '.join(running)}", fraction=0.0)
    finished = 0

    async def result(task: Task, channel: str | None, problem: str) -> dict[str, Any]:
        nonlocal finished
        if channel is None:
            return {"channel": None, "agent": task.agent, "status": "failed", "output": problem}
        try:
            done = await ctx.agent.channel_result(channel, wait=True)
        except MuxError as e:
            return {"channel": channel, "agent": task.agent, "status": "failed", "output": e.message}
        finished += 1
        await ctx.progress(f"{channel} is {done.status}", fraction=finished / len(running))
        return _worker(done)

    with ctx.waiting():  # the workers have limits of their own
        workers = await asyncio.gather(
            *(result(task, *state) for task, state in zip(wanted, opened, strict=True))
        )
    text = "\n\n".join(_block(w) for w in workers)
    if not any(w["status"] == _SUCCEEDED for w in workers):
        raise ToolProblem(f"None of the tasks was completed.\n\n{text}", data={"workers": workers})
    return ToolOutput(text, {"workers": workers})


def _tasks(ctx: ToolContext, tasks: list[Task] | None, agent: str | None, message: str | None) -> list[Task]:
    wanted = list(tasks or [])
    if agent and message:
        wanted.append(Task(agent=agent, message=message))
    elif agent or message:
        raise ToolProblem("Give both agent and message, or tasks.", "invalid_arguments")
    if not wanted:
        raise ToolProblem("Give at least one task: tasks, or agent and message.", "invalid_arguments")
    if any(task.agent == ctx.agent.agent for task in wanted):
        # it would be given the same task by the same instructions, and delegate again
        raise ToolProblem("An agent can't delegate to itself; choose another.", "invalid_arguments")
    return wanted


async def _open(ctx: ToolContext, task: Task) -> tuple[str | None, str]:
    """The worker's channel, or why there is none."""
    try:
        return await ctx.agent.open_channel(task.agent, task.message), ""
    except MuxError as e:
        return None, e.message


def _worker(result: ChannelResult) -> dict[str, Any]:
    output = result.output or result.error or ""
    return {
        "channel": result.id,
        "agent": result.agent,
        "status": result.status,
        "output": cut(output, MAX_EACH),
    }


def _block(worker: dict[str, Any]) -> str:
    name = worker["channel"] or worker["agent"]
    return f"## {name} ({worker['agent']}, {worker['status']})\n\n{worker['output'] or '(no output)'}"


@tool(name="ask_channels", timeout_s=ASK_S + 30, idempotent=True)
async def ask_channels(ctx: ToolContext, channels: list[str] | None = None, wait: bool = False) -> ToolOutput:
    """Read what the other agents of this run have said: their results, or their text so far.

    Args:
        channels: The channels to read; left out, all others.
        wait: Wait until they are done (two minutes at most).
    """
    others = {r.id: r for r in ctx.agent.host.channels() if r.id != ctx.channel}
    names = list(dict.fromkeys(channels)) if channels else list(others)
    unknown = [n for n in names if n not in others]
    if unknown:
        known = ", ".join(others) or "none"
        raise ToolProblem(f"There is no channel {', '.join(unknown)}. Others: {known}.", "invalid_arguments")
    if not names:
        return ToolOutput("There are no other channels in this run.", {"channels": []})
    await ctx.progress(f"reading {', '.join(names)[:200]}")
    if wait:
        await _all_ended(ctx, names)
    results = [_worker(await ctx.agent.channel_result(n, wait=False)) for n in names]
    return ToolOutput("\n\n".join(_block(r) for r in results), {"channels": results})


async def _all_ended(ctx: ToolContext, names: list[str]) -> None:
    """Wait for them, but not for ever: two channels that wait for each other would never end."""
    waits = [asyncio.ensure_future(ctx.agent.channel_result(n, wait=True)) for n in names]
    try:
        await asyncio.wait(waits, timeout=ASK_S)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def delegate_tools() -> list[Tool]:
    """Both."""
    return [delegate, ask_channels]

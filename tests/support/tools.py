"""Running tools in tests: a context with a small host, and a call collected to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from mux.agent import AgentContext, ChannelRequest, ChannelResult, Decision, Draft, Message, Steering
from mux.errors import NotFound
from mux.events import ToolProgress, ToolResult
from mux.tools.base import Tool
from mux.tools.runtime import run_tool

__all__ = ["FakeHost", "call", "collect", "context", "until"]


class FakeHost:
    """A :class:`mux.agent.Host` whose channels end as the test says."""

    def __init__(self) -> None:
        self.stopping = False
        self.opened: list[ChannelRequest] = []
        self.results: dict[str, ChannelResult] = {}
        self.stopped: list[str] = []
        self.done: dict[str, asyncio.Event] = {}

    def add(self, channel: str, agent: str, status: str, output: str = "", error: str | None = None) -> None:
        self.results[channel] = ChannelResult(
            id=channel, agent=agent, status=status, output=output, error=error
        )
        self.done.setdefault(channel, asyncio.Event())
        if status != "running":
            self.done[channel].set()

    def offer(self, draft: object) -> bool:
        return False

    async def emit(self, draft: Draft) -> None:
        raise AssertionError(draft)

    async def open_channel(self, request: ChannelRequest) -> str:
        if request.agent == "nobody":
            raise NotFound("agent_unknown", "There is no agent 'nobody'.")
        self.opened.append(request)
        channel = f"{request.agent}.{len(self.opened)}"
        self.add(channel, request.agent, "running")
        return channel

    async def channel_result(self, channel: str, *, wait: bool) -> ChannelResult:
        if channel not in self.results:
            raise NotFound("channel_not_found", f"There is no channel {channel!r}.")
        if wait:
            await self.done[channel].wait()
        return self.results[channel]

    def stop_channel(self, channel: str) -> None:
        self.stopped.append(channel)

    def channels(self) -> Sequence[ChannelResult]:
        return list(self.results.values())

    async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
        return Decision(decision="approve", by="test")

    def take_messages(self, *, at_end: bool) -> Sequence[Steering]:
        return []

    def interrupted(self) -> bool:
        return False

    async def interruption(self) -> None:
        await asyncio.Event().wait()

    def budget_exceeded(self) -> str | None:
        return None


def context(
    host: FakeHost | None = None, *, channel: str = "a", agent: str = "tester", run: str = "r1"
) -> AgentContext:
    """A channel's context for tools."""
    task = Message(role="user", content="task")
    return AgentContext(run, "t1", channel, agent, "task", (task,), host or FakeHost())


async def collect(
    tool: Tool, ctx: AgentContext | None = None, **arguments: Any
) -> tuple[list[ToolProgress], ToolResult]:
    """Validate and run one call; its progress and its result."""
    items = [i async for i in run_tool(tool, "call_1", tool.validate(arguments), ctx or context())]
    *progress, result = items
    assert isinstance(result, ToolResult)
    assert all(isinstance(p, ToolProgress) for p in progress)
    return [p for p in progress if isinstance(p, ToolProgress)], result


async def call(tool: Tool, ctx: AgentContext | None = None, **arguments: Any) -> ToolResult:
    """Validate and run one call; its result."""
    return (await collect(tool, ctx, **arguments))[1]


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until something observable holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the outside world (a process, a file) sets no event
            await asyncio.sleep(0.01)

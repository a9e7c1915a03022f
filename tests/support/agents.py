"""Small agents for engine tests, a roster of them, and an engine around a memory store."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from mux.agent import Agent, AgentContext, Draft, Guard, OpenGuard, Outcome
from mux.engine import Engine
from mux.engine.site import Times
from mux.errors import NotFound
from mux.events import (
    Event,
    Record,
    StepFinished,
    StepStarted,
    Token,
    ToolCall,
    ToolResult,
    ToolStart,
)
from mux.log.memory import MemoryStore
from mux.log.protocols import Head, Store
from mux.run import RunState
from mux.settings import Limits, Settings

__all__ = ["FakeRoster", "Harness", "Scripted", "echo", "harness", "says", "types", "until", "waits"]


@dataclass
class Scripted:
    """An agent that runs a function of the context; remembers the contexts that it was given."""

    name: str
    function: Callable[[AgentContext], AsyncIterator[Draft]]
    description: str = "a test agent"
    resumable: Literal["resume", "restart", "fail"] = "fail"
    seen: list[AgentContext] = field(default_factory=list)

    def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        self.seen.append(ctx)
        return self.function(ctx)


def says(name: str, *texts: str, resumable: Literal["resume", "restart", "fail"] = "fail") -> Scripted:
    """An agent that says these pieces."""

    async def run(ctx: AgentContext) -> AsyncIterator[Draft]:
        for text in texts:
            yield Token(content=text)

    return Scripted(name, run, resumable=resumable)


def echo(name: str) -> Scripted:
    """An agent that answers with its task."""

    async def run(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        yield Token(content=f"{name}: {ctx.task}")
        yield StepFinished(step=1, finish_reason="stop")
        yield Outcome()

    return Scripted(name, run)


class waits:  # noqa: N801 - reads as a verb beside `says`
    """An agent that starts a tool call and waits until it is released or stopped."""

    def __init__(self, name: str, *, resumable: Literal["resume", "restart", "fail"] = "fail") -> None:
        self.name = name
        self.description = "waits"
        self.resumable = resumable
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.stopped = asyncio.Event()

    async def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        call_id = ctx.new_call_id()
        try:
            yield StepStarted(step=1)
            yield Token(content="thinking ")
            yield ToolCall(call_id=call_id, tool="wait")
            yield StepFinished(step=1, finish_reason="tool_calls")
            yield ToolStart(call_id=call_id, tool="wait", arguments={})
            self.started.set()
            await self.release.wait()
            yield ToolResult(call_id=call_id, tool="wait", output="waited")
            yield StepStarted(step=2)
            yield Token(content="done")
            yield StepFinished(step=2, finish_reason="stop")
        finally:
            self.stopped.set()


class FakeRoster:
    """Agents by name."""

    def __init__(self, agents: Iterable[Agent]) -> None:
        self._agents = {a.name: a for a in agents}

    @property
    def agents(self) -> Mapping[str, Agent]:
        return self._agents

    def get(self, name: str) -> Agent:
        if name not in self._agents:
            near = difflib.get_close_matches(name, self._agents)
            raise NotFound("agent_unknown", f"There is no agent {name!r}. Near: {', '.join(near)}.")
        return self._agents[name]


@dataclass
class Harness:
    """An engine and what a test wants to know of it."""

    engine: Engine
    store: Store
    roster: FakeRoster
    published: dict[str, list[Record]] = field(default_factory=dict)

    def publish(self, run: str, head: Head | None, records: Sequence[Record]) -> None:
        if head is None:
            return
        kept = self.published.setdefault(run, [])
        kept.extend(records)
        assert head.head == kept[-1].seq

    async def events(self, run: str) -> list[Event]:
        """The run's log, checked against the order rules."""
        page = await self.store.read(run, 0, limit=100_000, max_bytes=1 << 30)
        events = [r.event() for r in page.records]
        state = RunState(run)
        for event in events:
            state.apply(event)
        return events

    async def finished(self, run: str, timeout_s: float = 5.0) -> dict[str, Any]:
        """The snapshot, when the run is over."""
        assert await self.engine.wait(run, timeout_s), f"run {run} did not end"
        return await self.engine.snapshot(run)


def types(events: Iterable[Event], channel: str | None = None) -> list[str]:
    """The types of a channel's events, in order."""
    return [e.type for e in events if e.channel == channel]


@asynccontextmanager
async def harness(
    *agents: Agent,
    store: Store | None = None,
    settings: Settings | None = None,
    guard_for: Callable[[Agent, str, str], Guard] | None = None,
    clock: Callable[[], int] | None = None,
    times: Times | None = None,
    **limits: Any,
) -> AsyncIterator[Harness]:
    """An engine with these agents, started; closed on the way out (a given store stays open)."""
    kept = store if store is not None else MemoryStore()
    await kept.open()
    settings = settings or Settings(limits=Limits(**limits), default_agents=(agents[0].name,))
    roster = FakeRoster(agents)
    box: list[Harness] = []
    options: dict[str, Any] = {"clock": clock} if clock is not None else {}
    engine = Engine(
        settings,
        kept,
        roster,
        guard_for=guard_for or (lambda agent, run, channel: OpenGuard()),
        times=times,
        publish=lambda run, head, records: box[0].publish(run, head, records),  # noqa: PLW0108 - made below
        **options,
    )
    box.append(Harness(engine, kept, roster))
    await engine.start()
    try:
        yield box[0]
    finally:
        await engine.close()
        if store is None:
            await kept.close()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until it holds, looking again after every turn of the loop that could have changed it."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, of things that have no event
            await asyncio.sleep(0.001)

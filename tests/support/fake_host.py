"""A host without an engine, and a context and runtime on it, for tests of agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from mux.agent import (
    AgentContext,
    ChannelRequest,
    ChannelResult,
    Decision,
    Draft,
    Message,
    Outcome,
    Steering,
)
from mux.errors import ConfigError
from mux.events import Body, Reasoning, Token
from mux.llm.model import Model
from mux.llm.setup import LlmRuntime
from mux.settings import Price, Provider, Settings
from mux.tools.base import Tool
from mux.tools.runtime import Toolbox

__all__ = ["FakeHost", "FakeProviders", "as_event", "bodies_of", "collect", "context", "runtime"]


class FakeHost:
    """Answers as told; records what it is asked."""

    def __init__(self) -> None:
        self.stopping = False
        self.emitted: list[Draft] = []
        self.opened: list[ChannelRequest] = []
        self.approvals: list[tuple[str, str, dict[str, Any]]] = []
        self.decisions: list[Decision] = []
        self.between: list[Steering] = []
        self.at_end: list[Steering] = []
        self.results: dict[str, ChannelResult] = {}
        self.stopped: list[str] = []
        self.budget: str | None = None
        self._interrupt = asyncio.Event()

    async def emit(self, draft: Draft) -> None:
        self.emitted.append(draft)

    def offer(self, draft: str | Reasoning) -> bool:
        return False

    async def open_channel(self, request: ChannelRequest) -> str:
        self.opened.append(request)
        return request.id or request.agent

    async def channel_result(self, channel: str, *, wait: bool) -> ChannelResult:
        return self.results[channel]

    def stop_channel(self, channel: str) -> None:
        self.stopped.append(channel)

    def channels(self) -> Sequence[ChannelResult]:
        return list(self.results.values())

    async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
        self.approvals.append((call_id, tool, arguments))
        return self.decisions.pop(0)

    def interrupt(self, text: str) -> None:
        self.between.append(Steering(message_id="m1", content=text, mode="interrupt"))
        self._interrupt.set()

    def take_messages(self, *, at_end: bool) -> Sequence[Steering]:
        taken, self.between = self.between, []
        if at_end:
            taken, self.at_end = [*taken, *self.at_end], []
        self._interrupt.clear()
        return taken

    def interrupted(self) -> bool:
        return self._interrupt.is_set()

    async def interruption(self) -> None:
        await self._interrupt.wait()

    def budget_exceeded(self) -> str | None:
        return self.budget


def context(task: str = "Do it.", host: FakeHost | None = None, **fields: Any) -> AgentContext:
    """A context of channel ``c`` of run ``r``."""
    messages = fields.pop("messages", (Message(role="user", content=task),))
    return AgentContext(
        run="r",
        thread="t",
        channel="c",
        agent="a",
        task=task,
        messages=messages,
        host=host or FakeHost(),
        **fields,
    )


class FakeProviders:
    """One model under any name but those that start with ``no``."""

    def __init__(
        self, model: Model, settings: Provider | None = None, prices: Mapping[str, Price] | None = None
    ) -> None:
        self._model = model
        self._settings = settings
        self._prices = prices or {}

    def model(self, spec: str) -> tuple[Model, str]:
        if spec.startswith("no"):
            raise ConfigError("model_unknown", f"There is no model {spec!r}.")
        return self._model, spec.partition(":")[2] or spec

    def provider(self, spec: str) -> Provider | None:
        return self._settings

    def price(self, spec: str) -> Price | None:
        return self._prices.get(spec)


def runtime(model: Model, *tools: Tool, **options: Any) -> LlmRuntime:
    """A runtime on a fake model; waits of retries are recorded in ``slept`` and take no time."""
    slept: list[float] = options.pop("slept", [])

    async def sleep(delay: float) -> None:
        slept.append(delay)

    provider = options.pop("provider", None)
    prices = options.pop("prices", None)
    box = Toolbox(tools)
    return LlmRuntime(
        FakeProviders(model, provider, prices),
        lambda: box,
        options.pop("settings", Settings(model="fake:m")),
        sleep=sleep,
        roll=lambda: 0.0,
        **options,
    )


def as_event(draft: Draft) -> Draft:
    """A piece of text as the token that it is."""
    return Token.of(draft) if isinstance(draft, str) else draft


async def collect(drafts: AsyncIterator[Draft]) -> list[Draft]:
    """All of an agent's drafts, text as tokens."""
    return [as_event(d) async for d in drafts]


def bodies_of(drafts: Sequence[Draft]) -> list[Body]:
    """The drafts without the outcome."""
    return [d for d in drafts if isinstance(d, Body)]


def outcome_of(drafts: Sequence[Draft]) -> Outcome:
    """The outcome, which must be last and only one."""
    assert [i for i, d in enumerate(drafts) if isinstance(d, Outcome)] == [len(drafts) - 1]
    last = drafts[-1]
    assert isinstance(last, Outcome)
    return last

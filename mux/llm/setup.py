"""What one channel of an LLM agent needs, resolved once before its first step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mux.events import Usage
from mux.llm.calls import RunTool
from mux.llm.model import Model
from mux.settings import McpServer, Price, Provider, Settings
from mux.tools.base import Tool
from mux.tools.runtime import run_tool

__all__ = ["LlmRuntime", "ProvidersLike", "Setup", "ToolServersLike", "ToolboxLike"]


class ToolServersLike(Protocol):
    """What an agent asks of the tool servers (MCP), its own and those that are configured for all."""

    def missing(self, names: Iterable[str]) -> Sequence[str]:
        """The servers for all whose tools may be among these names or patterns, and that are not there."""

    async def connect(
        self, own: Mapping[str, McpServer], missing: Sequence[str]
    ) -> tuple[Sequence[Tool], Sequence[str]]:
        """Wait, for a bounded time, until servers can be used.

        Args:
            own: an agent's own, started when they are first asked for.
            missing: of those for all.

        Returns:
            The tools of ``own``, and a sentence for each server that can't be used now.
        """


class ProvidersLike(Protocol):
    """What the loop asks of `mux.llm.providers.Providers`."""

    def model(self, spec: str) -> tuple[Model, str]:
        """The model and the provider's name for it; `ConfigError` ``model_unknown``."""

    def provider(self, spec: str) -> Provider | None:
        """The settings of the model's provider; ``None`` where it has none (rehearsal)."""

    def price(self, spec: str) -> Price | None:
        """What the model costs, if it is known."""


class ToolboxLike(Protocol):
    """What the loop asks of `mux.tools.runtime.Toolbox`."""

    @property
    def tools(self) -> Mapping[str, Tool]:
        """Every tool by name."""


@dataclass(frozen=True, slots=True)
class LlmRuntime:
    """What the server gives its LLM agents.

    Attributes:
        providers: resolves ``provider:model``.
        toolbox: the tools that exist now; asked at the start of each channel, since MCP servers come and go.
        settings: the default model and the limits.
        run_tool: runs one validated call.
        servers: the tool servers.
        sleep, roll: waiting and jitter of retries, replaced in tests.
    """

    providers: ProvidersLike
    toolbox: Callable[[], ToolboxLike]
    settings: Settings
    run_tool: RunTool = run_tool
    servers: ToolServersLike | None = None
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    roll: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class Setup:
    """One channel's model, tools and limits.

    Attributes:
        spec: the model as configured, ``provider:model``.
        provider: the part before the colon; opaque items go back only to it.
        model_name: the provider's name for the model.
        params: temperature, max_tokens, …: of the provider, the agent and the request; the last wins.
        context_tokens: the model's context, where it is known.
        answer_tokens: what is left free of it for the answer.
        price: what the model costs, if it is known.
    """

    spec: str
    model: Model
    model_name: str
    tools: Mapping[str, Tool]
    run_tool: RunTool
    instructions: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 24
    max_retries: int = 3
    retry_after_reset: bool = False
    context_tokens: int | None = None
    price: Price | None = None
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    roll: Callable[[], float] = random.random

    @property
    def provider(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def answer_tokens(self) -> int:
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            value = self.params.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return min(1024, (self.context_tokens or 4096) // 4)

    def priced(self, usage: Usage | None) -> Usage | None:
        """The usage with its cost, where the price is known and the provider named none."""
        price = self.price
        if usage is None or price is None or usage.cost is not None:
            return usage
        if usage.input_tokens is None and usage.output_tokens is None:
            return usage
        cached = (usage.cached_tokens or 0) if price.cached is not None else 0
        fresh = max((usage.input_tokens or 0) - cached, 0)
        cost = (
            fresh * price.input + cached * (price.cached or 0.0) + (usage.output_tokens or 0) * price.output
        )
        return usage.model_copy(update={"cost": cost / 1_000_000, "currency": price.currency})

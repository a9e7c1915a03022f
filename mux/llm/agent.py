"""The built-in agent: a language model with tools."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from mux.agent import AgentContext, Budget, Draft
from mux.errors import AgentError, ConfigError
from mux.events import Custom
from mux.llm.loop import Loop
from mux.llm.setup import LlmRuntime, McpTools, Setup
from mux.settings import GuardrailRule, McpServer, Price, Provider
from mux.tools.base import Tool

__all__ = ["LlmAgent", "LlmRuntime"]


@dataclass(frozen=True, kw_only=True)
class LlmAgent:
    """A named language model with instructions and tools.

    Attributes:
        name: the agent's name in the roster, ``[A-Za-z0-9._-]{1,64}``.
        description: one sentence for people and for agents that delegate.
        instructions: the system message.
        model: ``provider:model`` or a configured name; ``None`` = the configured default.
        tools: tools, or names of built-in, MCP and roster tools.
        params: temperature, max_tokens, … as the provider takes them.
        guardrails: names of configured rules, or rules by name, that hold besides the global ones.
        mcp: tool servers by name, as in ``[mcp.NAME]``; their tools are this agent's alone.
        budget: the agent's own limits.
        max_steps: model calls at most; ``None`` = ``limits.max_steps``.
        retry_after_reset: do a step again (once) when it broke off after something of it was shown.
        examples: questions that show what it can do.
        source: where it was defined, for people.
    """

    name: str
    description: str = ""
    instructions: str = ""
    model: str | None = None
    tools: Sequence[Tool | str] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    guardrails: Sequence[str] | Mapping[str, GuardrailRule] = ()
    mcp: Mapping[str, McpServer] = field(default_factory=dict)
    budget: Budget | None = None
    max_steps: int | None = None
    retry_after_reset: bool = False
    examples: Sequence[str] = ()
    source: str = ""
    runtime: LlmRuntime | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        servers = {name: McpServer.model_validate(server) for name, server in self.mcp.items()}
        object.__setattr__(self, "mcp", servers)  # plain mappings too, as they stand in a file

    @property
    def resumable(self) -> Literal["resume"]:
        """A crash loses at most the model turn that was running."""
        return "resume"

    @property
    def takes_client_tools(self) -> bool:
        """It can offer its model tools that the caller runs."""
        return True

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The names of its tools, as configured."""
        return tuple(t if isinstance(t, str) else t.name for t in self.tools)

    def estimates_usage(self, model: str | None) -> bool:
        """Whether tokens will be counted here, since the endpoint is known to report none.

        Args:
            model: the channel's own, where it asks for one.
        """
        if self.runtime is None:
            return False
        try:
            endpoint, name = self.runtime.providers.model(
                model or self.model or self.runtime.settings.default_model()
            )
        except ConfigError:
            return False
        return bool(getattr(endpoint, "estimates_usage", _reports_usage)(name))

    def bind(self, runtime: LlmRuntime) -> LlmAgent:
        """The same agent, ready to run."""
        return replace(self, runtime=runtime)

    def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        """Do the task.

        Raises:
            ConfigError: ``model_unknown``: the request names a model that does not exist.
            AgentError: ``agent_unbound``: the agent was not loaded by a roster.
        """
        if self.mcp and self.runtime is not None and self.runtime.mcp_tools is not None:
            return self._with_servers(ctx, self.runtime.mcp_tools)
        return Loop(ctx, self.setup(ctx)).run()

    async def _with_servers(self, ctx: AgentContext, connect: McpTools) -> AsyncIterator[Draft]:
        """The same, when the agent's own tool servers are connected (or known not to be)."""
        tools, problems = await connect(self.mcp)
        for problem in problems:
            ctx.log.warning("mcp server of an agent is away", agent=self.name, problem=problem)
            yield Custom(name="progress", value={"message": problem})
        setup = self.setup(ctx)
        chosen = [t for t in tools if ctx.tools is None or t.name in ctx.tools]
        own = {t.name: t for t in chosen if t.name not in setup.tools}
        loop = Loop(ctx, replace(setup, tools={**setup.tools, **own}))
        async with aclosing(cast("AsyncGenerator[Draft, None]", loop.run())) as drafts:
            async for draft in drafts:
                yield draft

    def setup(self, ctx: AgentContext) -> Setup:
        """Everything that one channel needs, with the request's overrides applied."""
        runtime = self.runtime
        if runtime is None:
            raise AgentError(
                "agent_unbound", f"Agent {self.name!r} has no runtime: load it by a roster, or call bind()."
            )
        spec = self.model_spec(ctx, runtime)
        model, name = runtime.providers.model(spec)
        provider = _provider(runtime, spec)
        return Setup(
            spec=spec,
            model=model,
            model_name=name,
            tools=self._tools(ctx, runtime),
            run_tool=runtime.run_tool,
            instructions=self.instructions if ctx.instructions is None else ctx.instructions,
            params={**(provider.params if provider else {}), **self.params, **ctx.params},
            max_steps=self.max_steps or runtime.settings.limits.max_steps,
            max_retries=provider.max_retries if provider else 3,
            retry_after_reset=self.retry_after_reset,
            context_tokens=provider.context_tokens if provider else None,
            price=_price(runtime, spec),
            sleep=runtime.sleep,
            roll=runtime.roll,
        )

    def model_spec(self, ctx: AgentContext, runtime: LlmRuntime) -> str:
        """The model to use: the request's, else the agent's if it exists, else the configured default."""
        if ctx.model:
            return ctx.model
        if self.model is None:
            return runtime.settings.default_model()
        try:
            runtime.providers.model(self.model)
        except ConfigError:  # the roster has warned when the agent was loaded; it still runs
            ctx.log.warning("model_unknown", agent=self.name, model=self.model)
            return runtime.settings.default_model()
        return self.model

    def _tools(self, ctx: AgentContext, runtime: LlmRuntime) -> dict[str, Tool]:
        known = runtime.toolbox().tools
        tools: dict[str, Tool] = {}
        for given in self.tools:
            tool = known.get(given) if isinstance(given, str) else given
            if tool is None:
                ctx.log.debug("tool_unknown", agent=self.name, tool=given)  # the roster has warned of it
            elif ctx.tools is None or tool.name in ctx.tools:
                tools[tool.name] = tool
        return tools


def _reports_usage(_: str) -> bool:
    return False


def _provider(runtime: LlmRuntime, spec: str) -> Provider | None:
    try:
        return runtime.providers.provider(spec)
    except ConfigError:  # registered models (rehearsal) have no settings
        return None


def _price(runtime: LlmRuntime, spec: str) -> Price | None:
    try:
        return runtime.providers.price(spec)
    except ConfigError:
        return None

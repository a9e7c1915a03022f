"""The built-in agent: a language model with tools."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from mux.agent import AgentContext, Budget, Draft
from mux.errors import AgentError, ConfigError
from mux.events import Custom, Phase
from mux.llm.loop import Loop
from mux.llm.setup import LlmRuntime, Setup, ToolServersLike
from mux.settings import GuardrailRule, McpServer, Price, Provider
from mux.tools.base import Tool
from mux.tools.decorator import tool

__all__ = ["LlmAgent", "LlmRuntime", "is_pattern"]


@dataclass(frozen=True, kw_only=True)
class LlmAgent:
    """A named language model with instructions and tools.

    Attributes:
        name: the agent's name in the roster, ``[A-Za-z0-9._-]{1,64}``.
        description: one sentence for people and for agents that delegate.
        instructions: the system message.
        model: ``provider:model`` or a configured name; ``None`` = the configured default.
        title: the name for people, where it is another one.
        tools: tools, typed functions, or names and patterns (``files_*``) of built-in, MCP and roster tools.
        denied: names and patterns of tools that it may not use, whatever ``tools`` says.
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
    title: str = ""
    description: str = ""
    instructions: str = ""
    model: str | None = None
    tools: Sequence[Tool | str | Callable[..., Any]] = ()
    denied: Sequence[str] = ()
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
        tools = tuple(t if isinstance(t, Tool | str) else tool(t) for t in self.tools)
        object.__setattr__(self, "tools", tools)

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
        """The names of its tools, as configured; patterns stand for the tools that there are."""
        known = self.runtime.toolbox().tools if self.runtime is not None else {}
        return tuple(name for name, _ in self._allowed(known))

    def may_use(self, name: str) -> bool:
        """Whether no restriction of the agent forbids a tool."""
        return not any(fnmatchcase(name.lower(), pattern.lower()) for pattern in self.denied)

    def _allowed(self, known: Mapping[str, Tool]) -> Iterator[tuple[str, Tool | None]]:
        """Its tools by name, patterns resolved, each once; ``None``: there is no such tool (yet)."""
        seen: set[str] = set()
        for given in cast("Sequence[Tool | str]", self.tools):
            if isinstance(given, Tool):
                found: Iterable[tuple[str, Tool | None]] = [(given.name, given)]
            elif is_pattern(given):
                found = [(name, known[name]) for name in known if fnmatchcase(name, given)]
            else:
                found = [(given, known.get(given))]
            for name, value in found:
                if name not in seen and self.may_use(name):
                    seen.add(name)
                    yield name, value

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
        servers = self.runtime.servers if self.runtime is not None else None
        if servers is not None and ((missing := servers.missing(self._named(ctx))) or self.mcp):
            return self._with_servers(ctx, servers, missing)
        return Loop(ctx, self.setup(ctx)).run()

    def _named(self, ctx: AgentContext) -> Iterator[str]:
        """Tools that it uses by name, or by pattern."""
        for name in self.tools:
            if isinstance(name, str) and (ctx.tools is None or is_pattern(name) or name in ctx.tools):
                yield name

    async def _with_servers(
        self, ctx: AgentContext, servers: ToolServersLike, missing: Sequence[str]
    ) -> AsyncIterator[Draft]:
        """The same, when its tool servers are connected (or known not to be)."""
        if missing:
            yield Phase(phase="waiting")
        tools, problems = await servers.connect(self.mcp, missing)
        for problem in problems:
            ctx.log.warning("mcp server of an agent is away", agent=self.name, problem=problem)
            yield Custom(name="progress", value={"message": problem})
        setup = self.setup(ctx)
        chosen = [t for t in tools if self.may_use(t.name) and (ctx.tools is None or t.name in ctx.tools)]
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
        for name, found in self._allowed(known):
            if found is None:
                ctx.log.debug("tool_unknown", agent=self.name, tool=name)  # the roster has warned of it
            elif ctx.tools is None or name in ctx.tools:
                tools[name] = found
        return tools


def is_pattern(name: str) -> bool:
    """Whether a tool's name in a list stands for all that it matches."""
    return any(c in name for c in "*?[")


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

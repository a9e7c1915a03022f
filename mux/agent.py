"""The agent protocol: what an agent is given, what it may yield, and ``@agent`` for async generators.

An agent is anything with a ``name``, a ``description`` and ``run(ctx)``, an async iterator of drafts:

- a ``str``: the next piece of the answer, and the same as a :class:`~mux.events.Token` of it in all that
  follows. It is the cheapest thing to yield: no object is made for it;
- a :class:`~mux.events.Body`: something else happened on the channel;
- :class:`Nested`: the same, from a sub-agent inside this one;
- :class:`Outcome`: optional, last: how it ended and what it measured. Without it the channel is
  ``completed`` with the tokens of its last step as its output.

The engine adds ``channel_started``, ``error`` and ``done``; agents never yield those, nor run events. An
agent fails by raising: :class:`~mux.errors.MuxError` keeps its code and message, anything else becomes
``agent_failed``. To cancel an agent *now* the engine cancels the task that iterates it; a graceful stop
sets ``ctx.stopping``, which the agent looks at between its steps.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import structlog

from mux.conversation import Budget, ClientTool, Message, MessageCall, PendingCall, Resume, Value
from mux.events import (
    Body,
    Custom,
    DoneStatus,
    Reasoning,
    SteerMode,
    Token,
    ToolArgs,
    ToolCall,
    ToolErrorCode,
    ToolProgress,
    ToolResult,
    ToolStart,
    Usage,
)

__all__ = [
    "Agent",
    "AgentContext",
    "Budget",
    "ChannelRequest",
    "ChannelResult",
    "ClientTool",
    "Decision",
    "Draft",
    "FunctionAgent",
    "Guard",
    "Host",
    "Message",
    "MessageCall",
    "Nested",
    "OpenCall",
    "OpenGuard",
    "Outcome",
    "PendingCall",
    "Resume",
    "Said",
    "Steering",
    "Verdict",
    "agent",
    "tool_names",
]


_BEAT_S = 1.5  # seconds; the promise is progress every 2 s while a call runs

# --- what an agent yields --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, init=False)
class Nested:
    """A body that a sub-agent inside this agent produced; ``path`` names it, outermost first.

    A ``str`` is taken for a `Token` here as well.
    """

    path: tuple[str, ...]
    body: Body

    def __init__(self, path: tuple[str, ...], body: Body | str) -> None:
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "body", Token(content=body) if isinstance(body, str) else body)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the agent ended, yielded last.

    Attributes:
        status: the ``done`` status; ``failed`` and ``timed_out`` are raised, not yielded.
        output: the final answer; ``None`` = the text of the last step.
        usage: totals over all steps, where the agent keeps them itself.
        ttft_ms: first delta received minus request sent, in ms, of the first step.
        tokens_per_s: output tokens per second of generation.
        finish_reason: what ended the last model turn, where that was not its own end (see `Done`).
    """

    status: DoneStatus = "completed"
    output: str | None = None
    usage: Usage | None = None
    ttft_ms: int | None = None
    tokens_per_s: float | None = None
    finish_reason: str | None = None


Draft: TypeAlias = str | Body | Nested | Outcome
Said = TypeVar("Said", bound=Draft | list[str])  # what `Guard.stream` takes


# --- what the engine offers an agent ---------------------------------------------------------------------


class ChannelRequest(Value):
    """A channel to open: what ``POST /api/runs`` takes per channel, and ``ctx.open_channel`` likewise."""

    agent: str
    id: str | None = None
    message: str | None = None
    model: str | None = None
    instructions: str | None = None
    params: dict[str, Any] | None = None
    tools: tuple[str, ...] | None = None
    client_tools: tuple[ClientTool, ...] | None = None
    depends_on: tuple[str, ...] = ()
    when: Literal["all", "any", "settled"] = "settled"
    inputs: tuple[str, ...] = ()
    budget: Budget | None = None
    title: str | None = None


class ChannelResult(Value):
    """How a channel stands: its final output once it is done, its text so far before that."""

    id: str
    agent: str
    status: str
    output: str = ""
    error: str | None = None


class Steering(Value):
    """A message sent to a running channel."""

    message_id: str
    content: str
    mode: SteerMode


class Decision(Value):
    """What a person decided about a call; ``arguments`` are set when they edited them."""

    decision: Literal["approve", "deny", "edit", "expired"]
    by: str
    arguments: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guardrails say of one value.

    Attributes:
        action: ``pass`` (``value`` is the given one), ``masked`` (``value`` is the cleaned one) or
            ``blocked`` (``value`` is ``None``: nothing of it may be used or shown).
        rules: names of the rules that fired, each already logged once.
        refusal: what the user sees after a block, where the rule has a text of its own.
    """

    action: Literal["pass", "masked", "blocked"]
    value: Any = None
    rules: tuple[str, ...] = ()
    refusal: str | None = None


class Guard(Protocol):
    """The guardrail rules that hold for one channel. Undecidable or failing rules block (fail closed)."""

    async def input(self, text: str) -> Verdict:
        """Check what the agent is asked; value: the text."""

    async def tool_input(self, tool: str, arguments: dict[str, Any]) -> Verdict:
        """Check a call's complete arguments before it may start; value: the arguments."""

    async def tool_output(self, tool: str, output: str, data: Any = None) -> Verdict:
        """Check a result before model and log see it; value: ``(output, data)``."""

    def stream(self, drafts: AsyncIterator[Said]) -> AsyncIterator[Said | Draft]:
        """Pass an agent's drafts on, held back just far enough; close ``drafts`` and refuse on a block.

        Texts that are ready together may come, and go on, as one list: one search in all of them is much
        cheaper.
        """


class OpenGuard:
    """The guard without rules: everything passes, nothing is delayed."""

    async def input(self, text: str) -> Verdict:
        return Verdict("pass", text)

    async def tool_input(self, tool: str, arguments: dict[str, Any]) -> Verdict:
        return Verdict("pass", arguments)

    async def tool_output(self, tool: str, output: str, data: Any = None) -> Verdict:
        return Verdict("pass", (output, data))

    def stream(self, drafts: AsyncIterator[Said]) -> AsyncIterator[Said | Draft]:
        return drafts


class Host(Protocol):
    """What the engine does for one channel; :class:`AgentContext` is the face that agents see."""

    stopping: bool  # a graceful stop was asked for: end after this step

    async def emit(self, draft: Draft) -> None:
        """Put a draft on the channel from beside the generator; waits while the channel's buffer is full."""

    def offer(self, draft: str | Reasoning) -> bool:
        """Put a piece of the answer on the channel at once, from a callback of the event loop; ``False``,
        and nothing is done, where its buffer is full or it can't be taken so. Only while the agent itself
        waits, so that it comes after all that the agent yielded."""

    async def open_channel(self, request: ChannelRequest) -> str:
        """Add a channel to the run, owned by this one; returns its id once it is admitted."""

    async def channel_result(self, channel: str, *, wait: bool) -> ChannelResult:
        """The state of another channel of the run; with ``wait`` when it is done."""

    def stop_channel(self, channel: str) -> None:
        """Cancel a channel that this one opened (or one below it); returns at once, and others stay as
        they are."""

    def channels(self) -> Sequence[ChannelResult]:
        """The run's other channels as they stand."""

    async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
        """Ask a person. Emits both approval events and ``phase: waiting`` itself; survives a restart."""

    def take_messages(self, *, at_end: bool) -> Sequence[Steering]:
        """Steering messages that are due now: ``steer`` and ``interrupt`` between steps, and ``queue`` too
        when the agent is about to end (``at_end``). Emits ``message_applied`` for each."""

    def interrupted(self) -> bool:
        """Whether an ``interrupt`` message waits: the running model turn is to be cut short."""

    async def interruption(self) -> None:
        """Wait until :meth:`interrupted` holds."""

    def budget_exceeded(self) -> str | None:
        """The name of a budget that this channel or its run has reached, as the log shows it so far."""


@dataclass(slots=True)
class AgentContext:
    """Everything an agent is given for one channel.

    Attributes:
        run, thread, channel, agent: ids and names.
        attempt: 1, or more after a restart from the beginning.
        task: the text of the task (handed-over outputs of other channels included).
        messages: history of this channel on the thread, then the task, as a conversation.
        model, instructions, params: the channel's overrides of the agent's own settings.
        tools: names of those of the agent's tools that it may use here; ``None`` = all of them.
        client_tools: tools that came with the request: calls of them end the turn and go to the client.
        budget: the channel's limits, the stricter of request and agent.
        resume: where to go on after a crash, for agents that can (``resumable = "resume"``).
        guard: the guardrails of this channel (tool stages are the agent's to call; output is wrapped).
        log: structlog logger bound to run and channel.
    """

    run: str
    thread: str
    channel: str
    agent: str
    task: str
    messages: tuple[Message, ...]
    host: Host
    attempt: int = 1
    model: str | None = None
    instructions: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tools: frozenset[str] | None = None
    client_tools: tuple[ClientTool, ...] = ()
    budget: Budget | None = None
    resume: Resume | None = None
    guard: Guard = field(default_factory=OpenGuard)
    log: structlog.typing.FilteringBoundLogger = field(default_factory=structlog.get_logger)

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation before the task."""
        return self.messages[:-1]

    @property
    def stopping(self) -> bool:
        """A graceful stop was asked for: finish this step, then end."""
        return self.host.stopping

    def new_call_id(self) -> str:
        """A fresh ``call_id``: 60 random bits, so unique in the run over crashes and attempts."""
        return "call_" + secrets.token_hex(8)[:15]

    async def emit(self, draft: Draft) -> None:
        """Put a draft on the channel from beside the generator (a callback, a second task)."""
        await self.host.emit(draft)

    async def progress(self, message: str, fraction: float | None = None) -> None:
        """Report progress of an agent that is no tool: a ``custom`` event named ``progress``.

        Args:
            message: one short sentence.
            fraction: 0 to 1, if known.
        """
        await self.emit(Custom(name="progress", value={"message": message, "fraction": fraction}))

    @asynccontextmanager
    async def tool_call(self, tool: str, arguments: dict[str, Any]) -> AsyncIterator[OpenCall]:
        """A call that this agent makes itself, from ``tool_call`` to ``tool_result``, outside of a step.

        Shows progress every 2 s while the block runs. An exception of the block is the call's result and goes
        on; where the channel is cancelled the engine closes the call.

        Args:
            tool: what is called.
            arguments: what it is called with; anything that is JSON.
        """
        call = OpenCall(self, self.new_call_id(), tool)
        text = json.dumps(arguments, ensure_ascii=False)
        await self.emit(ToolCall(call_id=call.call_id, tool=tool))
        await self.emit(ToolArgs(call_id=call.call_id, content=text))
        await self.emit(ToolStart(call_id=call.call_id, tool=tool, arguments=arguments))
        beat = asyncio.create_task(call.beat())
        try:
            yield call
        except Exception as e:
            beat.cancel()
            await call.answer(str(e) or type(e).__name__, error="tool_failed")
            raise
        else:
            beat.cancel()
            await call.answer(call.output, call.data)
        finally:
            beat.cancel()
            await asyncio.wait({beat})

    async def open_channel(self, agent: str, message: str, **options: Any) -> str:
        """Open a channel for a worker in the same run; returns its id. Options as in `ChannelRequest`."""
        return await self.host.open_channel(ChannelRequest(agent=agent, message=message, **options))

    async def channel_result(self, channel: str, *, wait: bool = True) -> ChannelResult:
        """The outcome of another channel of this run, when it is done (or as it stands)."""
        return await self.host.channel_result(channel, wait=wait)


@dataclass(slots=True)
class OpenCall:
    """A call that an agent makes itself; see `AgentContext.tool_call`."""

    ctx: AgentContext
    call_id: str
    tool: str
    output: str = ""
    data: Any = None
    began: float = field(default_factory=time.monotonic)

    async def progress(self, message: str | None = None, fraction: float | None = None) -> None:
        """Report how far it is: one short sentence, and 0 to 1 if known."""
        elapsed = self._elapsed()
        await self.ctx.emit(
            ToolProgress(call_id=self.call_id, elapsed_ms=elapsed, message=message, fraction=fraction)
        )

    def result(self, output: str, data: Any = None) -> None:
        """What came of it; it is sent when the block ends."""
        self.output, self.data = output, data

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            await self.progress()

    async def answer(self, output: str, data: Any = None, error: ToolErrorCode | None = None) -> None:
        failed = error is not None
        await self.ctx.emit(
            ToolResult(
                call_id=self.call_id, tool=self.tool, output=output, data=data, is_error=failed, error=error,
                elapsed_ms=self._elapsed(),
            )
        )  # fmt: skip

    def _elapsed(self) -> int:
        return round((time.monotonic() - self.began) * 1000)


# --- agents ----------------------------------------------------------------------------------------------


@runtime_checkable
class Agent(Protocol):
    """A named thing that, given a task, yields drafts. Optional attributes, read with ``getattr``:

    ``model`` (str), ``tools`` (names), ``budget`` (:class:`Budget`), ``guardrails`` (rule names or rules),
    ``resumable`` (``"resume"`` | ``"restart"`` | ``"fail"``, the default: what to do after a crash).
    """

    @property
    def name(self) -> str:
        """The name in the roster."""

    @property
    def description(self) -> str:
        """One sentence for people and for agents that delegate."""

    def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        """Do the task. Called once per attempt; iterated to its end or closed."""


def tool_names(agent: Agent) -> tuple[str, ...]:
    """The names of an agent's tools, whatever it calls so: names, functions, objects with a name."""
    tools = getattr(agent, "tool_names", None) or getattr(agent, "tools", ())
    if not isinstance(tools, list | tuple | set | frozenset | Mapping):
        return ()
    names = (
        t if isinstance(t, str) else getattr(t, "name", None) or getattr(t, "__name__", None) for t in tools
    )
    return tuple(name for name in names if isinstance(name, str))


AgentFunction: TypeAlias = Callable[[AgentContext], AsyncIterator[Draft]]


@dataclass(frozen=True, slots=True)
class FunctionAgent:
    """An agent made from an async generator function by :func:`agent`."""

    name: str
    description: str
    function: AgentFunction
    resumable: Literal["restart", "fail"] = "fail"

    def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        return self.function(ctx)


def agent(
    *, name: str, description: str = "", resumable: Literal["restart", "fail"] = "fail"
) -> Callable[[AgentFunction], FunctionAgent]:
    """Make an agent from an async generator ``async def f(ctx): yield "a piece of the answer"``.

    Args:
        name: the agent's name in the roster, ``[A-Za-z0-9._-]{1,64}``.
        description: one sentence for people and for agents that delegate.
        resumable: what happens to its channel after a crash of the server: begin again, or fail.
    """

    def wrap(function: AgentFunction) -> FunctionAgent:
        return FunctionAgent(name, description or (function.__doc__ or "").strip(), function, resumable)

    return wrap


ProgressFunction: TypeAlias = Callable[[str, float | None, str | None], Awaitable[None]]


class _CallableModule(ModuleType):
    """Lets ``@mux.agent(…)`` work although ``mux.agent`` is this module too, whichever was imported first."""

    def __call__(self, **options: Any) -> Callable[[AgentFunction], FunctionAgent]:
        return agent(**options)


sys.modules[__name__].__class__ = _CallableModule

"""From a request to a plan: which channels there are, what each is asked, and who waits for whom.

The plan is what the run's row keeps (`RunRow.request`): enough to start, or to go on with, the run after a
crash. Everything that can be refused is refused here, before anything was started.
"""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from mux.agent import Agent, Budget, ChannelRequest, ClientTool, tool_names
from mux.errors import BadRequest, Conflict, Overloaded
from mux.events import ChannelAdded, ChannelInfo, RunStarted
from mux.log.protocols import RunRow
from mux.requests import ChannelSpec, ChatMessage, Grace, StartRequest

__all__ = [
    "Asked",
    "Plan",
    "PlannedChannel",
    "RosterLike",
    "agent_forbidden",
    "check_metadata",
    "key_limit",
    "make_plan",
    "new_id",
    "plan_channel",
    "plan_of",
    "spec_of",
    "title_of",
]

_BASE36 = string.digits + string.ascii_lowercase
_TITLE_CHARS = 80
_MAX_METADATA = 64 << 10  # bytes of JSON
STREAM_GRACE_S = 15.0


class RosterLike(Protocol):
    """What the engine needs of the roster."""

    @property
    def agents(self) -> Mapping[str, Agent]:
        """All agents by name."""

    def get(self, name: str) -> Agent:
        """Raises NotFound ``agent_unknown``, with near names."""


class Asked(BaseModel):
    """What the input rules did to what a channel is asked, before it was kept.

    Attributes:
        rules: the rules that fired.
        blocked: the channel must not run; nothing of what was blocked is kept.
        refusal: the blocking rule's own words for the user, if it has any.
        messages: the run's messages as this channel's rules leave them, where the plan keeps others.
    """

    model_config = ConfigDict(frozen=True)

    rules: tuple[str, ...] = ()
    blocked: bool = False
    refusal: str | None = None
    messages: tuple[ChatMessage, ...] | None = None


class PlannedChannel(BaseModel):
    """One channel of a plan: its request, completed."""

    model_config = ConfigDict(frozen=True)

    id: str
    agent: str
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
    retry_of: str | None = None
    parent: str | None = None
    added: bool = False
    asked: Asked | None = None

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Channels of this run that must have ended before it starts."""
        own = (i for i in self.inputs if "/" not in i)
        return tuple(dict.fromkeys((*self.depends_on, *own)))

    def info(self) -> ChannelInfo:
        """As `run_started` announces it."""
        return ChannelInfo(
            id=self.id,
            agent=self.agent,
            title=self.title,
            model=self.model,
            message=self.message,
            instructions=self.instructions,
            params=self.params,
            tools=None if self.tools is None else list(self.tools),
            depends_on=list(self.waits_for) or None,
            when=None if self.when == "settled" else self.when,
            inputs=list(self.inputs) or None,
            budget=self.budget.model_dump(exclude_none=True) if self.budget else None,
        )

    def announcement(self) -> ChannelAdded:
        """As `channel_added` announces it."""
        return ChannelAdded(**self.info().model_dump(), retry_of=self.retry_of, parent=self.parent)


class Plan(BaseModel):
    """A run's request, completed."""

    model_config = ConfigDict(frozen=True)

    channels: tuple[PlannedChannel, ...]
    message: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    max_parallel: int | None = None
    on_disconnect: Literal["continue", "cancel"] | Grace = "continue"
    timeout_s: float | None = None
    budget: Budget | None = None
    history_before: str | None = None  # a retried run: history is what was said before that one
    blocked: bool = False  # an input rule stopped the message for some channel: it is not kept here

    def dump(self) -> dict[str, Any]:
        """As JSON for the run's row."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def channel(self, channel: str) -> PlannedChannel | None:
        """The channel of that id."""
        return next((c for c in self.channels if c.id == channel), None)

    def start_event(self, thread: str, message: str | None, metadata: Mapping[str, Any]) -> RunStarted:
        """The run's first event."""
        return RunStarted(
            thread=thread,
            channels=[c.info() for c in self.channels if not c.added],
            message=message,
            metadata=dict(metadata) or None,
        )

    def with_channel(self, channel: PlannedChannel) -> Plan:
        """The plan with one channel more."""
        return self.model_copy(update={"channels": (*self.channels, channel)})


def new_id(prefix: str) -> str:
    """An id of 16 characters: sorts by time (ms in base 36), and 36 random bits can't be guessed.

    Args:
        prefix: one letter: ``r`` for runs, ``t`` for threads, ``m`` for messages.
    """
    ms = time.time_ns() // 1_000_000
    stamp = ""
    for _ in range(8):
        ms, digit = divmod(ms, 36)
        stamp = _BASE36[digit] + stamp
    return prefix + stamp + "".join(secrets.choice(_BASE36) for _ in range(7))


def make_plan(
    request: StartRequest,
    roster: RosterLike,
    *,
    last: RunRow | None,
    default_agents: Sequence[str],
    max_channels: int,
    streaming: bool,
) -> Plan:
    """Complete and check a request.

    Args:
        last: the newest run of the thread, whose channels are the default.
        default_agents: used when there is no such run.
        streaming: the request itself streams: then leaving means cancelling after a grace.

    Raises:
        BadRequest: with the place and what to do (``tool_unknown``, ``dependency_cycle``, …).
        NotFound: ``agent_unknown``.
    """
    specs = _specs(request, last, default_agents)
    if len(specs) > max_channels:
        raise too_many_channels(max_channels)
    check_metadata(request.metadata)
    channels: list[PlannedChannel] = []
    taken = {s.id for s in specs if s.id is not None}
    if len(taken) != sum(s.id is not None for s in specs):
        raise BadRequest("channel_duplicate", "Two channels have the same id; ids must be unique in a run.")
    for spec in specs:
        _check_tools(spec, roster.get(spec.agent))
        channel_id = spec.id or free_id(spec.agent, taken)
        taken.add(channel_id)
        channels.append(PlannedChannel(**spec.model_dump(exclude={"id"}), id=channel_id))
    _check_order(channels)
    disconnect = request.on_disconnect or (Grace(grace_s=STREAM_GRACE_S) if streaming else "continue")
    return Plan(
        channels=tuple(channels),
        message=request.message,
        messages=tuple(request.messages) if request.messages else None,
        max_parallel=request.max_parallel,
        on_disconnect=disconnect,
        timeout_s=request.timeout_s,
        budget=request.budget,
    )


def _specs(request: StartRequest, last: RunRow | None, default: Sequence[str]) -> list[ChannelSpec]:
    if request.channels:
        return list(request.channels)
    if request.agents:
        return [ChannelSpec(agent=name) for name in request.agents]
    if last is not None:
        plan = plan_of(last)
        again = {"message": None}  # what each was asked then
        return [spec_of(c).model_copy(update={"id": c.id, **again}) for c in plan.channels if not c.added]
    return [ChannelSpec(agent=name) for name in default]


def plan_of(row: RunRow) -> Plan:
    """What a run's row says is to be done.

    Raises:
        Conflict: ``run_imported``: there is no plan, or none that can be read.
    """
    try:
        return Plan.model_validate(row.request)
    except ValueError:
        why = "what it was asked can't be read any more" if row.damaged else "it was imported"
        raise Conflict("run_imported", f"Run {row.run} can't be done again: {why}.") from None


def spec_of(channel: PlannedChannel) -> ChannelSpec:
    """What was asked for, so that it can be asked for again under another id."""
    fields = set(ChannelSpec.model_fields) - {"id"}
    return ChannelSpec.model_validate(channel.model_dump(include=fields, mode="json"))


def free_id(agent: str, taken: Iterable[str], mark: str = ".") -> str:
    """The agent's name, or ``gpt.2`` for a repeat (``gpt~2`` for a retry)."""
    taken = set(taken)
    base = "".join(c if c.isascii() and (c.isalnum() or c in "._~-") else "-" for c in agent)[:58]
    if mark == "." and base not in taken:
        return base
    return next(name for n in range(2, len(taken) + 3) if (name := f"{base}{mark}{n}") not in taken)


def _check_tools(spec: ChannelSpec | ChannelRequest, agent: Agent) -> None:
    """A tool that the agent does not have can't be left to it; those of its own servers come later."""
    known = tool_names(agent)
    if spec.client_tools:
        _check_client_tools(spec, agent, known)
    if spec.tools is None:
        return
    servers = tuple(f"{name}_" for name in getattr(agent, "mcp", ()))
    unknown = [name for name in spec.tools if name not in known and not name.startswith(servers)]
    if unknown:
        raise BadRequest(
            "tool_unknown",
            f"Agent {spec.agent!r} has no tool {unknown[0][:64]!r}. It has: {', '.join(known) or 'none'}.",
        )


def _check_client_tools(spec: ChannelSpec | ChannelRequest, agent: Agent, own: Sequence[str]) -> None:
    if not getattr(agent, "takes_client_tools", False):
        raise BadRequest(
            "not_supported",
            f"Agent {spec.agent!r} can't be given client_tools: only agents on a language model of this"
            " server call them.",
        )
    allowed = own if spec.tools is None else spec.tools
    seen = set(allowed)
    for tool in spec.client_tools or ():
        if tool.name in seen:
            whose = f"the agent {spec.agent!r} has" if tool.name in allowed else "client_tools has twice"
            raise BadRequest("tool_duplicate", f"There is a tool {tool.name!r} that {whose}: rename it.")
        seen.add(tool.name)


def _check_order(channels: Sequence[PlannedChannel]) -> None:
    known = {c.id for c in channels}
    for channel in channels:
        _check_known(channel, known)
    try:
        TopologicalSorter({c.id: set(c.waits_for) for c in channels}).prepare()
    except CycleError as e:
        raise BadRequest(
            "dependency_cycle", f"Channels wait for each other in a circle: {' → '.join(e.args[1])}."
        ) from None


def _check_known(channel: PlannedChannel, known: Iterable[str]) -> None:
    unknown = sorted(set(channel.waits_for) - set(known))
    if unknown:
        raise BadRequest(
            "dependency_unknown",
            f"Channel {channel.id!r} waits for {', '.join(map(repr, unknown))}, which is not in "
            f"this run. It has: {', '.join(sorted(known))}.",
        )


def plan_channel(
    spec: ChannelSpec | ChannelRequest,
    roster: RosterLike,
    plan: Plan,
    *,
    parent: str | None = None,
    retry_of: str | None = None,
) -> PlannedChannel:
    """Complete and check a channel that joins a running run.

    Raises:
        BadRequest, NotFound: as `make_plan`; `Conflict`-free: an id that is taken is a BadRequest.
    """
    _check_tools(spec, roster.get(spec.agent))
    taken = {c.id for c in plan.channels}
    if spec.id is not None and spec.id in taken:
        raise BadRequest("channel_duplicate", f"This run has a channel {spec.id!r} already.")
    base = retry_of.partition("~")[0] if retry_of else None
    channel_id = spec.id or (free_id(base, taken, "~") if base else free_id(spec.agent, taken))
    old = plan.channel(retry_of) if retry_of else None
    asked = old.asked if old is not None else None  # what was stopped once is gone
    channel = PlannedChannel(
        **spec.model_dump(exclude={"id"}), id=channel_id, parent=parent, retry_of=retry_of, added=True,
        asked=asked,
    )  # fmt: skip
    if channel.message is None and asked is None:
        if plan.message is None and plan.messages is None:
            raise BadRequest("message_empty", "Say what the new channel should do: `message` is missing.")
        if plan.blocked:
            raise BadRequest(
                "message_empty",
                "A guardrail of this server stopped the run's message, so it was not kept: say in `message`"
                " what the new channel should do.",
            )
    _check_known(channel, taken)
    return channel


def too_many_channels(limit: int) -> BadRequest:
    """The answer to one channel too many."""
    return BadRequest("too_many_channels", f"A run may have {limit} channels (limits.max_channels).")


def agent_forbidden(name: str, agents: Sequence[str]) -> BadRequest:
    """The answer to an agent that the caller's key may not use."""
    return BadRequest(
        "agent_forbidden", f"This key may not use {name[:80]!r}; it may use {', '.join(agents)}.", status=403
    )


def key_limit(name: str, most: float, *, retry_after: float | None = None) -> Overloaded:
    """The answer where a limit of the caller's key is reached.

    Args:
        name: of the limit, as `mux.requests.KeyLimits` has it.
    """
    return Overloaded(
        "key_limit",
        f"The limit {name!r} of this key is reached: {most:g}.",
        retryable=retry_after is not None,
        retry_after=retry_after,
        extra={"limit": name, "most": most},
    )


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse what is no JSON, or more than lists can carry.

    Raises:
        BadRequest: ``metadata_invalid``, ``metadata_too_large``.
    """
    try:
        size = len(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise BadRequest("metadata_invalid", f"Metadata has to be JSON: {e}.") from None
    if size > _MAX_METADATA:
        raise BadRequest("metadata_too_large", f"Metadata may have {_MAX_METADATA} bytes as JSON.")


def title_of(message: str | None) -> str | None:
    """The first line of what was asked, for lists."""
    line = (message or "").strip().partition("\n")[0].strip()
    return (line if len(line) <= _TITLE_CHARS else line[: _TITLE_CHARS - 1].rstrip() + "…") or None

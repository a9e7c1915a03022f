"""What callers write, checked by the input rules before any of it is kept.

A run's row is written before its first event, and lists, search and recovery read it: so what a rule stops
must not be in it. Each channel's agent may have rules of its own; one that is stopped leaves the others
their task, and says so itself when its turn comes (`Channel.source`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from mux.agent import Guard
from mux.engine.plan import Asked, Plan, PlannedChannel, free_id
from mux.engine.site import Site
from mux.errors import BadRequest, MuxError, NotFound
from mux.requests import ChatMessage

__all__ = [
    "BLOCKED",
    "GuardOf",
    "Reader",
    "check_id",
    "guards",
    "message_of",
    "publishable",
    "read_channel",
    "read_metadata",
    "read_plan",
]

GuardOf: TypeAlias = Callable[
    [str, str], Guard
]  # agent, channel → guard; MuxError if its rules can't be used

BLOCKED: Final = "[stopped by a guardrail]"
# The chat format's own words: rules are about what people write, and a word rule must not break the form.
_STRUCTURE: Final = re.compile(r"[a-z_]{1,24}")
_FORM_KEYS: Final = frozenset({"role", "type"})
_DATA_URL: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,[A-Za-z0-9+/=_-]*")
_FIELDS: Final = (
    "message",
    "instructions",
    "params",
    "model",
    "client_tools",
)  # of a channel, all of them the caller's words


class _NoAgent:
    """Stands for an agent that is no more: the server's own rules still hold."""


def guards(site: Site, run: str) -> GuardOf:
    """The guards of a run's channels, also of agents that have left the roster."""

    def of(agent: str, channel: str) -> Guard:
        try:
            found: Any = site.roster.get(agent)
        except NotFound:
            found = _NoAgent()
        return site.guard_for(found, run, channel)

    return of


class Reader:
    """Reads values as one guard lets them pass.

    Attributes:
        rules: the rules that fired so far.
        blocked: one of them blocks, or could not be asked.
        refusal: the blocking rule's own words for the user, if it has any.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.rules: list[str] = []
        self.blocked = False
        self.refusal: str | None = None

    async def read(self, value: Any) -> Any:
        """The value with every text in it cleaned, keys too; ``None`` once one of them was blocked."""
        if isinstance(value, str):
            return await self._text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = await self._text(str(value))  # a card number may be written as a JSON number
            return value if text == str(value) else text
        if isinstance(value, list | tuple):
            return self._whole(type(value)([await self.read(item) for item in value]))
        if isinstance(value, BaseModel):
            read = await self.read(value.model_dump())
            try:
                return None if read is None else type(value).model_validate(read)
            except ValueError:  # what a rule masked was a name that must not change
                self.blocked = True
                return None
        if isinstance(value, dict):
            return self._whole({await self._key(k): await self._item(k, v) for k, v in value.items()})
        return value

    async def _key(self, key: Any) -> Any:
        return key if _STRUCTURE.fullmatch(str(key)) else await self.read(key)

    async def _item(self, key: Any, item: Any) -> Any:
        formal = key in _FORM_KEYS and isinstance(item, str) and _STRUCTURE.fullmatch(item)
        return item if formal else await self.read(item)

    def _whole(self, value: Any) -> Any:
        return None if self.blocked else value

    async def _text(self, text: str) -> str | None:
        if not text or _DATA_URL.fullmatch(text):
            return text
        try:
            verdict = await self._guard.input(text)
        except Exception:  # noqa: BLE001 - whatever a rule does: what can't be checked is not kept
            self.blocked = True
            return None
        self.rules += [r for r in verdict.rules if r not in self.rules]
        if verdict.action == "blocked":
            self.blocked, self.refusal = True, self.refusal or verdict.refusal
            return None
        return verdict.value if verdict.action == "masked" else text


async def publishable(value: Any, agents: Iterable[str], guard_of: GuardOf) -> Any:
    """A value as the run's own face (first event, lists, search) may show it: the rules of all its agents
    hold there. `BLOCKED` in its place if one of them blocks."""
    for agent in dict.fromkeys(agents) if value is not None else ():
        try:
            reader = Reader(guard_of(agent, ""))
        except MuxError:  # rules that can't be used fail closed; the channel says why
            return BLOCKED
        value = await reader.read(value)
        if reader.blocked:
            return BLOCKED
    return value


async def check_id(what: str, name: str, agents: Iterable[str], guard_of: GuardOf) -> None:
    """Refuse an id of the caller's choice that a rule stops or would change: others refer to it, so it can't
    be masked.

    Raises:
        BadRequest: ``id_blocked``.
    """
    for agent in agents:
        try:
            reader = Reader(guard_of(agent, ""))
        except MuxError:  # rules that can't be used: the channel never runs, and says why
            continue
        if await reader.read(name) != name:
            raise BadRequest(
                "id_blocked", f"A guardrail of this server stopped the {what}: choose another one."
            )


def _chosen(channel: PlannedChannel) -> bool:
    """Whether the channel's id is the caller's and not made of its agent's name."""
    return channel.id.partition("~")[0].partition(".")[0] != free_id(channel.agent, ()).partition(".")[0]


async def read_metadata(
    metadata: Mapping[str, Any], agents: Iterable[str], guard_of: GuardOf
) -> dict[str, Any]:
    """Metadata as it may be kept: an entry that is blocked loses its value."""
    agents = list(agents)
    return {
        await publishable(k, agents, guard_of): await publishable(v, agents, guard_of)
        for k, v in metadata.items()
    }


async def read_plan(plan: Plan, guard_of: GuardOf) -> Plan:
    """The plan as it may be kept: each channel with what its own rules let pass of its task.

    Raises:
        BadRequest: ``id_blocked``.
    """
    for channel in plan.channels:
        if _chosen(channel):
            await check_id("id of a channel", channel.id, (channel.agent,), guard_of)
    shared = _task(plan.messages) if plan.messages else plan.message
    read = await asyncio.gather(*(_read(c, shared, guard_of) for c in plan.channels))
    tasks = [
        task for c, (_, task) in zip(plan.channels, read, strict=True) if task is not None and not _own(c)
    ]
    if any(c.asked is not None and c.asked.blocked for c, _ in read):
        face: Any = BLOCKED
    elif all(task == tasks[0] for task in tasks):
        face = tasks[0] if tasks else shared
    else:
        face = await publishable(shared, [c.agent for c, _ in read], guard_of)
    blocked = face == BLOCKED
    changes: dict[str, Any] = {"channels": tuple(_with_task(c, task, face) for c, task in read)}
    if plan.messages:
        changes["messages"] = (ChatMessage(role="user", content=BLOCKED),) if blocked else _messages(face)
    elif plan.message is not None:
        changes["message"] = face
    return plan.model_copy(update={**changes, "blocked": plan.blocked or blocked})


async def read_channel(channel: PlannedChannel, plan: Plan, guard_of: GuardOf) -> PlannedChannel:
    """A channel that joins a running run, as it may be kept. Raises BadRequest ``id_blocked``."""
    if _chosen(channel):
        await check_id("id of a channel", channel.id, (channel.agent,), guard_of)
    face = _task(plan.messages) if plan.messages else plan.message
    read, task = await _read(channel, face, guard_of)
    return _with_task(read, task, face)


async def _read(channel: PlannedChannel, shared: Any, guard_of: GuardOf) -> tuple[PlannedChannel, Any]:
    """The channel with its own fields as they may be kept, and its reading of the run's task if it has that
    one (``None``: it has its own, or none is left)."""
    known = channel.asked or Asked()  # a retry's: what was stopped once is gone
    try:
        reader = Reader(guard_of(channel.agent, channel.id))
    except MuxError:  # it never runs: its source raises the same
        gone = Asked(blocked=True)
        return channel.model_copy(update=dict.fromkeys((*_FIELDS, "title")) | {"asked": gone}), None
    blocked, changes = known.blocked, {}
    for name in _FIELDS:
        changes[name] = await reader.read(getattr(channel, name))
        blocked, reader.blocked = blocked or reader.blocked, False
    title = await reader.read(channel.title)
    changes["title"], reader.blocked = BLOCKED if reader.blocked else title, False
    task: Any = None
    if channel.message is None and not known.blocked:
        task = await reader.read(_own(channel) or shared)
        blocked = blocked or reader.blocked
    asked = Asked(
        rules=tuple(dict.fromkeys((*known.rules, *reader.rules))),
        blocked=blocked,
        refusal=reader.refusal or known.refusal,
    )
    changes["asked"] = asked if asked != Asked() else None
    return channel.model_copy(update=changes), None if blocked else task


def _own(channel: PlannedChannel) -> list[dict[str, Any]] | None:
    """A retried channel's reading of the task, where its run kept another."""
    return _task(channel.asked.messages) if channel.asked and channel.asked.messages else None


def _with_task(channel: PlannedChannel, task: Any, face: Any) -> PlannedChannel:
    """The channel with a task of its own where the plan keeps another (agents' rules differ)."""
    if task is None or task == face:
        return channel
    if isinstance(
        task, str
    ):  # not as its `message`: that one is announced, and other agents' rules hold there
        task = [{"role": "user", "content": task}]
    asked = (channel.asked or Asked()).model_copy(update={"messages": _messages(task)})
    return channel.model_copy(update={"asked": asked})


def _task(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    return [m.model_dump(exclude_unset=True) for m in messages]


def _messages(task: list[dict[str, Any]]) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage.model_validate(m) for m in task)


def message_of(plan: Plan) -> str | None:
    """What lists and search know of what was asked."""
    if plan.message is not None:
        return plan.message
    if plan.messages:
        content = plan.messages[-1].content
        if isinstance(content, str):
            return content
        return "".join(str(p.get("text", "")) for p in content or () if p.get("type") == "text")
    said = [BLOCKED if c.asked is not None and c.asked.blocked else c.message for c in plan.channels]
    return "\n\n".join(text for text in said if text) or None

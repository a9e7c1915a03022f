"""A channel's conversation as values: provider-neutral, storable, and enough to go on after a crash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mux.events import Usage

__all__ = ["Budget", "ClientTool", "Message", "MessageCall", "PendingCall", "Resume", "Value"]


class Value(BaseModel):
    """Frozen, valid once constructed; unknown members of later versions are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class MessageCall(Value):
    """One tool call inside an assistant message. ``call_id`` is ours; providers get ids made by ``llm/``."""

    call_id: str
    tool: str
    arguments: str  # JSON text, as the model wrote it


class Message(Value):
    """One message of a channel's conversation, provider-neutral and storable.

    Attributes:
        role: who speaks. ``tool`` carries the result of ``call_id``.
        content: text, or chat-format content parts (``{"type": "text", …}``, ``{"type": "image_url", …}``).
        reasoning: what the model thought, where the provider wants it back.
        calls: tool calls of an assistant message.
        call_id: the call that a ``tool`` message answers.
        is_error: whether that answer is an error.
        provider_items: opaque items that must go back to the same provider (signatures, reasoning items).
        provider: which provider those items belong to.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] = ""
    reasoning: str | None = None
    calls: tuple[MessageCall, ...] = ()
    call_id: str | None = None
    is_error: bool = False
    provider_items: list[Any] | None = None
    provider: str | None = None

    @property
    def text(self) -> str:
        """The text parts joined; content parts of other kinds are left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(p.get("text", "")) for p in self.content if p.get("type") == "text")


class Budget(Value):
    """Limits of a run or channel; ``None`` = none. The step that reaches one still ends cleanly.

    Written by people: an unknown or impossible limit is refused, for it would be no limit at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    cost: float | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    tool_calls: int | None = Field(default=None, ge=1)


class ClientTool(Value):
    """A tool that comes with a request: the model may call it, and whoever sent the request runs the call.

    Attributes:
        name: as the model calls it, ``[A-Za-z0-9_.-]{1,64}``; none of the agent's own tools has it.
        description: what it does, for the model.
        parameters: a JSON Schema of type object.
        strict: whether the endpoint shall hold the model to the schema, where it can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str = Field(default="", max_length=100_000)
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call of the last completed step that has no result yet, after a crash.

    Attributes:
        started: it had its ``tool_start``: run it again only if its tool is idempotent (without a second
            ``tool_start``), otherwise its result is ``interrupted``.
    """

    call_id: str
    tool: str
    arguments: str
    started: bool


@dataclass(frozen=True, slots=True)
class Resume:
    """Where an agent that was cut off goes on: after its last completed model turn.

    Attributes:
        step: the number of that turn (the next model call is ``step + 1``); 0 = none was completed.
        messages: what the channel said since the task, ready to append to ``ctx.messages``.
        pending: calls of that turn that have no result in ``messages`` yet, in order.
        usage: totals so far.
        approved: tools of which a person has approved a call on this channel.
    """

    step: int
    messages: tuple[Message, ...] = ()
    pending: tuple[PendingCall, ...] = ()
    usage: Usage | None = None
    approved: frozenset[str] = frozenset()

"""What callers may ask of the engine: the bodies of the HTTP API, as frozen models.

Unknown fields are refused, so that a misspelt option is an error and not a silent default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mux.agent import Budget, ClientTool
from mux.events import SteerMode

__all__ = [
    "AddChannel",
    "ApprovalAnswer",
    "CancelMode",
    "CancelRequest",
    "ChannelSpec",
    "ChatMessage",
    "ClientTool",
    "Grace",
    "KeyLimits",
    "PatchRun",
    "RetryRequest",
    "StartRequest",
    "SteerRequest",
]

MAX_LIST = 256  # entries of a list: each wrong one would be an error of its own
ChannelId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~-]{1,64}$")]
CancelMode: TypeAlias = Literal["graceful", "now"]


def _empty() -> PydanticCustomError:
    return PydanticCustomError("message_empty", "The message is empty: say what the agents should do.")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise _empty()
    return text


Text: TypeAlias = Annotated[
    str,
    StringConstraints(max_length=4_000_000),
    AfterValidator(_not_blank),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 4_000_000, "pattern": r"\S"}),
]


def _typed(part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("type"), str):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueError as what it is: bad input
            'a content part needs its type: {"type": "text", "text": "…"}'
        )
    return part


ContentPart: TypeAlias = Annotated[dict[str, Any], AfterValidator(_typed)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ChatMessage(_Request):
    """One message of the chat format; content parts included."""

    model_config = ConfigDict(frozen=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None

    @property
    def says_something(self) -> bool:
        """Whether there is more in it than white space; what a tool gave may be nothing."""
        if self.role == "tool":
            return True
        if isinstance(self.content, str):
            return bool(self.content.strip())
        return any(p["type"] != "text" or str(p.get("text") or "").strip() for p in self.content or ())


class Grace(_Request):
    """Cancel when the last viewer has been gone for this long."""

    grace_s: float = Field(ge=0, le=86_400)


class ChannelSpec(_Request):
    """One channel of a run.

    Attributes:
        tools: those of the agent's tools that it may use here; none given = all.
        client_tools: tools that the caller runs: a call of one ends the channel with ``finish_reason``
            ``tool_calls``, and the caller comes back with its output in ``messages``.
    """

    id: ChannelId | None = None
    agent: str
    message: Text | None = None
    model: str | None = None
    instructions: str | None = None
    params: dict[str, Any] | None = None
    tools: list[str] | None = Field(default=None, max_length=256)
    client_tools: list[ClientTool] | None = Field(default=None, max_length=128)
    depends_on: list[ChannelId] = Field(default=[], max_length=MAX_LIST)
    when: Literal["all", "any", "settled"] = "settled"
    inputs: list[str] = Field(default=[], max_length=MAX_LIST)
    budget: Budget | None = None
    title: str | None = None


class StartRequest(_Request):
    """``POST /api/runs``."""

    message: Text | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=10_000)
    agents: list[str] | None = Field(default=None, min_length=1, max_length=MAX_LIST)
    channels: list[ChannelSpec] | None = Field(default=None, min_length=1, max_length=MAX_LIST)
    max_parallel: int | None = Field(default=None, ge=1)
    thread: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    title: str | None = Field(default=None, max_length=500)
    metadata: dict[str, Any] = {}
    on_disconnect: Literal["continue", "cancel"] | Grace | None = None
    timeout_s: float | None = Field(default=None, gt=0)
    budget: Budget | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> StartRequest:
        if self.message is not None and self.messages is not None:
            raise ValueError("give either message or messages, not both")
        if self.agents is not None and self.channels is not None:
            raise ValueError("give either agents or channels, not both")
        if self.messages and not self.messages[-1].says_something:
            raise _empty()
        has_own = bool(self.channels) and all(c.message for c in self.channels or [])
        if self.message is None and self.messages is None and not has_own:
            raise ValueError("message is missing: say what the agents should do")
        return self


class AddChannel(ChannelSpec):
    """``POST …/channels``: add a channel to a running run."""


class CancelRequest(_Request):
    """``POST …/cancel``."""

    mode: CancelMode = "now"


class RetryRequest(_Request):
    """``POST …/channels/{ch}/retry``."""

    model: str | None = None


class SteerRequest(_Request):
    """``POST …/channels/{ch}/messages``."""

    content: Text
    mode: SteerMode = "steer"


class ApprovalAnswer(_Request):
    """``POST …/approvals/{call_id}``."""

    decision: Literal["approve", "deny", "edit"]
    arguments: dict[str, Any] | None = None
    reason: str | None = Field(default=None, max_length=2000)


class PatchRun(_Request):
    """``PATCH /api/runs/{run}``: only what is given changes; metadata keys set to null are removed."""

    title: str | None = Field(default=None, max_length=500)
    starred: bool | None = None
    metadata: dict[str, Any] | None = None


class KeyLimits(_Request):
    """What a key's owner may have; left out = no bound but the server's own (``[limits]``).

    Attributes:
        runs: that are not over, at once.
        channels: of one run.
        viewers: open streams, at once, on each server.
        tokens_a_day, cost_a_day: used by its runs of the day (UTC).
        stored_mb: of all its runs' events, in MiB.
    """

    runs: int | None = Field(default=None, ge=0)
    channels: int | None = Field(default=None, ge=1)
    viewers: int | None = Field(default=None, ge=0)
    tokens_a_day: int | None = Field(default=None, ge=0)
    cost_a_day: float | None = Field(default=None, ge=0)
    stored_mb: float | None = Field(default=None, ge=0)

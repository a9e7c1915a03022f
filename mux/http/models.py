"""What the API answers, as models: the source of the OpenAPI document's schemas."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mux.errors import Fault
from mux.events import Usage

__all__ = [
    "Accepted",
    "AgentList",
    "ApprovalState",
    "ChannelMade",
    "Health",
    "MessageAccepted",
    "ModelList",
    "Problem",
    "Readiness",
    "Run",
    "RunList",
    "ViewerList",
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class ToolView(_Answer):
    """A tool call in a snapshot."""

    call_id: str
    tool: str
    arguments: Any = None
    status: str
    output: str | None = None
    is_error: bool | None = None
    elapsed_ms: int | None = None


class ChannelView(_Answer):
    """A channel in a snapshot."""

    id: str
    agent: str
    model: str | None = None
    status: Literal[
        "queued", "pending", "running", "waiting",
        "completed", "refused", "failed", "cancelled", "timed_out", "budget_exceeded",
    ]  # fmt: skip
    phase: str | None = None
    queue_position: int | None = None
    attempt: int | None = None
    text: str = ""
    reasoning: str = ""
    tools: list[ToolView] = []
    usage: Usage | None = None
    ttft_ms: int | None = None
    tokens_per_s: float | None = None
    error: Any = None
    finish_reason: str | None = Field(
        default=None, description="What cut the answer, where that was not its own end: `length`, …"
    )
    plan: dict[str, Any] | None = Field(
        default=None,
        description="What was asked of it, as a member of `channels` in `POST /api/runs` takes it again with"
        " `id` and `agent`. `message` is there only where the channel has one of its own.",
    )


class Run(_Answer):
    """A run as it stands, and the cursor to continue from."""

    run: str
    thread: str
    status: Literal["queued", "running", "waiting", "completed", "partial", "failed", "cancelled"]
    title: str | None = None
    starred: bool = False
    metadata: dict[str, Any] = {}
    created: int = Field(description="ms since the epoch")
    cursor: str | None = Field(default=None, description="continue from here: ?after= or Last-Event-ID")
    message: str | None = None
    usage: Usage | None = None
    channels: list[ChannelView] = []


class ChannelItem(_Answer):
    """A channel of a run in a list."""

    id: str
    agent: str
    model: str | None = None
    status: str


class RunItem(_Answer):
    """A run in a list: without texts and calls."""

    run: str
    thread: str
    status: str
    cursor: str | None = Field(default=None, description="where its log stands")
    channels: list[ChannelItem] = []
    usage: Usage | None = None
    duration_ms: int | None = None
    title: str | None = None
    starred: bool = False
    metadata: dict[str, Any] = {}
    created: int
    updated: int
    finished: int | None = None
    message: str | None = None
    agents: list[str] = []
    damaged: list[str] | None = Field(
        default=None, description="members that the store holds and that can't be read any more"
    )
    hits: dict[str, str] | None = Field(
        default=None, description="where a search found it: channel → excerpt"
    )


class RunList(_Answer):
    """A page of runs, newest first; ``next`` is the ``after`` of the following page."""

    runs: list[RunItem]
    next: str | None = None


class Accepted(_Answer):
    """A command was accepted; its effect is in the stream."""

    run: str
    status: str | None = None


class ChannelMade(_Answer):
    """A channel was opened (on a new run, when the old one was finished)."""

    run: str
    channel: str


class MessageAccepted(_Answer):
    """A message for a running channel was accepted."""

    message_id: str


class ApprovalState(_Answer):
    """How an approval was decided: the first answer wins."""

    call_id: str | None = None
    decision: str | None = None
    by: str | None = None


class AgentItem(_Answer):
    """An agent of the roster."""

    name: str
    title: str | None = Field(default=None, description="the name for people, where it is another one")
    description: str = ""
    model: str | None = None
    tools: list[str] = []
    source: str | None = None
    documents: list[str] | None = None


class AgentList(_Answer):
    """The roster, and the files that could not be loaded."""

    agents: list[AgentItem]
    problems: list[dict[str, str]] = []
    warnings: list[str] = []


class ModelItem(_Answer):
    """A model that a configured endpoint offers."""

    id: str
    provider: str | None = None
    name: str | None = None
    context: int | None = None
    price: dict[str, float | str] | None = Field(
        default=None, description="`input`, `output`, `cached` per million tokens; `currency`"
    )
    available: bool | None = None


class ModelList(_Answer):
    """Models of all configured endpoints."""

    models: list[ModelItem]


class ViewerItem(_Answer):
    """An open stream."""

    id: int
    run: str
    format: str
    filter: dict[str, Any] = {}
    age_s: float
    lag: int = Field(description="events that it is behind")
    live: bool
    observe: bool


class ViewerList(_Answer):
    """The open streams, their number and the limit."""

    viewers: list[ViewerItem]
    count: int
    limit: int


class Health(_Answer):
    """The process is alive."""

    status: Literal["ok"]
    version: str


class Readiness(_Answer):
    """Whether new runs are taken; if not, why."""

    status: Literal["ready", "unavailable"]
    checks: dict[str, str] = {}


class ProblemField(_Answer):
    """One field that is wrong."""

    field: str
    message: str
    did_you_mean: str | None = None


class Problem(_Answer):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what happened and what to do, for people")
    code: str = Field(description="stable, for programs")
    fault: Fault = Field(description="whose it was")
    retryable: bool
    errors: list[ProblemField] | None = None

"""What happened: one frozen model per type, without the envelope."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field

from mux.events.base import Body, Delta, Frozen, quote

PhaseName: TypeAlias = Literal["thinking", "tool_executing", "responding", "waiting"]
DoneStatus: TypeAlias = Literal["completed", "refused", "failed", "cancelled", "timed_out", "budget_exceeded"]
RunStatus: TypeAlias = Literal["completed", "partial", "failed", "cancelled"]
SteerMode: TypeAlias = Literal["steer", "queue", "interrupt"]
ToolErrorCode: TypeAlias = Literal[
    "invalid_arguments",
    "unknown_tool",
    "tool_failed",
    "timeout",
    "denied",
    "cancelled",
    "interrupted",
    "blocked",
]


class Usage(Frozen):
    """Tokens and money as the provider reported them; what it did not report is ``None``, never 0.

    ``estimated``: the endpoint reports no usage, so the tokens were counted here.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    cost: float | None = None
    currency: str | None = None
    estimated: bool | None = None

    def __add__(self, other: Usage) -> Usage:
        """Sum field by field; a field that neither side knows stays unknown."""

        def total(name: str) -> Any:
            a, b = getattr(self, name), getattr(other, name)
            return b if a is None else a if b is None else a + b

        return Usage(
            input_tokens=total("input_tokens"),
            output_tokens=total("output_tokens"),
            reasoning_tokens=total("reasoning_tokens"),
            cached_tokens=total("cached_tokens"),
            cost=total("cost"),
            currency=self.currency or other.currency,
            estimated=self.estimated or other.estimated,
        )


class ChannelInfo(Frozen):
    """One channel as announced, in ``run_started`` and ``channel_added``: what was asked of it.

    Its members are those of ``channels`` in ``POST /api/runs``, so that a lane can be started again as it
    was, whoever did. What was not asked for is left out; ``message`` is there only where the channel has one
    of its own. ``client_tools`` are not: only the caller who brought them can run them.
    """

    id: str
    agent: str
    title: str | None = None
    model: str | None = None
    message: str | None = None
    instructions: str | None = None
    params: dict[str, Any] | None = None
    tools: list[str] | None = None
    depends_on: list[str] | None = None
    when: Literal["all", "any"] | None = None
    inputs: list[str] | None = None
    budget: dict[str, Any] | None = None

    def plan(self) -> dict[str, Any]:
        """What was asked of it beyond its agent, as ``channels`` takes it again."""
        return self.model_dump(include=_PLAN, exclude_none=True)


_PLAN = set(ChannelInfo.model_fields) - {"id", "agent"}


# --- the run ---------------------------------------------------------------------------------------------


class RunStarted(Body):
    """Always seq 1."""

    type: Literal["run_started"] = "run_started"
    thread: str
    channels: list[ChannelInfo]
    message: str | None = None
    metadata: dict[str, Any] | None = None


class ChannelAdded(ChannelInfo, Body):
    """A channel joined a running run: added, retried, or opened by an agent (``parent``)."""

    type: Literal["channel_added"] = "channel_added"
    retry_of: str | None = None
    parent: str | None = None


class RunFinished(Body):
    """Exactly one per run, its last."""

    type: Literal["run_finished"] = "run_finished"
    status: RunStatus
    channels: dict[str, DoneStatus]
    usage: Usage | None = None
    duration_ms: int


# --- a channel and its steps -----------------------------------------------------------------------------


class ChannelStarted(Body):
    """First event of each attempt at a channel; with ``attempt`` > 1 everything before it is discarded.

    ``usage_estimated``: its endpoint is known to report no usage, so tokens are counted here.
    """

    type: Literal["channel_started"] = "channel_started"
    agent: str
    model: str | None = None
    attempt: int
    usage_estimated: Literal[True] | None = None


class StepStarted(Body):
    """The request of this step is being sent."""

    type: Literal["step_started"] = "step_started"
    step: int
    model: str | None = None


class StepFinished(Body):
    """The model's turn is over. Its tools run after this and belong to the step: the recovery point."""

    type: Literal["step_finished"] = "step_finished"
    step: int
    finish_reason: str
    usage: Usage | None = None
    provider_items: list[Any] | None = None


class StepReset(Body):
    """Discard this channel's events with ``from_cseq`` <= cseq < this one's: the step is done again."""

    type: Literal["step_reset"] = "step_reset"
    step: int
    from_cseq: int


class Retry(Body):
    """The step is tried again after ``delay_ms``; nothing of it had been shown."""

    type: Literal["retry"] = "retry"
    step: int
    attempt: int
    reason: str
    delay_ms: int


class Phase(Body):
    """What the channel is doing now, for progressive rendering."""

    type: Literal["phase"] = "phase"
    phase: PhaseName


class UsageReport(Body):
    """What one step used, as reported; ``estimated`` where it was counted here."""

    type: Literal["usage"] = "usage"
    step: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    cost: float | None = None
    currency: str | None = None
    estimated: bool | None = None

    def usage(self) -> Usage:
        """The same numbers without the step."""
        return Usage.model_validate(self.model_dump(exclude={"type", "step"}))


class Token(Delta):
    """A piece of the answer."""

    type: Literal["token"] = "token"


class Reasoning(Delta):
    """A piece of the model's reasoning."""

    type: Literal["reasoning"] = "reasoning"


class Refusal(Delta):
    """A piece of a refusal: the model's own, or the configured one after a guardrail's block."""

    type: Literal["refusal"] = "refusal"


# --- tools -----------------------------------------------------------------------------------------------


class ToolCall(Body):
    """The model began to write a call. ``call_id`` is ours, unique in the run.

    ``client``: a tool that came with the request: whoever sent it runs the call, not this server.
    """

    type: Literal["tool_call"] = "tool_call"
    call_id: str
    tool: str
    client: Literal[True] | None = None


class ToolArgs(Body):
    """A piece of a call's arguments, as the model wrote it."""

    type: Literal["tool_args"] = "tool_args"
    call_id: str
    content: str

    def fields_json(self) -> str:
        return f',"call_id":{quote(self.call_id)},"content":{quote(self.content)}}}'


class ToolStart(Body):
    """The call is complete and valid, and runs now."""

    type: Literal["tool_start"] = "tool_start"
    call_id: str
    tool: str
    arguments: dict[str, Any]


class ToolProgress(Body):
    """At least every 2 s while a tool runs, and whenever the tool reports."""

    type: Literal["tool_progress"] = "tool_progress"
    call_id: str
    elapsed_ms: int
    message: str | None = None
    fraction: float | None = None
    content: str | None = None


class ToolResult(Body):
    """Exactly one for every ``tool_call``. A call that might not run has no ``tool_start``.

    ``client``: the call was handed over to the client; its output comes with a later request, if at all.
    """

    type: Literal["tool_result"] = "tool_result"
    call_id: str
    tool: str
    output: str
    data: Any = None
    is_error: bool = False
    error: ToolErrorCode | None = None
    elapsed_ms: int = 0
    client: Literal[True] | None = None


class ApprovalRequested(Body):
    """A person decides about this call; ``expires_at`` is ms since the epoch."""

    type: Literal["approval_requested"] = "approval_requested"
    call_id: str
    tool: str
    arguments: dict[str, Any]
    expires_at: int


class ApprovalResolved(Body):
    """How it was decided, and by whom (an owner's name, or ``expiry``); ``arguments`` as they were edited."""

    type: Literal["approval_resolved"] = "approval_resolved"
    call_id: str
    decision: Literal["approve", "deny", "edit", "expired"]
    by: str
    arguments: dict[str, Any] | None = None
    reason: str | None = None


# --- guardrails, steering, the rest ----------------------------------------------------------------------


class GuardrailHit(Body):
    """A rule fired. Never carries the blocked text."""

    type: Literal["guardrail"] = "guardrail"
    rule: str
    stage: Literal["input", "output", "tool_input", "tool_output"]
    action: Literal["blocked", "masked"]


class _Steering(Body):
    message_id: str
    content: str | None = None
    mode: SteerMode


class MessageReceived(_Steering):
    """A message for a running channel was accepted."""

    type: Literal["message_received"] = "message_received"


class MessageApplied(_Steering):
    """The message is part of the conversation from here on."""

    type: Literal["message_applied"] = "message_applied"


class MessageReturned(_Steering):
    """The channel ended before the message could be applied."""

    type: Literal["message_returned"] = "message_returned"


class Custom(Body):
    """Agent-defined."""

    type: Literal["custom"] = "custom"
    name: str
    value: Any = None


class Error(Body):
    """Why a channel failed; safe to show. Comes before ``done`` only for ``failed`` and ``timed_out``.

    ``status`` is the HTTP status that a model endpoint answered with (or what a request of the client's own
    fault deserves), ``retry_after_s`` how long the endpoint asks to wait, in seconds.
    """

    type: Literal["error"] = "error"
    code: str
    message: str
    retryable: bool = False
    status: int | None = None
    retry_after_s: float | None = None


class Done(Body):
    """Exactly one per channel, its last.

    ``finish_reason`` says what ended the last model turn, where that was not its own end: ``length``,
    ``content_filter``, ``tool_calls`` (calls that the client runs), or an endpoint's own word.
    """

    type: Literal["done"] = "done"
    status: DoneStatus
    output: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    ttft_ms: int | None = None
    tokens_per_s: float | None = None
    duration_ms: int
    attempt: int


class Unknown(Body):
    """A type that this version does not know; kept so that a reader can pass it on or ignore it."""

    model_config = ConfigDict(extra="allow")

    def fields_json(self) -> str:
        extra = json.dumps(self.model_extra or {}, ensure_ascii=False, separators=(",", ":"))
        return "," + extra[1:] if self.model_extra else "}"


BODIES: tuple[type[Body], ...] = (
    RunStarted, ChannelAdded, ChannelStarted, StepStarted, StepFinished, Phase, Reasoning, Token, Refusal,
    ToolCall, ToolArgs, ToolStart, ToolProgress, ToolResult, ApprovalRequested, ApprovalResolved,
    GuardrailHit, MessageReceived, MessageApplied, MessageReturned, Retry, StepReset, UsageReport, Custom,
    Error, Done, RunFinished,
)  # fmt: skip
BY_TYPE: Mapping[str, type[Body]] = {str(b.model_fields["type"].default): b for b in BODIES}

AnyBody: TypeAlias = Annotated[
    RunStarted | ChannelAdded | ChannelStarted | StepStarted | StepFinished | Phase | Reasoning | Token
    | Refusal | ToolCall | ToolArgs | ToolStart | ToolProgress | ToolResult | ApprovalRequested
    | ApprovalResolved | GuardrailHit | MessageReceived | MessageApplied | MessageReturned | Retry
    | StepReset | UsageReport | Custom | Error | Done | RunFinished,
    Field(discriminator="type"),
]  # fmt: skip

"""What ends a channel: pure functions from how it stands to the events that close it.

Whatever the reason, the order is the same: open approvals and calls are closed, waiting messages are
returned, then ``error`` (only for failed and timed_out), ``done``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from mux.agent import Nested, Outcome
from mux.errors import MuxError, UpstreamError
from mux.events import (
    ApprovalResolved,
    Body,
    ChannelStarted,
    Done,
    DoneStatus,
    Error,
    MessageReturned,
    StepReset,
    ToolErrorCode,
    ToolResult,
)
from mux.run import ChannelState

__all__ = ["closed_calls", "closing", "error_event", "undo_turn"]

_CALL_ERRORS: Final[dict[DoneStatus, tuple[ToolErrorCode, str]]] = {
    "cancelled": ("cancelled", "The call was stopped: the channel was cancelled."),
    "timed_out": ("timeout", "The call was stopped: the channel ran out of time."),
    "refused": ("blocked", "The call was stopped by a guardrail."),
    "failed": ("interrupted", "The call was cut off: its channel failed."),
    "budget_exceeded": ("cancelled", "The call was stopped: the channel's budget is used up."),
    "completed": ("interrupted", "The agent ended before the call had a result."),
}


def closing(
    state: ChannelState,
    status: DoneStatus,
    error: MuxError | None,
    *,
    now: int,
    outcome: Outcome | None = None,
    ttft_ms: int | None = None,
) -> Iterator[Body | Nested]:
    """What ends a channel.

    Args:
        error: for failed and timed_out; ``None`` if it is in the log already.
        now: ms since the epoch.
        outcome: what its agent said of its end.
        ttft_ms: as measured by the engine, where the agent did not say.
    """
    if state.at == "announced":
        yield ChannelStarted(agent=state.agent, model=state.model, attempt=1)
    yield from closed_calls(state, *_CALL_ERRORS[status], now=now)
    if state.at != "failing":
        for message in state.pending_messages():
            yield MessageReturned(message_id=message.message_id, content=message.content, mode=message.mode)
    if error is not None and state.at != "failing":
        yield error_event(error)
    output = outcome.output if outcome is not None and outcome.output is not None else state.output()
    yield Done(
        status=status,
        output=output or None,
        finish_reason=outcome.finish_reason if outcome else None,
        usage=(outcome.usage if outcome else None) or state.usage,
        ttft_ms=outcome.ttft_ms if outcome and outcome.ttft_ms is not None else ttft_ms,
        tokens_per_s=outcome.tokens_per_s if outcome else None,
        duration_ms=max(0, now - (state.started_ts or now)),
        attempt=state.attempt or 1,
    )


def error_event(error: MuxError) -> Error:
    """The event for what ended a channel; a model endpoint's own status and wait go with it."""
    status = error.status if error.fault == "client" else error.extra.get("upstream_status")
    return Error(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        status=status,
        retry_after_s=error.retry_after if isinstance(error, UpstreamError) else None,
    )


def closed_calls(
    state: ChannelState, error: ToolErrorCode, why: str, *, now: int, keep: Collection[str] = ()
) -> Iterator[Body | Nested]:
    """A result for every open call (but those to ``keep``), its open approval closed before."""
    for call in list(state.open_tools()):
        if call.call_id in keep:
            continue
        bodies: list[Body] = []
        if call.waiting is not None:
            bodies.append(ApprovalResolved(call_id=call.call_id, decision="expired", by="engine"))
        bodies.append(
            ToolResult(
                call_id=call.call_id,
                tool=call.tool,
                output=why,
                is_error=True,
                error=error,
                elapsed_ms=0 if call.started_ts is None else max(0, now - call.started_ts),
            )
        )
        for body in bodies:
            yield Nested(call.path, body) if call.path else body


def undo_turn(state: ChannelState, why: str, *, now: int) -> Iterator[Body | Nested]:
    """Close what a cut-off turn (and sub-agents) had open, then take the turn back."""
    turn = state.turn
    keep = {
        c.call_id
        for c in state.open_tools()
        if not c.path and state.steps and (turn is None or c.cseq < turn.cseq)
    }
    yield from closed_calls(state, "interrupted", why, now=now, keep=keep)
    if turn is not None:
        yield StepReset(step=turn.step, from_cseq=turn.cseq)

"""Plays an agent's drafts into the run's transition table: whatever it yields must be allowed there."""

from __future__ import annotations

from collections.abc import Sequence

from mux.agent import Draft, Nested, Outcome
from mux.events import (
    Body,
    ChannelInfo,
    ChannelStarted,
    Done,
    DoneStatus,
    Error,
    Event,
    RunStarted,
    StepReset,
    StepStarted,
    Token,
)
from mux.run.state import RunState

__all__ = ["play"]


def play(drafts: Sequence[Draft], *, failed: bool = False) -> RunState:
    """Fold the drafts of one channel as the engine would log them.

    Args:
        drafts: what the agent yielded.
        failed: it raised after that, so ``error`` and ``done`` follow.

    Raises:
        IllegalEvent: the order rules don't allow it.
    """
    state = RunState("r")
    seq = cseq = step_at = 0

    def log(body: Body, channel: str | None, path: tuple[str, ...] = ()) -> None:
        nonlocal seq, cseq, step_at
        seq += 1
        if channel is not None:
            cseq += 1
        if isinstance(body, StepStarted):
            step_at = cseq
        if isinstance(body, StepReset):
            body = body.model_copy(update={"from_cseq": step_at})
        state.apply(Event("r", seq, channel, cseq if channel else seq, seq, body, path))

    log(RunStarted(thread="t", channels=[ChannelInfo(id="c", agent="a")]), None)
    log(ChannelStarted(agent="a", attempt=1), "c")
    status: DoneStatus = "completed"
    for draft in drafts:
        if isinstance(draft, Outcome):
            status = draft.status
        elif isinstance(draft, Nested):
            log(draft.body, "c", draft.path)
        else:
            log(Token(content=draft) if isinstance(draft, str) else draft, "c")
    if failed:
        log(Error(code="x", message="x"), "c")
    log(Done(status="failed" if failed else status, duration_ms=0, attempt=1), "c")
    return state

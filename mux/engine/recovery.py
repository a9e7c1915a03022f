"""Going on with a run that somebody drove before: what is written on its channels before they start again.

DESIGN section 8. The recovery point is `step_finished`. A turn without it is undone (`step_reset`) after its
open calls got their ``interrupted`` result; a turn with it is never reset: its results stay, and the agent
gets the calls without one as ``ctx.resume.pending``. What an agent can't resume is begun again
(`channel_started` with the next attempt) or failed, as the agent declares (``resumable``).

Pure: what was found in the log goes in, what is to be written comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mux.agent import Nested
from mux.engine.closing import closed_calls, closing, undo_turn
from mux.engine.plan import RosterLike
from mux.engine.run import Run
from mux.errors import AgentError, NotFound
from mux.events import Body, ChannelStarted, DoneStatus
from mux.run import ChannelState, RunState

__all__ = ["count_tries", "recover"]

_LOST: Final = "The server stopped while this call was open; it was not finished."
_WORKED_MS: Final = 60_000  # an agent that worked for so long first is not what brought the server down


def recover(run: Run, roster: RosterLike, *, tries: int, most: int, now: int) -> list[str]:
    """Write what must be written before the run goes on.

    Args:
        tries: how many times in a row it was taken over without getting on; above ``most`` it is given up.
            An agent that brings the server down each time must not do so for ever. Many, because who keeps
            killing a server is seldom one of its agents.
        now: ms since the epoch.

    Returns:
        The channels whose agents go on.
    """
    state = run.state
    for channel in run.channels:
        if channel not in state.channels:
            run.write(None, run.channel(channel).announcement())
    resuming = []
    for channel_state in list(state.channels.values()):
        if channel_state.done is None and channel_state.at != "announced":
            resumable = _resumable(roster, channel_state.agent)
            for body in _continued(channel_state, resumable, most if tries > most else None, now):
                run.write(channel_state.id, body)
            if channel_state.done is None:
                resuming.append(channel_state.id)
    return resuming


def count_tries(state: RunState, summary: Mapping[str, Any], now: int) -> dict[str, Any]:
    """How many times in a row a run was taken over without getting on: what its row keeps while it is open,
    under ``taken_over``."""
    got = sum(len(c.steps) + (c.done is not None) for c in state.channels.values())
    last = summary.get("taken_over") or {}
    stuck = last.get("got") == got and state.last_ts - last.get("at", 0) < _WORKED_MS
    return {"tries": last.get("tries", 0) + 1 if stuck else 1, "got": got, "at": now}


def _resumable(roster: RosterLike, agent: str) -> str:
    try:
        return str(getattr(roster.get(agent), "resumable", "fail"))
    except NotFound:
        return "fail"  # it was taken out of the roster


def _continued(
    state: ChannelState, resumable: str, given_up: int | None, now: int
) -> Iterator[Body | Nested]:
    """What is written on a channel that was cut off, before its agent is run again (or is not)."""
    if state.at == "failing" and state.error is not None:
        status: DoneStatus = "timed_out" if state.error.code == "timed_out" else "failed"
        yield from closing(state, status, None, now=now)  # only its `done` was missing
    elif given_up is not None and not state.waiting:  # one that waits for a person does nothing
        error = AgentError(
            "interrupted",
            f"The server stopped {given_up} times in a row while this agent ran, before it had completed a "
            "step. Look into the server's log, then retry the channel.",
            retryable=True,
        )
        yield from closing(state, "failed", error, now=now)
    elif resumable == "restart":
        yield from closed_calls(state, "interrupted", _LOST, now=now)
        yield ChannelStarted(agent=state.agent, model=state.model, attempt=state.attempt + 1)
    elif resumable == "resume":
        yield from undo_turn(state, _LOST, now=now)
    else:
        error = AgentError(
            "interrupted",
            "The server stopped while this agent ran, and it can't be resumed. Retry the channel.",
            retryable=True,
        )
        yield from closing(state, "failed", error, now=now)

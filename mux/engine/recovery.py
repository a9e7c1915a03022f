"""Taking a run over after a crash: fold its log, then go on from the last completed model turn.

DESIGN section 8. The recovery point is `step_finished`. A turn without it is undone (`step_reset`) after its
open calls got their ``interrupted`` result; a turn with it is never reset: its results stay, and the agent
gets the calls without one as ``ctx.resume.pending``. What an agent can't resume is begun again
(`channel_started` with the next attempt) or failed, as the agent declares (``resumable``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mux.agent import Nested, Steering
from mux.engine.channel import Channel
from mux.engine.driver import closed_calls, closing, run_started
from mux.engine.history import Folder
from mux.engine.journal import Item
from mux.engine.live import LiveRun
from mux.errors import AgentError, NotFound
from mux.events import Body, ChannelStarted, DoneStatus, StepReset

__all__ = ["restore"]

_LOST: Final = "The server stopped while this call was open; it was not finished."
# An agent that brings the server down each time must not do so for ever: after so many take-overs without a
# completed step between them it fails. Many, because who keeps killing a server is seldom one of its agents;
# and one that worked for a while first is not what brought the server down.
_MAX_TRIES: Final = 50
_WORKED_MS: Final = 60_000


async def restore(live: LiveRun, folder: Folder) -> None:
    """Claim the run, fold its log, and write what must be written before it goes on.

    Raises:
        StoreError: the log can't be read or written.
        IllegalEvent, ValueError: the log is not one of ours.
    """
    await live.journal.open(live.services.owner)
    async for record, _ in folder.records(live.run):
        live.state.apply(record.event())
    if live.state.finished is not None:
        return
    if live.state.started is None:
        await live.journal.write([(None, run_started(live))])
    tries = await _count(live)
    missing = [c for c in live.plan.channels if c.id not in live.state.channels]
    await live.journal.write([(None, c.announcement()) for c in missing])
    for channel in live.channels.values():
        if channel.done:
            channel.ended.set()
        elif channel.state.at != "announced":
            items: list[Item] = [(channel.id, body) for body in _continued(channel, tries)]
            await live.journal.write(items)
            channel.resuming = not channel.done
        channel.meter.restore(channel.state)
        for message in channel.state.pending_messages():
            channel.host.receive(
                Steering(message_id=message.message_id, content=message.content or "", mode=message.mode)
            )


async def _count(live: LiveRun) -> int:
    """How many times in a row the run was taken over without getting on; kept in its row while it is open."""
    state, now = live.state, live.services.clock()
    got = sum(len(c.steps) + (c.done is not None) for c in state.channels.values())
    last = live.row.summary.get("taken_over") or {}
    stuck = last.get("got") == got and state.last_ts - last.get("at", 0) < _WORKED_MS
    tries = last.get("tries", 0) + 1 if stuck else 1
    kept = {**live.row.summary, "taken_over": {"tries": tries, "got": got, "at": now}}
    live.row = await live.services.store.update(live.run, summary=kept)
    return tries


def _continued(channel: Channel, tries: int) -> Iterator[Body | Nested]:
    """What is written on a channel that was cut off, before its agent is run again (or is not)."""
    state = channel.state
    if state.at == "failing" and state.error is not None:
        status: DoneStatus = "timed_out" if state.error.code == "timed_out" else "failed"
        yield from closing(channel, status, None)  # only its `done` was missing
        return
    mode = _mode(channel)
    if tries > _MAX_TRIES and not state.waiting:  # one that waits for a person does nothing
        channel.log.error("channel is given up: the server stopped each time it ran", tries=tries - 1)
        error = AgentError(
            "interrupted",
            f"The server stopped {_MAX_TRIES} times in a row while this agent ran, before it had completed a "
            "step. Look into the server's log, then retry the channel.",
            retryable=True,
        )
        yield from closing(channel, "failed", error)
    elif mode == "restart":
        yield from closed_calls(channel, "interrupted", _LOST)
        yield ChannelStarted(agent=state.agent, model=state.model, attempt=state.attempt + 1)
    elif mode == "resume":
        yield from _undo_turn(channel)
    else:
        channel.log.warning("channel can't be resumed after a crash", resumable=mode)
        error = AgentError(
            "interrupted",
            "The server stopped while this agent ran, and it can't be resumed. Retry the channel.",
            retryable=True,
        )
        yield from closing(channel, "failed", error)


def _mode(channel: Channel) -> str:
    try:
        agent = channel.live.services.roster.get(channel.plan.agent)
    except NotFound:
        return "fail"  # it was taken out of the roster
    return str(getattr(agent, "resumable", "fail"))


def _undo_turn(channel: Channel) -> Iterator[Body | Nested]:
    """Close what the cut-off turn (and sub-agents) had open, then take the turn back."""
    state = channel.state
    turn = state.turn
    keep = {
        c.call_id
        for c in state.open_tools()
        if not c.path and state.steps and (turn is None or c.cseq < turn.cseq)
    }
    yield from closed_calls(channel, "interrupted", _LOST, keep=keep)
    if turn is not None:
        yield StepReset(step=turn.step, from_cseq=turn.cseq)

"""The state of one run: applies events in order, refuses illegal ones, and folds them into a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mux.events import (
    ChannelAdded,
    DoneStatus,
    Event,
    RunFinished,
    RunStarted,
    RunStatus,
    Token,
    ToolCall,
    Unknown,
    Usage,
)
from mux.run.channel import ChannelState
from mux.run.table import SUCCESS, TERMINAL, IllegalEvent

__all__ = ["RunState", "run_status"]


def run_status(channels: Iterable[str]) -> RunStatus:
    """The final status of a run from those of its channels (DESIGN section 5).

    >>> run_status(["completed", "refused"]), run_status(["completed", "failed"]), run_status(["cancelled"])
    ('completed', 'partial', 'cancelled')
    """
    statuses = list(channels)
    good = sum(s in SUCCESS for s in statuses)
    if good == len(statuses):
        return "completed"
    if good:
        return "partial"
    return "cancelled" if all(s == "cancelled" for s in statuses) else "failed"


class RunState:
    """What the events of one run add up to.

    Args:
        run: the run's id; events of another run are refused.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.seq = 0
        self.cseq = 0  # of run events
        self.first_ts = 0
        self.last_ts = 0
        self.started: RunStarted | None = None
        self.finished: RunFinished | None = None
        self.channels: dict[str, ChannelState] = {}
        self._call_ids: set[str] = set()  # of the whole run, over resets and attempts: never reused

    # --- applying -----------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Take one event in.

        Raises:
            IllegalEvent: the order rules don't allow it here; nothing was changed.
        """
        if event.seq != self.seq + 1:
            raise IllegalEvent(f"seq {event.seq} after {self.seq}.")
        if event.channel is None:
            self._apply_run_event(event)
        else:
            channel = self.channels.get(event.channel)
            if channel is None:
                raise IllegalEvent(f"There is no channel {event.channel!r} in run {self.run}.")
            if event.cseq != channel.cseq + 1:
                raise IllegalEvent(f"cseq {event.cseq} after {channel.cseq} on channel {channel.id!r}.")
            body = event.body
            if type(body) is not Token:
                self._check_channel_event(event)
            channel.apply(event)
            if type(body) is ToolCall:
                self._call_ids.add(body.call_id)
        self.seq = event.seq
        self.last_ts = event.ts

    def apply_tokens(self, channel: ChannelState, contents: Sequence[str], ts: int) -> None:
        """`apply` for tokens that were minted from this very state, while the channel ``takes_tokens``."""
        channel.add_tokens(contents)
        self.seq += len(contents)
        self.last_ts = ts

    def _check_channel_event(self, event: Event) -> None:
        if event.run != self.run:
            raise IllegalEvent(f"An event of run {event.run} in the log of run {self.run}.")
        if isinstance(event.body, ToolCall) and event.body.call_id in self._call_ids:
            raise IllegalEvent(f"call_id {event.body.call_id!r} was used before in run {self.run}.")

    def _apply_run_event(self, event: Event) -> None:
        body = event.body
        if event.run != self.run:
            raise IllegalEvent(f"An event of run {event.run} in the log of run {self.run}.")
        if event.cseq != self.cseq + 1:
            raise IllegalEvent(f"cseq {event.cseq} after {self.cseq} on the run itself.")
        if self.finished is not None:
            raise IllegalEvent(f"{body.type} after run_finished.")
        if (self.started is None) != isinstance(body, RunStarted):
            raise IllegalEvent(f"{body.type} as event {event.seq}: run_started is the first, and only that.")
        match body:
            case RunStarted():
                if len({c.id for c in body.channels}) != len(body.channels):
                    raise IllegalEvent("run_started announces a channel twice.")
                self.started = body
                self.channels = {c.id: ChannelState.of(c) for c in body.channels}
                self.first_ts = event.ts
            case ChannelAdded():
                if body.id in self.channels:
                    raise IllegalEvent(f"channel_added announces {body.id!r} again.")
                self.channels[body.id] = ChannelState.of(body)
            case RunFinished():
                self._check_finish(body)
                self.finished = body
            case Unknown():
                pass
            case _:
                raise IllegalEvent(f"{body.type} belongs to a channel, not to the run.")
        self.cseq = event.cseq

    def _check_finish(self, body: RunFinished) -> None:
        open_channels = [c.id for c in self.channels.values() if c.done is None]
        if open_channels:
            raise IllegalEvent(f"run_finished while channels are open: {', '.join(open_channels)}.")
        if dict(body.channels) != self.statuses() or body.status != run_status(self.statuses().values()):
            raise IllegalEvent("run_finished contradicts what the channels said.")

    # --- reading ------------------------------------------------------------------------------------------

    def statuses(self) -> dict[str, DoneStatus]:
        """Final statuses of the channels that are done."""
        return {c.id: c.done.status for c in self.channels.values() if c.done is not None}

    @property
    def all_done(self) -> bool:
        """Whether every announced channel is done."""
        return all(c.done is not None for c in self.channels.values())

    @property
    def status(self) -> str:
        """``queued``, ``running``, ``waiting`` or a final status."""
        if self.finished is not None:
            return self.finished.status
        begun = [c for c in self.channels.values() if c.at != "announced"]
        if not begun:
            return "queued"
        live = [c for c in begun if c.done is None]
        return "waiting" if live and all(c.waiting for c in live) else "running"

    def channel_status(self, channel: str) -> str:
        """As `ChannelState.status`, with ``pending`` while its dependencies are open."""
        state = self.channels[channel]
        if state.at == "announced" and any(not self._is_done(d) for d in state.depends_on):
            return "pending"
        return state.status

    def _is_done(self, channel: str) -> bool:
        return channel not in self.channels or self.channels[channel].done is not None

    @property
    def usage(self) -> Usage | None:
        """The sum over the channels; ``None`` if none reported any."""
        total: Usage | None = None
        for channel in self.channels.values():
            usage = channel.usage
            if usage is not None:
                total = usage if total is None else total + usage
        return total

    def snapshot(self, *, epoch: int = 1, row: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The run as DESIGN section 5 shows it.

        Args:
            epoch: of the log, for the cursor.
            row: members that the log does not know (title, starred, metadata, created, …); they win.
        """
        started, finished = self.started, self.finished
        usage = self.usage
        out: dict[str, Any] = {
            "run": self.run,
            "thread": started.thread if started else None,
            "status": self.status,
            "title": None,
            "starred": False,
            "metadata": (started.metadata if started else None) or {},
            "created": self.first_ts,
            "cursor": f"{self.run}.{epoch}.{self.seq}",
            "message": started.message if started else None,
            "usage": usage.model_dump(exclude_none=True) if usage else {},
            "channels": [self._channel(c) for c in self.channels.values()],
        }
        if finished is not None:
            out["finished"] = self.last_ts
            out["duration_ms"] = finished.duration_ms
        return out | dict(row or {})

    def _channel(self, channel: ChannelState) -> dict[str, Any]:
        done, error, usage = channel.done, channel.error, channel.usage
        ttft = done.ttft_ms if done else (channel.first_delta[1] if channel.first_delta else None)
        out: dict[str, Any] = {
            "id": channel.id,
            "agent": channel.agent,
            "model": channel.model,
            "status": self.channel_status(channel.id),
            "phase": channel.phase,
            "queue_position": None,
            "attempt": channel.attempt or 1,
            "cseq": channel.cseq,
            "text": str(channel.text),
            "reasoning": str(channel.reasoning),
            "tools": _tools(channel),
            "usage": usage.model_dump(exclude_none=True) if usage else {},
            "ttft_ms": ttft,
            "tokens_per_s": done.tokens_per_s if done else None,
            "error": error.model_dump(exclude={"type"}) if error else None,
        }
        if refusal := str(channel.refusal):
            out["refusal"] = refusal
        if channel.plan:
            out["plan"] = channel.plan
        if done is not None and done.finish_reason is not None:
            out["finish_reason"] = done.finish_reason
        if sources := _sources(channel):
            out["sources"] = sources
        if channel.messages:
            out["pending_messages"] = [
                {"message_id": m.message_id, "content": m.content, "mode": m.mode}
                for m in channel.pending_messages()
            ]
        if channel.at != "announced":
            out["started"] = channel.started_ts
        if done is not None:
            out["output"] = channel.output()
            out["duration_ms"] = done.duration_ms
        for name in ("title", "retry_of", "parent"):
            if (value := getattr(channel, name)) is not None:
                out[name] = value
        if channel.depends_on:
            out["depends_on"] = list(channel.depends_on)
        return out


def _tools(channel: ChannelState) -> list[dict[str, Any]]:
    """The calls with their place in the text: characters before each, counted once over all."""
    out, offset, counted = [], 0, 0
    for call in channel.tools.values():
        offset += sum(map(len, channel.text.parts[counted : call.after_parts]))
        counted = max(counted, call.after_parts)
        out.append(call.snapshot(offset))
    return out


def _sources(channel: ChannelState) -> list[Any]:
    """What tools named as sources in their ``data``, in order, each once."""
    found: list[Any] = []
    for call in channel.tools.values():
        data = call.result.data if call.result is not None else None
        sources = data.get("sources") if isinstance(data, dict) else None
        if isinstance(sources, list):
            found += [s for s in sources if s not in found]
    return found


assert frozenset(DoneStatus.__args__) == TERMINAL  # type: ignore[attr-defined]  # one list, written twice

"""From a channel's fold to what was said: its conversation, and the point to go on from after a crash.

The recovery point is `step_finished` (DESIGN section 8): everything up to the last completed model turn is
kept, with the results of its tools; a turn that was cut off is not part of what an agent resumes with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from mux.agent import Message, MessageCall, PendingCall, Resume
from mux.run.channel import ChannelState
from mux.run.parts import ToolState, Turn

__all__ = ["conversation", "dump_messages", "load_messages", "resume_point"]

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


def dump_messages(messages: Sequence[Message]) -> bytes:
    """A conversation as it is kept in the store."""
    return _MESSAGES.dump_json(list(messages), exclude_defaults=True)


def load_messages(data: bytes) -> list[Message]:
    """The inverse of :func:`dump_messages`."""
    return _MESSAGES.validate_json(data)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of a channel between two cuts: one model turn, or what came outside of any."""

    start: int  # cseq, inclusive
    end: int | None  # cseq, exclusive
    turn: Turn | None = None


def _arguments(call: ToolState) -> str:
    """The arguments as the model wrote them; agents that write none are quoted from `tool_start`, and so are
    those that were written oddly (twice, after a placeholder) and ran all the same."""
    raw = "".join(call.raw)
    return raw if raw and (call.arguments is None or _is_object(raw)) else _started(call)


def _started(call: ToolState) -> str:
    """The arguments that the call was started with: a person may have edited what the model wrote."""
    return json.dumps(call.arguments or {}, ensure_ascii=False)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _pending(call: ToolState) -> PendingCall:
    started = call.at == "running"
    return PendingCall(call.call_id, call.tool, _started(call) if started else _arguments(call), started)


def _segments(channel: ChannelState) -> Iterator[_Segment | Message]:
    """Turns and applied steering messages in order. A message also cuts what is said outside of turns."""
    turns = [*channel.steps, channel.turn] if channel.turn else channel.steps
    starts: dict[int, Turn | None] = {0: None} | {t.cseq: t for t in turns}
    applied = {
        at: m
        for m, at in channel.messages.values()
        if at is not None and m.message_id not in channel.returned
    }
    cuts = sorted(starts.keys() | applied.keys())
    for cut, following in zip(cuts, [*cuts[1:], None], strict=True):
        if cut in applied:
            yield Message(role="user", content=applied[cut].content or "")
        yield _Segment(cut, following, starts.get(cut))


def _assistant_messages(channel: ChannelState, segment: _Segment) -> list[Message]:
    """The assistant's message of one segment, then the results of its tools; nothing if it is empty."""
    text = channel.text.own_since(segment.start, segment.end)
    text += channel.refusal.since(segment.start, segment.end)
    reasoning = channel.reasoning.own_since(segment.start, segment.end)
    calls = _calls(channel, segment)
    finished = segment.turn.finished if segment.turn else None
    items = finished.provider_items if finished else None
    if not (text or reasoning or calls or items):
        return []
    model = (segment.turn.model if segment.turn else None) or ""
    said = Message(
        role="assistant",
        content=text,
        reasoning=reasoning or None,
        calls=tuple(MessageCall(call_id=c.call_id, tool=c.tool, arguments=_arguments(c)) for c in calls),
        provider_items=items,
        provider=model.partition(":")[0] if items and ":" in model else None,
    )
    return [
        said,
        *(
            Message(role="tool", content=c.result.output, call_id=c.call_id, is_error=c.result.is_error)
            for c in calls
            if c.result is not None and not c.result.client  # the client's output comes later, if at all
        ),
    ]


def _calls(channel: ChannelState, segment: _Segment) -> list[ToolState]:
    end = segment.end
    return [
        c
        for c in channel.tools.values()
        if not c.path and segment.start <= c.cseq and (end is None or c.cseq < end)
    ]


def conversation(channel: ChannelState) -> list[Message]:
    """What a channel said since its task: assistant messages, tool results, applied steering messages."""
    out: list[Message] = []
    for item in _segments(channel):
        out += [item] if isinstance(item, Message) else _assistant_messages(channel, item)
    return out


def resume_point(channel: ChannelState) -> Resume:
    """Where an agent that was cut off goes on: after the last turn that has its `step_finished`.

    The channel's events up to the crash must have been folded, with the `step_reset` of a turn that was
    cut off and the results of that turn's calls among them.
    """
    messages: list[Message] = []
    pending: tuple[PendingCall, ...] = ()
    for item in _segments(channel):
        if isinstance(item, Message):
            messages.append(item)
        elif item.turn is not None and item.turn.finished is not None:
            messages += _assistant_messages(channel, item)
            pending = tuple(_pending(c) for c in _calls(channel, item) if c.at != "answered")
    # an edit whose call has not started: it asks again, and is given the arguments that were decided
    decided = (
        (c.tool, c.decision.decision)
        for c in channel.tools.values()
        if c.decision is not None and (c.at != "written" or c.decision.decision != "edit")
    )
    return Resume(
        step=channel.steps[-1].step if channel.steps else 0,
        messages=tuple(messages),
        pending=pending,
        usage=channel.usage,
        approved=frozenset(tool for tool, decision in decided if decision in ("approve", "edit")),
    )

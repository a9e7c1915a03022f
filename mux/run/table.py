"""The order rules of a run's events, as one transition table.

How to read this
================
A log is a sentence, and this table is its grammar. Whoever writes events (the engine) asks it *before* an
event is appended; whoever reads them (recovery, import, tests) may rely on it afterwards. An event that the
grammar does not allow raises :class:`IllegalEvent` and changes nothing.

There are two small machines.

**The channel machine** has one instance per channel::

    announced ──channel_started──▶ idle ──step_started──▶ turn
                                   ▲  ◀──step_finished──  │
                                   └──step_reset──────────┘
    idle | turn ──error──▶ failing ──done──▶ done
    idle | turn ──done──▶ done

- *announced*: the run knows the channel (``run_started`` or ``channel_added``), nothing has happened on it.
- *idle*: between two model turns. Tools run here, which is how "a tool never starts before its step has
  ended upstream" (DESIGN section 4) is held: ``tool_start`` is not in the row of *turn*. Agents that know
  nothing of steps stay in *idle* all their life.
- *turn*: a model turn is open. Text, and calls as the model writes them, but nothing runs.
- *failing*: ``error`` was said; only ``done`` may follow.
- *done*: nothing may follow.

``channel_started`` with ``attempt`` > 1 is allowed in *idle* and *turn*: it discards everything before it.
Sub-agents nested inside an agent (``path``) have a turn machine of their own, of which the channel's
``done`` asks nothing: their lives are the outer agent's business.

**The call machine** has one instance per tool call::

    (none) ──tool_call──▶ written ──tool_start──▶ running ──tool_result──▶ answered
                             └──────tool_result (may not run)────────────────▲

``tool_args`` belongs to *written*, ``tool_progress`` to *running*; ``approval_requested`` and
``approval_resolved`` alternate while the call is *written*. A channel may not fail, end, restart or reset
a step while a call is not *answered*: open things are closed first, then the failure is reported.

**The run** itself: ``run_started`` is seq 1, ``run_finished`` is the last and comes when every channel is
done; in between ``channel_added`` may announce more channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from mux.errors import MuxError

__all__ = ["CALL_TABLE", "SUCCESS", "TABLE", "TERMINAL", "CallAt", "ChannelAt", "IllegalEvent"]

ChannelAt: TypeAlias = Literal["announced", "idle", "turn", "failing", "done"]
CallAt: TypeAlias = Literal["written", "running", "answered"]

#: Final statuses of a channel.
TERMINAL: Final = frozenset({"completed", "refused", "failed", "cancelled", "timed_out", "budget_exceeded"})
#: The final statuses that count as success.
SUCCESS: Final = frozenset({"completed", "refused"})


class IllegalEvent(MuxError):
    """An event that the order rules do not allow here; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__("illegal_event", message)


# What may happen at any time between channel_started and done, and moves nothing.
_TEXT: Final = (
    "phase", "reasoning", "token", "refusal", "tool_call", "tool_args", "tool_progress", "tool_result",
    "approval_requested", "approval_resolved", "guardrail", "message_received", "message_applied",
    "message_returned", "retry", "usage", "custom",
)  # fmt: skip

TABLE: Final[Mapping[ChannelAt, Mapping[str, ChannelAt]]] = {
    "announced": {"channel_started": "idle"},
    "idle": {
        **dict.fromkeys(_TEXT, "idle"),
        "channel_started": "idle",
        "step_started": "turn",
        "tool_start": "idle",
        "step_reset": "idle",
        "error": "failing",
        "done": "done",
    },
    "turn": {
        **dict.fromkeys(_TEXT, "turn"),
        "channel_started": "idle",
        "step_finished": "idle",
        "step_reset": "idle",
        "error": "failing",
        "done": "done",
    },
    "failing": {"done": "done"},
    "done": {},
}

CALL_TABLE: Final[Mapping[CallAt, Mapping[str, CallAt]]] = {
    "written": {
        "tool_args": "written",
        "approval_requested": "written",
        "approval_resolved": "written",
        "tool_start": "running",
        "tool_result": "answered",
    },
    "running": {"tool_progress": "running", "tool_result": "answered"},
    "answered": {},
}

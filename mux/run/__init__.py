"""Run and channel states as one table, and folding events into snapshots and conversations. No I/O.

Start reading at :mod:`mux.run.table`, which teaches the rules; :mod:`mux.run.state` applies them.
"""

from __future__ import annotations

from mux.run.channel import ChannelState
from mux.run.conversation import conversation, dump_messages, load_messages, resume_point
from mux.run.parts import ToolState
from mux.run.state import RunState, run_status
from mux.run.table import SUCCESS, TERMINAL, IllegalEvent

__all__ = [
    "SUCCESS",
    "TERMINAL",
    "ChannelState",
    "IllegalEvent",
    "RunState",
    "ToolState",
    "conversation",
    "dump_messages",
    "load_messages",
    "resume_point",
    "run_status",
]

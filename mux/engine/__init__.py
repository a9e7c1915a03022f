"""The engine: accepts runs, drives them, remembers them. Start reading at :mod:`mux.engine.engine`.

A run's way: `front` (request → `plan` → store and queue) → `worker` (takes and claims it; `recovery` goes on
with one that was driven before) → `drive` (carries out what the run decides) around `run` (decides, without
I/O) → `multiplexer` (channels of all runs → one merge → one commit → viewers), with one `channel` for each
agent. `commands` is what callers may ask of it, `stored` what its log tells, `archive` what is kept of it.
"""

from __future__ import annotations

from mux.engine.engine import Engine, Role
from mux.engine.front import Started
from mux.engine.plan import RosterLike

__all__ = ["Engine", "Role", "RosterLike", "Started"]

"""The engine: owns every task of every run. Start reading at :mod:`mux.engine.engine`.

A run's way: `plan` (request → plan) → `admission` → `driver` (starts channels, merge → `journal`, closes
them) with one `channel` per agent and its `host`; `control` is what callers do to it, `recovery` goes on
after a crash, `archive` is what is kept of it.
"""

from __future__ import annotations

from mux.engine.base import Started
from mux.engine.engine import Engine
from mux.engine.plan import RosterLike

__all__ = ["Engine", "RosterLike", "Started"]

"""Rows and records for the tests of stores."""

from __future__ import annotations

import time
from typing import Any

from mux.events import Event, Record, Token
from mux.log import RunRow

BASE_TS = 1_700_000_000_000


def row(run: str, **fields: Any) -> RunRow:
    """A running run's row."""
    now = time.time_ns() // 1_000_000
    values: dict[str, Any] = {
        "run": run,
        "thread": "t1",
        "owner": "local",
        "status": "running",
        "created": now,
        "updated": now,
        "request": {"message": "hello", "channels": [{"agent": "a"}]},
        "agents": ("assistant",),
    }
    return RunRow(**(values | fields))


def records(run: str, first: int, count: int, content: str = "word ") -> list[Record]:
    """Token events with seqs from ``first`` on, on two channels and the run itself in turn."""
    made = []
    for seq in range(first, first + count):
        channel = (None, "gpt", "gpt~2")[seq % 3]
        event = Event(run, seq, channel, (seq + 2) // 3, BASE_TS + seq, Token(content=f"{content}{seq}"))
        made.append(Record(seq, channel, event.cseq, "token", event.ts, event.to_json()))
    return made

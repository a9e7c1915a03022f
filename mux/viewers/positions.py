"""Where a reader goes on: from the text of a cursor to a seq, or the reason why not (DESIGN section 4).

A stream over several runs has a *vector cursor*: one cursor per run, joined by commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mux.errors import CursorError
from mux.events import Cursor
from mux.log.protocols import Head

__all__ = ["check", "parse_vector", "resolve"]

_SEQ = re.compile(r"[0-9]{1,18}", re.ASCII)


def parse_vector(text: str | None, runs: Sequence[str]) -> dict[str, Cursor]:
    """The cursors of a vector by run; runs that it does not name are read from their beginning.

    Raises:
        CursorError: ``cursor_invalid``: not a vector; ``cursor_foreign`` (409): it names none of the runs.
    """
    if not text:
        return {}
    parts = text.split(",") if len(text) <= 64 * 80 else [text]
    cursors = [Cursor.parse(p.strip()) for p in parts]
    named = {c.run: c for c in cursors if c.run in runs}
    if not named:
        raise CursorError("cursor_foreign", "This cursor belongs to none of these runs.", status=409)
    return named


def resolve(text: str | None, run: str, head: Head) -> int:
    """The seq after which to go on; 0 without a cursor.

    Args:
        text: ``<run>.<epoch>.<seq>``, or a bare seq, as the client sent it.
        head: where the log stands now.

    Raises:
        CursorError: ``cursor_invalid`` (400), ``cursor_foreign``, ``cursor_stale``, ``cursor_ahead`` (409).
    """
    if not text:
        return 0
    if _SEQ.fullmatch(text):
        return check(Cursor(run, head.epoch, int(text)), run, head)
    return check(Cursor.parse(text), run, head)


def check(cursor: Cursor, run: str, head: Head) -> int:
    """Check one parsed cursor against its run; as :func:`resolve`."""
    if cursor.run != run:
        raise CursorError(
            "cursor_foreign",
            f"This cursor belongs to run {cursor.run}, not to {run}. Start without one, or read its own run.",
            status=409,
        )
    if cursor.epoch != head.epoch:
        raise CursorError(
            "cursor_stale",
            "The log was rebuilt since this cursor was given out, and it can't be continued from. "
            "Read the run again from the beginning.",
            status=409,
        )
    if cursor.seq > head.head:
        raise CursorError(
            "cursor_ahead",
            f"This cursor is beyond the end of the run: its last event has seq {head.head}.",
            status=409,
            extra={"head": head.head},
        )
    return cursor.seq

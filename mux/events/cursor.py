"""Positions in a run's log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mux.errors import CursorError

_CURSOR = re.compile(r"([A-Za-z0-9_-]{1,32})\.([0-9]{1,18})\.([0-9]{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A position in a run's log, exclusive: what comes *after* ``seq``. Opaque to clients."""

    run: str
    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.run}.{self.epoch}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read ``<run>.<epoch>.<seq>``.

        Raises:
            CursorError: ``cursor_invalid`` (400) if it is anything else.
        """
        match = _CURSOR.fullmatch(text) if len(text) <= 80 else None
        if match is None:
            raise CursorError(
                "cursor_invalid",
                "This is not a cursor of Mux. Send the id of the last event that you received, or none.",
            )
        return cls(match[1], int(match[2]), int(match[3]))

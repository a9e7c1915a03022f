"""Numbers for what an agent reads, so that it can cite ``[n]``: the same source keeps its number."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from mux.tools.base import ToolProblem

__all__ = ["Sources"]

MAX_CHANNELS = 2_000  # the oldest channel's numbers are forgotten; it has long ended by then
MAX_SOURCES = 10_000  # per channel: far more than a model can cite


class Sources:
    """Source numbers by run and channel."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], dict[tuple[str, str], int]] = OrderedDict()

    def number(self, run: str, channel: str, kind: Literal["path", "url"], where: str) -> int:
        """The number of this path or URL on this channel, from 1; minted when it is first seen.

        Raises:
            ToolProblem: the channel has seen too many sources.
        """
        known = self._known.setdefault((run, channel), {})
        self._known.move_to_end((run, channel))
        if len(self._known) > MAX_CHANNELS:
            self._known.popitem(last=False)
        key = (kind, where)
        if key not in known and len(known) >= MAX_SOURCES:
            raise ToolProblem(f"This channel has {MAX_SOURCES:,} sources already; answer with those.")
        return known.setdefault(key, len(known) + 1)

    def entry(
        self, run: str, channel: str, kind: Literal["path", "url"], where: str, title: str
    ) -> dict[str, Any]:
        """``{n, title, path|url}`` as programs and the dashboard read it."""
        return {"n": self.number(run, channel, kind, where), "title": title or where, kind: where}

    def find(self, run: str, channel: str, number: int) -> tuple[str, str] | None:
        """``(kind, path or URL)`` of a number given out before."""
        known = self._known.get((run, channel), {})
        return next((key for key, n in known.items() if n == number), None)

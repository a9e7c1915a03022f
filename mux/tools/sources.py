"""Numbers for what an agent reads, so that it can cite ``[n]``: the same source keeps its number."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

__all__ = ["Sources"]

MAX_CHANNELS = 2_000  # the oldest channel's numbers are forgotten; it has long ended by then
MAX_SOURCES = 1_000  # per channel; what comes later shares no number but gets none either


class Sources:
    """Source numbers by run and channel."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], list[tuple[str, str]]] = OrderedDict()

    def number(self, run: str, channel: str, kind: Literal["path", "url"], where: str) -> int:
        """The number of this path or URL on this channel, from 1; minted when it is first seen."""
        known = self._known.setdefault((run, channel), [])
        self._known.move_to_end((run, channel))
        if len(self._known) > MAX_CHANNELS:
            self._known.popitem(last=False)
        key = (kind, where)
        if key in known:
            return known.index(key) + 1
        if len(known) < MAX_SOURCES:
            known.append(key)
        return len(known)

    def entry(
        self, run: str, channel: str, kind: Literal["path", "url"], where: str, title: str
    ) -> dict[str, Any]:
        """``{n, title, path|url}`` as programs and the dashboard read it."""
        return {"n": self.number(run, channel, kind, where), "title": title or where, kind: where}

    def find(self, run: str, channel: str, number: int) -> tuple[str, str] | None:
        """``(kind, path or URL)`` of a number given out before."""
        known = self._known.get((run, channel), [])
        return known[number - 1] if 0 < number <= len(known) else None

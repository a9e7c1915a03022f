"""Numbers for what an agent reads, so that it can cite ``[n]``: the same source keeps its number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Literal

from mux.agent import AgentContext
from mux.tools.base import ToolProblem

__all__ = ["Sources"]

MAX_CHANNELS = 2_000  # the oldest channel's numbers are forgotten; it has long ended by then
MAX_SOURCES = 10_000  # per channel: far more than a model can cite


class Sources:
    """Source numbers by run and channel."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], dict[tuple[str, str], int]] = OrderedDict()

    def resume(self, ctx: AgentContext) -> None:
        """Learn the numbers that this channel was given before: in earlier runs of its thread, or before the
        server was restarted. They stand in the conversation, and what the model cited by them stays right."""
        if (ctx.run, ctx.channel) in self._known:
            return
        said = [*ctx.history, *(ctx.resume.messages if ctx.resume else ())]
        known: dict[tuple[str, str], int] = {}
        for key, n in _numbers(m.text for m in said if m.role == "tool"):
            known.setdefault(key, n)
        self._known[ctx.run, ctx.channel] = known

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
        if key not in known:
            known[key] = 1 + next(reversed(known.values()), 0)  # the newest is the highest
        return known[key]

    def entry(
        self, run: str, channel: str, kind: Literal["path", "url"], where: str, title: str
    ) -> dict[str, Any]:
        """``{n, title, path|url}`` as programs and the dashboard read it."""
        return {"n": self.number(run, channel, kind, where), "title": title or where, kind: where}

    def find(self, run: str, channel: str, number: int) -> tuple[str, str] | None:
        """``(kind, path or URL)`` of a number given out before."""
        known = self._known.get((run, channel), {})
        return next((key for key, n in known.items() if n == number), None)


def _numbers(texts: Iterable[str]) -> Iterable[tuple[tuple[str, str], int]]:
    """Sources and their numbers as tool results name them, in the order in which they were given out."""
    newest = 0
    for text in texts:
        for number, source in _heads(text):
            if newest and number != newest + 1:
                continue  # seen before; or a line of a document that looks like a head
            newest = number
            yield source, number


def _heads(text: str) -> Iterable[tuple[int, tuple[str, str]]]:
    """The lines that tools head their blocks with: ``[number] title``, then a path or URL in parentheses, or
    the URL on the next line. Read part by part: what tools give is anybody's text, and may be made to take a
    pattern hours."""
    lines = text.split("\n")
    for at, line in enumerate(lines):
        mark, closed, rest = line.partition("] ")
        if not closed or not mark.startswith("[") or not _is_number(mark[1:]):
            continue
        below = lines[at + 1] if at + 1 < len(lines) else ""
        if (source := _named(rest)) is None and _is_url(below):
            source = ("url", below)
        if source is not None:
            yield int(mark[1:]), source


def _named(rest: str) -> tuple[str, str] | None:
    """What the parentheses at the end of a head name."""
    if not rest.endswith(")"):
        return None
    last = rest.rpartition(" (")[2][:-1]
    if _is_url(last):
        return "url", last
    inner = rest.partition(" (")[2][:-1]
    path, found, where = inner.rpartition(", lines ")
    first, _, total = where.partition(" of ")
    if found and path and first.replace("-", "").isdecimal() and (not total or total.isdecimal()):
        return "path", path
    return None


def _is_number(text: str) -> bool:
    return 1 <= len(text) <= 5 and text.isascii() and text.isdecimal()


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://")) and len(text.split()) == 1 and not text[-1].isspace()

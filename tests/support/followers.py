"""Viewers that lose their connection all the time, and go on."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from mux.events import Record
from mux.viewers import Selection
from tests.support.checker import Block, Checker, RawResponse, http

__all__ = ["KINDS", "Follower", "Kind", "VectorFollower", "post_until_accepted"]

CUT = (OSError, asyncio.IncompleteReadError)
AGAIN_S = 0.02
AGAIN = (502, 503, 504)  # it is stopping; or a proxy's word for a server that is not there


@dataclass(frozen=True)
class Kind:
    """A way to read a run."""

    name: str
    query: str = ""
    accept: str = "text/event-stream"
    selection: Selection = field(default_factory=Selection)

    @property
    def compact(self) -> bool:
        return "compact=1" in self.query


LINES = "application/x-ndjson"
KINDS = (
    Kind("sse"),
    Kind("lines", accept=LINES),
    Kind("types", "type=token,tool_*", selection=Selection.parse([], ["token,tool_*"])),
    Kind("windows", "compact=1"),
    Kind("windows as lines", "compact=1&compact_ms=50", accept=LINES),
)


def channel_kind(channel: str) -> Kind:
    """One channel of a run."""
    return Kind(f"only {channel}", f"channel={quote(channel)}", selection=Selection.parse([channel]))


class Follower:
    """Reads one run to its end over any number of connections, each cut at random.

    Args:
        base: the server's address now.
        cut: the mean number of blocks after which it hangs up; 0 = never.
    """

    def __init__(
        self, base: Callable[[], str], run: str, kind: Kind, dice: random.Random, *, cut: float = 40
    ) -> None:
        self.base = base
        self.kind = kind
        self.checker = Checker(run, selection=kind.selection)
        self.connections = 0
        self.refused = 0
        self._dice = dice
        self._cut = cut

    @property
    def position(self) -> str | None:
        """What it sends to go on: the last id, or the last seq where that is further (NDJSON has few ids)."""
        cursor, events = self.checker.cursor, self.checker.events
        if events and (cursor is None or int(cursor.rsplit(".", 1)[1]) < events[-1]["seq"]):
            return str(events[-1]["seq"])
        return cursor

    async def follow(self) -> Checker:
        """Until the end of the run."""
        while not await self._connection():  # noqa: ASYNC110 - each turn is a connection of its own
            await asyncio.sleep(AGAIN_S)
        return self.checker

    async def _connection(self) -> bool:
        """One connection; true at the end."""
        position = self.position
        query, headers = self.kind.query, {"Accept": self.kind.accept}
        if position is not None and self._dice.random() < 0.5:
            headers["Last-Event-ID"] = position
        elif position is not None:
            query = f"{query}&after={position}"
        url = f"{self.base()}/api/runs/{self.checker.run}/events?{query}"
        try:
            async with http("GET", url, headers=headers) as response:
                return await self._read(response)
        except CUT:
            self.refused += 1
            return False

    async def _read(self, response: RawResponse) -> bool:
        if response.status == 204:
            return True
        if response.status in AGAIN:
            return False
        assert response.status == 200, await response.body()
        self.connections += 1
        left = self._dice.expovariate(1 / self._cut) if self._cut else float("inf")
        async for block in response.blocks():
            self.checker.feed([block])
            left -= 1
            if self.checker.ended or left < 0:
                break
        return self.checker.ended

    def check(self, log: Sequence[Record]) -> None:
        """Exactly the log: nothing missing, nothing twice, in order."""
        if self.kind.compact:
            self.checker.assert_same_text(log)
        else:
            self.checker.assert_equals(log)


class VectorFollower:
    """Reads many runs over one connection, with a vector cursor."""

    def __init__(
        self, base: Callable[[], str], runs: Sequence[str], dice: random.Random, *, cut: float = 60
    ) -> None:
        self.base = base
        self.checkers = {run: Checker(run) for run in runs}
        self.cursor: str | None = None
        self.connections = 0
        self._dice = dice
        self._cut = cut

    async def follow(self) -> None:
        """Until all of them have ended."""
        ended = False
        while not ended:
            headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
            url = f"{self.base()}/api/events?run={','.join(self.checkers)}"
            try:
                async with http("GET", url, headers=headers) as response:
                    ended = await self._read(response)
            except CUT:
                pass
            await asyncio.sleep(AGAIN_S)

    async def _read(self, response: RawResponse) -> bool:
        if response.status == 204:
            return True
        if response.status in AGAIN:
            return False
        assert response.status == 200, await response.body()
        self.connections += 1
        left = self._dice.expovariate(1 / self._cut) if self._cut else float("inf")
        async for block in response.blocks():
            self._take(block)
            left -= 1
            if left < 0:
                break
            if block.data["type"] == "stream_end":
                return True
        return False

    def _take(self, block: Block) -> None:
        if "seq" in block.data:
            self.checkers[block.data["run"]].feed([block])
        if block.id is not None:
            self.cursor = block.id


async def post_until_accepted(base: Callable[[], str], body: dict[str, Any], key: str) -> str:
    """Start a run with an idempotency key, as often as needed while the server is killed; the run's id."""
    while True:
        try:
            headers = {"Idempotency-Key": key}
            async with http("POST", f"{base()}/api/runs", json_body=body, headers=headers) as response:
                answer = await response.body()
            if response.status in (200, 201):
                return str(json.loads(answer)["run"])
            assert response.status in AGAIN, answer
        except CUT:
            pass
        await asyncio.sleep(AGAIN_S)

"""Runs without an engine: a log that a test fills as it likes, and sinks that remember what was written."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from mux.events import (
    Body,
    ChannelInfo,
    ChannelStarted,
    Done,
    Event,
    Record,
    RunFinished,
    RunStarted,
    Token,
)
from mux.log import MemoryStore
from mux.log.protocols import RunRow
from mux.viewers import Hub

__all__ = ["Feed", "MemorySink"]


class Feed:
    """One run that a test writes.

    Args:
        publish: whether appends are shown to the hub at once.
    """

    def __init__(self, store: MemoryStore, hub: Hub | None, run: str = "r1") -> None:
        self.store = store
        self.hub = hub
        self.run = run
        self.records: list[Record] = []
        self.unpublished: list[Record] = []
        self._counts: dict[str | None, int] = defaultdict(int)
        self._fence = 0
        self.ts = 1_000

    async def create(self) -> Feed:
        """Make the run in the store."""
        row = RunRow(self.run, "t1", "local", "running", 1, 1, {})
        await self.store.create(row)
        self._fence = await self.store.claim(self.run, "test")
        return self

    def make(self, body: Body, channel: str | None = None, *, step_ms: int = 1) -> Record:
        """The next record, not appended yet."""
        self._counts[channel] += 1
        self.ts += step_ms
        event = Event(self.run, len(self.records) + 1, channel, self._counts[channel], self.ts, body)
        record = event.record()
        self.records.append(record)
        return record

    async def append(self, *bodies: tuple[Body, str | None], publish: bool = True) -> None:
        """Append as one batch, and show it."""
        batch = [self.make(body, channel) for body, channel in bodies]
        await self.store.append(self.run, self._fence, batch)
        self.unpublished += batch
        if publish:
            await self.publish()

    async def publish(self) -> None:
        """Show what was appended and not shown yet."""
        batch, self.unpublished = self.unpublished, []
        if batch and self.hub is not None:
            self.hub.publish(self.run, await self.store.head(self.run), batch)

    async def begin(self, *channels: str) -> None:
        """The first events of a run with these channels."""
        infos = [ChannelInfo(id=c, agent="a") for c in channels]
        started: list[tuple[Body, str | None]] = [(ChannelStarted(agent="a", attempt=1), c) for c in channels]
        await self.append((RunStarted(thread="t1", channels=infos), None), *started)

    async def tokens(self, channel: str, *texts: str) -> None:
        """Tokens as one batch."""
        await self.append(*[(Token(content=t), channel) for t in texts])

    async def done(self, channel: str) -> None:
        """The channel's end."""
        await self.append((Done(status="completed", duration_ms=1, attempt=1), channel))

    async def finish(self, *channels: str) -> None:
        """The run's end."""
        await self.append(
            (
                RunFinished(status="completed", channels=dict.fromkeys(channels, "completed"), duration_ms=1),
                None,
            )
        )


class MemorySink:
    """A sink that keeps what is written.

    Attributes:
        room: False = the peer does not read: writing reports a full buffer, and draining waits.
    """

    framing = "plain"

    def __init__(self) -> None:
        self.data = b""
        self.chunks: list[bytes] = []
        self.room = asyncio.Event()
        self.room.set()
        self.closing = False
        self.aborted = False
        self.grew = asyncio.Event()

    @property
    def full(self) -> bool:
        return not self.room.is_set()

    def frame(self, chunk: bytes) -> bytes:
        return chunk

    def send(self, framed: bytes) -> bool:
        if self.closing:
            return False
        self.data += framed
        self.chunks.append(framed)
        self.grew.set()
        return self.room.is_set()

    async def drain(self) -> None:
        if self.closing:
            raise ConnectionResetError
        await self.room.wait()
        if self.closing:
            raise ConnectionResetError

    def abort(self) -> None:
        self.aborted = True
        self.closing = True
        self.room.set()

    async def until(self, needle: bytes) -> None:
        """Wait until this was written."""
        while needle not in self.data:
            self.grew.clear()
            await self.grew.wait()

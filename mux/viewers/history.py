"""Pages of the log, read once and shared by the viewers that are behind.

A thousand viewers that reconnect at once ask for the same pages: they are read in aligned pieces, whoever
comes while a piece is being read waits for the same read, and the pieces are kept in a bounded cache.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from mux.errors import Conflict
from mux.events import ChannelAdded, Record, RunStarted
from mux.log.protocols import EventLog, Head, Page

__all__ = ["History"]

PIECE = 512  # records read at once
MAX_CACHE = 8 * 1024 * 1024  # bytes of event data
MAX_CHUNKS = 4 * 1024 * 1024  # bytes of encoded pages

_Key = tuple[str, int, int]


class History:
    """Cached reads of an event log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._pieces: OrderedDict[_Key, tuple[Page, int]] = OrderedDict()
        self._bytes = 0
        self._chunks: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._chunk_bytes = 0
        self._reading: dict[_Key, asyncio.Task[Page]] = {}

    async def after(self, run: str, epoch: int, seq: int) -> tuple[Sequence[Record], Head]:
        """Some records after ``seq``, and where the log stood; begins at ``first`` where it was trimmed.

        Raises:
            NotFound: ``run_not_found``.
            Conflict: ``cursor_stale``: the epoch is no longer the one given.
        """
        key = (run, epoch, seq - seq % PIECE)
        page = await self._piece(key)
        if not page.records or page.records[-1].seq <= seq:  # cut short by its bytes, or written since
            page = await self._log.read(run, seq, limit=PIECE)
        if page.at.epoch != epoch:
            raise Conflict("cursor_stale", "The log was rebuilt while it was being read; read it again.")
        records = page.records
        if records and records[0].seq <= seq:
            records = records[seq + 1 - records[0].seq :]
        return records, page.at

    async def channels(self, run: str) -> dict[str, bool]:
        """Channel id → whether it is done, from the log alone."""
        channels: dict[str, bool] = {}
        head = await self._log.head(run)
        pos = head.first - 1
        while pos < head.head:
            records, _ = await self.after(run, head.epoch, pos)
            if not records:
                break
            pos = records[-1].seq
            for record in records:
                if record.type == "done" and record.channel is not None:
                    channels[record.channel] = True
                elif record.type in ("run_started", "channel_added"):
                    body = record.event().body
                    ids = [c.id for c in body.channels] if isinstance(body, RunStarted) else []
                    ids += [body.id] if isinstance(body, ChannelAdded) else []
                    for channel in ids:
                        channels.setdefault(channel, False)
        return channels

    def encoded(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """The bytes of a page, made once for all who ask for the same page in the same format."""
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
            return chunk
        chunk = self._chunks[key] = make()
        self._chunk_bytes += len(chunk)
        while self._chunk_bytes > MAX_CHUNKS and len(self._chunks) > 1:
            self._chunk_bytes -= len(self._chunks.popitem(last=False)[1])
        return chunk

    def forget(self, run: str) -> None:
        """Drop what is cached of a run."""
        for chunk_key in [k for k in self._chunks if k[0] == run]:
            self._chunk_bytes -= len(self._chunks.pop(chunk_key))
        for key in [k for k in self._pieces if k[0] == run]:
            self._bytes -= self._pieces.pop(key)[1]

    async def close(self) -> None:
        """Wait for reads that are under way."""
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _piece(self, key: _Key) -> Page:
        cached = self._pieces.get(key)
        if cached is not None:
            self._pieces.move_to_end(key)
            return cached[0]
        task = self._reading.get(key)
        if task is None:
            task = asyncio.create_task(self._read(key), name=f"read {key[0]} after {key[2]}")
            self._reading[key] = task
            task.add_done_callback(lambda t: self._done(key, t))
        return await asyncio.shield(task)  # one viewer's leaving does not end the others' read

    def _done(self, key: _Key, task: asyncio.Task[Page]) -> None:
        self._reading.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen by whoever waits; nobody may be left

    async def _read(self, key: _Key) -> Page:
        run, _, after = key
        page = await self._log.read(run, after, limit=PIECE)
        if len(page.records) == PIECE and page.at.epoch == key[1]:
            size = sum(len(r.data) for r in page.records)
            self._pieces[key] = (page, size)
            self._bytes += size
            while self._bytes > MAX_CACHE and len(self._pieces) > 1:
                self._bytes -= self._pieces.popitem(last=False)[1][1]
        return page

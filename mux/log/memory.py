"""The store without a file: for tests and ephemeral use. Nothing survives the process.

Every bound has a policy: a run's oldest events are forgotten beyond ``max_run_bytes`` (readers see a gap, as
with a trimmed log), and the oldest finished runs beyond ``max_runs`` or ``max_bytes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from mux._failpoints import failpoint
from mux.clock import now_ms
from mux.errors import MuxError
from mux.events import Record
from mux.log.heads import Heads
from mux.log.local import LocalCommands, LocalKeys, LocalQueue
from mux.log.paging import page_of, page_token, parse_page_token
from mux.log.protocols import (
    FINAL,
    OPEN,
    Head,
    Idempotency,
    Page,
    RunPage,
    RunQuery,
    RunRow,
    StoreInfo,
    check_append,
    check_changes,
    idempotency_conflict,
    run_exists,
    run_not_found,
)
from mux.log.records import Records
from mux.log.search import find, matches, search_words

__all__ = ["MemoryStore"]

_SPARE = 0.9  # a full ring is emptied to this share of its bound, so that trimming is rare


@dataclass(slots=True)
class _Run:
    number: int
    row: RunRow
    fence: int = 0
    records: Records = field(default_factory=Records)
    texts: dict[str, str] = field(default_factory=dict)

    def at(self) -> Head:
        return Head(1, self.records.first, self.records.head)


class MemoryStore:
    """Logs and runs in this process.

    Args:
        max_run_bytes: the most bytes of events that are kept of one run.
        max_runs: the most runs that are kept.
        max_bytes: the most bytes of events that are kept of all runs.
    """

    def __init__(
        self, *, max_run_bytes: int = 128 << 20, max_runs: int = 2000, max_bytes: int = 512 << 20
    ) -> None:
        self.info = StoreInfo("memory:", "no", "runs are lost when the server stops")
        self._max_run_bytes = max_run_bytes
        self._max_runs = max_runs
        self._max_bytes = max_bytes
        self._runs: dict[str, _Run] = {}
        self._numbers = count(1)
        self._size = 0
        self._heads = Heads()
        self._keys: dict[tuple[str, str], tuple[Idempotency, str]] = {}
        self._conversations: dict[tuple[str, str], dict[str, bytes]] = {}
        self.queue = LocalQueue()
        self.commands = LocalCommands()
        self.keys = LocalKeys()

    async def open(self, *, url: str | None = None) -> None:
        """Nothing to do."""

    async def check(self) -> None:
        """See `Store.check`."""

    async def announce(self, url: str) -> None:
        """Nothing to do: no other process can find this store."""

    async def close(self) -> None:
        """Forget everything."""
        self._runs.clear()
        self._heads.clear()
        self._keys.clear()
        self._conversations.clear()
        self._size = 0

    def _get(self, run: str) -> _Run:
        entry = self._runs.get(run)
        if entry is None:
            raise run_not_found(run)
        return entry

    # --- the log --------------------------------------------------------------------------------------------

    async def append(self, run: str, fence: int, records: Sequence[Record]) -> None:
        """See `EventLog.append`."""
        self._append(run, fence, records)

    def _append(self, run: str, fence: int, records: Sequence[Record]) -> None:
        entry = self._get(run)
        check_append(run, entry.fence, entry.records.head, fence, records)
        if not records:
            return
        failpoint("append.before")
        self._size += entry.records.extend(records)
        if entry.records.size > self._max_run_bytes:
            self._size -= entry.records.shorten(int(self._max_run_bytes * _SPARE))
        failpoint("append.after")
        self._heads.wake(run)

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None] | None:
        """See `EventLog.append_now`: always."""
        outcomes: list[MuxError | None] = []
        for run, fence, records in batches:
            try:
                self._append(run, fence, records)
                outcomes.append(None)
            except MuxError as e:
                outcomes.append(e)
        return outcomes

    async def append_many(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None]:
        """See `EventLog.append_many`."""
        return self.append_now(batches) or []

    async def read(self, run: str, after: int, *, limit: int = 1000, max_bytes: int = 1 << 20) -> Page:
        """See `EventLog.read`."""
        entry = self._get(run)
        return page_of(entry.records.after(after), entry.at(), after, limit, max_bytes)

    async def head(self, run: str) -> Head:
        """See `EventLog.head`."""
        return self._get(run).at()

    async def wait(self, run: str, after: int, timeout_s: float) -> Head:
        """See `EventLog.wait`."""
        return await self._heads.wait(run, after, timeout_s, lambda: self.head(run))

    async def trim(self, run: str, before: int) -> Head:
        """See `EventLog.trim`."""
        entry = self._get(run)
        self._size -= entry.records.forget_before(before)
        return entry.at()

    async def follow(self, run: str, publish: Callable[[str, Head | None, Sequence[Record]], None]) -> None:
        """Nobody else appends."""

    async def unfollow(self, run: str) -> None:
        """Nobody else appends."""

    # --- runs -----------------------------------------------------------------------------------------------

    async def create(
        self, row: RunRow, idempotency: Idempotency | None = None, records: Sequence[Record] = ()
    ) -> RunRow:
        """See `RunStore.create`."""
        if idempotency is not None:
            key = (idempotency.owner, idempotency.key)
            known, first = self._keys.get(key, (None, ""))
            if known is not None and known.expires > now_ms() and first in self._runs:
                if known.body_hash != idempotency.body_hash:
                    raise idempotency_conflict(idempotency.key)
                return self._runs[first].row
        if row.run in self._runs:
            raise run_exists(row.run)
        if idempotency is not None:
            self._keys[key] = (idempotency, row.run)
        entry = _Run(next(self._numbers), row)
        self._runs[row.run] = entry
        self._index_row(entry)
        if records:
            self._size += entry.records.extend(records)
        self._make_room()
        return row

    def _make_room(self) -> None:
        if len(self._runs) > self._max_runs or self._size > self._max_bytes:
            for run in self._oldest_finished():
                if len(self._runs) <= self._max_runs and self._size <= self._max_bytes:
                    break
                self._forget(run)

    def _oldest_finished(self) -> list[str]:
        done = [e for e in self._runs.values() if e.row.status in FINAL and not e.row.starred]
        done.sort(key=lambda e: (e.row.created, e.number))
        return [e.row.run for e in done]

    async def get(self, run: str) -> RunRow:
        """See `RunStore.get`."""
        return self._get(run).row

    async def update(self, run: str, **changes: Any) -> RunRow:
        """See `RunStore.update`."""
        check_changes(changes)
        entry = self._get(run)
        entry.row = replace(entry.row, **{**changes, "updated": now_ms()})
        if "title" in changes or "message" in changes:
            self._index_row(entry)
        return entry.row

    def _index_row(self, entry: _Run) -> None:
        entry.texts[""] = "\n".join(t for t in (entry.row.title, entry.row.message) if t)

    async def list(self, query: RunQuery) -> RunPage:
        """See `RunStore.list`."""
        after = parse_page_token(query.after) if query.after is not None else None
        words = search_words(query.q) if query.q is not None else None
        rows: list[_Run] = []
        hits: dict[str, dict[str, str]] = {}
        for entry in sorted(self._runs.values(), key=lambda e: (e.row.created, e.number), reverse=True):
            if after is not None and (entry.row.created, entry.number) >= after:
                continue
            if not matches(entry.row, query):
                continue
            if words is not None:
                found = find(entry.texts, words)
                if not found:
                    continue
                hits[entry.row.run] = found
            rows.append(entry)
            if len(rows) > query.limit:
                hits.pop(entry.row.run, None)
                break
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        token = page_token(rows[-1].row.created, rows[-1].number) if more else None
        return RunPage([e.row for e in rows], token, hits)

    async def delete(self, run: str) -> None:
        """See `RunStore.delete`."""
        self._get(run)
        self._forget(run)

    def _forget(self, run: str) -> None:
        entry = self._runs.pop(run)
        self._size -= entry.records.size
        self._keys = {k: v for k, v in self._keys.items() if v[1] != run}
        for kept in self._conversations.values():
            kept.pop(run, None)
        self._heads.wake(run)

    async def unfinished(self) -> Sequence[RunRow]:
        """See `RunStore.unfinished`."""
        runs = (e for e in self._runs.values() if e.row.status in OPEN and e.row.kind == "run")
        rows = [(e.row.created, e.number, e.row) for e in runs]
        return [row for _, _, row in sorted(rows, key=lambda r: r[:2])]

    async def claim(self, run: str, owner: str) -> int:
        """See `RunStore.claim`."""
        entry = self._get(run)
        entry.fence += 1
        return entry.fence

    async def index_text(self, run: str, channel: str | None, text: str) -> None:
        """See `RunStore.index_text`."""
        self._get(run).texts[channel or ""] = text

    async def put_conversation(self, thread: str, channel: str, run: str, data: bytes) -> None:
        """See `RunStore.put_conversation`."""
        self._get(run)
        self._conversations.setdefault((thread, channel), {})[run] = data

    async def conversation(self, thread: str, channel: str, before: str | None = None) -> bytes | None:
        """See `RunStore.conversation`."""
        bound = self._get(before).number if before is not None else None
        kept = self._conversations.get((thread, channel), {})
        numbers = {self._runs[run].number: data for run, data in kept.items()}
        older = [n for n in numbers if bound is None or n < bound]
        return numbers[max(older)] if older else None

    async def size(self, owner: str) -> int:
        """See `RunStore.size`."""
        return sum([e.records.size for e in self._runs.values() if e.row.owner == owner])

    async def expire(
        self, *, older_than_ms: int | None, keep_runs: int | None, max_bytes: int | None
    ) -> Sequence[str]:
        """See `RunStore.expire`."""
        oldest = self._oldest_finished()
        gone: list[str] = []
        limit = now_ms() - older_than_ms if older_than_ms is not None else None
        for position, run in enumerate(oldest):
            entry = self._runs[run]
            too_old = limit is not None and (entry.row.finished or entry.row.updated) < limit
            too_many = keep_runs is not None and len(oldest) - position > keep_runs
            too_big = max_bytes is not None and self._size > max_bytes
            if too_old or too_many or too_big:
                failpoint("retention.before")
                self._forget(run)
                gone.append(run)
        return gone

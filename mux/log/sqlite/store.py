"""The default store: one sqlite file in WAL mode, written by one thread, read by a few others.

What it promises: with durability ``normal`` an acknowledged append survives ``kill -9`` of the process (it is
in the file; WAL with ``synchronous=NORMAL``), with ``full`` also power loss (fsync before the
acknowledgement). One server at a time has the file: `mux.log.sqlite.lock`.

Epoch: after power loss, ``normal`` may have lost a tail that viewers saw. So the file remembers the boot of
the machine and whether it was closed in order. A killed process on the same boot lost nothing; otherwise, and
without ``full``, unfinished runs get a new epoch (only they can have lost a tail: what is lost is always the
end of the file's history, and a run's last event comes before the row that says it is finished).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from mux.errors import MuxError, NotFound, StoreError
from mux.events import Record
from mux.log import chunks
from mux.log.heads import Heads
from mux.log.local import LocalCommands, LocalQueue
from mux.log.paging import page_of
from mux.log.protocols import (
    FINAL,
    Head,
    Idempotency,
    Page,
    RunPage,
    RunQuery,
    RunRow,
    StoreInfo,
    check_changes,
    run_not_found,
)
from mux.log.sqlite import rows as _rows
from mux.log.sqlite import search as _search
from mux.log.sqlite.keys import SqliteKeys
from mux.log.sqlite.lock import FileLock
from mux.log.sqlite.schema import SEQ_BITS, SEQ_MASK, connect, make_file, migrate, store_error
from mux.log.sqlite.session import Session, newest
from mux.log.sqlite.writer import Writer

__all__ = ["SqliteStore"]

R = TypeVar("R")

_READERS = 3  # threads; more would only fight for the interpreter
_NOW, _NOW_BYTES = 64, 64 * 1024  # events, and bytes, that may be committed on the loop's thread
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SqliteStore:
    """Logs and runs in one file.

    Args:
        path: the file; made with its folder if it is not there.
        durability: what an acknowledgement means, see the module.
        busy_s: seconds to wait for a lock that another program holds on the file.
        boot_id: identity of this boot of the machine; by default the kernel's, unknown elsewhere.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Literal["normal", "full"] = "normal",
        busy_s: float = 5.0,
        boot_id: str | None = None,
    ) -> None:
        self.path = path
        self.info = StoreInfo(
            f"sqlite:{path}",
            "power" if durability == "full" else "process",
            "" if durability == "full" else "durability=full also survives power loss",
        )
        self._full = durability == "full"
        self._busy_s = busy_s
        self._boot_id = boot_id
        self._lock = FileLock(path)
        self._heads = Heads()
        self.queue = LocalQueue()
        self.commands = LocalCommands()
        self.keys = SqliteKeys(path, busy_s=busy_s)
        self._writer = Writer(path, self._open_file, self._close_file, synced=self._full)
        self._pool: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []

    async def open(self, *, url: str | None = None) -> None:
        """See `Store.open`."""
        try:
            await asyncio.to_thread(self._take_lock, url)
        except OSError as e:
            raise store_error(e, self.path) from e
        try:
            await self._writer.start()
        except StoreError:
            self._lock.release()
            raise
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="mux-log-reader")

    def _take_lock(self, url: str | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire(url)
        make_file(self.path)

    async def check(self) -> None:
        """See `Store.check`: as many pages as a start needs, in a commit of their own."""
        put = "INSERT OR REPLACE INTO meta (key, value) VALUES ('check', hex(zeroblob(8192)))"
        await self._writer.submit(lambda session: session.db.execute(put))
        await self._writer.submit(lambda session: session.db.execute("DELETE FROM meta WHERE key = 'check'"))

    async def announce(self, url: str) -> None:
        """Say at which address this server answers, for a second one that finds the file in use."""
        await asyncio.to_thread(self._lock.announce, url)

    async def close(self) -> None:
        """See `Store.close`."""
        pool, self._pool = self._pool, None
        self._heads.clear()
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)
            for reader in self._readers:
                await asyncio.to_thread(reader.close)
            self._readers.clear()
            self._local = threading.local()
        await self.keys.close()
        await self._writer.stop()
        await asyncio.to_thread(self._lock.release)

    # --- the file, on the writer's thread -------------------------------------------------------------------

    def _open_file(self) -> Session:
        db = connect(self.path, readonly=False, busy_s=self._busy_s)
        try:
            migrate(db, self.path)
            db.execute("PRAGMA journal_size_limit = 67108864")
            db.execute("PRAGMA synchronous = FULL")  # the mark below must not be lost with what follows it
            self._mark_open(db)
            if not self._full:
                db.execute("PRAGMA synchronous = NORMAL")
            return Session(db, busy_s=self._busy_s)
        except BaseException:
            db.close()
            raise

    def _mark_open(self, db: sqlite3.Connection) -> None:
        boot = self._boot_id or _read_boot_id()
        # A copy or a restored backup is another file: what happened since is not in it.
        mark = f"{boot}/{self.path.stat().st_ino}" if boot else ""
        meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
        in_order = meta.get("closed", "1") == "1"
        proven = in_order or meta.get("full") == "1" or (mark != "" and mark == meta.get("mark"))
        db.execute("BEGIN IMMEDIATE")
        if not proven:
            db.execute(
                "UPDATE logs SET epoch = epoch + 1 WHERE id IN "
                "(SELECT id FROM runs WHERE status IN ('queued', 'running', 'waiting'))"
            )
        db.executemany(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)",
            [("mark", mark), ("closed", "0"), ("full", str(int(self._full)))],
        )
        db.execute("COMMIT")

    def _close_file(self, session: Session) -> None:
        session.let_go()
        session.db.execute(f"PRAGMA busy_timeout = {round(self._busy_s * 1000)}")
        session.db.execute("PRAGMA synchronous = FULL")
        session.db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('closed', '1')")
        session.db.execute("PRAGMA optimize")
        session.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # --- reading, on the readers' threads -------------------------------------------------------------------

    async def _query(self, work: Callable[[sqlite3.Connection], R]) -> R:
        if self._pool is None:
            raise StoreError("store_failed", f"The store {self.path} is not open.")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._on_reader, work)

    def _on_reader(self, work: Callable[[sqlite3.Connection], R]) -> R:
        try:
            db = getattr(self._local, "db", None)
            if db is None:
                db = connect(self.path, readonly=True, busy_s=self._busy_s)
                self._local.db = db
                self._readers.append(db)
            db.execute("BEGIN")  # one state of the file for all of it
            try:
                return work(db)
            finally:
                if db.in_transaction:  # a failing disk has rolled back by itself, and is what is to be told
                    db.execute("COMMIT")
        except sqlite3.Error as e:
            raise store_error(e, self.path) from e

    # --- the log --------------------------------------------------------------------------------------------

    async def append(self, run: str, fence: int, records: Sequence[Record]) -> None:
        """See `EventLog.append`. Cancelling it does not undo it: it may still be committed."""
        (refused,) = await self.append_many(((run, fence, records),))
        if refused is not None:
            raise refused

    async def append_many(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None]:
        """See `EventLog.append_many`: one commit for all."""
        outcomes: Sequence[MuxError | None] | None = self.append_now(batches)
        if outcomes is not None:
            return outcomes
        results = await asyncio.gather(
            *(self._append_later(*batch) for batch in batches), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MuxError):
                raise result
        return [result if isinstance(result, MuxError) else None for result in results]

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None] | None:
        """See `EventLog.append_now`: small ones, while the writer has nothing else to do."""
        small = sum([len(records) for _, _, records in batches]) <= _NOW and (
            sum([len(r.data) for _, _, records in batches for r in records]) <= _NOW_BYTES
        )
        heads = self._writer.append_now(batches) if small else None
        if heads is None:
            return None
        outcomes: list[MuxError | None] = []
        for (run, _, _), at in zip(batches, heads, strict=True):
            if isinstance(at, Head):
                self._heads.set(run, at)
                outcomes.append(None)
            else:
                outcomes.append(at)
        return outcomes

    def _append_later(self, run: str, fence: int, records: Sequence[Record]) -> asyncio.Future[Head]:
        return self._writer.submit(
            lambda session: session.append(run, fence, records), lambda head: self._heads.set(run, head)
        )

    async def read(self, run: str, after: int, *, limit: int = 1000, max_bytes: int = 1 << 20) -> Page:
        """See `EventLog.read`."""
        return await self._query(lambda db: _read(db, run, after, max(1, limit), max_bytes))

    async def head(self, run: str) -> Head:
        """See `EventLog.head`."""
        known = self._heads.get(run)
        return known if known is not None else (await self._query(lambda db: _head(db, run)))[1]

    async def wait(self, run: str, after: int, timeout_s: float) -> Head:
        """See `EventLog.wait`."""
        return await self._heads.wait(run, after, timeout_s, lambda: self.head(run))

    async def trim(self, run: str, before: int) -> Head:
        """See `EventLog.trim`. Little by little: there may be a million, and appends wait."""
        at = await self._writer.submit(
            lambda session: _rows.trim(session, run, before), lambda _: self._heads.forget(run)
        )
        with contextlib.suppress(NotFound):  # deleted meanwhile
            while await self._writer.submit(lambda session: _rows.sweep_trimmed(session, run)):
                pass
        return at

    async def follow(self, run: str, publish: Callable[[str, Head | None, Sequence[Record]], None]) -> None:
        """Nobody else appends."""

    async def unfollow(self, run: str) -> None:
        """Nobody else appends."""

    # --- runs -----------------------------------------------------------------------------------------------

    async def create(
        self, row: RunRow, idempotency: Idempotency | None = None, records: Sequence[Record] = ()
    ) -> RunRow:
        """See `RunStore.create`."""
        return await self._writer.submit(lambda session: _rows.create(session, row, idempotency, records))

    async def get(self, run: str) -> RunRow:
        """See `RunStore.get`."""
        return await self._query(lambda db: _rows.get_row(db, run))

    async def update(self, run: str, **changes: Any) -> RunRow:
        """See `RunStore.update`."""
        check_changes(changes)

        def done(_: RunRow) -> None:
            if changes.get("status") in FINAL:
                self._heads.forget(run)

        return await self._writer.submit(lambda session: _rows.update(session, run, changes), done)

    async def list(self, query: RunQuery) -> RunPage:
        """See `RunStore.list`."""
        return await self._query(lambda db: _search.find_runs(db, query))

    async def delete(self, run: str) -> None:
        """See `RunStore.delete`. The events' space is given back in the background."""
        if not await self._forget(run, only_if_forgettable=False):
            raise run_not_found(run)

    def _forget(self, run: str, *, only_if_forgettable: bool) -> asyncio.Future[bool]:
        return self._writer.submit(
            lambda session: _rows.delete(session, run, only_if_forgettable=only_if_forgettable),
            lambda gone: self._heads.forget(run) if gone else None,
        )

    async def unfinished(self) -> Sequence[RunRow]:
        """See `RunStore.unfinished`."""
        return await self._query(_unfinished)

    async def claim(self, run: str, owner: str) -> int:
        """See `RunStore.claim`."""
        return await self._writer.submit(lambda session: _rows.claim(session, run, owner))

    async def index_text(self, run: str, channel: str | None, text: str) -> None:
        """See `RunStore.index_text`."""
        await self._writer.submit(lambda session: _rows.index_text(session, run, channel, text))

    async def put_conversation(self, thread: str, channel: str, run: str, data: bytes) -> None:
        """See `RunStore.put_conversation`."""
        await self._writer.submit(lambda session: _rows.put_conversation(session, thread, channel, run, data))

    async def conversation(self, thread: str, channel: str, before: str | None = None) -> bytes | None:
        """See `RunStore.conversation`."""
        return await self._query(lambda db: _rows.conversation(db, thread, channel, before))

    async def size(self, owner: str) -> int:
        """See `RunStore.size`."""
        return await self._query(lambda db: _rows.size_of_owner(db, owner))

    async def expire(
        self, *, older_than_ms: int | None, keep_runs: int | None, max_bytes: int | None
    ) -> Sequence[str]:
        """See `RunStore.expire`."""
        runs = await self._query(lambda db: _rows.forgettable(db, older_than_ms, keep_runs, max_bytes))
        gone: list[str] = []
        for start in range(0, len(runs), _EXPIRE_TOGETHER):
            some = runs[start : start + _EXPIRE_TOGETHER]
            jobs = [self._forget(run, only_if_forgettable=True) for run in some]
            gone += [run for run, was in zip(some, await asyncio.gather(*jobs), strict=True) if was]
        return gone


_EXPIRE_TOGETHER = 50  # in one commit, which appends wait for


def _head(db: sqlite3.Connection, run: str) -> tuple[int, Head]:
    row = db.execute(
        "SELECT l.id, l.epoch, l.first, l.head FROM runs r JOIN logs l USING (id) WHERE r.run = ?", (run,)
    ).fetchone()
    if row is None:
        raise run_not_found(run)
    number, epoch, first, head = row
    return number, Head(epoch, first, max(head, newest(db, number)))


def _read(db: sqlite3.Connection, run: str, after: int, limit: int, max_bytes: int) -> Page:
    number, at = _head(db, run)
    base = number << SEQ_BITS
    start = min(max(after, at.first - 1), SEQ_MASK)
    rows = db.execute(
        "SELECT id, data FROM chunks WHERE id > ? AND id <= ? ORDER BY id", (base + start, base + SEQ_MASK)
    )
    with contextlib.closing(rows):
        parts = ((data, key - base) for key, data in rows)
        return page_of(chunks.decode_all(parts), at, after, limit, max_bytes)


def _unfinished(db: sqlite3.Connection) -> list[RunRow]:
    rows = db.execute(
        f"SELECT {_search.COLUMNS} FROM runs r JOIN requests q USING (id) "  # noqa: S608 - our own names
        "WHERE r.status IN ('queued', 'running', 'waiting') AND r.kind = 'run' ORDER BY r.created, r.id"
    )
    return [_search.row_of(values) for values in rows]


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:  # not Linux: then nothing proves that the machine did not go down
        return ""

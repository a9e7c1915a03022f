"""Keys of a store that is one file: on a connection of their own, beside whichever server has the file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mux.clock import now_ms
from mux.log.sqlite.schema import connect, make_file, migrate, store_error

__all__ = ["SqliteKeys"]

R = TypeVar("R")


class SqliteKeys:
    """See `mux.log.protocols.KeyStore`. The file is opened when it is first asked for.

    Every write is synced, whatever the store's ``durability``: what was revoked stays revoked.

    Args:
        path: the store's file.
        busy_s: seconds to wait for a lock that somebody else holds on it.
    """

    def __init__(self, path: Path, *, busy_s: float = 5.0) -> None:
        self._path = path
        self._busy_s = busy_s
        self._db: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None  # of its own: who may call must not wait for tools

    async def put(self, kind: str, name: str, data: bytes, *, expires: int | None = None) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM access WHERE expires <= ?", (now_ms(),))
            db.execute("INSERT OR REPLACE INTO access VALUES (?, ?, ?, ?)", (kind, name, data, expires))

        await self._do(work, writes=True)

    async def get(self, kind: str, name: str) -> bytes | None:
        sql = "SELECT data FROM access WHERE kind = ? AND name = ?"
        row = await self._do(lambda db: db.execute(sql, (kind, name)).fetchone())
        return row[0] if row else None

    async def all(self, kind: str) -> Sequence[bytes]:
        sql = "SELECT data FROM access WHERE kind = ?"
        return [row[0] for row in await self._do(lambda db: db.execute(sql, (kind,)).fetchall())]

    async def pop(self, kind: str, name: str) -> bytes | None:
        sql = "DELETE FROM access WHERE kind = ? AND name = ? RETURNING data"
        row = await self._do(lambda db: db.execute(sql, (kind, name)).fetchone(), writes=True)
        return row[0] if row else None

    async def _do(self, work: Callable[[sqlite3.Connection], R], *, writes: bool = False) -> R:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="mux-keys")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._on_thread, work, writes)

    def _on_thread(self, work: Callable[[sqlite3.Connection], R], writes: bool) -> R:
        try:
            if self._db is None:
                self._db = self._open()
            if not writes:
                return work(self._db)
            self._db.execute("BEGIN IMMEDIATE")
            try:
                done = work(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back by itself
                    self._db.execute("ROLLBACK")
                raise
            return done
        except (sqlite3.Error, OSError) as e:
            raise store_error(e, self._path) from e

    def _open(self) -> sqlite3.Connection:
        make_file(self._path)
        db = connect(self._path, readonly=False, busy_s=self._busy_s)
        try:
            migrate(db, self._path)
            db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            db.close()
            raise
        return db

    async def close(self) -> None:
        """Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._close)
            await asyncio.to_thread(thread.shutdown)

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

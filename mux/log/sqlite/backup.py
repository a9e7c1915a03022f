"""Copies of a store's file, made while a server uses it: SQLite's online backup (https://sqlite.org/backup.html).

Copying the file itself leaves out what still stands in its write-ahead log, which may be everything.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from mux.errors import StoreError
from mux.log.sqlite.lock import FileLock
from mux.log.sqlite.schema import APPLICATION_ID, MIGRATIONS, connect

__all__ = ["back_up", "restore"]

_PAGES = 2_000  # copied at once; others write in between


def back_up(path: Path, to: Path) -> int:
    """Write a whole, consistent copy to a file that does not exist yet; its size in bytes.

    Raises:
        StoreError: ``store_failed``: there is no such store, or the copy can't be written; nothing is left.
    """
    if not path.is_file():
        raise StoreError("store_failed", f"There is no store {path}.", retryable=False)
    return _copy(path, to)


def restore(file: Path, path: Path) -> int:
    """Make a backup the store's file; the size in bytes.

    Raises:
        StoreError: ``store_locked``: a server uses the store; ``store_failed``: the file is no backup, or
            there is a store already, which is left as it is.
    """
    _check(file)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(path)
    lock.acquire(None)
    try:
        return _copy(file, path)
    finally:
        lock.release()


def _check(file: Path) -> None:
    if not file.is_file():
        raise StoreError("store_failed", f"There is no file {file}.", retryable=False)
    try:
        db = connect(file, readonly=True, busy_s=1.0)
        try:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            db.close()
    except sqlite3.Error as e:
        raise StoreError("store_failed", f"{file} is no backup of Mux ({e}).", retryable=False) from e
    if application != APPLICATION_ID or version > len(MIGRATIONS):
        why = "was made by a newer Mux" if application == APPLICATION_ID else "is no backup of Mux"
        raise StoreError("store_failed", f"{file} {why}.", retryable=False)
    if sound != "ok":
        raise StoreError("store_failed", f"{file} is damaged: {sound[:200]}", retryable=False)


def _copy(source: Path, to: Path) -> int:
    if to.exists():
        raise StoreError(
            "store_failed", f"{to} is there already. Move it away, or name another.", retryable=False
        )
    part = to.with_name(f"{to.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        read = connect(source, readonly=True, busy_s=5.0)
        write = sqlite3.connect(part, isolation_level=None)
        try:
            read.backup(write, pages=_PAGES)
            write.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
        finally:
            write.close()
            read.close()
        os.link(part, to)  # fails where somebody was faster
    except (sqlite3.Error, OSError) as e:
        raise StoreError("store_failed", f"{to} can't be written: {e}", retryable=False) from e
    finally:
        part.unlink(missing_ok=True)
    return to.stat().st_size

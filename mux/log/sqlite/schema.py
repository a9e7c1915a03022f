"""The sqlite file: its tables, their migrations, and what its errors mean.

Times are ms since the epoch, JSON is text. A run's events are kept as *chunks*, a row for each batch that was
appended; the row's key is ``run's number << 32 | last seq``, so that reading after a position, finding the
head and trimming are each one seek in the table itself, however long the history is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

from mux.errors import StoreError

__all__ = ["MIGRATIONS", "SEQ_BITS", "connect", "make_file", "migrate", "store_error"]

APPLICATION_ID: Final = 0x4D555831  # "MUX1": tells our file from another program's
SEQ_BITS: Final = 32
SEQ_MASK: Final = (1 << SEQ_BITS) - 1
SLOT_BITS: Final = 10  # a text's number is its run's number << 10 | its place among the run's texts

_V1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- AUTOINCREMENT: a number is never used again, as the chunks of a deleted run go later than the run.
-- Long columns come last: filters then never read their overflow pages.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL UNIQUE, thread TEXT NOT NULL,
    owner TEXT NOT NULL, status TEXT NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL,
    finished INTEGER, starred INTEGER NOT NULL, agents TEXT NOT NULL, title TEXT, metadata TEXT NOT NULL,
    summary TEXT NOT NULL, message TEXT
);
CREATE INDEX runs_by_created ON runs (created, id);
CREATE INDEX runs_by_owner ON runs (owner, created, id);
CREATE INDEX runs_by_thread ON runs (thread, created, id);
CREATE INDEX runs_unfinished ON runs (created, id) WHERE status IN ('queued', 'running', 'waiting');

CREATE TABLE requests (id INTEGER PRIMARY KEY, request TEXT NOT NULL);

-- head: the last seq as far as trimming must remember it; else the newest chunk says it.
CREATE TABLE logs (
    id INTEGER PRIMARY KEY, fence INTEGER NOT NULL, epoch INTEGER NOT NULL, first INTEGER NOT NULL,
    head INTEGER NOT NULL, bytes INTEGER NOT NULL, holder TEXT
);
CREATE TABLE chunks (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE trash (id INTEGER PRIMARY KEY);  -- logs whose chunks are still to be deleted

CREATE TABLE idempotency (
    owner TEXT NOT NULL, key TEXT NOT NULL, body_hash TEXT NOT NULL, run INTEGER NOT NULL,
    expires INTEGER NOT NULL, PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_by_run ON idempotency (run);
CREATE INDEX idempotency_by_expires ON idempotency (expires);

CREATE TABLE conversations (
    thread TEXT NOT NULL, channel TEXT NOT NULL, run INTEGER NOT NULL, data BLOB NOT NULL,
    UNIQUE (thread, channel, run)
);
CREATE INDEX conversations_by_run ON conversations (run);

CREATE TABLE texts (run INTEGER NOT NULL, channel TEXT NOT NULL, slot INTEGER NOT NULL,
    PRIMARY KEY (run, channel)) WITHOUT ROWID;
CREATE VIRTUAL TABLE found USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2');
"""

_V2 = """
CREATE INDEX runs_by_status ON runs (status, created, id);  -- a rare status among very many runs
"""

_V3 = ""  # chunks may hold tokens without their envelopes, which an older Mux could not read

_V4 = """
ALTER TABLE runs ADD COLUMN kind TEXT NOT NULL DEFAULT 'run';
CREATE INDEX experiments ON runs (created, id) WHERE kind = 'experiment';
"""

_V5 = """
CREATE TABLE access (
    kind TEXT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, expires INTEGER, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
"""

MIGRATIONS: Final = (_V1, _V2, _V3, _V4, _V5)
"""Scripts that lead from each version to the next; a file's version is how many of them it has seen."""


_WRITER_KIB, _READER_KIB = 4096, 2048


def make_file(path: Path) -> None:
    """Make the file with its folder, if it is not there: what is in it is nobody else's to read.

    One that is there is never opened: closing it again would drop the locks that this process's connections
    hold on it, and the next program that lets go of the file would take their WAL away (sqlite.org,
    How To Corrupt An SQLite Database File, 2.2).
    """
    path = path.resolve()  # a link may lead to nothing yet
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        # the WAL takes its mode
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.suppress(PermissionError):  # somebody else's file, which we may write all the same
        path.chmod(0o600)


def connect(path: Path, *, readonly: bool, busy_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode that may be used by another thread than the one that made it."""
    mode = "ro" if readonly else "rwc"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA temp_store = MEMORY")
    # KiB of each connection's own cache. The system keeps the file's pages as well, and once for all; with
    # 16 MiB here, four connections grew by 64 MiB over the first days of a file.
    connection.execute(f"PRAGMA cache_size = -{_READER_KIB if readonly else _WRITER_KIB}")
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the newest version, in one transaction.

    Raises:
        StoreError: ``store_failed``: another program's file, or a newer Mux's.
        sqlite3.Error: the file can't be used.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreError(
            "store_failed", f"{path} belongs to another program. Choose another file with --store."
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            "store_failed",
            f"{path} was written by a newer version of Mux (format {version}). Upgrade, or choose another "
            "file with --store.",
        )
    if not tables:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # deleted runs give their space back
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA journal_mode = WAL")
    if version == len(MIGRATIONS):
        return
    connection.execute("BEGIN EXCLUSIVE")
    try:
        for script in MIGRATIONS[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """A script's statements: `executescript` would commit the transaction it is in."""
    found, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    return found


def store_error(error: sqlite3.Error | OSError, path: Path) -> StoreError:
    """What a failure of the file means, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary == sqlite3.SQLITE_FULL:
        return StoreError(
            "store_full", f"The disk of {path} is full. Free some space; what was acknowledged is safe."
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) or isinstance(error, PermissionError):
        return StoreError(
            "store_readonly",
            f"{path} can't be written. Check the permissions of the file and its folder, or choose another "
            "with --store.",
            retryable=False,
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            "store_locked", f"Another program holds a lock on {path}. Close it, or wait until it is done."
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(
            "store_failed",
            f"{path} is damaged, or no sqlite file. Move it away to start afresh, or restore a backup.",
            retryable=False,
        )
    if primary == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            "store_failed", f"{path} can't be opened. Check that its folder exists.", retryable=False
        )
    return StoreError("store_failed", f"{path} failed: {error}.")

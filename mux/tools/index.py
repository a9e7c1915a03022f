"""The document index: SQLite FTS5 in memory, brought up to date before each use, one thread of its own."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from mux.tools.roots import Found, Roots
from mux.tools.text import UnreadableError, extract, kind_of

__all__ = ["DocumentIndex", "Hit", "Listed", "Report"]

T = TypeVar("T")
Report = Callable[[int, int], None]  # files done, files to do; called from the index's thread

CHUNK_LINES = 24
CHUNK_CHARACTERS = 2_000
MAX_WORDS = 24
_WORD = re.compile(r"\w+")
_SCHEMA = """
CREATE TABLE files (id INTEGER PRIMARY KEY, name TEXT UNIQUE, version TEXT, title TEXT, size INTEGER,
                    lines INTEGER, problem TEXT);
CREATE TABLE passages (id INTEGER PRIMARY KEY, file INTEGER, first INTEGER, last INTEGER);
CREATE INDEX passages_of_file ON passages (file);
CREATE VIRTUAL TABLE chunks USING fts5(body, title, tokenize='porter unicode61 remove_diacritics 2');
"""
_HITS = (
    "SELECT f.name, f.title, p.first, p.last, chunks.body FROM chunks"
    " JOIN passages p ON p.id = chunks.rowid JOIN files f ON f.id = p.file "
)


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage that fits a query; lines count from 1."""

    name: str
    title: str
    first: int
    last: int
    text: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One document of the folders; ``problem`` says why its text can't be searched."""

    name: str
    title: str
    size: int
    lines: int
    problem: str | None


class DocumentIndex:
    """Search over the roots. Every call first takes in what has changed on disk since the last one.

    Args:
        roots: what may be read.
    """

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def search(self, query: str, limit: int, report: Report | None = None) -> tuple[list[Hit], int]:
        """The best passages, best first, and how many documents were searched."""

        def work(stop: threading.Event) -> tuple[list[Hit], int]:
            count = self._sync(stop, report)
            return self._search(query, limit), count

        return await self._do(work)

    async def documents(self, report: Report | None = None) -> list[Listed]:
        """All documents by name."""

        def work(stop: threading.Event) -> list[Listed]:
            self._sync(stop, report)
            rows = self._db.execute("SELECT name, title, size, lines, problem FROM files ORDER BY name")
            return [Listed(*row) for row in rows]

        return await self._do(work)

    async def aclose(self) -> None:
        """Free the thread and the memory."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        database, self._database = self._database, None
        if database is not None:
            await asyncio.get_running_loop().run_in_executor(thread, database.close)
        thread.shutdown(wait=False)

    async def _do(self, work: Callable[[threading.Event], T]) -> T:
        """Run ``work`` on the index's thread; a cancelled caller makes it stop at the next file."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="documents")
        stop = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, stop)
        finally:
            stop.set()

    # --- on the index's thread ------------------------------------------------------------------------------

    @property
    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(":memory:", check_same_thread=False)
            self._database.executescript(_SCHEMA)
        return self._database

    def _sync(self, stop: threading.Event, report: Report | None) -> int:
        """Take in new and changed files, forget gone ones; returns how many there are."""
        known = dict(self._db.execute("SELECT name, version FROM files").fetchall())
        found = {f.name: f for f in self._roots.walk()}
        for name in known.keys() - found.keys():
            self._forget(name)
        stale = [f for f in found.values() if known.get(f.name) != repr(f.version)]
        for done, file in enumerate(stale):
            if stop.is_set():
                break
            if report is not None:
                report(done, len(stale))
            self._forget(file.name)
            self._take_in(file)
        self._db.commit()
        return len(found)

    def _forget(self, name: str) -> None:
        row = self._db.execute("SELECT id FROM files WHERE name = ?", (name,)).fetchone()
        if row is not None:
            self._db.execute(
                "DELETE FROM chunks WHERE rowid IN (SELECT id FROM passages WHERE file = ?)", row
            )
            self._db.execute("DELETE FROM passages WHERE file = ?", row)
            self._db.execute("DELETE FROM files WHERE id = ?", row)

    def _take_in(self, found: Found) -> None:
        title, text, problem = "", "", None
        try:
            data = self._roots.read(found)
            kind = kind_of(found.name, data[:8192])
            if kind is None:
                problem = "it is not a text document"
            else:
                extracted = extract(data, kind)
                title, text = extracted.title, extracted.text
        except UnreadableError as e:
            problem = str(e)
        except OSError as e:
            problem = f"it can't be read ({e.strerror})"
        title = title or found.name.rpartition("/")[2]
        lines = text.split("\n")
        row = (found.name, repr(found.version), title, found.size, len(lines), problem)
        cursor = self._db.execute(
            "INSERT INTO files (name, version, title, size, lines, problem) VALUES (?, ?, ?, ?, ?, ?)", row
        )
        file = cursor.lastrowid
        for first, last, body in _chunks(lines):
            cursor.execute("INSERT INTO passages (file, first, last) VALUES (?, ?, ?)", (file, first, last))
            row_id = cursor.lastrowid
            cursor.execute("INSERT INTO chunks (rowid, body, title) VALUES (?, ?, ?)", (row_id, body, title))

    def _search(self, query: str, limit: int) -> list[Hit]:
        words = list(dict.fromkeys(_WORD.findall(query.lower())))[:MAX_WORDS]
        if not words:
            return []
        quoted = [f'"{w}"' for w in words]
        for match in dict.fromkeys((" AND ".join(quoted), " OR ".join(quoted))):
            rows = self._db.execute(
                _HITS + "WHERE chunks MATCH ? ORDER BY bm25(chunks, 1.0, 2.0) LIMIT ?",
                (match, limit),
            ).fetchall()
            if rows:
                return [Hit(*row) for row in rows]
        # parts of words, and scripts that are written without spaces
        pattern = "%" + query.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = self._db.execute(
            _HITS + "WHERE chunks.body LIKE ? ESCAPE '\\' LIMIT ?",
            (pattern, limit),
        ).fetchall()
        return [Hit(*row) for row in rows]


def _chunks(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """Passages of some lines each, broken at headings; (first line, last line, text)."""
    start, size = 0, 0
    for i, line in enumerate(lines):
        heading = line.startswith("#") and i - start >= 4
        if i > start and (heading or i - start >= CHUNK_LINES or size + len(line) > CHUNK_CHARACTERS):
            yield start + 1, i, "\n".join(lines[start:i])
            start, size = i, 0
        size += len(line) + 1
    if any(line.strip() for line in lines[start:]):
        yield start + 1, len(lines), "\n".join(lines[start:])

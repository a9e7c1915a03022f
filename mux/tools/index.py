"""The document index: SQLite FTS5 in memory, brought up to date before each use, one thread of its own.

Scripts that are written without spaces are found by pairs of their characters, which stand in a column of
their own beside the words (the CJK bigrams of Lucene's ``CJKBigramFilter``).
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import regex

from mux.tools.reader import Reader
from mux.tools.roots import MAX_FILES, Found, Roots
from mux.tools.text import UnreadableError, kind_of

__all__ = ["Covered", "DocumentIndex", "Hit", "Listed", "Report"]

T = TypeVar("T")
Report = Callable[[int, int], None]  # files done, files to do; called from the index's thread

TAKE_IN_S = 20.0  # how long one call takes in changed files; what is left is for the next
CHUNK_LINES = 24
CHUNK_CHARACTERS = 2_000
_OVERLAP = 60  # characters that passages of one line share, so that no word is torn in both
MAX_WORDS = 24
MAX_QUERY = 300  # characters; a phrase of ten thousand pairs took SQLite more than ten minutes
# signs are parts of words: the vowels of Indian scripts
_WORD = regex.compile(r"[\p{L}\p{N}\p{M}_]+")
# marks that people leave out of a query: accents, points of Hebrew and Arabic, the stretch of Arabic
_MARKS = regex.compile(
    r"(?<=[\p{Latin}\p{Greek}])[\u0300-\u036f]+|[\u0591-\u05bd\u05bf-\u05c7\u064b-\u065f\u0670\u0640]"
)
_INSTRUCTIONS = 10_000  # of SQLite's machine, well below a millisecond
_NO_TEXT = "it is not a text document"  # pictures beside the documents: nothing to complain of
# read last, so that what takes long keeps nobody from the rest
_SLOW = (".pdf", ".docx", ".xlsx", ".pptx", ".epub")
# Thai, Lao, Burmese, Khmer; kana, Han and Hangul with their later blocks
_SPACELESS_SET = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_SPACELESS = re.compile(f"{_SPACELESS_SET}+")
# where a line ends amid such a run, as each does in a PDF, its words go on
_LINE_END = re.compile(rf"(?<={_SPACELESS_SET})[ \t]?\n[ \t]?(?={_SPACELESS_SET})")
_SCHEMA = """
CREATE TABLE files (id INTEGER PRIMARY KEY, name TEXT UNIQUE, version TEXT, title TEXT, size INTEGER,
                    lines INTEGER, problem TEXT);
CREATE TABLE passages (id INTEGER PRIMARY KEY, file INTEGER, first INTEGER, last INTEGER, body TEXT);
CREATE INDEX passages_of_file ON passages (file);
CREATE VIRTUAL TABLE chunks USING fts5(words, title, pairs, content='',
    tokenize="porter unicode61 categories 'L* N* Co Mn Mc'");
"""
_HITS = "SELECT f.name, f.title, p.first, p.last, p.body FROM passages p JOIN files f ON f.id = p.file "


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


@dataclass(frozen=True, slots=True)
class Covered:
    """Which documents a search was over.

    Attributes:
        count: that were read.
        unread: that are new or changed, and still to be read.
        more: there are more files than are looked at.
        unreadable: documents whose text can't be had, as far as that should be said.
        such_as: some of these, with the reason.
    """

    count: int
    unread: int
    more: bool
    unreadable: int = 0
    such_as: tuple[str, ...] = ()

    def limits(self) -> str:
        """What was not covered, as a sentence; nothing if that was all."""
        said = []
        if self.unread:
            said.append(f"{self.unread} documents are not read yet: ask again.")
        if self.more:
            said.append(f"Only the first {MAX_FILES:,} files of the folders are looked at.")
        if self.unreadable:
            more = ", …" * (self.unreadable > len(self.such_as))
            said.append(f"{self.unreadable} documents can't be read: {', '.join(self.such_as)}{more}.")
        return " ".join(said)


class Stop:
    """Tells work on the index's thread that nobody waits for it any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._set = threading.Event()
        self._future: Future[Any] | None = None

    def set(self) -> None:
        self._set.set()
        if (future := self._future) is not None:
            future.cancel()

    def is_set(self) -> bool:
        return self._set.is_set()

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the event loop do something, and wait for it. Raises CancelledError: nobody waits any more."""
        future = self._future = asyncio.run_coroutine_threadsafe(work, self._loop)
        if self._set.is_set():
            future.cancel()
        try:
            value: T = future.result()
        finally:
            self._future = None
        return value


class DocumentIndex:
    """Search over the roots. Every call first takes in what has changed on disk since the last one.

    Args:
        roots: what may be read.
        reader: reads what is no plain text.
        take_in_s: how long one call takes in changed files.
    """

    def __init__(self, roots: Roots, reader: Reader, *, take_in_s: float = TAKE_IN_S) -> None:
        self._roots = roots
        self._reader = reader
        self._take_in_s = take_in_s
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def search(self, query: str, limit: int, report: Report | None = None) -> tuple[list[Hit], Covered]:
        """The best passages, best first, and which documents were searched."""

        def work(stop: Stop) -> tuple[list[Hit], Covered]:
            covered = self._sync(stop, report)
            # what SQLite does is stopped, too, when nobody waits any more
            self._db.set_progress_handler(stop.is_set, _INSTRUCTIONS)
            try:
                return self._search(query[:MAX_QUERY], limit), replace(covered, **self._unreadable())
            finally:
                self._db.set_progress_handler(None, 0)

        return await self._do(work)

    async def documents(self, report: Report | None = None) -> tuple[list[Listed], Covered]:
        """All documents by name, and whether these are all."""

        def work(stop: Stop) -> tuple[list[Listed], Covered]:
            covered = self._sync(stop, report)
            rows = self._db.execute("SELECT name, title, size, lines, problem FROM files ORDER BY name")
            return [Listed(*row) for row in rows], covered

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

    async def _do(self, work: Callable[[Stop], T]) -> T:
        """Run ``work`` on the index's thread; a cancelled caller makes it stop, also amid a file."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="documents")
        loop = asyncio.get_running_loop()
        stop = Stop(loop)
        try:
            return await loop.run_in_executor(self._thread, work, stop)
        finally:
            stop.set()

    # --- on the index's thread ------------------------------------------------------------------------------

    @property
    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(":memory:", check_same_thread=False)
            self._database.executescript(_SCHEMA)
        return self._database

    def _sync(self, stop: Stop, report: Report | None) -> Covered:
        """Take in new and changed files, forget gone ones."""
        known = dict(self._db.execute("SELECT name, version FROM files").fetchall())
        found: dict[str, Found] = {}
        more = False
        for file in self._roots.walk():
            if len(found) >= MAX_FILES:
                more = True
                break
            found[file.name] = file
        for name in known.keys() - found.keys():
            self._forget(name)
        stale = [f for f in found.values() if known.get(f.name) != repr(f.version)]
        stale.sort(key=lambda file: file.name.lower().endswith(_SLOW))
        deadline = time.monotonic() + self._take_in_s
        done = 0
        for done, file in enumerate(stale):
            if stop.is_set() or (done and time.monotonic() > deadline):
                break
            if report is not None:
                report(done, len(stale))
            document = self._read(file, stop)
            if document is None:
                break
            self._forget(file.name)
            self._take_in(file, *document)
        else:
            done = len(stale)
        self._db.commit()
        return Covered(len(found) - (len(stale) - done), len(stale) - done, more)

    def _forget(self, name: str) -> None:
        row = self._db.execute("SELECT id, title FROM files WHERE name = ?", (name,)).fetchone()
        if row is None:
            return
        file, title = row
        for passage, body in self._db.execute("SELECT id, body FROM passages WHERE file = ?", (file,)):
            # an index without its content forgets what it is told that it has
            self._db.execute(
                "INSERT INTO chunks (chunks, rowid, words, title, pairs) VALUES ('delete', ?, ?, ?, ?)",
                (passage, *_indexed(body, title)),
            )
        self._db.execute("DELETE FROM passages WHERE file = ?", (file,))
        self._db.execute("DELETE FROM files WHERE id = ?", (file,))

    def _read(self, found: Found, stop: Stop) -> tuple[str, str, str | None] | None:
        """Title, text and why there is none; ``None`` if the caller left meanwhile."""
        try:
            data = self._roots.read(found)
            kind = kind_of(found.name, data[:8192])
            if kind is None:
                return "", "", _NO_TEXT
            extracted = stop.result(self._reader.read(data, kind))
        except UnreadableError as e:
            return "", "", str(e)
        except OSError as e:
            return "", "", e.strerror or "it changed meanwhile"
        except CancelledError:
            return None
        except Exception as e:  # noqa: BLE001 - one odd file costs none of the others
            return "", "", f"it is broken ({type(e).__name__})"
        return extracted.title, extracted.text, None

    def _take_in(self, found: Found, title: str, text: str, problem: str | None) -> None:
        title = title or found.name.rpartition("/")[2]
        lines = text.split("\n")
        row = (found.name, repr(found.version), title, found.size, len(lines), problem)
        cursor = self._db.execute(
            "INSERT INTO files (name, version, title, size, lines, problem) VALUES (?, ?, ?, ?, ?, ?)", row
        )
        file = cursor.lastrowid
        for first, last, body in _chunks(lines):
            passage = (file, first, last, body)
            cursor.execute("INSERT INTO passages (file, first, last, body) VALUES (?, ?, ?, ?)", passage)
            values = (cursor.lastrowid, *_indexed(body, title))
            cursor.execute("INSERT INTO chunks (rowid, words, title, pairs) VALUES (?, ?, ?, ?)", values)

    def _unreadable(self) -> dict[str, Any]:
        bad = "FROM files WHERE problem IS NOT NULL AND problem != ?"
        (count,) = self._db.execute(f"SELECT count(*) {bad}", (_NO_TEXT,)).fetchone()
        rows = self._db.execute(f"SELECT name, problem {bad} ORDER BY name LIMIT 3", (_NO_TEXT,))
        return {"unreadable": count, "such_as": tuple(f"{name} ({why})" for name, why in rows)}

    def _search(self, query: str, limit: int) -> list[Hit]:
        terms = _terms(query)
        if not terms:
            return []
        every = " AND ".join(f'"{" ".join(parts)}"' + " *" * prefix for parts, prefix in terms)
        some = " OR ".join(f'"{part}"' + " *" * prefix for parts, prefix in terms for part in parts)
        for match in dict.fromkeys((every, some)):
            rows = self._db.execute(
                _HITS + "JOIN chunks ON chunks.rowid = p.id WHERE chunks MATCH ?"
                " ORDER BY bm25(chunks, 1.0, 2.0, 1.0) LIMIT ?",
                (match, limit),
            ).fetchall()
            if rows:
                return [Hit(*row) for row in rows]
        # parts of words
        pattern = "%" + query.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = self._db.execute(
            _HITS + "WHERE p.body LIKE ? ESCAPE '\\' LIMIT ?",
            (pattern, limit),
        ).fetchall()
        return [Hit(*row) for row in rows]


def _folded(text: str) -> str:
    """As it is compared: without case, width, accents and points; what looks alike is written alike."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", _MARKS.sub("", unicodedata.normalize("NFKD", text.casefold())))


def _indexed(body: str, title: str) -> tuple[str, str, str]:
    """A passage as words, its title, and the pairs of both."""
    body, title = _folded(body), _folded(title)
    pairs = (
        "" if body.isascii() and title.isascii() else " ".join(_pairs(_LINE_END.sub("", f"{title} {body}")))
    )
    return _SPACELESS.sub(" ", body), _SPACELESS.sub(" ", title), pairs


def _terms(query: str) -> list[tuple[list[str], bool]]:
    """The words of a query, and the pairs of each of its runs without spaces, which must stand together;
    whether the term may be the beginning of a longer one."""
    text = _folded(query)
    terms: list[tuple[list[str], bool]] = [
        ([word], False) for word in _WORD.findall(_SPACELESS.sub(" ", text))
    ]
    for run in _SPACELESS.findall(text):
        pairs = _pairs(run)
        terms.append((pairs if len(run) == 1 else pairs[:-1], len(run) == 1))
    return list({tuple(parts): (parts, prefix) for parts, prefix in terms}.values())[:MAX_WORDS]


def _pairs(text: str) -> list[str]:
    """Each two neighbours in the runs of scripts without spaces, and each run's last character alone, so that
    one character is the beginning of some pair wherever it stands."""
    found: list[str] = []
    for run in _SPACELESS.findall(text):
        found += [run[at : at + 2] for at in range(len(run))]
    return found


def _chunks(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """Passages of some lines each, broken at headings; (first line, last line, text)."""
    start, size = 0, 0
    for i, line in enumerate(lines):
        if len(line) > CHUNK_CHARACTERS:  # passages of its own
            if i > start:
                yield start + 1, i, "\n".join(lines[start:i])
            for at in range(0, len(line), CHUNK_CHARACTERS):
                yield i + 1, i + 1, line[max(0, at - _OVERLAP) : at + CHUNK_CHARACTERS]
            start, size = i + 1, 0
            continue
        heading = line.startswith("#") and i - start >= 4
        if i > start and (heading or i - start >= CHUNK_LINES or size + len(line) > CHUNK_CHARACTERS):
            yield start + 1, i, "\n".join(lines[start:i])
            start, size = i, 0
        size += len(line) + 1
    if any(line.strip() for line in lines[start:]):
        yield start + 1, len(lines), "\n".join(lines[start:])

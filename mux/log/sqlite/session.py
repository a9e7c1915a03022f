"""What the sqlite store's writer works on: the connection, and what is remembered of the logs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mux._failpoints import failpoint
from mux.errors import StoreError
from mux.events import Record
from mux.log import chunks
from mux.log.protocols import Head, check_append, run_not_found
from mux.log.sqlite.schema import SEQ_BITS, SEQ_MASK

__all__ = ["SWEEP", "LogState", "Session", "newest"]

_MAX_STATES = 10_000  # logs whose state is remembered
SWEEP = 2000  # chunks deleted at a time: appends wait that long at most
_VACUUM = 500  # pages given back at a time, likewise
_PAGE = 4096
_INSERT = "INSERT INTO chunks (id, data) VALUES (?, ?)"


@dataclass(slots=True)
class LogState:
    """Where a log stands, as the writer knows it. ``size`` is unknown after a restart."""

    id: int
    fence: int
    epoch: int
    first: int
    head: int
    size: int | None

    def at(self) -> Head:
        return Head(self.epoch, self.first, self.head)


class Session:
    """The write connection and what is remembered of the logs; used by whoever holds the writer's lock.

    Args:
        db: the connection. It never waits for a lock and never checkpoints by itself: the writer does both.
        busy_s: seconds to wait for a lock that another program holds on the file.
    """

    def __init__(self, db: sqlite3.Connection, *, busy_s: float = 0.0) -> None:
        db.execute("PRAGMA busy_timeout = 0")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        self.db = db
        self.busy_s = busy_s
        self.pages = 0  # in the WAL since the last checkpoint, about
        self._states: dict[str, LogState] = {}
        self._pending: dict[int, list[Record]] = {}
        self._reading: sqlite3.Cursor | None = None
        self.trash: list[int] = [row[0] for row in db.execute("SELECT id FROM trash")]
        self._spare = False  # free pages in the file, after a sweep
        self._thrown: list[int] = []  # into the trash, by jobs that are not committed yet

    def state(self, run: str) -> LogState:
        """Where the run's log stands. Raises NotFound."""
        state = self._states.get(run)
        if state is None:
            row = self.db.execute(
                "SELECT l.id, l.fence, l.epoch, l.first, l.head FROM runs r JOIN logs l USING (id) "
                "WHERE r.run = ?",
                (run,),
            ).fetchone()
            if row is None:
                raise run_not_found(run)
            log, fence_now, epoch, first, head = row
            state = LogState(log, fence_now, epoch, first, max(head, newest(self.db, log)), None)
            self.remember(run, state)
        return state

    def knows(self, run: str) -> bool:
        """Whether the run's state is at hand, without reading the file."""
        return run in self._states

    def remember(self, run: str, state: LogState) -> None:
        if len(self._states) >= _MAX_STATES and not self._pending:
            self._states.clear()
        self._states[run] = state

    def forget(self, run: str) -> None:
        self._states.pop(run, None)

    def append(self, run: str, fence: int, records: Sequence[Record]) -> Head:
        """Take a batch into the group; `flush` writes it."""
        state = self.state(run)
        check_append(run, state.fence, state.head, fence, records)
        if records:
            if records[-1].seq > SEQ_MASK:
                raise StoreError("store_failed", f"Run {run!r} has more events than a log can hold.")
            self._pending.setdefault(state.id, []).extend(records)
            state.head = records[-1].seq
            if state.size is not None:
                state.size += sum([len(r.data) for r in records])
        return state.at()

    def flush(self) -> bool:
        """Write the batches taken; returns whether there were any."""
        if not self._pending:
            return False
        failpoint("append.before")
        pending, self._pending = self._pending, {}
        rows = list(_rows(pending))
        if len(rows) == 1:
            self.db.execute(_INSERT, rows[0])
        else:
            self.db.executemany(_INSERT, rows)
        self.pages += sum([len(data) // _PAGE + 1 for _, data in rows])
        return True

    def flush_at_once(self) -> None:
        """Write the batches taken, and commit them: outside of a transaction."""
        several = len(self._pending) > 1 or any(len(p) > 1 for p in self._pending.values())
        if several:
            self.db.execute("BEGIN IMMEDIATE")
        self.flush()
        if several:
            self.db.execute("COMMIT")

    def hold(self) -> None:
        """Keep the file's read lock until `let_go`: while one statement reads, another that writes makes two
        system calls for locks and not six, which is a quarter of a small append (9 of 12 µs; 28 of 41 once
        in a millisecond, with cold caches).

        Nobody can begin the WAL anew meanwhile, and what writes after another program has written is refused.
        """
        if self._reading is None:
            self._reading = self.db.execute("SELECT 1 FROM meta")  # of whose rows it takes the first

    def let_go(self) -> None:
        """Let the read lock go; idempotent."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def checkpoint(self) -> None:
        """Bring the WAL into the file, and begin it anew: both sync, the second in a commit of its own."""
        self.let_go()
        self.pages = 0
        self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self.db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('checkpoint', strftime('%s'))")

    def throw_away(self, run: str, log: int) -> None:
        """Have a log's chunks deleted, later and little by little: there may be a million."""
        self.db.execute("INSERT INTO trash (id) VALUES (?)", (log,))
        self._pending.pop(log, None)
        self._thrown.append(log)
        self.forget(run)

    def committed(self) -> None:
        """What the group did is durable."""
        self.trash += self._thrown
        self._thrown.clear()

    def rolled_back(self) -> None:
        """Forget what the database does not know."""
        self.let_go()
        self._states.clear()
        self._pending.clear()
        self._thrown.clear()

    def sweep(self) -> None:
        """Delete some chunks of a log that is in the trash, and give some free pages back."""
        self.let_go()
        if self.trash:
            self._sweep_log(self.trash[-1])
        # Not `execute`: Python would take one step of it, which is one page.
        self.db.executescript(f"PRAGMA incremental_vacuum({_VACUUM})")
        self._spare = self.db.execute("PRAGMA freelist_count").fetchone() != (0,)

    def _sweep_log(self, log: int) -> None:
        failpoint("retention.sweep")
        gone = self.db.execute(
            "DELETE FROM chunks WHERE id IN (SELECT id FROM chunks WHERE id > ? AND id <= ? LIMIT ?)",
            (log << SEQ_BITS, (log << SEQ_BITS) + SEQ_MASK, SWEEP),
        ).rowcount
        if gone < SWEEP:
            self.db.execute("DELETE FROM trash WHERE id = ?", (log,))
            self.trash.pop()

    def unswept(self) -> bool:
        """Whether there is something to sweep."""
        return self._spare or bool(self.trash)

    def leave_unswept(self) -> None:
        """Leave it to the next start."""
        self._spare = False
        self.trash.clear()


def newest(db: sqlite3.Connection, log: int) -> int:
    """The last seq of a log's newest chunk, 0 if it has none."""
    base = log << SEQ_BITS
    row = db.execute(
        "SELECT id FROM chunks WHERE id > ? AND id <= ? ORDER BY id DESC LIMIT 1", (base, base + SEQ_MASK)
    ).fetchone()
    return row[0] - base if row else 0


def _rows(pending: dict[int, list[Record]]) -> Iterable[tuple[int, bytes]]:
    for log, records in pending.items():
        for part in chunks.split(records):
            yield (log << SEQ_BITS) + part[-1].seq, chunks.encode(part)

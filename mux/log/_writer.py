"""The one thread that writes to the sqlite file, and its group commits.

Jobs that arrive while a commit runs are committed together by the next; a job that finds the thread idle is
committed at once. So latency is one commit's when there is little to do, and under load the commits (with
``durability=full`` each an fsync) are shared by all runs.

A job is a function of the `Session`. It raises what it refuses before it writes anything. When the database
itself fails (disk full, locked, damaged), the whole group is rolled back and refused; when one job's values
are to blame, the others are done again without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from mux._failpoints import failpoint
from mux.errors import MuxError, StoreError
from mux.events import Record
from mux.log import _chunks
from mux.log._common import check_append, run_not_found
from mux.log._schema import SEQ_BITS, SEQ_MASK, store_error
from mux.log.base import Head
from mux.telemetry import get_logger

__all__ = ["SWEEP", "LogState", "Session", "Writer"]

R = TypeVar("R")

_MAX_GROUP = 1024  # jobs of one commit
_MAX_STATES = 10_000  # logs whose state is remembered
SWEEP = 2000  # chunks deleted at a time: appends wait that long at most
_ONE_JOBS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
_VACUUM = 500  # pages given back at a time, likewise
_SWEEP_EVERY = 32  # groups after which a busy thread sweeps all the same


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
    """The write connection and what is remembered of the logs; used by the writer's thread alone."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._states: dict[str, LogState] = {}
        self._pending: dict[int, list[Record]] = {}
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
        self.db.executemany("INSERT INTO chunks (id, data) VALUES (?, ?)", list(_rows(pending)))
        return True

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
        self._states.clear()
        self._pending.clear()
        self._thrown.clear()

    def sweep(self) -> None:
        """Delete some chunks of a log that is in the trash, and give some free pages back."""
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
        for part in _chunks.split(records):
            yield (log << SEQ_BITS) + part[-1].seq, _chunks.encode(part)


class _Job(Generic[R]):
    __slots__ = ("done", "error", "future", "result", "work")

    def __init__(
        self, work: Callable[[Session], R], future: asyncio.Future[R], done: Callable[[R], None] | None
    ) -> None:
        self.work = work
        self.future = future
        self.done = done
        self.result: R | None = None
        self.error: BaseException | None = None

    def deliver(self) -> None:
        """On the loop: tell the store first (also if the caller was cancelled), then the caller."""
        if self.error is None and self.done is not None:
            self.done(self.result)  # type: ignore[arg-type]  # set wherever there is no error
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


class Writer:
    """Owns the write connection and its thread.

    Args:
        path: the file, for messages.
        opening: makes the session, on the thread; what it raises is raised by `start`.
        closing: last work on the session before its connection is closed.
    """

    def __init__(
        self, path: Path, opening: Callable[[], Session], closing: Callable[[Session], None]
    ) -> None:
        self._path = path
        self._opening = opening
        self._closing = closing
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Open the file. Raises StoreError."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._stopped = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="mux-log-writer", daemon=True)
        self._thread.start()
        await opened

    async def stop(self) -> None:
        """Commit what was submitted, close the file and end the thread; idempotent."""
        thread, self._thread = self._thread, None
        if thread is None or self._stopped is None:
            return
        self._jobs.put(None)
        await self._stopped
        await asyncio.to_thread(thread.join)

    def submit(
        self, work: Callable[[Session], R], done: Callable[[R], None] | None = None
    ) -> asyncio.Future[R]:
        """Have a job done and committed; ``done`` is called with its result on the loop, before the future
        is set, even if nobody waits for that any more.

        Raises:
            StoreError: ``store_failed``: the store is not open.
        """
        if self._thread is None or self._loop is None:
            raise StoreError("store_failed", f"The store {self._path} is not open.")
        future: asyncio.Future[R] = self._loop.create_future()
        self._jobs.put(_Job(work, future, done))
        return future

    # --- on the thread --------------------------------------------------------------------------------------

    def _run(self, opened: asyncio.Future[None]) -> None:
        try:
            session = self._opening()
        except (sqlite3.Error, OSError) as e:
            self._tell(_fail, [opened, self._stopped], store_error(e, self._path))
            return
        except Exception as e:  # noqa: BLE001 - whoever opens the store is told, whatever it is
            self._tell(_fail, [opened, self._stopped], e)
            return
        self._tell(_succeed, opened)
        groups = 0
        while group := self._take(session, groups):
            groups += 1
            self._commit(session, group)
            self._tell(_deliver, group)
        try:
            self._closing(session)
        except sqlite3.Error as e:
            get_logger().warning("store_close_failed", path=str(self._path), error=str(e))
        finally:
            session.db.close()
            self._tell(_succeed, self._stopped)

    def _take(self, session: Session, groups: int) -> list[_Job[Any]]:
        """Wait for work (sweeping meanwhile) and take all there is; empty when it is time to stop."""
        if session.unswept() and groups % _SWEEP_EVERY == 0:
            self._sweep(session)
        while session.unswept() and self._jobs.empty():
            self._sweep(session)
        job = self._jobs.get()
        group: list[_Job[Any]] = []
        try:
            while job is not None:
                group.append(job)
                if len(group) >= _MAX_GROUP:
                    return group
                job = self._jobs.get_nowait()
        except Empty:
            return group
        if group:
            self._jobs.put(None)  # stop after this group
        return group

    def _sweep(self, session: Session) -> None:
        try:
            session.sweep()
        except sqlite3.Error as e:  # the rest goes at the next start; nothing waits for it
            get_logger().warning("store_sweep_failed", path=str(self._path), error=str(e))
            session.leave_unswept()

    def _commit(self, session: Session, group: list[_Job[Any]]) -> None:
        try:
            session.db.execute("BEGIN IMMEDIATE")
            for job in group:
                try:
                    job.result, job.error = job.work(session), None
                except MuxError as e:
                    job.error = e
            appended = session.flush()
            session.db.execute("COMMIT")
        except sqlite3.Error as e:
            self._roll_back(session)
            self._refuse(session, group, store_error(e, self._path), alone=isinstance(e, _ONE_JOBS))
        except Exception as e:  # noqa: BLE001 - a defect of one job must not end the thread of all
            self._roll_back(session)
            self._refuse(session, group, e, alone=True)
        else:
            session.committed()
            if appended:
                failpoint("append.after")

    def _refuse(self, session: Session, group: list[_Job[Any]], error: Exception, *, alone: bool) -> None:
        """Nothing of the group was kept. Where one job is to blame, the others are done without it."""
        if alone and len(group) > 1:
            for job in group:
                self._commit(session, [job])
            return
        for job in group:
            job.error = job.error or error

    def _roll_back(self, session: Session) -> None:
        session.rolled_back()
        if session.db.in_transaction:  # a full disk has rolled back by itself
            with contextlib.suppress(sqlite3.Error):  # the next BEGIN says what is wrong
                session.db.execute("ROLLBACK")

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop was closed without closing the store: nobody is left to tell
            get_logger().warning("store_not_closed", path=str(self._path))


def _deliver(group: list[_Job[Any]]) -> None:
    for job in group:
        job.deliver()


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(futures: list[asyncio.Future[None]], error: BaseException) -> None:
    opened, stopped = futures
    if not opened.done():
        opened.set_exception(error)
    _succeed(stopped)

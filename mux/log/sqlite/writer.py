"""The one thread that writes to the sqlite file, and its group commits.

Jobs that arrive while a commit runs are committed together by the next; a job that finds the thread idle is
committed at once. So latency is one commit's when there is little to do, and under load the commits (with
``durability=full`` each an fsync) are shared by all runs.

Without ``durability=full`` a commit is a write to the page cache (40 µs), and the way to the thread and back
costs more than that. So a small append that finds nobody else at work is done where it is asked for
(`Writer.append_now`), on the same connection. Whatever syncs the file (checkpoints, the first
commit after one) stays on the thread.

A job is a function of the `Session`. It raises what it refuses before it writes anything. When the database
itself fails (disk full, locked, damaged), the whole group is rolled back and refused; when one job's values
are to blame, the others are done again without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from mux._failpoints import failpoint
from mux.errors import MuxError, StoreError
from mux.events import Record
from mux.log.protocols import Head
from mux.log.sqlite.schema import store_error
from mux.log.sqlite.session import Session
from mux.telemetry import get_logger

__all__ = ["Writer"]

R = TypeVar("R")

_MAX_GROUP = 1024  # jobs of one commit
_ONE_JOBS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
_SWEEP_EVERY = 32  # groups after which a busy thread sweeps all the same
_CHECKPOINT = 4000  # pages in the WAL, 16 MiB; estimated, which its size on disk does not tell
_JOB_PAGES = 4  # that the smallest commit writes
_SHARE = 4  # commits on the caller's thread take at most a fifth of its time,
_CREDIT_S = 0.002  # but for this much ahead: two words may come at once (a sixth of 800 appends a second did)
_STALLED_S = 0.02  # one that took longer waited for the disk: leave the next ones to the thread
_STALL_PAUSE_S = 1.0
_HELD_S = 0.25  # the read lock is kept after the last append: another program's checkpoint waits no longer
_RETRY_S = 0.005  # between two looks at a lock that another program holds


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
        synced: every commit is synced, so none may run on the caller's thread.
    """

    def __init__(
        self,
        path: Path,
        opening: Callable[[], Session],
        closing: Callable[[Session], None],
        *,
        synced: bool = False,
    ) -> None:
        self._path = path
        self._opening = opening
        self._closing = closing
        self._synced = synced
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._submitted = 0  # jobs that were submitted and not delivered, counted on the loop
        self._lock = threading.Lock()  # who holds it has the session
        self._session: Session | None = None
        self._not_before = 0.0
        self._appended = 0.0  # when the last one was committed on the caller's thread
        self._letting_go: asyncio.TimerHandle | None = None
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
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
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
        self._submitted += 1
        self._jobs.put(_Job(work, future, done))
        return future

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[Head | MuxError] | None:
        """Append and commit small batches on the loop's thread, if nobody else is at work: 50 µs for one,
        against 106 by way of the thread. They never overtake a job submitted before.

        Blocking is bounded: no fsync, no read, no wait for a lock, and at most a fifth of the time, of which
        it may be a little ahead.

        Args:
            batches: run, fence and records of each.

        Returns:
            For each where its log stands then, or why `Session.append` refused it; ``None`` when nothing was
            done: `submit` them.
        """
        session, begun = self._session, time.monotonic()
        if self._synced or self._submitted or session is None or self._thread is None:
            return None
        if begun < self._not_before or session.pages >= _CHECKPOINT or not self._lock.acquire(blocking=False):
            return None
        try:
            if not all(session.knows(run) for run, _, _ in batches):
                return None
            session.hold()
            outcomes = [_append(session, *batch) for batch in batches]
            session.flush_at_once()
            self._committed(session, jobs=0)  # what it wrote is counted: one chunk's pages
        except sqlite3.Error:  # the thread waits for locks, and knows what failures mean
            self._roll_back(session)
            return None
        except BaseException:
            self._roll_back(session)
            raise
        finally:
            self._lock.release()
            now = self._appended = time.monotonic()
            if self._letting_go is None and self._loop is not None:
                self._letting_go = self._loop.call_later(_HELD_S, self._let_go)
            if now - begun > _STALLED_S:
                self._not_before = now + _STALL_PAUSE_S
            else:
                self._not_before = max(self._not_before, begun - _CREDIT_S) + (1 + _SHARE) * (now - begun)
        return outcomes

    def _let_go(self) -> None:
        """Nobody appends any more: another program may begin the WAL anew, or empty it. (While somebody does,
        its checkpoint takes the write lock first, and the next append makes way.)"""
        self._letting_go = None
        assert self._loop is not None
        left = self._appended + _HELD_S - time.monotonic()
        if left > 0:
            self._letting_go = self._loop.call_later(left, self._let_go)
        elif self._lock.acquire(blocking=False):  # else the thread has let go to do its work
            try:
                if self._session is not None:
                    self._session.let_go()
            finally:
                self._lock.release()

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
        self._session = session
        self._tell(_succeed, opened)
        groups = 0
        while group := self._take(session, groups):
            groups += 1
            with self._lock:
                self._commit(session, group)
            self._tell(self._deliver, group)
        self._session = None
        try:
            self._closing(session)
        except sqlite3.Error as e:
            get_logger().warning("store_close_failed", path=str(self._path), error=str(e))
        finally:
            session.db.close()
            self._tell(_succeed, self._stopped)

    def _deliver(self, group: list[_Job[Any]]) -> None:
        self._submitted -= len(group)
        for job in group:
            job.deliver()

    def _take(self, session: Session, groups: int) -> list[_Job[Any]]:
        """Wait for work (sweeping meanwhile) and take all there is; empty when it is time to stop."""
        if session.pages >= _CHECKPOINT:
            self._checkpoint(session)
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

    def _checkpoint(self, session: Session) -> None:
        with self._lock:
            try:
                session.checkpoint()
            except sqlite3.Error as e:  # the WAL grows a little more; the next one tries again
                get_logger().warning("store_checkpoint_failed", path=str(self._path), error=str(e))

    def _sweep(self, session: Session) -> None:
        with self._lock:
            try:
                session.sweep()
            except sqlite3.Error as e:  # the rest goes at the next start; nothing waits for it
                get_logger().warning("store_sweep_failed", path=str(self._path), error=str(e))
                session.leave_unswept()

    def _commit(self, session: Session, group: list[_Job[Any]]) -> None:
        try:
            self._begin(session)
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
            self._committed(session, jobs=len(group), appended=appended)

    def _begin(self, session: Session) -> None:
        """Begin to write, as soon as no other program does. Raises sqlite3.Error after ``busy_s``."""
        session.let_go()
        deadline = time.monotonic() + session.busy_s
        while True:
            try:
                session.db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S)

    def _committed(self, session: Session, *, jobs: int, appended: bool = True) -> None:
        session.committed()
        session.pages += _JOB_PAGES * jobs
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


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(futures: list[asyncio.Future[None]], error: BaseException) -> None:
    opened, stopped = futures
    if not opened.done():
        opened.set_exception(error)
    _succeed(stopped)


def _append(session: Session, run: str, fence: int, records: Sequence[Record]) -> Head | MuxError:
    try:
        return session.append(run, fence, records)
    except MuxError as e:
        return e

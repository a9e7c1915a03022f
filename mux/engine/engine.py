"""The engine: owns every task of every run, from admission to the last event."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from functools import partial
from typing import Any, Final

from mux._failpoints import failpoint
from mux.engine._tasks import kept, uncut
from mux.engine.admission import Admission
from mux.engine.archive import Archive
from mux.engine.base import COME_BACK_S, Started
from mux.engine.control import Controls
from mux.engine.driver import Driver, run_started
from mux.engine.history import summary_of
from mux.engine.intake import check_id, guards, message_of, read_metadata, read_plan, shown
from mux.engine.journal import Clock, Publish
from mux.engine.live import LiveRun
from mux.engine.plan import Plan, RosterLike, make_plan, new_id, title_of
from mux.engine.recovery import restore
from mux.engine.services import GuardFor, Services
from mux.errors import BadRequest, Conflict, Fenced, MuxError, NotFound, StoreError, Unavailable
from mux.log.protocols import Idempotency, RunQuery, RunRow, Store
from mux.requests import StartRequest
from mux.settings import Settings
from mux.telemetry import get_logger

__all__ = ["Engine"]

_TAKE_OVER_DELAYS_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)  # the last is repeated while the store is broken
_TOGETHER: Final = 16  # runs that are taken over at once


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Engine(Controls, Archive):
    """Starts, drives, controls and remembers runs. All its errors are `MuxError`.

    Args:
        settings: limits and defaults.
        store: where runs are kept; opened and closed by whoever made it.
        roster: the agents.
        guard_for: makes the guardrails of one channel.
        publish: shows a run's appended records to viewers; must not block or raise.
        clock: ms since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        roster: RosterLike,
        *,
        guard_for: GuardFor,
        publish: Publish,
        clock: Clock = now_ms,
    ) -> None:
        owner = f"{socket.gethostname()}-{os.getpid()}"
        super().__init__(Services(settings, store, roster, guard_for, publish, clock, owner, get_logger()))
        self._admission = Admission(settings.limits.max_runs, settings.limits.max_queue)
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}  # of live runs: (owner, key) → hash, run
        self._starting: dict[tuple[str, str], tuple[str, asyncio.Task[Started]]] = {}  # by owner and key
        self._background: set[asyncio.Task[Any]] = set()
        self.accepting = False
        self._draining = False

    # --- lifecycle ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take unfinished runs over, then accept new ones. The store must be open."""
        rows = await self.store.unfinished()
        for start in range(0, len(rows), _TOGETHER):
            # Read together, so that their commits are shared; admitted in the order in which they came.
            some = rows[start : start + _TOGETHER]
            restored = await asyncio.gather(*map(self._restored, some), return_exceptions=True)
            for row, live in zip(some, restored, strict=True):
                if isinstance(live, LiveRun):
                    self._adopt(live)
                elif isinstance(live, StoreError):
                    self._in_background(self._retry_take_over(row.run))
                elif live is not None:
                    raise live
        if rows:
            self._log.info("unfinished runs taken over", runs=len(rows))
        retention = self.settings.retention
        if retention.max_age_days or retention.max_runs or retention.max_mb:
            self._in_background(self._retention())
        self.accepting = True

    async def drain(self, grace_s: float) -> None:
        """Refuse new runs and let the running ones finish; what is left after the grace is for recovery.

        Args:
            grace_s: seconds. Runs that wait for a slot are not started any more.
        """
        self.accepting = False
        self._draining = True
        self._admission.pause()
        for live in self._live.values():
            live.presence.close()  # its viewers were told to come back; that nobody watches now is our doing
        tasks = [t for run, t in self._tasks.items() if self._admission.position(run) is None]
        if tasks and grace_s > 0:
            await asyncio.wait(tasks, timeout=grace_s)
        left = [run for run, t in self._tasks.items() if not t.done()]
        if left:
            self._log.info("runs are left for recovery", runs=len(left))

    async def close(self) -> None:
        """Stop everything at once. Unfinished runs get no last event: they are taken over later."""
        self.accepting = False
        for live in self._live.values():
            live.journal.abandon()
        tasks = [*self._tasks.values(), *self._background]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def stats(self) -> dict[str, Any]:
        """Numbers for operations."""
        channels = [c for live in self._live.values() for c in live.channels.values()]
        return {
            **self._admission.statistics(),
            "accepting": self.accepting,
            "channels": sum(c.started and not c.ended.is_set() for c in channels),
            "viewers": sum(live.presence.viewers for live in self._live.values()),
        }

    def _queue_position(self, run: str) -> int | None:
        return self._admission.position(run)

    # --- starting -----------------------------------------------------------------------------------------

    async def start_run(
        self, request: StartRequest, *, owner: str = "local", key: str | None = None, streaming: bool = False
    ) -> Started:
        """Start a run. When this returns, the run survives a crash of the process (on a durable store).

        Args:
            owner: whose run it is.
            key: idempotency key; the same request with it gives the same run.
            streaming: the request itself streams: then ``on_disconnect`` is a grace by default.

        Raises:
            BadRequest, NotFound: the request can't be used; nothing was started.
            Conflict: ``idempotency_conflict``.
            Overloaded: ``too_many_runs``.
            Unavailable: ``draining``.
            StoreError: the run could not be kept.
        """
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        if key is None:
            return await self._start(request, owner, None, digest, streaming)
        while (first := self._starting.get((owner, key))) is not None:  # it needs no slot of its own
            await asyncio.wait([first[1]])
            if not first[1].cancelled() and first[1].exception() is None:
                _check_digest(first[0], digest)
                return Started(first[1].result().row, created=False)
        task = kept(self._start(request, owner, key, digest, streaming))
        self._starting[owner, key] = (digest, task)
        task.add_done_callback(lambda _: self._starting.pop((owner, key)))
        return await asyncio.shield(task)

    async def _start(
        self, request: StartRequest, owner: str, key: str | None, digest: str, streaming: bool
    ) -> Started:
        if key is not None and (known := self._keys.get((owner, key))) is not None:
            _check_digest(known[0], digest)
            return Started(await self.row(known[1]), created=False)
        if not self.accepting:
            raise Unavailable("draining", "The server is stopping; try again in a moment.", retry_after=2.0)
        last = await self._last_of_thread(request.thread, owner)
        plan = make_plan(
            request,
            self.services.roster,
            last=last,
            default_agents=self.settings.default_agents,
            max_channels=self.settings.limits.max_channels,
            streaming=streaming,
        )
        await self._check_inputs(plan, owner)
        thread = request.thread or new_id("t")
        idempotency = None
        if key is not None:
            expires = self.services.clock() + round(self.settings.limits.idempotency_s * 1000)
            idempotency = Idempotency(owner, key, digest, expires)
        return await self._launch(plan, owner, thread, request.title, dict(request.metadata), idempotency)

    async def _last_of_thread(self, thread: str | None, owner: str) -> RunRow | None:
        if thread is None:
            return None
        page = await self.store.list(RunQuery(thread=thread, limit=1))
        if not page.runs:
            return None
        if page.runs[0].owner != owner:
            raise NotFound("thread_not_found", f"There is no thread {thread!r}.")
        return page.runs[0]

    async def _check_inputs(self, plan: Plan, owner: str) -> None:
        for name in {i for c in plan.channels for i in c.inputs if "/" in i}:
            try:
                await self.row(name.partition("/")[0], owner=owner)
            except NotFound:
                raise BadRequest(
                    "input_unknown", f"inputs names {name!r}, but there is no such run."
                ) from None

    async def _launch(
        self,
        plan: Plan,
        owner: str,
        thread: str,
        title: str | None,
        metadata: dict[str, Any],
        idempotency: Idempotency | None = None,
    ) -> Started:
        """Start a planned run; a caller that goes away does not leave it half started."""
        if not self.accepting:
            raise Unavailable("draining", "The server is stopping; try again in a moment.", retry_after=2.0)
        run, now = new_id("r"), self.services.clock()
        guard_of, agents = guards(self.services, run), tuple(dict.fromkeys(c.agent for c in plan.channels))
        await check_id("thread's id", thread, agents, guard_of)
        plan = await read_plan(plan, guard_of)
        message = await shown(message_of(plan), agents, guard_of)
        title = await shown(title, agents, guard_of) or title_of(message)
        metadata = await read_metadata(metadata, agents, guard_of)
        self._admission.check()
        self._admission.enter(run)
        row = RunRow(
            run=run, thread=thread, owner=owner, status="queued", created=now, updated=now,
            request=plan.dump(), title=title, metadata=metadata, message=message, agents=agents,
        )  # fmt: skip
        return await uncut(self._begin(row, plan, idempotency))

    async def _begin(self, row: RunRow, plan: Plan, idempotency: Idempotency | None) -> Started:
        run = row.run
        try:
            kept = await self.store.create(row, idempotency)
            if kept.run != run:
                self._admission.leave(run)
                return Started(kept, created=False)
        except BaseException:
            self._admission.leave(run)
            raise
        failpoint("accept.after")
        live = LiveRun(self.services, kept, plan, self._foreign_output)
        try:
            await live.journal.open(self.services.owner)
            await live.journal.write([(None, run_started(live))])
        except BaseException:
            self._admission.leave(run)
            await self._take_back(run)
            raise
        if idempotency is not None:
            self._keys[idempotency.owner, idempotency.key] = (idempotency.body_hash, run)
        self._drive(live)
        return Started(live.row, created=True)

    async def _take_back(self, run: str) -> None:
        """The start failed and its caller is told so: the run must not begin by itself later."""
        try:
            await self.store.delete(run)
        except MuxError as e:
            self._log.warning("run was kept but could not be started", run=run, code=e.code)
            self._in_background(self._retry_take_over(run))

    # --- driving ------------------------------------------------------------------------------------------

    def _drive(self, live: LiveRun) -> None:
        self._live[live.run] = live
        live.on_finished = partial(self._admission.leave, live.run)  # also if it still waits for a slot
        driver = Driver(live)
        self._tasks[live.run] = asyncio.get_running_loop().create_task(
            self._run(live, driver), name=f"run-{live.run}"
        )

    async def _run(self, live: LiveRun, driver: Driver) -> None:
        """The task of one run: the failure boundary around its driver."""
        run = live.run
        lost: Exception | None = None
        try:
            await self._admission.admitted(run)
            if live.state.finished is None:
                live.row = await self.store.update(run, status="running")
                await driver.drive()
            await self._finish_row(live)
        except Fenced:
            live.log.warning("another process took the run over")
        except Exception as e:
            lost = e
            live.log.exception("run can't go on; it will be taken over")
        finally:
            await self._forget(live)
        if lost is not None:
            self._in_background(self._retry_take_over(run))

    async def _finish_row(self, live: LiveRun) -> None:
        state = live.state
        assert state.finished is not None
        live.row = await self.store.update(
            live.run,
            status=state.finished.status,
            finished=state.last_ts,
            summary=summary_of(state, live.journal.epoch),
        )
        live.log.info("run finished", status=state.finished.status, duration_ms=state.finished.duration_ms)

    async def _forget(self, live: LiveRun) -> None:
        live.journal.abandon()
        await live.release()
        self._admission.leave(live.run)
        self._keys = {k: v for k, v in self._keys.items() if v[1] != live.run}
        self._live.pop(live.run, None)
        self._tasks.pop(live.run, None)
        live.ended.set()

    # --- recovery -----------------------------------------------------------------------------------------

    async def _restored(self, row: RunRow) -> LiveRun | None:
        """A run that nobody drives, ready to go on; ``None`` if it is damaged, and given up.

        Raises:
            StoreError: it is to be tried again later.
        """
        try:
            plan = Plan.model_validate(row.request)
            live = LiveRun(self.services, row, plan, self._foreign_output)
            await restore(live, self._folder)
        except StoreError as e:
            self._log.error("run can't be taken over", run=row.run, code=e.code)
            raise
        except (MuxError, ValueError) as e:
            self._log.error(
                "run can't be taken over: its log or request is damaged", run=row.run, error=str(e)
            )
            await self._give_up(row)
            return None
        return live

    def _adopt(self, live: LiveRun) -> None:
        """Drive a restored run."""
        self._admission.enter(live.run)
        self._drive(live)
        live.presence.viewers = self._viewers[live.run]
        if not self._draining:
            live.presence.arm(COME_BACK_S)

    async def _give_up(self, row: RunRow) -> None:
        try:
            await self.store.update(row.run, status="failed", finished=self.services.clock())
        except MuxError as e:
            self._log.error("run can't be marked as failed", run=row.run, code=e.code)

    async def _retry_take_over(self, run: str) -> None:
        """The store failed under a run: take it over again as soon as it works."""
        attempt = 0
        while True:
            await asyncio.sleep(_TAKE_OVER_DELAYS_S[min(attempt, len(_TAKE_OVER_DELAYS_S) - 1)])
            attempt += 1
            try:
                row = await self.store.get(run)
                live = await self._restored(row) if row.finished is None else None
            except NotFound:
                return
            except MuxError:
                continue
            if live is not None:
                self._adopt(live)
            return


def _check_digest(known: str, digest: str) -> None:
    if known != digest:
        raise Conflict("idempotency_conflict", "This idempotency key was used with another request.")

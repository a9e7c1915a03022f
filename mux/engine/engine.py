"""The engine: accepts runs and answers for them (front), drives them (worker), remembers them (archive)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, Literal

from mux.clock import Clock, now_ms, steady
from mux.engine.archive import Archive
from mux.engine.front import NO_LIMITS, Front, Started
from mux.engine.multiplexer import Publish
from mux.engine.plan import RosterLike
from mux.engine.site import GuardFor, Site, Times
from mux.engine.stored import Stored
from mux.engine.tasks import Tasks
from mux.engine.worker import Worker
from mux.errors import Conflict
from mux.log.protocols import FINAL, RunPage, RunQuery, RunRow, Store
from mux.metrics import Metrics
from mux.requests import (
    AddChannel,
    ApprovalAnswer,
    CancelMode,
    KeyLimits,
    PatchRun,
    StartRequest,
    SteerRequest,
)
from mux.settings import Settings
from mux.telemetry import get_logger

__all__ = ["Engine", "Role", "Started"]

Role = Literal["all", "api", "worker"]
_DELETE_WAIT_S: Final = 5.0
_LOOK_S: Final = 0.05


class Engine:
    """Starts, drives, controls and remembers runs. All its errors are `MuxError`.

    Args:
        settings: limits and defaults.
        store: where runs are kept; opened and closed by whoever made it.
        roster: the agents.
        guard_for: makes the guardrails of one channel.
        publish: shows a run's appended records to viewers; must not block or raise.
        clock: ms since the epoch; by default each run's is steady while the run lasts.
        times: waits that are no user's to set.
        role: ``api`` drives no runs, ``worker`` accepts none, ``all`` does both.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        roster: RosterLike,
        *,
        guard_for: GuardFor,
        publish: Publish,
        clock: Clock | None = None,
        role: Role = "all",
        times: Times | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}"
        run_clock: Callable[[], Clock] = steady if clock is None else lambda: clock
        site = Site(
            settings,
            store,
            roster,
            guard_for,
            clock or now_ms,
            run_clock,
            name,
            times or Times(),
            metrics or Metrics(),
            get_logger(),
        )
        stored = Stored(store)
        self.archive = Archive(site, stored)
        self.worker = Worker(site, stored, publish)
        self.front = Front(site, stored, self.archive, self.worker, publish)
        self.store = store
        self.settings = settings
        self.role = role
        self._tasks = Tasks()

    # --- lifecycle ----------------------------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """Whether new runs are accepted."""
        return self.front.accepting

    def unready(self) -> str | None:
        """Why this process does not do its part now; ``None`` if it does."""
        if self.role != "worker" and not self.accepting:
            return "not accepting runs: starting, or shutting down"
        if self.role != "api" and not self.worker.taking:
            return "not taking runs from the queue: starting, shutting down, or its worker has failed"
        return None

    async def start(self) -> None:
        """Take unfinished runs over, then accept new ones. The store must be open."""
        if self.role == "api":
            self.worker.multiplexer.start()
        else:
            await self.worker.start()
        keep = self.settings.retention
        if self.role != "api" and (keep.max_age_days or keep.max_runs or keep.max_mb):
            self._tasks.spawn(self.archive.retention())
        self.front.accepting = self.role != "worker"

    async def drain(self, grace_s: float) -> None:
        """Refuse new runs and let the running ones finish; what is left after the grace is for recovery.

        Args:
            grace_s: seconds. Runs that wait for a place are not started any more.
        """
        self.front.accepting = False
        self.worker.pause()
        await self.worker.drained(grace_s)

    async def close(self) -> None:
        """Stop everything at once. Unfinished runs get no last event: they are taken over later."""
        self.front.accepting = False
        await self._tasks.close()
        await self.front.close()
        await self.worker.close()

    async def stats(self) -> dict[str, Any]:
        """Numbers for operations; ``queued`` counts the runs of all processes on the store."""
        queued = await self.store.queue.waiting()
        return {**self.worker.statistics(), "queued": queued, "accepting": self.accepting}

    # --- starting -----------------------------------------------------------------------------------------

    async def start_run(
        self,
        request: StartRequest,
        *,
        owner: str = "local",
        key: str | None = None,
        streaming: bool = False,
        agents: Sequence[str] | None = None,
        limits: KeyLimits = NO_LIMITS,
    ) -> Started:
        """Start a run. When this returns, the run survives a crash of the process (on a durable store).

        Args:
            owner: whose run it is.
            key: idempotency key; the same request with it gives the same run.
            streaming: the request itself streams: then ``on_disconnect`` is a grace by default.
            agents: those that it may use; ``None`` = all.
            limits: of whoever asks, beside the server's own.

        Raises:
            BadRequest, NotFound: the request can't be used; nothing was started.
            Conflict: ``idempotency_conflict``.
            Overloaded: ``too_many_runs``; ``key_limit`` with the limit's name.
            Unavailable: ``draining``.
            StoreError: the run could not be kept.
        """
        return await self.front.start_run(
            request, owner=owner, key=key, streaming=streaming, agents=agents, limits=limits
        )

    # --- what callers do to a running run -------------------------------------------------------------------
    # Every method raises NotFound for unknown runs and channels, and Unavailable ``worker_unreachable`` when
    # whoever drives the run does not answer in time; the command is applied all the same, when it can be.

    async def cancel(self, run: str, mode: CancelMode = "now") -> None:
        """Cancel a run; one that is finished already stays as it is.

        Args:
            mode: ``graceful`` lets each channel's step end; ``now`` closes streams and stops tools.
        """
        await self.front.cancel(run, mode)

    async def cancel_channel(self, run: str, channel: str, mode: CancelMode = "now") -> None:
        """Cancel one channel; one that is done already stays as it is."""
        await self.front.cancel(run, mode, channel)

    async def add_channel(self, run: str, spec: AddChannel) -> str:
        """Add a channel to a running run; returns its id. Raises Conflict ``run_finished``."""
        return await self.front.add_channel(run, spec)

    async def retry(
        self, run: str, channel: str, model: str | None = None, *, limits: KeyLimits = NO_LIMITS
    ) -> tuple[str, str]:
        """Do a channel again: beside the old one in a running run, else in a new run on the thread.

        One that still runs goes on: to compare, for example with another model.

        Args:
            model: another model for it.
            limits: of whoever asks, where it is a new run.

        Returns:
            Run and channel of the new attempt.

        Raises:
            Conflict: ``run_imported``: it holds no request.
        """
        return await self.front.retry(run, channel, model, limits)

    async def steer(self, run: str, channel: str, request: SteerRequest) -> str:
        """Send a message to a running channel; it is logged before this returns its id.

        Raises:
            Conflict: ``channel_finished``, ``channel_not_started``, ``run_finished``.
            BadRequest: ``message_blocked`` by a guardrail on input.
            Overloaded: ``too_many_messages`` wait already.
        """
        return await self.front.steer(run, channel, request)

    async def answer(
        self, run: str, call_id: str, answer: ApprovalAnswer, by: str = "local"
    ) -> dict[str, Any]:
        """Decide about a call that waits for a person; logged before this returns.

        Raises:
            NotFound: ``call_not_found``.
            Conflict: ``approval_decided`` (the winner is in ``extra``), ``approval_closed``.
            BadRequest: ``arguments_missing`` for an edit; ``answer_blocked`` by a guardrail.
        """
        return await self.front.answer(run, call_id, answer, by)

    def viewer_joined(self, run: str, *, observe: bool = False) -> None:
        """A viewer opened a stream; observers don't count."""
        if not observe:
            self.front.viewer_joined(run)

    def viewer_left(self, run: str, *, observe: bool = False, sent_away: bool = False) -> None:
        """The viewer is gone, however it went.

        Args:
            sent_away: by the server, which told it to come back: it gets the time for that.
        """
        if not observe:
            self.front.viewer_left(run, sent_away=sent_away)

    # --- what is kept ---------------------------------------------------------------------------------------

    async def row(self, run: str, *, owner: str | None = None) -> RunRow:
        """The run's row. Raises NotFound ``run_not_found``, also for another owner's run."""
        return await self.archive.row(run, owner=owner)

    async def snapshot(self, run: str, *, owner: str | None = None) -> dict[str, Any]:
        """The run as DESIGN section 5 shows it. Raises NotFound ``run_not_found``."""
        out = await self.archive.snapshot(run, owner=owner)
        if (drive := self.worker.drive(run)) is not None and drive.lost_by is not None:
            out["problem"] = {"code": drive.lost_by.code, "message": drive.lost_by.message}
        return out

    async def wait(self, run: str, timeout_s: float) -> bool:
        """Wait until a run has ended, and its row says so; whether it has. Raises NotFound."""
        try:
            async with asyncio.timeout(timeout_s):
                while (await self.row(run)).status not in FINAL:
                    if (drive := self.worker.drive(run)) is not None:
                        await drive.over.wait()
                    else:
                        await self.store.wait(run, (await self.store.head(run)).head, _LOOK_S)
        except TimeoutError:
            return False
        return True

    async def list_runs(self, query: RunQuery) -> RunPage:
        """A page of runs, newest first; those that are not over with their present status."""
        return await self.archive.list_runs(query)

    def summary(self, row: RunRow) -> dict[str, Any]:
        """A row as JSON for lists."""
        return self.archive.summary(row)

    async def patch(self, run: str, request: PatchRun) -> dict[str, Any]:
        """See `Archive.patch`."""
        return await self.archive.patch(run, request)

    async def delete(self, run: str) -> None:
        """Forget a run; one that is not over is cancelled first."""
        await self.row(run)
        with contextlib.suppress(Conflict):  # it is over
            await self.front.cancel(run, "now")
        await self.wait(run, _DELETE_WAIT_S)
        await self.archive.delete(run)

    def export(self, run: str) -> AsyncIterator[bytes]:
        """See `Archive.export`."""
        return self.archive.export(run)

    async def import_run(self, lines: Iterable[bytes] | AsyncIterable[bytes], *, owner: str = "local") -> str:
        """See `Archive.import_run`."""
        return await self.archive.import_run(lines, owner=owner)

    async def usage(self, owner: str) -> dict[str, Any]:
        """See `Archive.usage`."""
        return await self.archive.usage(owner)

    async def check_usage(self, owner: str, limits: KeyLimits) -> None:
        """See `Archive.check_usage`."""
        await self.archive.check_usage(owner, limits)

    async def expire(self) -> list[str]:
        """See `Archive.expire`."""
        return await self.archive.expire()

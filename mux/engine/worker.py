"""The half of the engine that drives runs: takes them from the queue as far as its places allow, claims each,
drives it to its end, and applies the commands that arrive for it.

It meets the other half (`mux.engine.front`) only in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mux.engine.commands import decode, encode_answer, encode_refusal
from mux.engine.drive import Drive
from mux.engine.multiplexer import Multiplexer, Publish
from mux.engine.plan import plan_of
from mux.engine.recovery import count_tries, recover
from mux.engine.site import Site
from mux.engine.stored import Stored
from mux.engine.tasks import Tasks
from mux.errors import Fenced, MuxError, NotFound, StoreError
from mux.log.protocols import FINAL, RunRow
from mux.run import RunState

__all__ = ["Worker"]

_LOOK_S: Final = 5.0  # between two looks at the queue, whatever was offered
_AT_ONCE: Final = 16  # runs that are claimed at once


class Worker:
    """See the module.

    Args:
        site: the server.
        stored: reads runs.
        publish: shows a run's appended records to viewers here; must not block or raise.
    """

    def __init__(self, site: Site, stored: Stored, publish: Publish) -> None:
        self.multiplexer = Multiplexer(site.store, publish, appended=site.metrics.appended)
        self._publish = publish
        self._site = site
        self._stored = stored
        self._drives: dict[str, Drive] = {}
        self._busy: set[str] = set()  # runs that have a place
        self._failed: dict[str, int] = {}  # how often in a row the store failed them
        self._taking: asyncio.Task[None] | None = None
        self._claiming = asyncio.Semaphore(_AT_ONCE)
        self._tasks = Tasks()
        self._closed = False
        self._wake = asyncio.Event()

    # --- lifecycle ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Offer what is unfinished, and begin to take runs. The store must be open."""
        store = self._site.store
        store.queue.on_lost(self._lose_all)
        store.queue.on_offered(self._wake.set)
        self.multiplexer.start()
        rows = await store.unfinished()
        for row in rows:
            await store.queue.offer(row.run, row.owner)
        if rows:
            self._site.log.info("unfinished runs are taken over", runs=len(rows))
            runs = await store.queue.take(self._site.name, self._site.settings.limits.max_runs)
            self._busy.update(runs)
            await asyncio.gather(*map(self._drive, runs))
        self._taking = asyncio.get_running_loop().create_task(self._take(), name="worker")

    def pause(self) -> None:
        """Take no more runs (drain)."""
        if self._taking is not None:
            self._taking.cancel()
        for drive in self._drives.values():
            drive.presence.close()  # its viewers were told to come back; that nobody watches now is our doing

    async def drained(self, grace_s: float) -> None:
        """Wait until the runs that are driven have ended, for so long at most."""
        if self._drives and grace_s > 0:
            ends = [asyncio.ensure_future(d.over.wait()) for d in self._drives.values()]
            await asyncio.wait(ends, timeout=grace_s)
            for end in ends:
                end.cancel()
        if self._drives:
            self._site.log.info("runs are left for recovery", runs=len(self._drives))

    async def close(self) -> None:
        """Stop everything at once. Unfinished runs get no last event: others take them over, or this one
        later."""
        self._closed = True
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
        drives = list(self._drives.values())
        for drive in drives:
            await drive.close()
        await self.multiplexer.stop()
        await self._tasks.close()
        for run in {*self._busy, *self._drives}:  # also those that were taken and not claimed yet
            try:
                await self._site.store.queue.give_back(run, self._site.name)
            except MuxError as e:  # its lease ends by itself
                self._site.log.debug("run not given back", run=run, code=e.code)
        self._busy.clear()
        self._drives.clear()

    def _lose_all(self) -> None:
        """The lease ended while this process was away: all runs went to others."""
        for run, drive in list(self._drives.items()):
            drive.lost(Fenced("fenced", f"Another process took run {run!r} over.", retryable=False))

    # --- reading --------------------------------------------------------------------------------------------

    def drive(self, run: str) -> Drive | None:
        """The run, if it is driven here."""
        return self._drives.get(run)

    @property
    def room(self) -> int:
        """How many runs more it may take."""
        taking = self._taking is not None and not self._taking.done()
        return max(0, self._site.settings.limits.max_runs - len(self._busy)) if taking else 0

    def statistics(self) -> dict[str, int]:
        """Numbers for operations."""
        drives = self._drives.values()
        return {
            "running": len(self._busy),
            "channels": sum(
                c.done is None and c.at != "announced"
                for d in drives
                for c in d.machine.state.channels.values()
            ),
            "viewers": sum(d.presence.viewers for d in drives),
        }

    @property
    def taking(self) -> bool:
        """Whether it takes work."""
        return self._taking is not None and not self._taking.done()

    # --- taking ---------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        queue = self._site.store.queue
        while True:
            self._wake.clear()
            try:
                runs = await queue.take(self._site.name, self.room) if self.room else []
            except MuxError as e:
                self._site.log.warning("no runs can be taken", code=e.code)
                await asyncio.sleep(self._site.times.again[0])
                continue
            for run in runs:
                self._busy.add(run)
                self._tasks.spawn(self._drive(run))
            if runs and self.room:
                continue
            timer = asyncio.get_running_loop().call_later(_LOOK_S, self._wake.set)
            await self._wake.wait()
            timer.cancel()

    async def _drive(self, run: str) -> None:
        """Claim a run that was taken, and let it begin."""
        drive: Drive | None = None
        try:
            async with self._claiming:
                row = await self._site.store.get(run)
                if row.status not in FINAL:
                    drive = await self.claim(row)
        except NotFound:
            pass
        except StoreError as e:
            if isinstance(e, Fenced):
                await self._free(run, finished=False)
                return
            if e.code != "log_damaged":
                self._site.log.exception("run can't be taken over", run=run, code=e.code)
                self._tasks.spawn(self._try_later(run))
                return
            await self._give_up(run, e)
        except (MuxError, ValueError) as e:
            await self._give_up(run, e)
        if drive is None:
            await self._free(run, finished=True)
            return
        if drive.machine.state.finished is not None:  # only the row was not told
            drive.finish_row()
            return
        await self._site.store.commands.receive(run, self._deliver(drive))
        drive.begin()

    async def _give_up(self, run: str, error: Exception) -> None:
        self._site.log.error(
            "run can't be taken over: its log or request is damaged", run=run, error=str(error)
        )
        try:
            await self._site.store.update(run, status="failed", finished=self._site.clock())
        except MuxError as e:
            self._site.log.exception("run can't be marked as failed", run=run, code=e.code)

    async def claim(self, row: RunRow) -> Drive:
        """Make a run this process's, and write what must be written before it goes on.

        Raises:
            NotFound, StoreError: it can't be claimed or read.
            Conflict, IllegalEvent: its request or log is not one of ours.
        """
        site, run = self._site, row.run
        plan = plan_of(row)
        fence = await site.store.claim(run, site.name)
        at = await site.store.head(run)
        state = RunState(run)
        async for record, _ in self._stored.records(run):
            state.apply(record.event())
        begun = any(c.at != "announced" for c in state.channels.values())
        tries = 1
        if begun and state.finished is None:
            counted = count_tries(state, row.summary, site.clock())
            tries = counted["tries"]
            row = await site.store.update(run, summary={**row.summary, "taken_over": counted})
        drive = Drive(
            site, row, plan, state=state, fence=fence, at=at, multiplexer=self.multiplexer,
            stored=self._stored, owner=self,
        )  # fmt: skip
        resuming: list[str] = []
        if state.finished is None:
            if state.started is None:
                drive.machine.write(None, plan.start_event(row.thread, row.message, row.metadata))
            resuming = recover(
                drive.machine, site.roster, tries=tries, most=site.times.tries, now=drive.clock()
            )
        drive.join(resuming=resuming)
        self._drives[run] = drive
        self.multiplexer.flush(run)
        await self.multiplexer.wait_appended(run)
        return drive

    def leave(self, drive: Drive) -> None:
        """A run that was claimed for one change waits for a place as before, unless that change ended it."""
        if drive.machine.state.finished is None and self._drives.get(drive.run) is drive:
            del self._drives[drive.run]
            self._tasks.spawn(drive.close())

    def _deliver(self, drive: Drive) -> Callable[[str, bytes], None]:
        return lambda command, payload: self._command(drive, command, payload)

    def _command(self, drive: Drive, command: str, payload: bytes) -> None:
        self._tasks.spawn(self._apply(drive, command, payload))

    async def _apply(self, drive: Drive, command: str, payload: bytes) -> None:
        try:
            answer = encode_answer(await drive.apply(command, decode(payload)))
        except Fenced:
            return  # another process has the run, and the command with it
        except MuxError as e:
            answer = encode_refusal(e)
        except Exception:
            self._site.log.exception("command failed", run=drive.run)  # and whoever asked hears of it
            answer = encode_refusal(StoreError("command_failed", "The server failed at that; see its log."))
        if drive.over.is_set() and drive.lost_by is not None:
            return
        try:
            await self._site.store.commands.answer(drive.run, command, answer)
        except MuxError as e:
            self._site.log.warning("command not answered", run=drive.run, code=e.code)

    # --- the end of a drive ---------------------------------------------------------------------------------

    def freed(self, drive: Drive) -> None:
        """See `Owner`."""
        self._busy.discard(drive.run)
        self._wake.set()

    def over(self, drive: Drive, error: MuxError | None) -> None:
        """See `Owner`."""
        if self._drives.get(drive.run) is not drive or self._closed:
            return  # it was claimed again here: the run's place is that claim's
        del self._drives[drive.run]
        if error is None:
            self._failed.pop(drive.run, None)
            self._tasks.spawn(self._free(drive.run, finished=True))
        elif isinstance(error, Fenced):
            self._site.log.warning("another process took the run over", run=drive.run)
            self._tasks.spawn(self._free(drive.run, finished=False))
        elif isinstance(error, NotFound):
            self._site.log.warning("run is gone from the store", run=drive.run)
            self._publish(drive.run, None, ())
            self._tasks.spawn(self._free(drive.run, finished=True))
        else:
            self._publish(drive.run, None, ())
            self._site.log.error("run can't go on; it will be taken over", run=drive.run, code=error.code)
            self._tasks.spawn(self._try_later(drive.run))

    async def _free(self, run: str, *, finished: bool) -> None:
        self._busy.discard(run)
        self._wake.set()
        await self._site.store.commands.stop_receiving(run)
        if not finished:
            return
        try:
            await self._site.store.queue.finish(run, self._site.name)
        except MuxError as e:  # a sweep finds it finished
            self._site.log.warning("run not taken out of the queue", run=run, code=e.code)

    async def _try_later(self, run: str) -> None:
        """The store failed under a run: it is taken again as soon as it works."""
        await self._site.store.commands.stop_receiving(run)
        failed = self._failed[run] = self._failed.get(run, 0) + 1
        again = self._site.times.again
        await asyncio.sleep(again[min(failed, len(again)) - 1])
        self._busy.discard(run)
        while True:
            try:
                await self._site.store.queue.give_back(run, self._site.name)
            except MuxError:
                await asyncio.sleep(self._site.times.again[0])
            else:
                break
        self._wake.set()

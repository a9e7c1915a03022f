"""The data path of a process: the channels of all its runs → one merge → one group commit → viewers.

What it runs is a pipeline of aiostream: the merge's batches, mapped to the runs that they moved, with the
commit as an action on each. The batch is what came in one turn of the loop, or in a tick of a few
milliseconds when many channels are live; each run takes its part, all their records are appended in one
commit, and then they are published and their actions carried out.

A run whose records can't be appended at once (the store waits for a disk, for another machine, or refuses
it) leaves the batch and waits alone: its channels' items are put by, and after some of them its channels are
held back; the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from mux._failpoints import failpoint
from mux.engine.channel import AHEAD, Item
from mux.engine.run import Action, Run, Turn
from mux.errors import Fenced, MuxError, StoreError
from mux.events import Record
from mux.log.protocols import Head, Store
from mux.merge import END, Batch, Failed, Merger, Port, Through, pipeline
from mux.telemetry import get_logger

__all__ = ["Driven", "Multiplexer", "Publish"]

Key: TypeAlias = tuple[str, str]  # run, channel
Publish: TypeAlias = Callable[[str, Head | None, Sequence[Record]], None]

# A cancelled agent has twice this to clean up, then its channel ends without it: freed within a second.
_STOP_S: Final = 0.45
_TICK_S: Final = 0.004
_PUT_BY: Final = 2 * AHEAD  # items of a waiting run's channels; then they are held back
# A full disk or a locked file may pass; agents are held back meanwhile. About 8 s in all.
_RETRY_DELAYS_S: Final = (0.1, 0.4, 1.0, 2.0, 4.0)
_FAILPOINTS: Final = {"tool_start": "tool.start.after", "tool_result": "tool.result.after"}


class Driven(Protocol):
    """A run as the multiplexer drives it."""

    @property
    def machine(self) -> Run:
        """The run itself."""

    @property
    def fence(self) -> int:
        """Under which it is appended to."""

    @property
    def at(self) -> Head:
        """Where its log stood when it was claimed."""

    def ended(self, channel: str, failure: BaseException | None) -> None:
        """A channel's source has ended; to be told to the run."""

    async def keep(self, channels: Sequence[str]) -> None:
        """Keep the conversations of channels whose ``done`` is about to be appended. Never raises."""

    def perform(self, action: Action) -> None:
        """Carry an action out; what it leads to is appended next."""

    def lost(self, error: MuxError) -> None:
        """Nothing of it can be appended any more."""


class _Place:
    """A run's place in the multiplexer."""

    __slots__ = ("appending", "driven", "lost", "put_by")

    def __init__(self, driven: Driven) -> None:
        self.driven = driven
        self.appending: asyncio.Future[None] | None = None  # its records are on their way
        self.put_by: list[tuple[str, Any]] = []
        self.lost: MuxError | None = None


class Multiplexer:
    """See the module.

    Args:
        store: where records are appended.
        publish: called with what was appended; without a head when a run was lost, so that its viewers look
            for themselves. Must not block or raise.
        appended: told how many seconds each append took.
        through: puts operators between the merge and the runs.
    """

    def __init__(
        self,
        store: Store,
        publish: Publish,
        *,
        appended: Callable[[float], None] = lambda _: None,
        through: Through[Key, Item] | None = None,
    ) -> None:
        self._appended_in = appended
        self._store = store
        self._publish = publish
        self._through = through
        self._merger: Merger[Key, Item] = Merger(
            max_buffer=AHEAD, bundled=str, stop_s=_STOP_S, tick_s=_TICK_S
        )
        self._places: dict[str, _Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._consumer: asyncio.Task[None] | None = None

    # --- lifecycle ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to consume."""
        self._consumer = asyncio.get_running_loop().create_task(self._consume(), name="multiplexer")

    async def stop(self) -> None:
        """Stop every channel, and wait for that; nothing is appended any more."""
        for place in self._places.values():
            place.lost = place.lost or Fenced("run_left", "This run was left for another process.")
        consumer, self._consumer = self._consumer, None
        await self._merger.aclose()
        if consumer is not None:
            await asyncio.gather(consumer, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _consume(self) -> None:
        stream = pipeline(self._merger, self._take, self._commit, through=self._through)
        async with stream.stream() as turns:
            async for _ in turns:
                pass

    # --- runs and channels ----------------------------------------------------------------------------------

    def join(self, driven: Driven) -> None:
        """A run's records are appended here from now on; another claim on it, if there was one, is lost."""
        run = driven.machine.run
        if (other := self._places.get(run)) is not None:
            other.lost = other.lost or Fenced("fenced", f"Run {run!r} was claimed again.", retryable=False)
            other.driven.lost(other.lost)
        self._places[run] = _Place(driven)

    def leave(self, driven: Driven) -> None:
        """Nothing of a run is appended any more, and its channels are stopped; idempotent."""
        run = driven.machine.run
        place = self._places.get(run)
        if place is None or place.driven is not driven:
            return
        del self._places[run]
        if place.driven.machine.state.finished is None or place.appending is not None:
            place.lost = place.lost or Fenced("run_left", "This run was left for another process.")
        for channel in place.driven.machine.channels:
            self._merger.cancel((run, channel))

    def add(self, run: str, channel: str, source: AsyncIterator[Item]) -> Port[Item]:
        """Begin to read a channel; see `Merger.add`."""
        return self._merger.add((run, channel), source)

    def cancel(self, run: str, channel: str) -> None:
        """Stop a channel; its end is reported like any other."""
        self._merger.cancel((run, channel))

    def flush(self, run: str) -> None:
        """A run was changed from beside its channels: append what that came to."""
        self._commit([] if (place := self._places.get(run)) is None else [place])

    async def wait_appended(self, run: str) -> None:
        """Wait until nothing of a run is on its way. Raises what the run was lost by."""
        place = self._places.get(run)
        while place is not None and place.appending is not None:
            await asyncio.wait([place.appending])
        if place is not None and place.lost is not None:
            raise place.lost

    # --- the pipeline ---------------------------------------------------------------------------------------

    def _take(self, batch: Batch[Key, Item]) -> list[_Place]:
        """Give each run its part; the runs that it moved."""
        moved: dict[_Place, None] = {}
        for (run, channel), item in batch:
            place = self._places.get(run)
            if place is None:
                continue
            if place.appending is not None:
                self._put_by(place, channel, item)
                continue
            self._give(place, channel, item)
            moved[place] = None
        return list(moved)

    def _give(self, place: _Place, channel: str, item: Any) -> None:
        if place.lost is not None:
            return
        try:
            if item is END or isinstance(item, Failed):
                place.driven.ended(channel, item.error if isinstance(item, Failed) else None)
            else:
                place.driven.machine.take(channel, item)
        except Exception as e:  # noqa: BLE001 - a defect in one run must not end the others
            self._defect(place, e)

    def _put_by(self, place: _Place, channel: str, item: Any) -> None:
        place.put_by.append((channel, item))
        if len(place.put_by) == _PUT_BY:
            for port in self._ports(place):
                port.hold()

    def _ports(self, place: _Place) -> Iterable[Port[Item]]:
        run = place.driven.machine
        ports = (self._merger.port((run.run, channel)) for channel in run.channels)
        return [port for port in ports if port is not None]

    def _commit(self, moved: list[_Place]) -> None:
        """Append, publish and act, for all these runs together."""
        waiting = moved.copy()
        moved.clear()  # the pipeline holds its last item until the next one comes
        while waiting:
            together: list[tuple[_Place, Turn]] = []
            for place in waiting:
                if place.lost is not None or place.appending is not None or not place.driven.machine.dirty:
                    continue
                turn = place.driven.machine.flush()
                if turn.ended:
                    self._append_alone(place, turn)
                else:
                    together.append((place, turn))
            if not together:
                return
            batches = [_batch(place, turn) for place, turn in together if turn.records]
            began = time.perf_counter()
            outcomes = self._store.append_now(batches) if batches else ()
            if outcomes is None:
                self._append_later(together)
                return
            self._appended_in(time.perf_counter() - began)
            errors = iter(outcomes)
            for place, turn in together:
                self._settle(place, turn, next(errors) if turn.records else None)
            waiting = [place for place, _ in together if place.driven.machine.dirty]

    def _append_alone(self, place: _Place, turn: Turn) -> None:
        self._append_later([(place, turn)])

    def _append_later(self, together: Sequence[tuple[_Place, Turn]]) -> None:
        loop = asyncio.get_running_loop()
        for place, _ in together:
            place.appending = loop.create_future()
        task = loop.create_task(self._append(together))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _append(self, together: Sequence[tuple[_Place, Turn]]) -> None:
        """Append for these runs, waiting for the store; what it refuses for the time being is tried again."""
        for place, turn in together:
            if turn.ended:
                await place.driven.keep(turn.ended)
        batches = [_batch(place, turn) for place, turn in together if turn.records]
        began = time.perf_counter()
        try:
            errors = iter(await self._store.append_many(batches) if batches else ())
        except Exception as e:  # noqa: BLE001 - whatever a store raises, each of its runs is told
            failure = e if isinstance(e, MuxError) else StoreError("store_failed", f"{type(e).__name__}.")
            errors = iter([failure] * len(batches))
        else:
            self._appended_in(time.perf_counter() - began)
        for place, turn in together:
            error = next(errors) if turn.records else None
            if _passes(error):
                self._settle(place, turn, error)
            else:
                self._finish(place, turn, error)

    def _settle(self, place: _Place, turn: Turn, error: MuxError | None) -> None:
        """What became of one run's records; what was refused for the time being is tried again."""
        if not _passes(error):
            self._appended(place, turn, error)
            return
        loop = asyncio.get_running_loop()
        place.appending = place.appending or loop.create_future()
        task = loop.create_task(self._try_again(place, turn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_again(self, place: _Place, turn: Turn) -> None:
        error: MuxError | None = None
        for delay in _RETRY_DELAYS_S:
            await asyncio.sleep(delay)
            if place.lost is not None:
                break
            try:
                (error,) = await self._store.append_many([_batch(place, turn)])
            except MuxError as e:
                error = e
            if not _passes(error):
                break
        self._finish(place, turn, error)

    def _finish(self, place: _Place, turn: Turn, error: MuxError | None) -> None:
        """A run's records are no longer on their way: take what was put by meanwhile, and go on."""
        appending, place.appending = place.appending, None
        self._appended(place, turn, error)
        put_by, place.put_by = place.put_by, []
        for channel, item in put_by:
            self._give(place, channel, item)
        if len(put_by) >= _PUT_BY:
            for port in self._ports(place):
                port.release()
        self._commit([place])
        if appending is not None and not appending.done():
            appending.set_result(None)

    def _appended(self, place: _Place, turn: Turn, error: MuxError | None) -> None:
        driven = place.driven
        if error is not None:
            place.lost = place.lost or error
            driven.lost(error)
            return
        if place.lost is not None:
            return
        if turn.records:
            for record in turn.structural:
                if record.type in _FAILPOINTS:
                    failpoint(_FAILPOINTS[record.type])
            failpoint("notify.before")
            last = turn.records[-1].seq
            self._publish(driven.machine.run, Head(driven.at.epoch, driven.at.first, last), turn.records)
        for action in turn.actions:
            try:
                driven.perform(action)
            except Exception as e:  # noqa: BLE001 - as in `_give`
                self._defect(place, e)

    def _defect(self, place: _Place, error: Exception) -> None:
        get_logger(run=place.driven.machine.run).error("run failed", exc_info=error)
        defect = StoreError("run_failed", "The run met a defect of the server.", retryable=False)
        place.lost = place.lost or defect
        place.driven.lost(place.lost)


def _passes(error: MuxError | None) -> bool:
    """Whether a refusal may pass by itself."""
    return isinstance(error, StoreError) and error.retryable and not isinstance(error, Fenced)


def _batch(place: _Place, turn: Turn) -> tuple[str, int, Sequence[Record]]:
    return place.driven.machine.run, place.driven.fence, turn.records

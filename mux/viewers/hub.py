"""All open viewers of this process, and the bytes that they share.

`publish` is called by the engine after each append. It only puts the records into the run's ring and asks
for a flush, which writes one chunk per distinct filter to each live viewer. Flushing is adaptive: at once
when nothing happened lately; after a flush that took *d* the next one waits 12 *d*, at most 25 ms. So one
viewer has no delay to speak of, and a thousand cost a bounded share of the core (only coalescing beats the
system call).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence

from mux.errors import Overloaded, Unavailable
from mux.events import Record, RunFinished
from mux.log.protocols import EventLog, Head
from mux.telemetry import get_logger
from mux.viewers.encoder import Encoder
from mux.viewers.group import Group
from mux.viewers.history import History
from mux.viewers.positions import check, parse_vector, resolve
from mux.viewers.ring import DONE_EARLIER, Ring
from mux.viewers.selection import Selection
from mux.viewers.turns import Turns
from mux.viewers.viewer import Leg, Viewer

__all__ = ["Describe", "Hub"]

Describe = Callable[[str], Awaitable[dict[str, bool]]]

MAX_PAUSE_S = 0.025
PAUSE_FACTOR = 12  # writing takes at most a thirteenth of the loop: 4 ms of delay with 100 viewers of a run
MAX_UNFLUSHED = 256  # a burst is flushed before the ring forgets it
MAX_IDLE_RINGS = 256
MAX_A_TURN = 4  # viewers that open, or write a page of history, in the same turn of the loop
EVERYTHING = Selection()


class Hub:
    """The viewers of one process.

    Args:
        log: where histories are read from.
        describe: channel id → whether it is done, of any run; the default folds the log (slow on long runs).
        max_viewers: above this, `open` is refused.
        heartbeat_s: silence after which a viewer gets a heartbeat, in seconds.
        write_timeout_s: how long a full buffer may block before the viewer is dropped, in seconds.
        rotate_s: age at which a connection is rotated, in seconds; ``None`` = never.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        describe: Describe | None = None,
        max_viewers: int = 4000,
        heartbeat_s: float = 10.0,
        write_timeout_s: float = 15.0,
        rotate_s: float | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.history = History(log)
        self.turns = Turns(MAX_A_TURN)
        self.heartbeat_s = heartbeat_s
        self.write_timeout_s = write_timeout_s
        self.max_viewers = max_viewers
        self._rotate_s = rotate_s
        self._log = log
        self._describe = describe or self.history.channels
        self._rings: dict[str, Ring] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._viewers: dict[int, Viewer] = {}
        self._grouped: dict[Viewer, Group] = {}
        self._last_number = 0
        self._dirty: dict[Ring, None] = {}
        self._flush_handle: asyncio.Handle | None = None
        self._not_before = 0.0
        self._tick_handle: asyncio.TimerHandle | None = None
        self._draining = False
        self._unfollowing: set[asyncio.Task[None]] = set()
        self._logger = get_logger(part="viewers")

    # --- from the engine ---------------------------------------------------------------------------------

    def publish(self, run: str, head: Head | None, records: Sequence[Record]) -> None:
        """Show what was appended. Never raises, never waits.

        Args:
            run: the run's id.
            head: where its log stands; ``None``: it was deleted, rebuilt or lost, and its viewers are sent
                away, to come back and be told which.
            records: the batch, in order; what was shown before is ignored.
        """
        if head is None:
            self._reset(run)
            return
        if not records:
            return
        try:
            self._publish(run, head.epoch, records)
        except Exception:  # the engine's work must not end because showing it failed
            self._logger.exception("publish_failed", run=run)
            if (ring := self._rings.pop(run, None)) is not None:
                self._rotate_all(ring, "reset")

    def _publish(self, run: str, epoch: int, records: Sequence[Record]) -> None:
        ring = self._rings.get(run)
        if ring is not None and ring.epoch != epoch:
            self._rotate_all(ring, "epoch")
            ring = None
        if ring is None:
            ring = self._rings[run] = Ring(run, epoch, records[0].seq - 1)
        if not ring.add(records):
            return
        self._dirty[ring] = None
        if ring.final is not None:
            ring.wake_waiters()
        lowest = min((g.position for g in ring.groups.values()), default=ring.head)
        if ring.head - lowest >= MAX_UNFLUSHED:
            self._flush_ring(ring)
        self._ask_flush()

    def _reset(self, run: str) -> None:
        ring = self._rings.pop(run, None)
        self.history.forget(run)
        self._idle.pop(run, None)
        if ring is not None:
            self._rotate_all(ring, "reset")

    def forget(self, run: str) -> None:
        """The run was deleted: end its streams and drop what is kept of it."""
        self.history.forget(run)
        ring = self._rings.pop(run, None)
        self._idle.pop(run, None)
        if ring is not None:
            self._rotate_all(ring, "deleted")

    # --- opening -----------------------------------------------------------------------------------------

    async def open(
        self,
        runs: Sequence[str],
        after: str | None,
        encoder: Encoder,
        selection: Selection = EVERYTHING,
        *,
        vector: bool = False,
        observe: bool = False,
        owner: str = "local",
        holder: str | None = None,
    ) -> Viewer:
        """Open a viewer; the caller serves it and closes it.

        Args:
            runs: one run, or several (``vector``).
            after: the cursor as the client sent it (a vector of them for several runs).
            encoder: the wire format.
            selection: the filter.
            observe: does not count as a viewer whose leaving may cancel the run (kept for statistics).
            owner: whose it is.
            holder: the key that it was opened with.

        Raises:
            CursorError: the cursor can't be continued from.
            NotFound: ``run_not_found``.
            Overloaded: ``viewers_full``.
            Unavailable: ``draining``.
        """
        self._admit()
        named = parse_vector(after, runs) if vector else {}
        legs: list[Leg] = []
        self._last_number += 1
        viewer = Viewer(self, self._last_number, legs, encoder, selection, vector=vector, observe=observe)
        viewer.owner, viewer.holder = owner, holder
        self._viewers[viewer.number] = viewer
        try:
            for run in runs:
                ring, head = await self._hold(run)
                legs.append(Leg(ring, 0, set(selection.channels or ()) if selection.until_channels else None))
                if not vector:
                    legs[-1].pos = resolve(after, run, head)
                elif run in named:
                    legs[-1].pos = check(named[run], run, head)
                if legs[-1].pos + 1 < head.first:
                    ring.forget_records()  # trimmed behind our back: let the store say where it begins
            await viewer.prepare()
        except BaseException:
            viewer.close()
            raise
        self._keep_ticking()
        return viewer

    def _admit(self) -> None:
        if self._draining:
            raise Unavailable(
                "draining", "The server is shutting down. Try again in a moment.", retry_after=2
            )
        if len(self._viewers) >= self.max_viewers:
            raise Overloaded(
                "viewers_full",
                f"All {self.max_viewers} streams of this server are taken (limits.max_viewers).",
                retry_after=5,
            )

    async def _hold(self, run: str) -> tuple[Ring, Head]:
        """The run's ring, kept until `_drop`, and where its log stands, whichever of both knows more."""
        head = await self._log.head(run)
        ring = self._rings.get(run)
        if ring is not None and ring.epoch > head.epoch:  # it was shown since we asked
            head, ring = await self._log.head(run), self._rings.get(run)
        if ring is not None and ring.epoch != head.epoch:
            self._rotate_all(ring, "epoch")  # nothing will be shown there any more
            ring = None
        if ring is None:
            ring = self._rings[run] = Ring(run, head.epoch, head.head)
        ring.users += 1
        self._idle.pop(run, None)
        try:
            if ring.users == 1 and ring.final is None:
                await self._log.follow(run, self.publish)
            if not ring.learned:
                await self._learn(ring)
        except BaseException:
            self._drop(ring)
            raise
        return ring, Head(head.epoch, head.first, max(head.head, ring.head))

    def _drop(self, ring: Ring) -> None:
        ring.users -= 1
        self._retire(ring)
        if not ring.in_use:
            task = self.loop.create_task(self._unfollow(ring.run))
            self._unfollowing.add(task)
            task.add_done_callback(self._unfollowing.discard)

    async def _unfollow(self, run: str) -> None:
        ring = self._rings.get(run)
        if ring is None or not ring.in_use:  # nobody has come meanwhile
            await self._log.unfollow(run)

    async def _learn(self, ring: Ring) -> None:
        """Ask for what happened before this process saw the run."""
        for channel, done in (await self._describe(ring.run)).items():
            if ring.channels.get(channel) is None:
                ring.channels[channel] = DONE_EARLIER if done else None
        if ring.head and ring.final is None:
            page = await self._log.read(ring.run, ring.head - 1, limit=1)
            if page.records and page.records[-1].type == "run_finished":
                body = page.records[-1].event().body
                if isinstance(body, RunFinished):
                    ring.final = body.status
        ring.learned = True

    async def done_after(self, ring: Ring, pos: int, channels: set[str]) -> set[str]:
        """Which of these channels have their ``done`` after ``pos`` (they are known to have one)."""
        found: set[str] = set()
        while found != channels and pos < ring.head:
            records, _ = await self.history.after(ring.run, ring.epoch, pos)
            if not records:
                break
            pos = records[-1].seq
            found |= {r.channel for r in records if r.type == "done" and r.channel in channels and r.channel}
        return found

    async def wait_final(self, run: str, timeout_s: float) -> bool:
        """Wait until the run is finished; False when the time is over first. Raises NotFound, also when it is
        deleted meanwhile."""
        until = self.loop.time() + timeout_s
        while True:
            ring, _ = await self._hold(run)
            waiter: asyncio.Future[None] = self.loop.create_future()
            ring.waiters.add(waiter)
            try:
                if ring.final is not None:
                    return True
                async with asyncio.timeout_at(until):
                    await waiter  # finished; or this ring is shown nothing any more
            except TimeoutError:
                return False
            finally:
                ring.waiters.discard(waiter)
                self._drop(ring)

    # --- live groups -------------------------------------------------------------------------------------

    def join(self, viewer: Viewer) -> None:
        """Make a viewer that has read everything a live one; in one turn of the loop with that finding."""
        ring = viewer.legs[0].ring
        self._flush_ring(ring)
        key = (viewer.encoder, viewer.selection)
        group = ring.groups.get(key)
        if group is None:
            prefix = f"{ring.run}.{ring.epoch}.".encode()
            group = ring.groups[key] = Group(viewer.encoder, viewer.selection, prefix, ring.head)
            group.wrote_at = self.loop.time()
        group.members.add(viewer)
        self._grouped[viewer] = group

    def ungroup(self, viewer: Viewer) -> None:
        """Take a viewer out of its group, if it is in one."""
        group = self._grouped.pop(viewer, None)
        if group is None:
            return
        group.remove(viewer)
        key, groups = (group.encoder, group.selection), viewer.legs[0].ring.groups
        if not group.members and groups.get(key) is group:
            del groups[key]

    def position(self, viewer: Viewer, leg: Leg) -> int:
        """How far a viewer is (a live one is where its group is)."""
        group = self._grouped.get(viewer)
        return leg.pos if group is None or viewer not in group.members else group.position

    def release(self, viewer: Viewer) -> None:
        """Forget a viewer; idempotent."""
        self.ungroup(viewer)
        if self._viewers.pop(viewer.number, None) is not None:
            for leg in viewer.legs:
                self._drop(leg.ring)

    def _retire(self, ring: Ring) -> None:
        """Keep little of a run that nobody reads, and of few such runs."""
        if ring.in_use or self._rings.get(ring.run) is not ring or (ring.final is None and ring.kept):
            return
        ring.forget_records()
        self._idle[ring.run] = None
        self._idle.move_to_end(ring.run)
        while len(self._idle) > MAX_IDLE_RINGS:
            run, _ = self._idle.popitem(last=False)
            old = self._rings.get(run)
            if old is not None and not old.in_use:
                del self._rings[run]

    # --- flushing ----------------------------------------------------------------------------------------

    def _ask_flush(self) -> None:
        if self._flush_handle is None:
            pause = self._not_before - time.monotonic()
            if pause <= 0:
                self._flush_handle = self.loop.call_soon(self._flush)
            else:
                self._flush_handle = self.loop.call_later(pause, self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        started = time.monotonic()  # uvloop's own time counts in whole milliseconds
        dirty, self._dirty = self._dirty, {}
        for ring in dirty:
            self._flush_ring(ring)
            if ring.final is not None:
                self._retire(ring)
        ended = time.monotonic()
        self._not_before = ended + min(MAX_PAUSE_S, PAUSE_FACTOR * (ended - started))

    def _flush_ring(self, ring: Ring) -> None:
        now = self.loop.time()
        last: tuple[int, Sequence[Record] | None] = (-1, None)
        for group in list(ring.groups.values()):
            if group.position < ring.head:
                if last[0] != group.position:
                    last = (group.position, ring.after(group.position))
                if last[1] is None:  # a gap: its members read the store
                    self._disband(ring, group)
                    continue
                group.advance(last[1], now)
            if ring.final is not None:
                self._disband(ring, group)
        for viewer in list(ring.pullers):
            viewer.wake()

    def _disband(self, ring: Ring, group: Group) -> None:
        # Gone before its members notice: one that joined it now would begin again at its old position.
        ring.groups.pop((group.encoder, group.selection), None)
        for viewer in list(group.members):
            group.remove(viewer)

    # --- time, drain, statistics -------------------------------------------------------------------------

    def _keep_ticking(self) -> None:
        if self._tick_handle is None and self._viewers:
            self._tick_handle = self.loop.call_later(min(0.5, self.heartbeat_s / 4), self._tick)

    def _tick(self) -> None:
        """Heartbeats, and rotation by age: one timer for all viewers."""
        self._tick_handle = None
        now = self.loop.time()
        for group in set(self._grouped.values()):
            if now - group.wrote_at >= self.heartbeat_s:
                group.heartbeat(now)
        for viewer in self._viewers.values():
            if viewer not in self._grouped:
                viewer.tick()
        if self._rotate_s is not None:
            for viewer in list(self._viewers.values()):
                if now - viewer.opened_at >= self._rotate_s:
                    viewer.rotate("age")
        self._keep_ticking()

    def _rotate_all(self, ring: Ring, reason: str) -> None:
        for viewer in [v for v in self._viewers.values() if any(leg.ring is ring for leg in v.legs)]:
            viewer.rotate(reason)
        ring.wake_waiters()

    def drain(self) -> None:
        """Open no more viewers; tell all that are open to come back elsewhere or later."""
        self._draining = True
        for viewer in list(self._viewers.values()):
            viewer.rotate("drain")

    async def close(self) -> None:
        """Stop all timers and reads; viewers are closed by those who serve them."""
        self._draining = True
        for handle in (self._flush_handle, self._tick_handle):
            if handle is not None:
                handle.cancel()
        self._tick_handle = None
        for ring in self._rings.values():
            for waiter in ring.waiters:
                waiter.cancel()
        await asyncio.gather(*self._unfollowing, return_exceptions=True)
        await self.history.close()

    @property
    def count(self) -> int:
        """How many viewers are open."""
        return len(self._viewers)

    def lag(self) -> int:
        """How many events the viewer is behind that is furthest behind."""
        return max((leg.ring.head - leg.pos for v in self._viewers.values() for leg in v.legs), default=0)

    def rows(self, owner: str) -> Iterator[dict[str, object]]:
        """An owner's viewers as ``GET /api/viewers`` shows them; to be read in one turn of the loop."""
        now = self.loop.time()
        return (viewer.statistics(now) for viewer in self._viewers.values() if viewer.owner == owner)

    def holders(self) -> set[str]:
        """The keys that viewers were opened with."""
        return {viewer.holder for viewer in self._viewers.values() if viewer.holder is not None}

    def send_away(self, holder: str, reason: str) -> None:
        """End the viewers that were opened with a key."""
        for viewer in list(self._viewers.values()):
            if viewer.holder == holder:
                viewer.rotate(reason)

"""One open connection: a cursor that reads the log to its end and then stays live.

The hand-over from history to live needs no lock: everything between "nothing is left to read" and "member of
the live group" runs without giving up the event loop, and both sides compare seqs. So no event is lost or
doubled, whatever is appended, dropped or trimmed in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mux.events import Record
from mux.viewers.encoder import Encoder, Sink
from mux.viewers.ring import DONE_EARLIER, Ring
from mux.viewers.selection import Selection

if TYPE_CHECKING:
    from mux.viewers.hub import Hub

__all__ = ["Leg", "Viewer"]

PAGE = 512  # records encoded at once for a viewer that is behind: the page that a slow one costs
NEAR = 64  # a viewer that is behind by no more than this does not queue with the resuming ones


class Leg:
    """A viewer's position in one run."""

    __slots__ = ("pending", "pos", "ring")

    def __init__(self, ring: Ring, pos: int, pending: set[str] | None) -> None:
        self.ring = ring
        self.pos = pos
        self.pending = pending  # channels that `until=channels` still waits for; None = read to the end

    @property
    def ended(self) -> bool:
        """Whether nothing more will ever come."""
        if self.pending is not None and not self.pending:
            return True
        return self.ring.final is not None and self.pos >= self.ring.head

    @property
    def cursor(self) -> str:
        """The position, as clients send it back."""
        return f"{self.ring.run}.{self.ring.epoch}.{self.pos}"

    def cut(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records up to the one that ends an ``until=channels`` stream."""
        if self.pending is not None:
            for index, record in enumerate(records):
                if record.type == "done" and record.channel is not None:
                    self.pending.discard(record.channel)
                    if not self.pending:
                        return records[: index + 1]
        return records


class Viewer:
    """A reader of one or several runs. Made by :meth:`Hub.open`; closed by whoever opened it."""

    __slots__ = (
        "_future",
        "_hub",
        "_live",
        "_rotate",
        "_woken",
        "_wrote_at",
        "encoder",
        "holder",
        "legs",
        "number",
        "observe",
        "opened_at",
        "owner",
        "selection",
        "sink",
        "vector",
    )  # fmt: skip

    sink: Sink

    def __init__(
        self,
        hub: Hub,
        number: int,
        legs: list[Leg],
        encoder: Encoder,
        selection: Selection,
        *,
        vector: bool,
        observe: bool,
    ) -> None:
        self._hub = hub
        self.number = number
        self.legs = legs
        self.encoder = encoder
        self.selection = selection
        self.vector = vector
        self.observe = observe
        self.owner = "local"
        self.holder: str | None = None
        self.opened_at = hub.loop.time()
        self._wrote_at = self.opened_at
        self._future: asyncio.Future[None] | None = None
        self._woken = False
        self._live = False
        self._rotate: str | None = None

    @property
    def ended(self) -> bool:
        """Whether all that was asked for lies before the position: answered by 204, without a stream."""
        return all(leg.ended for leg in self.legs)

    @property
    def sent_away(self) -> bool:
        """Whether it was told to come back."""
        return self._rotate is not None

    @property
    def cursor(self) -> str:
        """The position reached."""
        return ",".join(leg.cursor for leg in self.legs)

    async def prepare(self) -> None:
        """Find out, for ``until=channels``, which channels had their end before the position."""
        for leg in self.legs:
            if leg.pending is None:
                continue
            unsure = {c for c in leg.pending if leg.ring.channels.get(c) == DONE_EARLIER}
            leg.pending -= {c for c in leg.pending if _ended_by(leg.ring.channels.get(c), leg.pos)}
            leg.pending -= unsure - await self._hub.done_after(leg.ring, leg.pos, unsure)

    async def serve(self, sink: Sink) -> str:
        """Write everything to the sink, until the end.

        Returns:
            Why it ended: ``end``, ``rotated``, ``slow`` (the sink was aborted) or ``gone``.

        Raises:
            MuxError: the log can't be read (any more); nothing was lost, the cursor stays valid.
        """
        self.sink = sink
        for leg in self.legs:
            leg.ring.pullers.add(self)
        try:
            return await self._serve()
        except ConnectionError:
            return "gone"
        except TimeoutError:
            sink.abort()
            return "slow"
        finally:
            self.close()

    def close(self) -> None:
        """Leave the hub; idempotent."""
        for leg in self.legs:
            leg.ring.pullers.discard(self)
        self._hub.release(self)

    def rotate(self, reason: str) -> None:
        """End this connection politely: the client comes back with its cursor."""
        self._rotate = self._rotate or reason
        self._hub.ungroup(self)
        self.wake()

    def wake(self) -> None:
        """There may be something new."""
        self._woken = True
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def tick(self) -> None:
        """Time has passed: after silence a heartbeat is due. One timer of the hub serves all viewers."""
        future = self._future
        if future is not None and not future.done() and self._silent_for() >= self._hub.heartbeat_s:
            future.set_result(None)

    def leave_group(self, position: int) -> None:
        """Called by the group that lets this viewer go: read on from there."""
        self.legs[0].pos = position
        self._wrote_at = self._hub.loop.time()
        self.wake()

    # --- reading -----------------------------------------------------------------------------------------

    async def _serve(self) -> str:
        await self._send(self.encoder.opening() + self.encoder.control(self._open_frame()))
        while True:
            self._woken = False
            moved = False
            for leg in self.legs:
                if not leg.ended:
                    moved = await self._advance(leg) or moved
            if self.encoder.ended:
                return "end"
            if self.ended:
                await self._send(self.encoder.control(self._end_frame()))
                return "end"
            if self._rotate is not None:
                await self._send(self.encoder.control({"type": "stream_rotate", "reason": self._rotate}))
                return "rotated"
            if moved:
                continue
            if not self._live:
                self._live = True
                await self._send(self.encoder.control({"type": "stream_live"}))
                continue
            if not await self._stay_grouped():
                await self._wait()

    async def _advance(self, leg: Leg) -> bool:
        """Send one page, if there is one."""
        behind = leg.ring.head - leg.pos
        if behind <= 0:
            return False
        if behind <= NEAR:
            moved = await self._page(leg)
        else:
            async with self._hub.turns:
                moved = await self._page(leg)
        await self._drain()  # not in a turn: whoever waits for its peer would hold everybody else up
        return moved

    async def _page(self, leg: Leg) -> bool:
        """Write one page; waits for the store at most, never for the peer."""
        ring = leg.ring
        records = ring.after(leg.pos)
        if records is None:
            records, at = await self._hub.history.after(ring.run, ring.epoch, leg.pos)
            first = records[0].seq if records else max(at.first, leg.pos + 1)
            if first > leg.pos + 1:
                self._write(self._gap_frame(leg, first))
                leg.pos = first - 1
        start = leg.pos
        records = leg.cut(records[: PAGE - start % PAGE])  # aligned, so that others ask for the same page
        if not records:
            return False
        selected = self.selection.select(records)
        if selected:
            prefix, suffix = self._around(leg)
            if self.encoder.shared and not self.vector and len(records) > NEAR:
                # A storm of resuming viewers: 1,000 of them encode each page once, not 1,000 times.
                key = (ring.run, ring.epoch, start, records[-1].seq, self.encoder, self.selection)
                chunk = self._hub.history.encoded(key, lambda: self.encoder.events(selected, prefix))
            else:
                chunk = self.encoder.events(selected, prefix, suffix)
            self._write(chunk)
        leg.pos = records[-1].seq
        if not selected and self._silent_for() >= self._hub.heartbeat_s:
            self._write(self.encoder.heartbeat(self.cursor.encode()))
        return True

    async def _stay_grouped(self) -> bool:
        """Be a member of the live group for as long as it goes well; False if this viewer has to pull."""
        leg = self.legs[0]
        if self.vector or not self.encoder.shared or self.encoder.window_s or leg.pending is not None:
            return False
        if leg.pos != leg.ring.head or leg.ring.final is not None or self._woken or self._rotate:
            return False
        leg.ring.pullers.discard(self)
        self._future = self._hub.loop.create_future()
        self._hub.join(self)
        try:
            await self._future
        finally:
            self._future = None
            self._hub.ungroup(self)
            leg.ring.pullers.add(self)
        await self._drain()
        return True

    async def _wait(self) -> None:
        """Sleep until something was published or a heartbeat is due; keep live windows apart."""
        hub = self._hub
        if not self._woken and self._rotate is None:
            self._future = hub.loop.create_future()
            try:
                await self._future
            finally:
                self._future = None
        if self._silent_for() >= hub.heartbeat_s and not self._woken:
            await self._send(self.encoder.heartbeat(self.cursor.encode()))
        rest = self.encoder.window_s - self._silent_for()
        if rest > 0 and self._rotate is None:
            await asyncio.sleep(rest)

    # --- writing -----------------------------------------------------------------------------------------

    def _write(self, chunk: bytes) -> None:
        if chunk:
            self._wrote_at = self._hub.loop.time()
            self.sink.send(self.sink.frame(chunk))

    async def _send(self, chunk: bytes) -> None:
        self._write(chunk)
        await self._drain()

    async def _drain(self) -> None:
        if self.sink.closing:
            raise ConnectionResetError
        if self.sink.full:  # else there is nothing to wait for, and a cancelled timer would lie about
            async with asyncio.timeout(self._hub.write_timeout_s):
                await self.sink.drain()

    def _silent_for(self) -> float:
        return self._hub.loop.time() - self._wrote_at

    # --- frames ------------------------------------------------------------------------------------------

    def _around(self, leg: Leg) -> tuple[bytes, bytes]:
        """What stands before and after the seq in this leg's ids."""
        prefix = f"{leg.ring.run}.{leg.ring.epoch}."
        if not self.vector:
            return prefix.encode(), b""
        at = self.legs.index(leg)
        before = "".join(f"{other.cursor}," for other in self.legs[:at])
        after = "".join(f",{other.cursor}" for other in self.legs[at + 1 :])
        return (before + prefix).encode(), after.encode()

    def _open_frame(self) -> dict[str, object]:
        shared = self.selection.shared
        only = shared.channels if shared is not None else None
        known = {
            leg.ring.run: [c for c in leg.ring.channels if only is None or c in only] for leg in self.legs
        }
        wanted = self.selection.describe()
        everywhere = {c for ids in known.values() for c in ids}
        unknown = sorted((self.selection.channels or frozenset()) - everywhere)
        if unknown:
            wanted["unknown"] = unknown
        frame: dict[str, object] = {"type": "stream_open", "cursor": self.cursor}
        if self.vector:
            frame |= {"head": {leg.ring.run: leg.ring.head for leg in self.legs}, "filter": wanted}
            return frame | {"channels": known}
        leg = self.legs[0]
        frame |= {"run": leg.ring.run, "head": max(leg.ring.head, leg.pos), "filter": wanted}
        return frame | {"channels": known[leg.ring.run]}

    def _gap_frame(self, leg: Leg, first: int) -> bytes:
        return self.encoder.control(
            {"type": "stream_gap", "run": leg.ring.run, "requested": leg.pos, "first": first}
        )

    def _end_frame(self) -> dict[str, object]:
        if self.vector:
            status: object = {leg.ring.run: leg.ring.final or "running" for leg in self.legs}
        else:
            status = self.legs[0].ring.final or "running"
        return {"type": "stream_end", "status": status, "final": True}

    def statistics(self, now: float) -> dict[str, object]:
        """One row of ``GET /api/viewers``."""
        lag = sum(max(0, leg.ring.head - self._hub.position(self, leg)) for leg in self.legs)
        return {
            "id": self.number,
            "run": ",".join(leg.ring.run for leg in self.legs),
            "format": self.encoder.name,
            "filter": self.selection.describe(),
            "age_s": round(now - self.opened_at, 3),
            "lag": lag,
            "live": self._live,
            "observe": self.observe,
        }


def _ended_by(done: int | None, pos: int) -> bool:
    return done is not None and done != DONE_EARLIER and done <= pos

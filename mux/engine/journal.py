"""The only way an event comes to be: mint → check → encode once → append → publish.

One `Journal` per live run. ``lock`` is held from the first `stage` to the end of `commit`, so whoever takes
it sees a `RunState` that holds exactly what the log holds: a snapshot never runs ahead of the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from mux._failpoints import failpoint
from mux.agent import Nested
from mux.engine._tasks import uncut
from mux.errors import Fenced, StoreError
from mux.events import Body, Event, Record, Token, token_records
from mux.log.protocols import Head, Store
from mux.run import ChannelState, RunState

__all__ = ["Clock", "Item", "Journal", "Publish"]

Clock: TypeAlias = Callable[[], int]  # ms since the epoch
Publish: TypeAlias = Callable[[str, Head, Sequence[Record]], None]
Item: TypeAlias = tuple[str | None, Body | Nested]

# A full disk or a locked file may pass; agents are held back meanwhile. About 8 s in all.
_RETRY_DELAYS_S = (0.1, 0.4, 1.0, 2.0, 4.0)

_FAILPOINTS = {"tool_start": "tool.start.after", "tool_result": "tool.result.after"}


class Journal:
    """Writes one run's log.

    Args:
        run: the run's id.
        store: where it is kept.
        publish: shows what was appended; called after each append, must not raise.
        clock: ms since the epoch.
    """

    def __init__(self, run: str, store: Store, publish: Publish, clock: Clock) -> None:
        self.run = run
        self.state = RunState(run)
        self.lock = asyncio.Lock()
        self.epoch = 1
        self.lost: StoreError | None = None
        self._store = store
        self._publish = publish
        self._clock = clock
        self._fence = 0
        self._first = 1
        self._staged: list[Record] = []
        self._telling: list[Record] = []  # those of them that are no tokens

    async def open(self, owner: str) -> Head:
        """Take the run over: raise its fence, and learn where its log stands."""
        self._fence = await self._store.claim(self.run, owner)
        at = await self._store.head(self.run)
        self.epoch, self._first = at.epoch, at.first
        return at

    @property
    def head(self) -> Head:
        """Where the log stands, when the lock is held or nothing is staged."""
        return Head(self.epoch, self._first, self.state.seq)

    def abandon(self) -> None:
        """Write nothing any more (drain, or another owner took over)."""
        self.lost = self.lost or Fenced("run_left", "This run was left for another process.", retryable=True)

    def stage(self, channel: str | None, draft: str | Body | Nested) -> None:
        """Mint the envelope and apply the event (a ``str`` is a token); it is in the log after the next
        `commit`.

        Raises:
            IllegalEvent: the order rules don't allow it; nothing was changed.
            StoreError: nothing can be written any more.
        """
        if self.lost is not None:
            raise self.lost
        state = self.state
        known = state.channels.get(channel) if channel is not None else None
        if isinstance(draft, str):
            if known is not None and known.takes_tokens:
                self.stage_tokens(known, (draft,))
                return
            draft = Token.of(draft)
        path, body = (draft.path, draft.body) if isinstance(draft, Nested) else ((), draft)
        before = state.cseq if channel is None else known.cseq if known is not None else 0
        ts = max(self._clock(), state.last_ts)
        event = Event(self.run, state.seq + 1, channel, before + 1, ts, body, path)
        record = event.record()  # encoded before it is applied: what can't be encoded must not count
        state.apply(event)
        self._staged.append(record)
        if type(body) is not Token:
            self._telling.append(record)

    def stage_tokens(self, channel: ChannelState, texts: Sequence[str]) -> None:
        """`stage` for tokens that came together, on a channel that ``takes_tokens``: nothing can make them
        illegal. The same records and the same fold without an `Event` between them: 0.6 µs each, not 3.

        Raises:
            StoreError: nothing can be written any more.
        """
        if self.lost is not None:
            raise self.lost
        state = self.state
        ts = max(self._clock(), state.last_ts)
        self._staged += token_records(self.run, channel.id, state.seq, channel.cseq, ts, texts, keep=True)
        state.apply_tokens(channel, texts, ts)

    async def commit(self) -> Sequence[Record]:
        """Append and publish what was staged.

        Returns:
            The records that are no tokens: those that somebody may wait for, or that change a status.

        Raises:
            StoreError: the store failed for good; the run stops here (`lost` says why).
            Fenced: another owner took the run over.
        """
        records, self._staged = self._staged, []
        telling, self._telling = self._telling, []
        if records:
            await self._append(records)
            for record in telling:
                if record.type in _FAILPOINTS:
                    failpoint(_FAILPOINTS[record.type])
            failpoint("notify.before")
            self._publish(self.run, self.head, records)
        return telling

    async def _append(self, records: Sequence[Record]) -> None:
        for delay in (*_RETRY_DELAYS_S, None):
            try:
                await self._store.append(self.run, self._fence, records)
                return
            except StoreError as e:
                if delay is None or isinstance(e, Fenced) or not e.retryable:
                    self.lost = e
                    raise
                await asyncio.sleep(delay)

    async def write(self, items: Iterable[Item]) -> None:
        """Stage and commit as one batch from beside the driver. What was staged before a refusal is kept.

        A caller that is cancelled does not cut the append in two.
        """
        await uncut(self._write(list(items)))

    async def _write(self, items: Sequence[Item]) -> None:
        async with self.lock:
            try:
                for channel, draft in items:
                    self.stage(channel, draft)
            finally:
                await self.commit()

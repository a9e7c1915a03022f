"""Runs as their logs tell them: folded once, and from then on only what was appended since."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from mux.agent import ChannelResult
from mux.engine.plan import plan_of
from mux.engine.task import HandOver
from mux.errors import Conflict, MuxError, StoreError
from mux.events import Record
from mux.log.protocols import Head, RunRow, Store, run_not_found
from mux.run import IllegalEvent, RunState

__all__ = ["Stored", "row_members", "row_summary", "summary_of"]

_RUNS = 256
_BYTES = 64 << 20  # of the logs whose folds are kept: else ten snapshots would read a long one ten times
_PAGE = 500


@dataclass(slots=True)
class _Fold:
    state: RunState
    epoch: int
    size: int = 0


def row_members(row: RunRow) -> dict[str, Any]:
    """What the row knows better than the log."""
    return {
        "thread": row.thread,
        "title": row.title,
        "starred": row.starred,
        "metadata": dict(row.metadata),
        "created": row.created,
        "message": row.message,
        "agents": list(row.agents),
        **({"damaged": list(row.damaged)} if row.damaged else {}),
    }


def row_summary(row: RunRow) -> dict[str, Any]:
    """A run as lists show it."""
    summary = dict(row.summary)
    summary.pop("taken_over", None)  # recovery's own note
    channels = summary.pop("channels", None) or [
        {"id": c["id"], "agent": c["agent"], "status": row.status} for c in row.request.get("channels", ())
    ]
    return {
        "run": row.run,
        "status": row.status,
        "channels": channels,
        "updated": row.updated,
        "finished": row.finished,
        **row_members(row),
        **summary,
    }


def summary_of(state: RunState, epoch: int) -> dict[str, Any]:
    """What the row keeps of a run, for lists."""
    usage, finished = state.usage, state.finished
    return {
        "cursor": f"{state.run}.{epoch}.{state.seq}",
        "usage": usage.model_dump(exclude_none=True) if usage else {},
        "duration_ms": finished.duration_ms if finished else None,
        "channels": [
            {"id": c.id, "agent": c.agent, "model": c.model, "status": state.channel_status(c.id)}
            for c in state.channels.values()
        ],
    }


class Stored:
    """Reads runs from their logs, whoever drives them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folds: OrderedDict[str, _Fold] = OrderedDict()
        self._folding: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def records(self, run: str, after: int = 0) -> AsyncIterator[tuple[Record, Head]]:
        """The run's whole log from a position, page by page."""
        while True:
            page = await self._store.read(run, after, limit=_PAGE)
            for record in page.records:
                yield record, page.at
            if not page.records or page.records[-1].seq >= page.at.head:
                return
            after = page.records[-1].seq

    async def state(self, run: str) -> tuple[RunState, int]:
        """The fold of the run's log as it stands, not to be changed.

        Returns:
            The state and the epoch; an empty state if the beginning of its history was trimmed.

        Raises:
            NotFound: ``run_not_found``.
            StoreError: ``log_damaged``.
        """
        lock = self._folding.setdefault(run, asyncio.Lock())
        async with lock:
            fold = await self._fold(run)
            self._remember(run, fold)
            return fold.state, fold.epoch

    async def _fold(self, run: str) -> _Fold:
        at = await self._store.head(run)
        known = self._folds.pop(run, None)
        if known is not None and (known.epoch != at.epoch or known.state.seq > at.head):
            known = None
        fold = known or _Fold(RunState(run), at.epoch)
        if fold.state.seq >= at.head:
            return fold
        first, count = at.first, 0
        try:
            async for record, now in self.records(run, fold.state.seq):
                first = now.first
                if now.epoch != fold.epoch:  # it was rebuilt while it was read
                    return await self._fold(run)
                fold.state.apply(record.event())
                fold.size += len(record.data)
                count += 1
                if count % 200 == 0:
                    await asyncio.sleep(0)  # a long log must not stop everybody else's stream
        except (IllegalEvent, ValueError) as e:
            if first > 1:
                return _Fold(RunState(run), at.epoch)  # trimmed: there is no beginning to fold from
            raise StoreError(
                "log_damaged",
                f"The log of run {run} is damaged and can't be read. Restore a backup, or delete the run.",
                status=500,
                retryable=False,
            ) from e
        return fold

    def _remember(self, run: str, fold: _Fold) -> None:
        if fold.size > _BYTES or not fold.state.seq:
            return
        self._folds[run] = fold
        held = sum([fold.size for fold in self._folds.values()])
        while len(self._folds) > _RUNS or held > _BYTES:
            held -= self._folds.popitem(last=False)[1].size

    def forget(self, run: str) -> None:
        """The run was deleted."""
        self._folds.pop(run, None)

    # --- outputs --------------------------------------------------------------------------------------------

    def hand_over(self, name: str, result: ChannelResult) -> HandOver:
        """A channel's output, as another channel gets it."""
        return HandOver(name, result.agent, result.status, result.output, result.error)

    async def output(self, run: str, channel: str, owner: str) -> HandOver:
        """``run/channel`` of an earlier run; what can't be read is named as failed."""
        name = f"{run}/{channel}"
        try:
            if (await self._store.get(run)).owner != owner:
                raise run_not_found(run)
            state, _ = await self.state(run)
        except MuxError as e:
            return HandOver(name, "?", "missing", "", e.message)
        found = state.channels.get(channel)
        if found is None:
            return HandOver(name, "?", "missing", "", f"Run {run} has no channel {channel!r}.")
        error = found.error.message if found.error else None
        return HandOver(name, found.agent, state.channel_status(channel), found.output(), error)

    # --- snapshots ------------------------------------------------------------------------------------------

    async def snapshot(self, row: RunRow, queue_position: int | None = None) -> dict[str, Any]:
        """As DESIGN section 5; of a trimmed run what its row still knows."""
        state, epoch = await self.state(row.run)
        if state.started is None:
            at = await self._store.head(row.run)
            out = _bare(row, f"{row.run}.{at.epoch}.{at.head}")
            if at.first > 1:
                out["trimmed"] = True
            return out
        out = state.snapshot(epoch=epoch, row=row_members(row))
        if state.finished is None:
            waiting = [c for c in out["channels"] if c["status"] == "queued"]
            for position, channel in enumerate(waiting, 1):
                channel["queue_position"] = queue_position if queue_position is not None else position
            if queue_position is not None:
                out["queue_position"] = queue_position
        return out


def _bare(row: RunRow, cursor: str) -> dict[str, Any]:
    try:
        planned = [
            {"id": c.id, "agent": c.agent, "model": c.model, "plan": c.info().plan()}
            for c in plan_of(row).channels
        ]
    except Conflict:
        planned = []
    known = {c["id"]: c for c in row.summary.get("channels", ())}
    channels = [
        {
            "status": row.status if row.finished is None else "failed",
            "phase": None, "queue_position": None, "attempt": 1, "text": "", "reasoning": "", "tools": [],
            "usage": {}, "ttft_ms": None, "tokens_per_s": None, "error": None,
            **c, **known.get(c["id"], {}),
        }
        for c in planned
    ]  # fmt: skip
    usage = row.summary.get("usage", {})
    return {"run": row.run, "status": row.status, "cursor": cursor, "usage": usage, "channels": channels} | (
        row_members(row)
    )

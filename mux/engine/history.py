"""Runs that are not live: folding them from their log, with a bounded memory of the finished ones."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from mux.engine.live import row_members
from mux.engine.plan import Plan
from mux.errors import MuxError, StoreError
from mux.events import Record
from mux.log.protocols import Head, RunRow, Store
from mux.run import IllegalEvent, RunState

__all__ = ["Folder", "row_summary"]

_MEMO_RUNS = 64
_MEMO_BYTES = 1 << 20  # of a run's log; larger ones are folded again for each request
_PAGE = 500


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


class Folder:
    """Reads stored runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._memo: OrderedDict[str, tuple[RunState, int]] = OrderedDict()  # finished runs: state, epoch

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
        """Fold the run from its log.

        Returns:
            The state and the epoch; an empty state if the beginning of its history was trimmed.

        Raises:
            NotFound: ``run_not_found``.
            StoreError: ``log_damaged``.
        """
        if (known := self._memo.get(run)) is not None:
            self._memo.move_to_end(run)
            return known
        state = RunState(run)
        epoch, size, count = (await self._store.head(run)).epoch, 0, 0
        first = 1
        try:
            async for record, at in self.records(run):
                epoch, first = at.epoch, at.first
                state.apply(record.event())
                size += len(record.data)
                count += 1
                if count % 200 == 0:
                    await asyncio.sleep(0)  # a long log must not stop everybody else's stream
        except (IllegalEvent, ValueError) as e:
            if first > 1:
                return RunState(run), epoch  # trimmed: there is no beginning to fold from
            raise StoreError(
                "log_damaged",
                f"The log of run {run} is damaged and can't be read. Restore a backup, or delete the run.",
                status=500,
                retryable=False,
            ) from e
        if state.finished is not None and size <= _MEMO_BYTES:
            self._memo[run] = (state, epoch)
            while len(self._memo) > _MEMO_RUNS:
                self._memo.popitem(last=False)
        return state, epoch

    def forget(self, run: str) -> None:
        """The run was deleted."""
        self._memo.pop(run, None)

    async def snapshot(self, row: RunRow) -> dict[str, Any]:
        """As DESIGN section 5, from the log; of a trimmed run what its row still knows."""
        state, epoch = await self.state(row.run)
        if state.started is None:
            at = await self._store.head(row.run)
            out = _bare(row, f"{row.run}.{at.epoch}.{at.head}")
            if at.first > 1:
                out["trimmed"] = True
            return out
        return state.snapshot(epoch=epoch, row=row_members(row))


def _bare(row: RunRow, cursor: str) -> dict[str, Any]:
    try:
        planned = [
            {"id": c.id, "agent": c.agent, "model": c.model}
            for c in Plan.model_validate(row.request).channels
        ]
    except ValueError:  # an imported run has no plan
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


def summary_of(state: RunState, epoch: int) -> dict[str, Any]:
    """What the row keeps of a finished run, for lists."""
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


def hand_over_error(error: MuxError) -> str:
    """Why an output of an earlier run can't be handed over."""
    return f"{error.message}"

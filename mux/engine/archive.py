"""What is kept of runs: snapshots, lists, edits, deletion, export and import, retention."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, Final, cast
from weakref import WeakValueDictionary

from mux.engine.intake import guards, publishable
from mux.engine.plan import check_metadata, key_limit, new_id
from mux.engine.site import Site
from mux.engine.stored import Stored, row_summary, summary_of
from mux.engine.tasks import finish
from mux.errors import BadRequest, MuxError
from mux.events import Event, Record
from mux.log.protocols import OPEN, RowStatus, RunPage, RunQuery, RunRow, run_not_found
from mux.requests import KeyLimits, PatchRun
from mux.run import IllegalEvent, RunState

__all__ = ["Archive"]

_EXPORT_VERSION: Final = 1
_MAX_IMPORT: Final = 256 << 20  # bytes of one imported run
_IMPORT_BATCH: Final = 500
_AT_ONCE: Final = 200  # events of an import that are looked at in one turn of the loop: 4 ms
_OPEN: Final[frozenset[RowStatus]] = frozenset(OPEN)
_RETENTION_EVERY_S: Final = 600.0
_DAY_MS: Final = 86_400_000
_USAGE_PAGE: Final = 200


class Archive:
    """See `Engine`.

    Args:
        site: the server.
        stored: reads runs.
    """

    def __init__(self, site: Site, stored: Stored) -> None:
        self._site = site
        self._store = site.store
        self._stored = stored
        self._editing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def row(self, run: str, *, owner: str | None = None) -> RunRow:
        """The run's row. Raises NotFound ``run_not_found``, also for another owner's run."""
        row = await self._store.get(run)
        if owner is not None and row.owner != owner:
            raise run_not_found(run)
        return row

    async def snapshot(self, run: str, *, owner: str | None = None) -> dict[str, Any]:
        """The run as DESIGN section 5 shows it, as far as its log goes.

        Raises:
            NotFound: ``run_not_found``.
        """
        row = await self.row(run, owner=owner)
        position = await self._store.queue.position(run) if row.status == "queued" else None
        return await self._stored.snapshot(row, position)

    async def list_runs(self, query: RunQuery) -> RunPage:
        """A page of runs, newest first; those that are not over with their present status."""
        wanted = query.status
        if not _OPEN.isdisjoint(wanted):  # rows tell the open states apart only now and then; logs do
            query = replace(query, status=(*OPEN, *(s for s in wanted if s not in _OPEN)))
        page = await self._store.list(query)
        until = asyncio.get_running_loop().time() + self._site.times.fresh
        rows = [await self._fresh(row, until) if row.status in _OPEN else row for row in page.runs]
        if wanted:
            rows = [row for row in rows if row.status in wanted]
        return RunPage(rows, page.next, page.hits)

    async def _fresh(self, row: RunRow, until: float) -> RunRow:
        try:
            async with asyncio.timeout_at(until):
                state, epoch = await self._stored.state(row.run)
        except (TimeoutError, MuxError):  # the store hangs, or the log is damaged: the row is all there is
            return row
        if state.started is None:
            return row
        return replace(row, status=cast("RowStatus", state.status), summary=summary_of(state, epoch))

    def summary(self, row: RunRow) -> dict[str, Any]:
        """A row as JSON for lists."""
        return row_summary(row)

    async def patch(self, run: str, request: PatchRun) -> dict[str, Any]:
        """Change title, star or metadata; metadata keys that are set to null are removed.

        Returns:
            The run as it stands.

        Raises:
            BadRequest: ``metadata_too_large``; ``edit_blocked`` by a guardrail on input.
        """
        row = await self.row(run)
        given = request.model_dump(exclude_unset=True)
        changes: dict[str, Any] = await publishable(given, row.agents, guards(self._site, run))
        if not isinstance(changes, dict):
            raise BadRequest("edit_blocked", "A guardrail of this server stopped the title or the metadata.")
        editing = self._editing.setdefault(run, asyncio.Lock())
        async with editing:  # or of two votes at once the second would take the first one back
            await self._edit(run, changes)
        return await self.snapshot(run)

    async def _edit(self, run: str, changes: dict[str, Any]) -> None:
        if changes.get("metadata") is None:
            changes.pop("metadata", None)
        else:
            merged = {**(await self.row(run)).metadata, **changes["metadata"]}
            changes["metadata"] = {k: v for k, v in merged.items() if v is not None}
            check_metadata(changes["metadata"])
        if changes.get("starred", False) is None:
            changes.pop("starred")
        if changes:
            await self._store.update(run, **changes)

    async def delete(self, run: str) -> None:
        """Forget a run that nobody drives."""
        await self._store.delete(run)
        self._stored.forget(run)

    # --- export and import --------------------------------------------------------------------------------

    async def export(self, run: str) -> AsyncIterator[bytes]:
        """The run as NDJSON: a line about the run, then its events as they are in the log.

        Raises:
            NotFound: ``run_not_found``, at the first line.
        """
        row = await self.row(run)
        about = {
            "type": "mux_run",
            "version": _EXPORT_VERSION,
            "run": row.run,
            "thread": row.thread,
            "title": row.title,
            "starred": row.starred,
            "metadata": dict(row.metadata),
            "message": row.message,
            "created": row.created,
        }
        yield json.dumps(about, ensure_ascii=False).encode() + b"\n"
        async for record, _ in self._stored.records(run):
            yield record.data + b"\n"

    async def import_run(self, lines: Iterable[bytes] | AsyncIterable[bytes], *, owner: str = "local") -> str:
        """Keep an exported run under a new id, with its events checked against the order rules.

        Args:
            lines: what `export` gave, split into lines (with or without their ends).

        Returns:
            The id of the imported run.

        Raises:
            BadRequest: ``import_invalid``, ``import_too_large``; nothing is kept.
        """
        about, events = await self._read_import(lines)
        run = new_id("r")
        state = RunState(run)
        records: list[Record] = []
        for number, event in enumerate(events, 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            moved = event._replace(run=run)
            try:
                state.apply(moved)
            except IllegalEvent as e:
                raise BadRequest("import_invalid", f"Event {event.seq} can't be there: {e.message}") from None
            records.append(moved.record())
        if state.finished is None:
            raise BadRequest("import_invalid", "The run is not finished: export it again when it is.")
        await finish(self._keep_import(run, owner, about, state, records))
        return run

    async def _read_import(
        self, lines: Iterable[bytes] | AsyncIterable[bytes]
    ) -> tuple[dict[str, Any], list[Event]]:
        about: dict[str, Any] | None = None
        events: list[Event] = []
        size = number = 0
        async for line in _each(lines):
            number += 1
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            size += len(line)
            if size > _MAX_IMPORT:
                raise BadRequest("import_too_large", f"A run to import may have {_MAX_IMPORT >> 20} MiB.")
            if not line.strip():
                continue
            try:
                if about is None:
                    about = json.loads(line)
                    _check_about(about)
                else:
                    events.append(Event.parse(line))
            except (ValueError, RecursionError) as e:
                raise BadRequest("import_invalid", f"Line {number} can't be read: {str(e)[:200]}") from None
        if about is None:
            raise BadRequest("import_invalid", "The file is empty.")
        return about, events

    async def _keep_import(
        self, run: str, owner: str, about: dict[str, Any], state: RunState, records: list[Record]
    ) -> None:
        assert state.finished is not None
        metadata, created = about.get("metadata"), about.get("created")
        metadata = metadata if isinstance(metadata, dict) else {}
        check_metadata(metadata)
        row = RunRow(
            run=run,
            thread=new_id("t"),
            owner=owner,
            status=state.finished.status,
            created=created if isinstance(created, int) and created > 0 else state.first_ts,
            updated=state.last_ts,
            request={
                "channels": [{"id": c.id, "agent": c.agent} for c in state.channels.values()],
                "message": state.started.message if state.started else None,
            },
            title=str(about["title"])[:500] if about.get("title") else None,
            starred=bool(about.get("starred")),
            metadata=metadata,
            message=state.started.message if state.started else None,
            agents=tuple(dict.fromkeys(c.agent for c in state.channels.values())),
            finished=state.last_ts,
            summary=summary_of(state, 1),  # the epoch of a new log
        )
        await self._store.create(row)
        try:
            fence = await self._store.claim(run, self._site.name)
            for start in range(0, len(records), _IMPORT_BATCH):
                await self._store.append(run, fence, records[start : start + _IMPORT_BATCH])
            for channel in state.channels.values():
                await self._store.index_text(run, channel.id, channel.output())
        except MuxError:
            await self._store.delete(run)  # all or nothing
            raise

    # --- what an owner uses -------------------------------------------------------------------------------

    async def usage(self, owner: str) -> dict[str, Any]:
        """What an owner has and has used: ``runs`` that are not over, ``tokens_a_day`` and ``cost_a_day`` of
        the runs that were started today (UTC), ``stored_mb``."""
        now = self._site.clock()
        day, tokens, cost = now - now % _DAY_MS, 0, 0.0
        open_runs = 0
        async for row in self._rows(RunQuery(owner=owner, status=OPEN, limit=_USAGE_PAGE)):
            open_runs += row.finished is None
        async for row in self._rows(RunQuery(owner=owner, limit=_USAGE_PAGE)):
            if row.created < day:
                break
            used = row.summary.get("usage") or {}
            tokens += (used.get("input_tokens") or 0) + (used.get("output_tokens") or 0)
            cost += used.get("cost") or 0.0
        stored = await self._store.size(owner)
        return {
            "runs": open_runs,
            "tokens_a_day": tokens,
            "cost_a_day": cost,
            "stored_mb": round(stored / 1_048_576, 3),
        }

    async def _rows(self, query: RunQuery) -> AsyncIterator[RunRow]:
        while True:
            page = await self.list_runs(query)
            for row in page.runs:
                yield row
            if page.next is None:
                return
            query = replace(query, after=page.next)

    async def check_usage(self, owner: str, limits: KeyLimits) -> None:
        """Refuse one who has used up a key's share of the day, or of the store.

        Raises:
            Overloaded: ``key_limit``.
        """
        names = ("tokens_a_day", "cost_a_day", "stored_mb")
        if all(getattr(limits, name) is None for name in names):
            return
        used = await self.usage(owner)
        for name in names:
            if (most := getattr(limits, name)) is not None and used[name] >= most:
                now = self._site.clock()
                midnight = (_DAY_MS - now % _DAY_MS) / 1000
                raise key_limit(name, most, retry_after=None if name == "stored_mb" else midnight)

    # --- retention ----------------------------------------------------------------------------------------

    async def expire(self) -> list[str]:
        """Forget finished, unstarred runs above the configured bounds; returns their ids."""
        keep = self._site.settings.retention
        gone = await self._store.expire(
            older_than_ms=round(keep.max_age_days * 86_400_000) if keep.max_age_days else None,
            keep_runs=keep.max_runs,
            max_bytes=round(keep.max_mb * 1_048_576) if keep.max_mb else None,
        )
        for run in gone:
            self._stored.forget(run)
        return list(gone)

    async def retention(self) -> None:
        """The background task."""
        while True:
            try:
                if gone := await self.expire():
                    self._site.log.info("runs forgotten by retention", runs=len(gone))
            except MuxError as e:
                self._site.log.warning("retention failed", code=e.code, reason=e.message)
            await asyncio.sleep(_RETENTION_EVERY_S)


async def _each(lines: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(lines, AsyncIterable):
        async for line in lines:
            yield line
    else:
        for line in lines:
            yield line


def _check_about(about: Any) -> None:
    if not isinstance(about, dict) or about.get("type") != "mux_run":
        raise ValueError("the first line is not that of an exported run")

"""What is kept of runs: snapshots, lists, edits, deletion, export and import, retention."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, Final, cast

from mux.engine._tasks import uncut
from mux.engine.base import EngineBase
from mux.engine.history import row_summary, summary_of
from mux.engine.intake import guards, shown
from mux.engine.plan import check_metadata, new_id
from mux.errors import BadRequest, MuxError
from mux.events import Event, Record
from mux.log.protocols import RowStatus, RunPage, RunQuery, RunRow
from mux.requests import PatchRun
from mux.run import IllegalEvent, RunState

__all__ = ["Archive"]

_EXPORT_VERSION: Final = 1
_MAX_IMPORT: Final = 256 << 20  # bytes of one imported run
_IMPORT_BATCH: Final = 500
_AT_ONCE: Final = 200  # events of an import that are looked at in one turn of the loop: 4 ms
_OPEN: Final[frozenset[RowStatus]] = frozenset({"queued", "running", "waiting"})
_RETENTION_EVERY_S: Final = 600.0
_DELETE_WAIT_S: Final = 5.0
_FRESH_S: Final = 0.5  # that a list waits for runs whose appends hang; then it shows them as last kept


class Archive(EngineBase):
    """See `Engine`."""

    async def snapshot(self, run: str, *, owner: str | None = None) -> dict[str, Any]:
        """The run as DESIGN section 5 shows it: from memory while it is live, else from its log.

        Raises:
            NotFound: ``run_not_found``.
        """
        row = await self.row(run, owner=owner)
        live = self._live.get(run)
        if live is not None and live.state.started is not None:
            return await live.snapshot(self._queue_position(run))
        return await self._folder.snapshot(row)

    def _queue_position(self, run: str) -> int | None:
        return None

    async def wait(self, run: str, timeout_s: float) -> bool:
        """Wait until a live run has ended; whether it has."""
        live = self._live.get(run)
        if live is None:
            return True
        try:
            await asyncio.wait_for(live.ended.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def list_runs(self, query: RunQuery) -> RunPage:
        """A page of runs, newest first; live ones with their present status."""
        wanted = query.status
        if not _OPEN.isdisjoint(wanted):  # rows tell the open states apart only now and then; live runs do
            query = replace(query, status=(*_OPEN, *(s for s in wanted if s not in _OPEN)))
        page = await self.store.list(query)
        until = asyncio.get_running_loop().time() + _FRESH_S
        rows = [await self._fresh(row, until) for row in page.runs]
        if wanted:
            rows = [row for row in rows if row.status in wanted]
        return RunPage(rows, page.next, page.hits)

    async def _fresh(self, row: RunRow, until: float) -> RunRow:
        live = self._live.get(row.run)
        if live is None or live.state.started is None:
            return row
        try:
            async with asyncio.timeout_at(until), live.journal.lock:  # a cursor must not be ahead of the log
                status = cast("RowStatus", live.state.status)
                return replace(row, status=status, summary=summary_of(live.state, live.journal.epoch))
        except TimeoutError:  # the store does not take what it has to say
            return row

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
        changes: dict[str, Any] = await shown(given, row.agents, guards(self.services, run))
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
            row = await self.store.update(run, **changes)
            if (live := self._live.get(run)) is not None:
                live.row = row

    async def delete(self, run: str) -> None:
        """Forget a run; one that is live is cancelled first."""
        await self.row(run)
        live = self._live.get(run)
        if live is not None:
            await live.cancel("now")
            await self.wait(run, _DELETE_WAIT_S)
        await self.store.delete(run)
        self._folder.forget(run)

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
        async for record, _ in self._folder.records(run):
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
        await uncut(self._keep_import(run, owner, about, state, records))
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
        await self.store.create(row)
        try:
            fence = await self.store.claim(run, self.services.owner)
            for start in range(0, len(records), _IMPORT_BATCH):
                await self.store.append(run, fence, records[start : start + _IMPORT_BATCH])
            for channel in state.channels.values():
                await self.store.index_text(run, channel.id, channel.output())
        except MuxError:
            await self.store.delete(run)  # all or nothing
            raise

    # --- retention ----------------------------------------------------------------------------------------

    async def expire(self) -> list[str]:
        """Forget finished, unstarred runs above the configured bounds; returns their ids."""
        keep = self.settings.retention
        gone = await self.store.expire(
            older_than_ms=round(keep.max_age_days * 86_400_000) if keep.max_age_days else None,
            keep_runs=keep.max_runs,
            max_bytes=round(keep.max_mb * 1_048_576) if keep.max_mb else None,
        )
        for run in gone:
            self._folder.forget(run)
        return list(gone)

    async def _retention(self) -> None:
        """The background task."""
        while True:
            try:
                if gone := await self.expire():
                    self._log.info("runs forgotten by retention", runs=len(gone))
            except MuxError as e:
                self._log.warning("retention failed", code=e.code, reason=e.message)
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

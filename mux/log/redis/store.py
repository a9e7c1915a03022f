"""The store in a Redis or Valkey database, for one server at a time.

What it promises is what Redis is configured to keep, read at the start (`StoreInfo`): with ``appendonly yes``
and ``appendfsync always`` an acknowledged append survives a loss of power; with ``everysec`` it survives any
crash of Mux, and a crash of Redis may lose a second.

A run is one stream; an entry is the chunk of one batch, with the explicit id ``<last seq>-0``, so that a
cursor is a position in it. A batch is one script: it checks the lease, the fence and the head, and appends.

Epoch: a shorter log than what this server was told is proof of a loss; then the run gets a new epoch and is
taken over from what is left. At a start, another Redis process than the last time, or one that may have lost
its end, gives every unfinished run a new one.

Outages: a call waits for Redis for ``outage_s``, and is then refused; the engine tries a while longer, and
then takes the run over from its log when Redis is back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from mux._failpoints import failpoint
from mux.clock import now_ms
from mux.errors import Conflict, Fenced, MuxError, NotFound, StoreError
from mux.events import Record
from mux.log import chunks
from mux.log.heads import Heads
from mux.log.local import LocalCommands, LocalQueue
from mux.log.paging import page_of
from mux.log.protocols import (
    FINAL,
    OPEN,
    Head,
    Idempotency,
    Page,
    RunPage,
    RunQuery,
    RunRow,
    StoreInfo,
    check_append,
    check_changes,
    idempotency_conflict,
    run_exists,
    run_not_found,
)
from mux.log.redis.info import Server, ask_server
from mux.log.redis.lease import KEY, TTL_S, Lease
from mux.log.redis.link import Link
from mux.log.redis.rows import MAX_TEXT, digest, fields_of, find_runs, place, row_of
from mux.log.redis.scripts import FIELDS, FORMAT
from mux.log.redis.url import target_of
from mux.telemetry import get_logger

__all__ = ["RedisStore"]

_Done: TypeAlias = list[tuple[str, int, int]]  # run, when it ended, its bytes
_DONE_BLOCK = 500  # runs that retention looks at in one step
_READ_S = 1.5  # that a read waits in an outage: somebody looks at a page meanwhile


class RedisStore:
    """Logs and runs in one database.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``.
        outage_s: seconds that a write waits for a Redis that does not answer.
        lease_s: how long the lease of a killed server on another machine lasts.

    Raises:
        ConfigError: ``extra_missing``, ``store_unknown``.
    """

    def __init__(self, url: str, *, outage_s: float = 8.0, lease_s: float = TTL_S) -> None:
        self._target = target_of(url)
        self._lease_s = lease_s
        self.info = StoreInfo(self._target.shown, "process", "its durability is not known yet")
        self._heads = Heads()
        self.queue = LocalQueue()
        self.commands = LocalCommands()
        self._lease = Lease(self._target, ttl_s=lease_s)
        self._lost: set[str] = set()  # runs whose end Redis lost, until somebody takes them over
        self._verifying: asyncio.Task[None] | None = None
        self._writer = Link(self._target, outage_s=outage_s, what="writes", reconnected=self._reconnected)
        self._reader = Link(self._target, outage_s=min(_READ_S, outage_s), what="reads")

    async def open(self, *, url: str | None = None) -> None:
        """See `Store.open`. Waits for the lease of a server that may be dead to end."""
        self._lease = Lease(self._target, ttl_s=self._lease_s)
        try:
            await self._writer.start()
            await self._reader.start()
            server = await ask_server(self._reader, self._target)
            self.info = server.info
            await self._lease.take(self._writer, url)
            await self._mark_open(server)
        except BaseException:
            await self.close()
            raise

    async def _mark_open(self, server: Server) -> None:
        state, *told = await self._writer.call(
            "opened", KEY, self._lease.token, FORMAT, server.process, int(server.sure),
            *(place("s", status) for status in OPEN),
        )  # fmt: skip
        if state == b"newer":
            raise StoreError(
                "store_failed",
                f"{self._target.shown} was written by a newer version of Mux (format {told[0].decode()}). "
                "Upgrade, or choose another database with --store.",
            )
        if state == b"lease":
            raise StoreError("store_locked", f"Another server took {self._target.shown} just now.")
        if told[0]:
            get_logger().warning(
                "Redis was started again and may have lost the end of unfinished runs: viewers begin anew",
                store=self._target.shown, runs=told[0],
            )  # fmt: skip

    async def announce(self, url: str) -> None:
        """Say at which address this server answers, for a second one that finds the database in use."""
        await self._lease.announce(url)

    async def close(self) -> None:
        """See `Store.close`."""
        self._heads.clear()
        if self._verifying is not None:
            self._verifying.cancel()
            await asyncio.gather(self._verifying, return_exceptions=True)
        await self._writer.stop()
        await self._reader.stop()
        await self._lease.release()

    # --- answers --------------------------------------------------------------------------------------------

    async def _write(
        self, script: str, run: str, *args: Any, done: Callable[[Any], None] | None = None
    ) -> list[Any]:
        """Run a writing script; what it refuses is raised.

        Raises:
            NotFound: ``run_not_found``.
            Fenced: another server has the database.
            StoreError: see `EventLog.append`.
        """
        while True:
            if self._lease.lost:
                raise self._lease.why_lost()
            answer: list[Any] = await self._writer.call(script, KEY, self._lease.token, run, *args, done=done)
            if answer[0] == b"missing":
                raise run_not_found(run)
            if answer[0] != b"lease":
                return answer
            # It ran out: this process slept, or Redis was away for longer than that.
            if not await asyncio.to_thread(self._lease.renew):
                raise StoreError("store_failed", f"{self._target.shown} does not answer for the lease.")

    async def _read(self, script: str, run: str, *args: Any) -> list[Any]:
        if self._lease.lost:
            raise self._lease.why_lost()
        answer: list[Any] = await self._reader.call(script, KEY, run, *args)
        if answer[0] == b"missing":
            raise run_not_found(run)
        return answer

    # --- the log --------------------------------------------------------------------------------------------

    async def append(self, run: str, fence: int, records: Sequence[Record]) -> None:
        """See `EventLog.append`. Cancelling it does not undo it: it may still be sent.

        The same batch again, after an answer that was lost, is known and not appended twice.
        """
        bounds: list[Any] = ["", 0, 0]
        if records:
            check_append(run, fence, records[0].seq - 1, fence, records)  # that it has no gap within
            bounds = [records[0].seq, records[-1].seq, sum([len(r.data) for r in records])]
            for part in chunks.split(records):
                bounds += (part[-1].seq, chunks.encode(part))
        failpoint("append.before")

        def done(answer: list[Any]) -> None:
            if answer[0] == b"ok" and records:
                self._heads.set(run, _head_of(answer[1:]))

        try:
            answer = await self._write("append", run, fence, *bounds, done=done)
        except StoreError as e:
            if self._lease.lost and e.code == "store_locked":
                raise Fenced("fenced", e.message, retryable=False) from None
            raise
        if answer[0] == b"fenced":
            newest = int(answer[1])
            check_append(run, newest, 0, fence, ())
        if answer[0] == b"seq":
            await self._check_loss(run, self._heads.get(run), int(answer[1]))
            if run in self._lost:
                raise StoreError(
                    "store_failed", f"{self._target.shown} lost the end of run {run!r}.", retryable=False
                )
            raise Conflict(
                "seq_conflict",
                f"Run {run!r} expects seq {int(answer[1]) + 1} next, and was given {bounds[0]}.",
            )
        failpoint("append.after")

    async def append_many(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None]:
        """See `EventLog.append_many`."""
        outcomes = await asyncio.gather(*(self.append(*batch) for batch in batches), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, MuxError):
                raise outcome
        return [outcome if isinstance(outcome, MuxError) else None for outcome in outcomes]

    async def _check_loss(self, run: str, known: Head | None, head: int) -> None:
        """If Redis has less than what it had acknowledged when it was asked (``known``), give the run a new
        epoch, and refuse its appends until it is claimed again."""
        if known is None or known.head <= head or run in self._lost:
            return
        self._lost.add(run)
        await self._write("lost", run, done=lambda _: self._heads.forget(run))
        get_logger(run=run).error(
            "Redis lost the end of the run, which viewers saw; it goes on from what is left",
            store=self._target.shown, had=known.head, has=head,
        )  # fmt: skip

    def _reconnected(self) -> None:
        if self._verifying is None or self._verifying.done():
            self._verifying = asyncio.get_running_loop().create_task(self._verify(), name="mux-redis-verify")

    async def _verify(self) -> None:
        """After an outage: what was acknowledged must be there, also of runs that write nothing just now."""
        for run, known in self._heads.known():
            try:
                head = int((await self._read("head", run))[3])
                # Not against what is known now: appends may have been acknowledged since the answer was made.
                if (now := self._heads.get(run)) is not None and now.epoch == known.epoch:
                    await self._check_loss(run, known, head)
            except NotFound:
                self._heads.forget(run)
            except StoreError as e:  # down again; the next append finds out, or the next reconnection
                get_logger(run=run).warning("run not checked after an outage", code=e.code)
                return

    async def read(self, run: str, after: int, *, limit: int = 1000, max_bytes: int = 1 << 20) -> Page:
        """See `EventLog.read`."""
        limit = max(1, limit)
        _, epoch, first, head, entries = await self._read("read", run, after, limit, max_bytes)
        at = _head_of((epoch, first, head))
        parts = ((fields[1], int(key.partition(b"-")[0])) for key, fields in entries)
        return page_of(chunks.decode_all(parts), at, after, limit, max_bytes)

    async def head(self, run: str) -> Head:
        """See `EventLog.head`."""
        known = self._heads.get(run)
        return known if known is not None else _head_of((await self._read("head", run))[1:])

    async def wait(self, run: str, after: int, timeout_s: float) -> Head:
        """See `EventLog.wait`."""
        return await self._heads.wait(run, after, timeout_s, lambda: self.head(run))

    async def trim(self, run: str, before: int) -> Head:
        """See `EventLog.trim`."""
        answer = await self._write("trim", run, before, done=lambda _: self._heads.forget(run))
        return _head_of(answer[1:])

    async def follow(self, run: str, publish: Callable[[str, Sequence[Record]], None]) -> None:
        """Nobody else appends."""

    async def unfollow(self, run: str) -> None:
        """Nobody else appends."""

    # --- runs -----------------------------------------------------------------------------------------------

    async def create(self, row: RunRow, idempotency: Idempotency | None = None) -> RunRow:
        """See `RunStore.create`."""
        key = ("", "", 0)
        if idempotency is not None:
            name = digest(idempotency.owner, idempotency.key)
            key = (name, idempotency.body_hash, idempotency.expires)
        fields = fields_of({name: getattr(row, name) for name in FIELDS})
        answer = await self._write("create", row.run, secrets.token_hex(8), now_ms(), *key, *fields)
        if answer[0] == b"exists":
            raise run_exists(row.run)
        if answer[0] == b"key" and idempotency is not None:
            raise idempotency_conflict(idempotency.key)
        made = answer[2].decode()
        return row if made == row.run else row_of(made, answer[1])

    async def get(self, run: str) -> RunRow:
        """See `RunStore.get`."""
        return row_of(run, (await self._read("get", run))[1])

    async def update(self, run: str, **changes: Any) -> RunRow:
        """See `RunStore.update`."""
        check_changes(changes)
        final = changes.get("status") in FINAL
        answer = await self._write(
            "update", run, int("title" in changes or "message" in changes),
            *fields_of({**changes, "updated": now_ms()}),
            done=lambda _: self._heads.forget(run) if final else None,
        )  # fmt: skip
        return row_of(run, answer[1])

    async def list(self, query: RunQuery) -> RunPage:
        """See `RunStore.list`. A search reads the texts of the runs that it looks through."""
        return await find_runs(self._reader, query)

    async def delete(self, run: str) -> None:
        """See `RunStore.delete`."""
        await self._forget(run, only_if_forgettable=False)

    async def _forget(self, run: str, *, only_if_forgettable: bool) -> bool:
        failpoint("retention.before")
        answer = await self._write(
            "delete",
            run,
            int(only_if_forgettable),
            secrets.token_hex(8),
            done=lambda _: self._heads.forget(run),
        )
        failpoint("retention.after")
        return bool(answer[0] == b"ok")

    async def unfinished(self) -> Sequence[RunRow]:
        """See `RunStore.unfinished`."""
        if self._lease.lost:
            raise self._lease.why_lost()
        rows: list[RunRow] = []
        after: str | None = None
        while True:
            page = await find_runs(self._reader, RunQuery(status=OPEN, limit=500, after=after))
            rows += page.runs
            after = page.next
            if after is None:
                return rows[::-1]

    async def claim(self, run: str, owner: str) -> int:
        """See `RunStore.claim`."""
        fence = int((await self._write("claim", run, owner))[1])
        self._lost.discard(run)
        return fence

    async def index_text(self, run: str, channel: str | None, text: str) -> None:
        """See `RunStore.index_text`."""
        await self._write("text", run, channel or "", text[:MAX_TEXT].encode("utf-8", "replace"))

    async def put_conversation(self, thread: str, channel: str, run: str, data: bytes) -> None:
        """See `RunStore.put_conversation`."""
        await self._write("remember", run, digest(thread, channel), data)

    async def conversation(self, thread: str, channel: str, before: str | None = None) -> bytes | None:
        """See `RunStore.conversation`."""
        answer = await self._reader.call("recall", KEY, digest(thread, channel), before or "")
        if answer[0] == b"missing":
            raise run_not_found(before or "")
        return cast("bytes | None", answer[1])

    async def expire(
        self, *, older_than_ms: int | None, keep_runs: int | None, max_bytes: int | None
    ) -> Sequence[str]:
        """See `RunStore.expire`."""
        done, total = await self._done()
        limit = now_ms() - older_than_ms if older_than_ms is not None else None
        gone: list[str] = []
        for position, (run, ended, size) in enumerate(done):
            too_old = limit is not None and ended < limit
            too_many = keep_runs is not None and len(done) - position > keep_runs
            too_big = max_bytes is not None and total > max_bytes
            if (too_old or too_many or too_big) and await self._forget(run, only_if_forgettable=True):
                gone.append(run)
                total -= size
        return gone

    async def _done(self) -> tuple[_Done, int]:
        """Runs that retention may take, oldest first; and the bytes of all logs."""
        found: _Done = []
        while True:
            _, some, total = await self._reader.call("done", KEY, len(found), _DONE_BLOCK)
            for run, finished, updated, size in some:
                ended = int(updated if finished == b"null" else finished)
                found.append((run.decode(), ended, int(size)))
            if len(some) < _DONE_BLOCK:
                return found, int(total)


def _head_of(values: Sequence[Any]) -> Head:
    epoch, first, head = values
    return Head(int(epoch), int(first), int(head))

"""The store in a Redis or Valkey database, or in a cluster, for any number of servers.

What it promises is what Redis is configured to keep, read at the start (`StoreInfo`): with ``appendonly yes``
and ``appendfsync always`` an acknowledged append survives a loss of power; with ``everysec`` it survives any
crash of Mux, and a crash of Redis may lose a second.

A run is one stream; an entry is the chunk of one batch, with the explicit id ``<last seq>-0``, so that a
cursor is a position in it. A batch is one script: it checks the fence and the head, appends, and publishes
what it appended to whoever watches the run in another process.

A run is written in an order that may be cut anywhere: its idempotency key, its place in the indices, itself.
What is left behind then is a hint without a run, which the next reader removes.

Epoch: a shorter log than what a process saw is proof of a loss; then the run gets a new epoch, and is taken
over from what is left. At a start that finds nobody else at work, another Redis process than the last time,
or one that may have lost its end, gives every unfinished run a new one.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from redis import exceptions as refusals

from mux._failpoints import failpoint
from mux.clock import now_ms
from mux.errors import Conflict, MuxError, NotFound, StoreError
from mux.events import Record
from mux.log import chunks
from mux.log.heads import Heads
from mux.log.paging import page_of
from mux.log.protocols import (
    FINAL,
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
from mux.log.redis.commands import RedisCommands
from mux.log.redis.keys import RedisKeys
from mux.log.redis.lease import QUEUE, TTL_S, Lease
from mux.log.redis.link import GONE, Link, refusal
from mux.log.redis.migrate import migrate
from mux.log.redis.queue import WORD, RedisQueue
from mux.log.redis.rows import INDEX, MAX_TEXT, digest, fields_of, find_runs, places_of, row_of
from mux.log.redis.scripts import FIELDS, FORMAT, run_key
from mux.log.redis.server import Server, ask_servers
from mux.log.redis.tail import Tail
from mux.log.redis.url import target_of
from mux.telemetry import get_logger

__all__ = ["RedisStore"]

_READ_S = 1.5  # that a read waits in an outage: somebody looks at a page meanwhile
_BLOCK = 500  # runs that retention looks at in one step
_SWEEP_S = 30.0  # between two looks for unfinished runs that are in nobody's queue
_FIRST_SWEEP_S = 1.0
_KEY_PAUSE_S = 0.05  # between two looks at a run that another request is just making
_KEY_LOOKS = 40

_Ended: TypeAlias = list[tuple[str, int, int]]  # run, when it ended, its bytes
Publish: TypeAlias = Callable[[str, Head | None, Sequence[Record]], None]


class RedisStore:
    """Logs and runs in one database.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``; of a cluster, one of
            its nodes.
        outage_s: seconds that a write waits for a Redis that does not answer.
        lease_s: how long the runs of a worker that does not answer stay its own.
        answer_s: seconds for one answer of Redis.

    Raises:
        ConfigError: ``extra_missing``, ``store_unknown``.
    """

    def __init__(
        self, url: str, *, outage_s: float = 8.0, lease_s: float = TTL_S, answer_s: float = 5.0
    ) -> None:
        self._target = target_of(url)
        self._lease_s = lease_s
        self.info = StoreInfo(self._target.shown, "process", "its durability is not known yet")
        self._heads = Heads()
        self._lost: set[str] = set()  # runs whose end Redis lost, until somebody takes them over
        self._followed: dict[str, Publish] = {}
        self._own: dict[str, int] = {}  # run → fence of its claim here; this process publishes these itself
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer = Link(self._target, outage_s=outage_s, answer_s=answer_s, what="writes")
        self._reader = Link(self._target, outage_s=min(_READ_S, outage_s), answer_s=answer_s, what="reads")
        self._tail: Tail | None = None
        self._lease: Lease | None = None
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.queue = RedisQueue(self._writer, self._worker)
        self.commands = RedisCommands(self._writer, self._worker)
        self.keys = RedisKeys(self._writer, self._reader)

    async def open(self, *, url: str | None = None) -> None:
        """See `Store.open`."""
        server = await ask_servers(self._target)
        self.info = server.info
        try:
            await self._writer.start(cluster=server.cluster)
            await self._reader.start(cluster=server.cluster)
            await migrate(self._writer, self._target)
            await self._mark_open(server)
            self._lease = Lease(
                self._target, cluster=server.cluster, worker=self._worker, ttl_s=self._lease_s,
                lost=self._lose_all,
            )  # fmt: skip
            await self._lease.start(url)
            self._tail = Tail(self._reader.client)
            await self._tail.start(WORD, self._on_word)
            await self._tail.subscribe(f"mux:worker:{self._worker}", self.commands.commanded)
            await self._tail.subscribe(f"mux:front:{self._worker}", self.commands.answered)
        except (*GONE, refusals.RedisError) as e:
            await self.close()
            raise refusal(e, self._target) from None
        except BaseException:
            await self.close()
            raise
        self._spawn(self._sweep())

    async def _mark_open(self, server: Server) -> None:
        nodes = [x for name, (process, sure) in server.processes.items() for x in (name, process, int(sure))]
        state, found = await self._writer.call("opened", INDEX, FORMAT, *nodes)
        if state == b"newer":
            raise StoreError(
                "store_failed",
                f"{self._target.shown} was written by a newer version of Mux (format {found.decode()}). "
                "Upgrade, or choose another database with --store.",
            )
        others = (await self._writer.call("servers", QUEUE))[1]
        if not found or others:  # others at work compare the logs with what they saw
            return
        rows = await self.unfinished()
        await asyncio.gather(*(self._writer.call("lost", run_key(row.run)) for row in rows))
        if rows:
            get_logger().warning(
                "Redis was started again and may have lost the end of unfinished runs: viewers begin anew",
                store=self._target.shown, runs=len(rows),
            )  # fmt: skip

    async def check(self) -> None:
        """See `Store.check`."""
        await self._writer.command("SET", "mux:{runs}:check", "0" * 16_384, "EX", 1)

    async def announce(self, url: str) -> None:
        """Say at which address this server answers, for `mux run` on the same store."""
        if self._lease is not None:
            await self._lease.announce(url)

    async def close(self) -> None:
        """See `Store.close`."""
        self._heads.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.commands.stop()
        if self._tail is not None:
            await self._tail.stop()
        await self._writer.stop()
        await self._reader.stop()
        if self._lease is not None:
            await self._lease.stop()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- answers --------------------------------------------------------------------------------------------

    async def _write(
        self, script: str, run: str, *args: Any, done: Callable[[Any], None] | None = None
    ) -> list[Any]:
        answer: list[Any] = await self._writer.call(script, run_key(run), *args, done=done)
        if answer[0] == b"missing":
            raise run_not_found(run)
        return answer

    async def _read(self, script: str, run: str, *args: Any) -> list[Any]:
        answer: list[Any] = await self._reader.call(script, run_key(run), *args)
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

        answer = await self._write("append", run, fence, *bounds, done=done)
        if answer[0] == b"fenced":
            self._disown(run)
            check_append(run, int(answer[1]), 0, fence, ())
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

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None] | None:
        """See `EventLog.append_now`: never."""
        return None

    async def append_many(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None]:
        """See `EventLog.append_many`: one round trip."""
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

    def _on_word(self, message: bytes | None) -> None:
        """A run was offered; or the subscription holds (again), and Redis may have lost something."""
        self.queue.wake(message)
        if message is None:
            self._spawn(self._verify())

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
        """See `EventLog.head`. Redis alone knows: what it appended is published, and seen by viewers of other
        processes, before this one has the answer."""
        return _head_of((await self._read("head", run))[1:])

    async def wait(self, run: str, after: int, timeout_s: float) -> Head:
        """See `EventLog.wait`."""
        return await self._heads.wait(run, after, timeout_s, lambda: self.head(run))

    async def trim(self, run: str, before: int) -> Head:
        """See `EventLog.trim`."""
        answer = await self._write("trim", run, before, done=lambda _: self._heads.forget(run))
        return _head_of(answer[1:])

    # --- following ------------------------------------------------------------------------------------------

    async def follow(self, run: str, publish: Publish) -> None:
        """See `EventLog.follow`."""
        if self._tail is None:
            raise StoreError("store_failed", f"The store {self._target.shown} is not open.")
        self._followed[run] = publish
        await self._tail.subscribe(_tail(run), lambda message: self._on_tail(run, message))

    async def unfollow(self, run: str) -> None:
        """See `EventLog.unfollow`."""
        if self._followed.pop(run, None) is not None and self._tail is not None:
            await self._tail.unsubscribe(_tail(run))
            if run not in self._own and run not in self._followed:
                self._heads.forget(run)  # nothing is heard of it any more

    def _on_tail(self, run: str, message: bytes | None) -> None:
        publish = self._followed.get(run)
        if publish is None:
            return
        if message is None:  # subscribed from now on: what there is already may not have been published
            self._spawn(self._catch_up(run))
            return
        epoch, last, fence, chunk = message.split(b" ", 3)
        if int(fence) > self._own.get(run, 1 << 53):
            self._disown(run)  # somebody else claimed it since
        if last == b"0":  # it was deleted, or lost its end
            self._heads.forget(run)
            publish(run, None, ())
        elif run not in self._own:
            records = list(chunks.decode_all(((chunk, int(last)),)))
            at = Head(int(epoch), 1, int(last))
            self._heads.set(run, at)
            publish(run, at, records)

    async def _catch_up(self, run: str) -> None:
        """Publish where the log stands: whoever is behind reads the rest."""
        at: Head | None
        records: Sequence[Record]
        try:
            at = _head_of((await self._read("head", run))[1:])
            records = (await self.read(run, at.head - 1, limit=1)).records
        except NotFound:
            at, records = None, ()
        except MuxError as e:  # Redis is away: the next confirmation looks again
            get_logger(run=run).debug("run not looked at", code=e.code)
            return
        publish = self._followed.get(run)
        if publish is not None and run not in self._own:
            publish(run, at, records)

    # --- runs -----------------------------------------------------------------------------------------------

    async def create(
        self, row: RunRow, idempotency: Idempotency | None = None, records: Sequence[Record] = ()
    ) -> RunRow:
        """See `RunStore.create`."""
        key = ""
        if idempotency is not None and idempotency.expires > now_ms():
            key = f"mux:{{k:{digest(idempotency.owner, idempotency.key)}}}:key"
            first = await self._first_of_key(key, row, idempotency)
            if first is not None:
                return first
        places = places_of(row)
        answer = await self._writer.call("index", INDEX, "", row.created, row.run, len(places), *places)
        number = int(answer[1])
        fields = fields_of({name: getattr(row, name) for name in FIELDS})
        parts = [part for chunk in chunks.split(records) for part in (chunk[-1].seq, chunks.encode(chunk))]
        size, head = sum([len(r.data) for r in records]), records[-1].seq if records else 0
        answer = await self._write(
            "create", row.run, secrets.token_hex(8), number, head, size, len(parts), *parts, *fields
        )
        if answer[0] == b"exists":
            await self._writer.call("index", INDEX, number, row.created, row.run, 0, *places)
            raise run_exists(row.run)
        if key:
            await self._writer.call("key_made", key, row.run)
        return row

    async def _first_of_key(self, key: str, row: RunRow, idempotency: Idempotency) -> RunRow | None:
        """The run that the key made first; ``None``: it makes this one."""
        gone = ""
        for look in range(_KEY_LOOKS):
            answer = await self._writer.call(
                "key", key, idempotency.body_hash, row.run, idempotency.expires, now_ms(), gone
            )
            if answer[0] == b"ok" or answer[2].decode() == row.run:  # or: its first answer was lost
                return None
            run, made = answer[2].decode(), bool(answer[3])
            try:
                first = await self.get(run)
            except NotFound:
                # It was deleted; or another request is just making it; or that one's server was killed.
                if made or look == _KEY_LOOKS - 2:
                    gone = run
                else:
                    await asyncio.sleep(_KEY_PAUSE_S)
                continue
            if answer[1].decode() != idempotency.body_hash:
                raise idempotency_conflict(idempotency.key)
            return first
        raise StoreError("store_failed", f"The key {idempotency.key!r} is being used elsewhere; try again.")

    async def get(self, run: str) -> RunRow:
        """See `RunStore.get`."""
        return row_of(run, (await self._read("get", run, 0))[1])

    async def update(self, run: str, **changes: Any) -> RunRow:
        """See `RunStore.update`."""
        check_changes(changes)
        final = changes.get("status") in FINAL
        _, values, before, number = await self._write(
            "update", run, int("title" in changes or "message" in changes),
            *fields_of({**changes, "updated": now_ms()}),
            done=lambda _: self._heads.forget(run) if final else None,
        )  # fmt: skip
        row, old = row_of(run, values), row_of(run, before)
        added, removed = places_of(row) - places_of(old), places_of(old) - places_of(row)
        if added or removed:
            await self._writer.call(
                "index", INDEX, int(number), row.created, run, len(added), *added, *removed
            )
        if final:
            self._own.pop(run, None)
        return row

    async def list(self, query: RunQuery) -> RunPage:
        """See `RunStore.list`. A search reads the texts of the runs that it looks through."""
        return await find_runs(self._reader, query)

    async def delete(self, run: str) -> None:
        """See `RunStore.delete`."""
        await self._forget(run, only_if_forgettable=False)

    async def _forget(self, run: str, *, only_if_forgettable: bool) -> bool:
        failpoint("retention.before")
        answer = await self._write(
            "delete", run, int(only_if_forgettable), done=lambda _: self._heads.forget(run)
        )
        failpoint("retention.after")
        if answer[0] != b"ok":
            return False
        _, values, number, convs = answer
        row = row_of(run, values)
        self._own.pop(run, None)
        await asyncio.gather(
            self._writer.call("index", INDEX, int(number), row.created, run, 0, *places_of(row)),
            *(self._writer.call("unremember", _conv(name.decode()), int(number)) for name in convs),
        )
        return True

    async def unfinished(self) -> Sequence[RunRow]:
        """See `RunStore.unfinished`."""
        rows: list[RunRow] = []
        after: str | None = None
        while True:
            page = await find_runs(
                self._writer, RunQuery(status=("queued", "running", "waiting"), limit=500, after=after)
            )
            rows += page.runs
            after = page.next
            if after is None:
                return rows[::-1]

    async def claim(self, run: str, owner: str) -> int:
        """See `RunStore.claim`."""
        fence = int((await self._write("claim", run, self._worker))[1])
        self._lost.discard(run)
        self._own[run] = fence
        return fence

    def _disown(self, run: str) -> None:
        """Another process appends to it now: what is known of it here is no longer all there is."""
        if self._own.pop(run, None) is not None:
            self._heads.forget(run)

    def _lose_all(self) -> None:
        """The lease ended while this process was away."""
        for run in list(self._own):
            self._disown(run)
        self.queue.lose()

    async def index_text(self, run: str, channel: str | None, text: str) -> None:
        """See `RunStore.index_text`."""
        await self._write("text", run, channel or "", text[:MAX_TEXT].encode("utf-8", "replace"))

    async def put_conversation(self, thread: str, channel: str, run: str, data: bytes) -> None:
        """See `RunStore.put_conversation`."""
        name = digest(thread, channel)
        number = int((await self._write("has_conv", run, name))[1])
        await self._writer.call("remember", _conv(name), number, data)

    async def conversation(self, thread: str, channel: str, before: str | None = None) -> bytes | None:
        """See `RunStore.conversation`."""
        number: Any = ""
        if before is not None:
            number = await self._reader.command("HGET", run_key(before), "n")
            if number is None:
                raise run_not_found(before)
        data = (await self._reader.call("recall", _conv(digest(thread, channel)), number))[1]
        return bytes(data) if data is not None else None

    async def size(self, owner: str) -> int:
        """See `RunStore.size`."""
        return sum([bytes_ for _, _, bytes_ in await self._oldest(f"o:{digest(owner)}")])

    async def expire(
        self, *, older_than_ms: int | None, keep_runs: int | None, max_bytes: int | None
    ) -> Sequence[str]:
        """See `RunStore.expire`."""
        limit = now_ms() - older_than_ms if older_than_ms is not None else None
        done = await self._oldest("done")
        size = sum([bytes_ for _, _, bytes_ in await self._oldest("all")]) if max_bytes is not None else 0
        gone: list[str] = []
        for position, (run, ended, bytes_) in enumerate(done):
            too_old = limit is not None and ended < limit
            too_many = keep_runs is not None and len(done) - position > keep_runs
            too_big = max_bytes is not None and size > max_bytes
            if not (too_old or too_many or too_big):
                continue
            try:
                if await self._forget(run, only_if_forgettable=True):
                    gone.append(run)
                    size -= bytes_
            except NotFound:
                size -= bytes_
        return gone

    async def _oldest(self, place: str) -> _Ended:
        """The runs of an index, oldest first."""
        found: _Ended = []
        offset = 0
        while True:
            members = (await self._reader.call("oldest", INDEX, place, offset, _BLOCK))[1][::2]
            found += await self._facts([member[17:].decode() for member in members])
            offset += len(members)
            if len(members) < _BLOCK:
                return found

    async def _facts(self, runs: Sequence[str]) -> _Ended:
        answers = await asyncio.gather(
            *(self._reader.command("HMGET", run_key(run), "finished", "updated", "bytes") for run in runs)
        )
        return [
            (run, int(updated if finished in (None, b"null") else finished), int(size))
            for run, (finished, updated, size) in zip(runs, answers, strict=True)
            if updated is not None
        ]

    # --- the sweeper ----------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Offer unfinished runs that are in nobody's queue: a server was killed between writing a run and
        offering it, or Redis lost the queue. And mend the places of runs that ended."""
        pause = _FIRST_SWEEP_S
        seen: set[str] = set()
        while True:
            await asyncio.sleep(pause)
            pause = _SWEEP_S
            try:
                rows = {row.run: row for row in await self.unfinished()}
                unknown = set(await self.queue.unknown(list(rows)))
                for run in unknown & seen:  # twice: not one that is just being made, or has just ended
                    row = await self.get(run)
                    if row.status not in FINAL:
                        await self.queue.offer(run, row.owner)
                seen = unknown
                if seen:
                    pause = _FIRST_SWEEP_S
            except MuxError as e:  # Redis is away; the next round comes
                get_logger().debug("queue not swept", code=e.code)


def _tail(run: str) -> str:
    return f"mux:{{{run}}}:tail"


def _conv(name: str) -> str:
    return f"mux:{{c:{name}}}:conv"


def _head_of(values: Sequence[Any]) -> Head:
    epoch, first, head = values
    return Head(int(epoch), int(first), int(head))

"""Appends to the sqlite store, against bare sqlite3 with the same durability (WAL, synchronous=NORMAL); and
to the Redis store, against a bare Lua append that adds the batch and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from mux.events import Event, Record, Token
from mux.log import open_store
from mux.log.protocols import RunRow, Store
from tests.bench.harness import Report, Side, interleaved
from tests.bench.redis_log import servers
from tests.support.redis_server import RedisServer

__all__ = ["run"]

RUN = "r0123456789abcde"
_LUA = """
for i = 2, #ARGV do redis.call('XADD', KEYS[1], string.format('%.0f-0', ARGV[1] + i - 2), 'd', ARGV[i]) end
"""


def _records(first: int, count: int) -> list[Record]:
    return [
        Event(RUN, seq, "analyst", seq, 1_790_000_000_000, Token.of("hello ")).record()
        for seq in range(first, first + count)
    ]


def _ours(store: Store, fence: int, batches: Sequence[Sequence[Record]]) -> Side:
    turns = iter(batches)

    async def side() -> float:
        done = 0
        for batch in itertools.islice(turns, 100):
            await store.append(RUN, fence, batch)
            done += len(batch)
        return done

    return side


def _bare(db: sqlite3.Connection, batches: Sequence[Sequence[Record]]) -> Side:
    turns = iter(batches)

    def work() -> int:
        done = 0
        for batch in itertools.islice(turns, 100):
            with db:
                db.executemany("insert into log values (?, ?, ?)", ((RUN, r.seq, r.data) for r in batch))
            done += len(batch)
        return done

    async def side() -> float:
        return await asyncio.to_thread(work)

    return side


async def run(report: Report, *, quick: bool) -> None:
    """Batches of 1, 16 and 256 events."""
    rounds = 3 if quick else 7
    await _sqlite(report, rounds)
    with ExitStack() as processes:
        for redis in await asyncio.to_thread(servers, report, processes, 1):
            await _redis(report, rounds, redis)


def _bare_redis(client: Any, sha: str, batches: Sequence[Sequence[Record]]) -> Side:
    turns = iter(batches)

    async def side() -> float:
        done = 0
        for batch in itertools.islice(turns, 100):
            await client.evalsha(sha, 1, "bare", batch[0].seq, *[r.data for r in batch])
            done += len(batch)
        return done

    return side


async def _redis(report: Report, rounds: int, redis: RedisServer) -> None:
    for size in (1, 16, 256):
        await asyncio.to_thread(redis.empty)
        store = await asyncio.to_thread(open_store, redis.url)
        await store.open()
        await store.create(RunRow(RUN, "t1", "local", "running", 1, 1, {}))
        fence = await store.claim(RUN, "bench")
        batches = [_records(1 + i * size, size) for i in range(100 * (rounds + 1))]
        async with Redis(port=redis.port) as client:
            bare = _bare_redis(client, await client.script_load(_LUA), batches)
            floor = f"bare Lua append, {size} a batch"
            figures = await interleaved(
                f"Redis appends, {size} a batch",
                {f"mux, Redis, {size} a batch": _ours(store, fence, batches), floor: bare},
                rounds=rounds,
                against=floor,
            )
        report.add(*figures)
        await store.close()


async def _sqlite(report: Report, rounds: int) -> None:
    for size in (1, 16, 256):
        with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
            store = await asyncio.to_thread(open_store, f"sqlite:{folder}/ours.sqlite")
            await store.open()
            db = sqlite3.connect(Path(folder) / "bare.sqlite", check_same_thread=False)
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = normal")
            db.execute(
                "create table log (run text, seq integer, data blob, primary key (run, seq)) without rowid"
            )
            await store.create(RunRow(RUN, "t1", "local", "running", 1, 1, {}))
            fence = await store.claim(RUN, "bench")
            batches = [_records(1 + i * size, size) for i in range(100 * (rounds + 1))]
            figures = await interleaved(
                f"sqlite appends, {size} a batch",
                {
                    f"mux, {size} a batch": _ours(store, fence, batches),
                    f"bare, {size} a batch": _bare(db, batches),
                },
                rounds=rounds,
                against=f"bare, {size} a batch",
            )
            report.add(*figures)
            db.close()
            await store.close()

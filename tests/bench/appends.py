"""Appends to the sqlite store, against bare sqlite3 with the same durability (WAL, synchronous=NORMAL)."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mux.events import Event, Record, Token
from mux.log import open_store
from mux.log.base import RunRow, Store
from tests.bench.harness import Report, Side, interleaved

__all__ = ["run"]

RUN = "r0123456789abcde"


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

"""What only the sqlite store promises: crashes, locks, epochs, broken files, many runs."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest
from structlog.testing import capture_logs

from mux.errors import Conflict, Fenced, StoreError
from mux.events import token_records
from mux.log import Head, RunPage, RunQuery, SqliteStore, store_holder
from mux.log.sqlite import search as _search
from mux.log.sqlite import writer as _writer
from mux.log.sqlite.keys import SqliteKeys
from mux.log.sqlite.schema import MIGRATIONS, SEQ_BITS, connect, migrate
from tests.support.stores import records, row

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "mux.db"


async def opened(path: Path, **options: object) -> SqliteStore:
    store = SqliteStore(path, **options)  # type: ignore[arg-type]
    await store.open()
    return store


# --- processes that die -------------------------------------------------------------------------------------

_CHILD = """
import asyncio, sys
from pathlib import Path
from mux.log import SqliteStore
from tests.support.stores import records, row

async def main(path, durability):
    store = SqliteStore(Path(path), durability=durability)
    await store.open(url="http://127.0.0.1:4711")
    await store.create(row("r1", message="needle"))
    fence = await store.claim("r1", "me")
    print("open", flush=True)
    for n in range(200):
        await store.append("r1", fence, records("r1", 1 + 5 * n, 5))
        print(5 + 5 * n, flush=True)
    await store.update("r1", status="completed", finished=1)
    await store.expire(older_than_ms=0, keep_runs=None, max_bytes=None)
    print("expired", flush=True)
    while True:
        await asyncio.sleep(1)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def child(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to the store for ever; killed at the end."""
    process = start_child(path)
    yield process
    stop(process)


def start_child(path: Path, failpoint: str = "", durability: str = "normal") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path), durability],
        env={**os.environ, "MUX_FAILPOINT": failpoint, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    if process.stdout is not None and not process.stdout.closed:
        process.communicate()


def acknowledged(process: subprocess.Popen[str], until: str | None = None) -> int:
    """The last seq that the child said was acknowledged; reads to its end, or to a line."""
    last = 0
    assert process.stdout is not None
    for line in process.stdout:
        text = line.strip()
        last = int(text) if text.isdigit() else last
        if text == until:
            break
    return last


async def read_seqs(store: SqliteStore) -> list[int]:
    return [r.seq for r in (await store.read("r1", 0, limit=10_000)).records]


@pytest.mark.parametrize("durability", ["normal", "full"])
@pytest.mark.parametrize("failpoint", ["append.before:7", "append.after:7"])
@pytest.mark.allow_blocking  # it waits for another process to die
async def test_what_was_acknowledged_survives_a_kill_and_keeps_its_epoch(
    path: Path, failpoint: str, durability: str
) -> None:
    process = start_child(path, failpoint, durability)
    last = acknowledged(process)
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()
    assert last == 30
    store = await opened(path)
    at = await store.head("r1")
    assert at == Head(1, 1, 30 if "before" in failpoint else 35)  # a batch is whole or not there
    assert await read_seqs(store) == list(range(1, at.head + 1))
    assert [r.run for r in await store.unfinished()] == ["r1"]
    fence = await store.claim("r1", "other")
    await store.append("r1", fence, records("r1", at.head + 1, 1))
    await store.close()


@pytest.mark.parametrize("failpoint", ["retention.before", "retention.after", "retention.sweep"])
@pytest.mark.allow_blocking  # it waits for another process to die
async def test_a_kill_in_retention_leaves_the_run_whole_or_gone(path: Path, failpoint: str) -> None:
    process = start_child(path, failpoint)
    assert acknowledged(process) == 1000
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()
    store = await opened(path)
    runs = [r.run for r in (await store.list(RunQuery(q="needle"))).runs]
    if failpoint == "retention.sweep":
        assert runs == []
        await store.create(row("r2"))  # a write, after which the thread has time to sweep
        assert await _until_zero(path, "SELECT count(*) FROM chunks")
    else:
        assert runs == ["r1"]
        assert await read_seqs(store) == list(range(1, 1001))
    await store.close()


async def _until_zero(path: Path, query: str) -> bool:
    def look() -> bool:
        db = sqlite3.connect(path)
        try:
            for _ in range(500):
                if db.execute(query).fetchone() == (0,):
                    return True
                time.sleep(0.01)
            return False
        finally:
            db.close()

    return await asyncio.to_thread(look)


@pytest.mark.allow_blocking  # it waits for lines of another process
async def test_a_second_server_is_refused_and_told_where_the_first_is(
    path: Path, child: subprocess.Popen[str]
) -> None:
    acknowledged(child, "open")
    with pytest.raises(StoreError) as caught:
        await opened(path)
    assert caught.value.code == "store_locked"
    assert caught.value.extra == {"url": "http://127.0.0.1:4711", "pid": child.pid}
    holder = store_holder(f"sqlite:{path}")
    assert holder is not None
    assert (holder.url, holder.pid) == ("http://127.0.0.1:4711", child.pid)
    stop(child)
    assert store_holder(f"sqlite:{path}") is None
    await (await opened(path)).close()


async def test_a_second_store_in_the_same_process_is_refused_too(path: Path) -> None:
    store = await opened(path)
    await store.announce("http://127.0.0.1:99")
    with pytest.raises(StoreError) as caught:
        await opened(path)
    assert caught.value.extra["url"] == "http://127.0.0.1:99"
    holder = await asyncio.to_thread(store_holder, f"sqlite:{path}")
    assert holder is not None
    assert holder.url == "http://127.0.0.1:99"
    with pytest.raises(StoreError):  # asking did not drop the lock
        await opened(path)
    await store.close()
    assert await asyncio.to_thread(store_holder, f"sqlite:{path}") is None
    await (await opened(path)).close()


# --- epochs -------------------------------------------------------------------------------------------------


def _crash_copy(path: Path, to: Path, *, same_file: bool) -> None:
    """Put the file as it is now, open, where a store finds it after a crash."""
    to.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        to.with_name(to.name + suffix).write_bytes(source.read_bytes())
    if same_file:  # the copy has another inode: tell it that it is itself
        db = sqlite3.connect(to)
        (mark,) = db.execute("SELECT value FROM meta WHERE key = 'mark'").fetchone()
        boot = mark.split("/")[0]
        db.execute("UPDATE meta SET value = ? WHERE key = 'mark'", (f"{boot}/{to.stat().st_ino}",))
        db.commit()
        db.close()


@pytest.mark.parametrize(
    ("durability", "boot", "same_file", "epoch"),
    [
        ("normal", "boot 1", True, 1),  # the process was killed
        ("normal", "boot 2", True, 2),  # the machine went down
        ("normal", "boot 1", False, 2),  # a copy of an open file
        ("full", "boot 2", True, 1),  # the machine went down, but everything was on disk
    ],
)
async def test_the_epoch_changes_only_when_something_may_be_lost(
    path: Path, tmp_path: Path, durability: str, boot: str, same_file: bool, epoch: int
) -> None:
    store = await opened(path, durability=durability, boot_id="boot 1")
    for run in ("r1", "done"):
        await store.create(row(run))
        await store.append(run, await store.claim(run, "me"), records(run, 1, 3))
    await store.update("done", status="completed", finished=1)
    copy = tmp_path / "copy" / "mux.db"
    await asyncio.to_thread(_crash_copy, path, copy, same_file=same_file)
    await store.close()
    again = await opened(copy, durability=durability, boot_id=boot)
    assert await again.head("r1") == Head(epoch, 1, 3)
    assert await again.head("done") == Head(1, 1, 3)  # nothing of it can be lost
    await again.close()


async def test_a_store_that_was_closed_keeps_its_epoch_over_a_boot(path: Path) -> None:
    for boot in ("boot 1", "boot 2", "boot 3"):
        store = await opened(path, boot_id=boot)
        if boot == "boot 1":
            await store.create(row("r1"))
        assert (await store.head("r1")).epoch == 1
        await store.close()


# --- durability ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "level", "promise"), [("normal", 1, "process"), ("full", 2, "power")])
async def test_durability_sets_when_sqlite_syncs(
    path: Path, durability: str, level: int, promise: str
) -> None:
    store = await opened(path, durability=durability)
    synchronous = await store._writer.submit(lambda s: s.db.execute("PRAGMA synchronous").fetchone()[0])
    assert synchronous == level  # 1 = NORMAL, 2 = FULL: fsync of the WAL before COMMIT returns
    assert store.info.durable == promise
    await store.close()


async def test_appends_that_arrive_together_share_a_commit(path: Path) -> None:
    store = await opened(path)
    fences = {}
    for n in range(40):
        await store.create(row(f"r{n}"))
        fences[f"r{n}"] = await store.claim(f"r{n}", "me")
    commits: list[str] = []
    gate = threading.Event()
    await store._writer.submit(lambda s: s.db.set_trace_callback(commits.append))
    busy = store._writer.submit(lambda _: gate.wait(10))
    appends = [asyncio.ensure_future(store.append(r, f, records(r, 1, 2))) for r, f in fences.items()]
    await asyncio.sleep(0)  # all of them are submitted while the thread is busy
    gate.set()
    await asyncio.gather(busy, *appends)
    await store._writer.submit(lambda s: s.db.set_trace_callback(None))
    assert sum(c == "COMMIT" for c in commits) == 3  # of the tracing, the busy job and all appends
    assert all([(await store.head(run)).head == 2 for run in fences])
    await store.close()


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_a_lone_append_to_a_live_log_commits_without_a_thread_unless_it_is_synced(
    path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "_SHARE", 0)  # on this machine, busy as it may be
    monkeypatch.setattr(_writer, "_STALLED_S", 60.0)
    store = await opened(path, durability=durability)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    await store.append("r1", fence, records("r1", 1, 1))
    threads: list[int] = []
    await store._writer.submit(lambda s: s.db.set_trace_callback(lambda _: threads.append(get_ident())))
    threads.clear()
    await store.append("r1", fence, records("r1", 2, 1))
    assert ({get_ident()} == set(threads)) == (durability == "normal")
    with pytest.raises(Conflict):
        await store.append("r1", fence, records("r1", 9, 1))
    with pytest.raises(Fenced):
        await store.append("r1", fence - 1, records("r1", 3, 1))
    await store.append("r1", fence, records("r1", 3, 1))
    assert (await store.head("r1")).head == 3
    assert await read_seqs(store) == [1, 2, 3]
    await store._writer.submit(lambda s: s.db.set_trace_callback(None))
    await store.close()
    store = await opened(path)
    assert await read_seqs(store) == [1, 2, 3]
    await store.close()


@pytest.mark.parametrize(("share", "credit_s", "inline"), [(1e9, 0.0, 1), (4, 60.0, 20)])
async def test_appends_in_a_row_are_committed_without_a_thread_while_they_have_credit(
    path: Path, share: float, credit_s: float, inline: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    threads: list[int] = []
    await store._writer.submit(
        lambda s: s.db.set_trace_callback(
            lambda sql: threads.append(get_ident()) if "chunks" in sql else None
        )
    )
    monkeypatch.setattr(_writer, "_SHARE", share)
    monkeypatch.setattr(_writer, "_CREDIT_S", credit_s)
    monkeypatch.setattr(_writer, "_STALLED_S", 60.0)
    for seq in range(1, 21):
        await store.append("r1", fence, records("r1", seq, 1))
    assert len(threads) == 20
    assert threads.count(get_ident()) == inline
    await store._writer.submit(lambda s: s.db.set_trace_callback(None))
    assert await read_seqs(store) == list(range(1, 21))
    await store.close()


async def test_an_append_overtakes_nothing_that_was_submitted_before_it(path: Path) -> None:
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    await store.append("r1", fence, records("r1", 1, 1))
    gate = threading.Event()
    busy = store._writer.submit(lambda _: gate.wait(10))
    taken_over = asyncio.ensure_future(store.claim("r1", "another"))
    await asyncio.sleep(0)
    late = asyncio.ensure_future(store.append("r1", fence, records("r1", 2, 1)))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(busy, taken_over)
    with pytest.raises(Fenced):
        await late
    assert await read_seqs(store) == [1]
    await store.close()


async def test_the_wal_is_brought_into_the_file_while_appends_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "_CHECKPOINT", 200)
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    for seq in range(1, 1501):
        await store.append("r1", fence, records("r1", seq, 1))
    wal = await asyncio.to_thread(path.with_name(path.name + "-wal").stat)
    assert wal.st_size < 3 * 200 * 4096, "1,500 commits of three pages each, and it began anew in time"
    assert await read_seqs(store) == list(range(1, 1501))
    await store.close()


async def test_appends_go_on_after_another_program_has_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between lone appends the store keeps its read lock; sqlite refuses to write after what was not read."""
    monkeypatch.setattr(_writer, "_SHARE", 0)
    monkeypatch.setattr(_writer, "_STALLED_S", 60.0)
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    other = await asyncio.to_thread(sqlite3.connect, path, isolation_level=None, check_same_thread=False)
    for seq in range(1, 40):
        if seq % 10 == 0:
            write = "INSERT OR REPLACE INTO meta (key, value) VALUES ('another', 'program')"
            await asyncio.to_thread(other.execute, write)
        await store.append("r1", fence, records("r1", seq, 1))
        seen = await asyncio.to_thread(other.execute, "SELECT count(*) FROM chunks")
        assert seen.fetchall() == [(seq,)], "committed at once"
    await asyncio.to_thread(other.close)
    assert await read_seqs(store) == list(range(1, 40))
    await store.close()


_EMPTIES = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]), isolation_level=None)
for _ in range(int(sys.argv[3])):
    busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    print(busy)
"""


async def empties(path: Path, times: int = 1) -> list[str]:
    """What another program is told that empties the WAL; it waits for a second each time."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _EMPTIES, str(path), "1", str(times), stdout=subprocess.PIPE
    )
    return (await process.communicate())[0].decode().split()


async def test_another_program_can_empty_the_wal_a_moment_after_the_last_append(path: Path) -> None:
    """A lone append keeps the read lock for the next one, and nobody empties a WAL that is being read."""
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    await store.append("r1", fence, records("r1", 1, 1))
    assert await empties(path) == ["0"]
    wal = await asyncio.to_thread(path.with_name(path.name + "-wal").stat)
    assert wal.st_size == 0
    await store.append("r1", fence, records("r1", 2, 1))
    assert await read_seqs(store) == [1, 2]
    await store.close()


async def test_another_program_that_empties_the_wal_while_appends_go_on_costs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "_HELD_S", 60.0)  # the appends themselves make way
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    emptying = asyncio.create_task(empties(path, 20))
    seq = 0
    while not emptying.done():
        seq += 1
        await store.append("r1", fence, records("r1", seq, 1))
        await asyncio.sleep(0.001)
    assert await emptying == ["0"] * 20
    assert await read_seqs(store) == list(range(1, seq + 1))
    await store.close()


async def test_a_store_that_is_closed_after_lone_appends_is_all_in_its_file(path: Path) -> None:
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    for seq in (1, 2, 3):
        await store.append("r1", fence, records("r1", seq, 1))
    with capture_logs() as warnings:
        await store.close()
    assert warnings == []
    assert set(await asyncio.to_thread(os.listdir, path.parent)) == {path.name, f"{path.name}.lock"}


async def test_one_refused_job_does_not_hurt_the_others_of_its_commit(path: Path) -> None:
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    jobs = [
        store.append("r1", fence, records("r1", 1, 2)),
        store.append("r1", fence, records("r1", 9, 2)),
        store._writer.submit(lambda s: s.db.execute("INSERT INTO requests (id) VALUES (1)")),
        store._writer.submit(lambda s: 1 // 0),
        store.append("r1", fence, records("r1", 3, 2)),
    ]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    kinds = [type(r) for r in results]
    assert kinds == [type(None), Conflict, StoreError, ZeroDivisionError, type(None)]
    assert await read_seqs(store) == [1, 2, 3, 4]
    await store.close()


# --- files that can't be used -------------------------------------------------------------------------------


async def test_a_full_disk_is_said_and_loses_nothing_acknowledged(path: Path) -> None:
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    await store._writer.submit(lambda s: s.db.execute("PRAGMA max_page_count = 100").fetchall())
    kept = 0

    async def fill() -> None:
        nonlocal kept
        while kept < 1000:
            await store.append("r1", fence, records("r1", kept + 1, 10, "x" * 500))
            kept += 10

    with pytest.raises(StoreError) as caught:
        await fill()
    assert caught.value.code == "store_full"
    with pytest.raises(StoreError) as caught:
        await store.check()
    assert caught.value.code == "store_full"
    assert await read_seqs(store) == list(range(1, kept + 1))
    await store._writer.submit(lambda s: s.db.execute("PRAGMA max_page_count = 10000").fetchall())
    await store.check()
    await store.append("r1", fence, records("r1", kept + 1, 10))  # space was made: it goes on
    assert (await store.head("r1")).head == kept + 10
    await store.close()


async def test_a_lock_of_another_program_is_said_and_outlived(path: Path) -> None:
    store = await opened(path, busy_s=0.05)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    other = await asyncio.to_thread(sqlite3.connect, path, isolation_level=None, check_same_thread=False)
    await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as caught:
        await store.append("r1", fence, records("r1", 1, 1))
    assert caught.value.code == "store_locked"
    assert caught.value.retryable
    await asyncio.to_thread(other.execute, "ROLLBACK")
    await asyncio.to_thread(other.close)
    await store.append("r1", fence, records("r1", 1, 1))
    assert await read_seqs(store) == [1]
    await store.close()


@pytest.mark.parametrize(
    "content", [b"this is no database at all, whatever its name says" * 100, b"\x00" * 8192]
)
async def test_a_damaged_file_is_refused_with_a_way_out(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreError, match="Move it away") as caught:
        await opened(path)
    assert caught.value.code == "store_failed"
    assert path.read_bytes() == content


async def test_a_file_of_another_program_or_a_newer_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious (x)")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="another program"):
        await opened(path)
    path.unlink()
    await (await opened(path)).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        await opened(path)


async def test_a_file_of_an_older_version_is_read_and_brought_to_the_newest(path: Path) -> None:
    store = await opened(path)
    await store.create(row("r1"))
    await store.append("r1", await store.claim("r1", "me"), records("r1", 1, 50))
    await store.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")  # whose chunks were what these are: no texts without envelopes
    db.execute("DROP TABLE access")
    db.execute("DROP INDEX experiments")
    db.execute("ALTER TABLE runs DROP COLUMN kind")
    db.close()
    store = await opened(path)
    said = token_records("r1", "gpt", 50, 17, 5, ["on ", "and on"], keep=True)
    await store.append("r1", await store.claim("r1", "me"), said)
    assert (await store.read("r1", 0)).records == [
        *records("r1", 1, 50), *(r._replace(body=None) for r in said)
    ]  # fmt: skip
    await store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    db.close()


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.allow_blocking  # it waits for another process
async def test_a_store_that_may_not_be_written_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "data"
    path = folder / "mux.db"
    await (await opened(path)).close()
    code = (
        "import asyncio, os, sys, concurrent.futures.thread\n"
        "from pathlib import Path\n"
        "from mux.errors import StoreError\n"
        "from mux.log import SqliteStore\n"
        "if os.getuid() == 0: os.setresuid(65534, 65534, 65534)\n"  # root may write everything
        "try: asyncio.run(SqliteStore(Path(sys.argv[1])).open())\n"
        "except StoreError as e: print(e.code)\n"
    )
    for parent in [folder, *folder.parents][:4]:
        parent.chmod(0o755)
    if what == "file":
        folder.chmod(0o777)
        path.with_name("mux.db.lock").chmod(0o666)
        path.chmod(0o444)
    else:
        folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, cwd=os.getcwd()
    )
    folder.chmod(0o755)
    assert done.stdout.strip() == "store_readonly", done.stderr


# --- many runs ----------------------------------------------------------------------------------------------


def _fill(path: Path, runs: int) -> None:
    """Runs as they look when they are over, put in at once."""
    db = sqlite3.connect(path)
    db.executemany(
        "INSERT INTO runs VALUES (?, ?, 't', 'local', 'completed', ?, ?, ?, 0, '[]', NULL, '{}', '{}', ?, "
        "'run')",
        ((n, f"old{n}", n, n, n, f"message number {n} " + "word " * 30) for n in range(1, runs + 1)),
    )
    db.execute("INSERT INTO requests SELECT id, '{}' FROM runs")
    db.execute("INSERT INTO logs SELECT id, 1, 1, 1, 0, 1000, NULL FROM runs")
    chunk = b"\x90"  # msgpack: an empty list; nobody reads them here
    db.executemany(
        "INSERT INTO chunks VALUES (?, ?)", ((n << SEQ_BITS | 10, chunk) for n in range(1, runs + 1))
    )
    db.commit()
    db.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_hundred_thousand_old_runs_are_no_work_at_start(path: Path) -> None:
    await (await opened(path)).close()
    await asyncio.to_thread(_fill, path, 100_000)
    began = time.process_time()
    store = await opened(path)
    assert await store.unfinished() == []
    page = await store.list(RunQuery(limit=50))
    await store.create(row("new"))
    await store.append("new", await store.claim("new", "me"), records("new", 1, 3))
    took = time.process_time() - began
    assert [r.run for r in page.runs[:2]] == ["old100000", "old99999"]
    # CPU time, so that a busy machine does not matter; a full scan of the file is many times this.
    assert took < 0.5
    await store.close()


def test_a_word_that_many_runs_have_is_looked_for_from_the_newest_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    db = connect(path, readonly=False, busy_s=1)
    migrate(db, path)
    _fill(path, 10_000)
    db.execute("BEGIN")
    for n in range(1, 10_001):
        _search.index_text(db, n, None, f"common {n}")
    db.execute("COMMIT")
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def search(**more: Any) -> RunPage:
        nonlocal steps
        steps = 0
        return _search.find_runs(db, RunQuery(q="common", limit=20, **more))

    db.set_progress_handler(count, 100)
    quick = search()
    assert [row.run for row in quick.runs] == [f"old{n}" for n in range(10_000, 9_980, -1)]
    assert quick.hits["old9999"] == {"": "common 9999"}
    quick_steps = steps
    further = search(after=quick.next)
    assert further.runs[0].run == "old9980"
    monkeypatch.setattr(_search, "_MANY", 10_001)
    assert search(after=quick.next) == further
    assert search() == quick
    assert quick_steps < steps / 2
    db.close()


async def test_starting_reads_no_table_from_end_to_end(path: Path) -> None:
    """The plans of what runs at start use an index or a key, so that old runs cost nothing."""
    store = await opened(path)

    def plans() -> list[str]:
        db = sqlite3.connect(path)
        queries = [
            "SELECT id FROM runs WHERE status IN ('queued', 'running', 'waiting') ORDER BY created, id",
            "SELECT id FROM runs ORDER BY created DESC, id DESC LIMIT 50",
            "SELECT id FROM chunks WHERE id > 5 AND id <= 9 ORDER BY id DESC LIMIT 1",
        ]
        try:
            return [db.execute("EXPLAIN QUERY PLAN " + q).fetchall()[0][3] for q in queries]
        finally:
            db.close()

    for plan in await asyncio.to_thread(plans):
        assert "INDEX" in plan or "PRIMARY KEY" in plan, plan
    await store.close()


async def test_deleted_runs_give_their_space_back(path: Path) -> None:
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    for n in range(20):
        await store.append("r1", fence, records("r1", 1 + 500 * n, 500, "x" * 200))
    await store.close()
    full = path.stat().st_size
    store = await opened(path)
    await store.delete("r1")
    assert await _until_zero(path, "SELECT count(*) FROM chunks")
    assert await _until_zero(path, "PRAGMA freelist_count")
    await store.close()
    assert path.stat().st_size < full / 4


# --- damage -------------------------------------------------------------------------------------------------

DAMAGE = ["{", "", "7", "[" * 100_000, "[]", '{"a": ', "\x00"]


@pytest.mark.parametrize("text", DAMAGE)
@pytest.mark.parametrize("field", ["request", "metadata", "summary"])
async def test_a_damaged_row_takes_no_list_down(tmp_path: Path, field: str, text: str) -> None:
    path = tmp_path / "mux.db"
    store = SqliteStore(path)
    await store.open()
    try:
        for run in ("r1", "r2", "r3"):
            await store.create(row(run, metadata={"team": "x"}))
        other = await asyncio.to_thread(sqlite3.connect, path, isolation_level=None, check_same_thread=False)
        table, key = ("requests", "id = 2") if field == "request" else ("runs", "run = 'r2'")
        other.execute(f"UPDATE {table} SET {field} = ? WHERE {key}", (text,))
        other.close()
        for query in (RunQuery(owner="local"), RunQuery(thread="t1"), RunQuery()):
            rows = {found.run: found for found in (await store.list(query)).runs}
            assert all(found.damaged == () for run, found in rows.items() if run != "r2")
        assert rows.keys() == {"r1", "r2", "r3"}
        assert rows["r2"].damaged == (field,)
        assert getattr(rows["r2"], field) == {}
        assert (await store.get("r2")).damaged == (field,)
        with_metadata = (await store.list(RunQuery(metadata={"team": "x"}))).runs
        assert {found.run for found in with_metadata} >= {"r1", "r3"}
        assert len(await store.unfinished()) == 3
    finally:
        await store.close()


async def test_a_store_named_by_a_link_is_the_same_store(tmp_path: Path) -> None:
    path, link = tmp_path / "mux.db", tmp_path / "other" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    store = await opened(path)
    with pytest.raises(StoreError) as caught:
        await opened(link)
    assert caught.value.code == "store_locked"
    await store.close()


async def test_keys_are_there_beside_a_server_and_after_it(path: Path) -> None:
    file = path.parent / "new" / "mux.db"
    beside = SqliteKeys(file)
    await beside.put("key", "before", b"1")  # also before there is any store
    assert file.stat().st_mode & 0o077 == 0
    store = await opened(file)
    assert await store.keys.get("key", "before") == b"1"
    await beside.put("key", "meanwhile", b"2")
    assert await store.keys.get("key", "meanwhile") == b"2"
    await store.keys.put("key", "served", b"3")
    await store.close()
    assert sorted(await beside.all("key")) == [b"1", b"2", b"3"]
    await beside.close()


_LOOKS_IN = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
print(db.execute("SELECT count(*) FROM chunks").fetchone()[0])
db.close()
"""


async def looks_in(path: Path) -> int:
    """How many chunks another program finds that opens the file and closes it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LOOKS_IN, str(path), stdout=subprocess.PIPE
    )
    return int((await process.communicate())[0])


async def test_another_program_that_closes_the_file_takes_no_wal_away_once_keys_were_asked_for(
    path: Path,
) -> None:
    """A descriptor of the file that this process closes would drop the locks of all its connections."""
    store = await opened(path)
    await store.create(row("r1"))
    fence = await store.claim("r1", "me")
    beside = SqliteKeys(path)
    await beside.all("key")
    await store.keys.all("key")
    for seq in range(1, 4):
        await store.append("r1", fence, records("r1", seq, 1))
        assert await looks_in(path) == seq
    assert await read_seqs(store) == [1, 2, 3]
    await beside.close()
    await store.close()

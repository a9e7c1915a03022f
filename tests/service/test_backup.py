"""A backup that is made while a server works holds all that was acknowledged, and is a store again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.support.api import call, finished_run, settled, start
from tests.support.servers import Server, Zygote
from tests.support.service_roster import write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
    pytest.mark.timeout(60),
]


def make(servers: Zygote, home: Path, store: Path, *, write: bool = True) -> Server:
    if write:
        write_home(home)
    return Server(servers, home, "--store", f"sqlite:{store}")


async def test_a_backup_of_a_busy_server_is_restored_elsewhere(tmp_path: Path, servers: Zygote) -> None:
    home, copy = tmp_path / "home", tmp_path / "mux.backup"
    home.mkdir()
    path = home / "mux.db"
    server = make(servers, home, path)
    store = ("--store", f"sqlite:{path}")
    async with server.running():
        runs = [await finished_run(server.url, "writer", message="40 0") for _ in range(3)]
        busy = await start(server.url, "writer", message="400 0.01")
        code, out, err = await server.command("backup", *store, str(copy))
        assert (code, "bytes" in out) == (0, True), err
        code, _, err = await server.command("backup", *store, str(copy))
        assert (code, "is there already" in err) == (1, True)
        code, _, err = await server.command("restore", *store, str(copy))
        assert (code, "Another server" in err) == (1, True), err
        await call("POST", f"{server.url}/api/runs/{busy}/cancel", {"mode": "now"})
    assert not (tmp_path / "mux.backup.part").exists()
    assert copy.stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    other.mkdir()
    again = make(servers, other, other / "mux.db")
    code, _, err = await again.command("restore", "--store", f"sqlite:{other / 'mux.db'}", str(copy))
    assert code == 0, err
    async with again.running():
        for run in runs:
            there = (await call("GET", f"{again.url}/api/runs/{run['run']}"))[1]
            assert (there["status"], there["channels"][0]["text"]) == (
                "completed",
                run["channels"][0]["text"],
            )
        found = {item["run"] for item in (await call("GET", f"{again.url}/api/runs"))[1]["runs"]}
        assert found == {busy, *(run["run"] for run in runs)}
        assert await settled(again.url, busy) in ("completed", "cancelled")  # it goes on from what was kept


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "There is no file"), (b"no database at all" * 100, "is no backup"), (b"", "is no backup")],
)
async def test_what_is_no_backup_is_not_restored(
    tmp_path: Path, servers: Zygote, content: bytes | None, said: str
) -> None:
    server = make(servers, tmp_path, tmp_path / "mux.db")
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    code, _, err = await server.command("restore", "--store", f"sqlite:{tmp_path / 'mux.db'}", str(file))
    assert (code, said in err) == (1, True), err
    assert "Traceback" not in err
    assert not (tmp_path / "mux.db").exists()


async def test_another_programs_database_and_other_stores_are_refused(
    tmp_path: Path, servers: Zygote
) -> None:
    server = make(servers, tmp_path, tmp_path / "mux.db")
    file = tmp_path / "file"
    db = sqlite3.connect(file)
    db.execute("CREATE TABLE t (x)")
    db.close()
    code, _, err = await server.command("restore", "--store", f"sqlite:{tmp_path / 'mux.db'}", str(file))
    assert (code, "is no backup" in err) == (1, True), err
    for url in ("memory:", "redis://127.0.0.1:1/0"):
        code, _, err = await server.command("backup", "--store", url, str(tmp_path / "b"))
        assert (code, "backup_unsupported" in err) == (2, True), err

"""One file under the real server: a second server, other programs, no room, no permission, many old runs."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.log.test_sqlite import _fill
from tests.support.api import call, finished_run, settled, start
from tests.support.followers import KINDS, Follower
from tests.support.process import MUX, clean_env
from tests.support.servers import Server, Zygote
from tests.support.service_roster import write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes, and looks into the file
    pytest.mark.timeout(60),
]


@pytest.fixture
def server(tmp_path: Path, servers: Zygote) -> Server:
    write_home(tmp_path)
    return Server(servers, tmp_path, "--store", f"sqlite:{tmp_path / 'mux.db'}")


async def test_a_second_server_on_the_file_is_refused_and_told_the_first_ones_address(server: Server) -> None:
    async with server.running():
        code, _, err = await server.command("serve", "--port", "0", *server.args)
        assert code not in (0, -9)
        assert server.url in err
        assert "store_locked" in err
        assert "Traceback" not in err
        assert (await finished_run(server.url, "writer", message="3 0"))["status"] == "completed"


async def test_mux_run_uses_the_server_that_has_the_file(server: Server) -> None:
    async with server.running():
        code, out, err = await server.command("run", "-a", "writer", "3 0", "--json", *server.args)
        assert code == 0, err
        assert '"run_finished"' in out
        (listed,) = (await call("GET", f"{server.url}/api/runs"))[1]["runs"]
        assert listed["status"] == "completed"
        assert listed["run"] in out
    code, out, err = await server.command("run", "-a", "writer", "4 0", "--json", *server.args)
    assert code == 0, err  # without a server it runs by itself, on the same file
    async with server.running():
        assert len((await call("GET", f"{server.url}/api/runs"))[1]["runs"]) == 2


async def test_a_file_that_may_not_be_written_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    async with server.running():
        await finished_run(server.url, "writer", message="3 0")
    before = sqlite3.connect(tmp_path / "mux.db").execute("SELECT count(*) FROM chunks").fetchall()
    for name in ("mux.db", "mux.db.lock"):
        (tmp_path / name).chmod(0o444)
    powers = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.getuid() == 0 else ()
    done = await asyncio.to_thread(
        subprocess.run, [*powers, *MUX, "serve", "--port", "0", *server.args],
        cwd=tmp_path, env=clean_env(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, -9), done.stdout
    assert "store_readonly" in done.stderr
    assert "Traceback" not in done.stderr
    assert sqlite3.connect(tmp_path / "mux.db").execute("SELECT count(*) FROM chunks").fetchall() == before


async def test_a_lock_of_another_program_delays_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    async with server.running():
        run = await start(server.url, "writer", message="120 0.01")
        follower = Follower(lambda: server.url, run, KINDS[0], random.Random(1), cut=0)
        reading = asyncio.create_task(follower.follow())
        await asyncio.sleep(0.3)
        other = sqlite3.connect(tmp_path / "mux.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        starting = asyncio.create_task(
            call("POST", f"{server.url}/api/runs", {"message": "3 0", "agents": ["writer"]})
        )
        await asyncio.sleep(1.0)
        status, _, _ = await call("GET", f"{server.url}/healthz")  # the loop is not held
        assert (status, time.monotonic() - began < 2) == (200, True)
        other.execute("ROLLBACK")
        other.close()
        checker = await reading
        checker.assert_gapless()
        checker.assert_order()
        assert "".join(e["content"] for e in checker.events if e["type"] == "token").endswith("119 ")
        status, answer, _ = await starting
        assert status == 201 or answer["code"] == "store_locked", answer


async def test_a_full_disk_is_said_and_when_there_is_room_again_the_run_goes_on(
    server: Server, tmp_path: Path
) -> None:
    async with server.running():
        run = await start(server.url, "writer", message="150 0.01")
        follower = Follower(lambda: server.url, run, KINDS[0], random.Random(1), cut=0)
        reading = asyncio.create_task(follower.follow())
        await asyncio.sleep(0.3)
        # No file may grow: what a full disk does to a write, for this process alone.
        before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        await asyncio.sleep(1.0)
        status, problem, _ = await call(
            "POST", f"{server.url}/api/runs", {"message": "3 0", "agents": ["writer"]}
        )
        assert status >= 500, problem
        assert problem["code"].startswith("store_"), problem
        assert not reading.done()
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)
        checker = await reading
        checker.assert_gapless()
        checker.assert_order()
        assert (await finished_run(server.url, "writer", message="3 0"))["status"] == "completed"
        first = (await call("GET", f"{server.url}/api/runs/{run}"))[1]
        assert first["channels"][0]["text"] == "".join(f"{n} " for n in range(150))


async def test_a_hundred_thousand_old_runs_do_not_delay_the_start(server: Server, tmp_path: Path) -> None:
    async with server.running():
        await server.stop()
        await asyncio.to_thread(_fill, tmp_path / "mux.db", 100_000)
        await server.start()
        await start(server.url, "hold", message="x")
        await server.kill()
        await server.start()
        assert max(server.starts[1:]) < 2.0
        began = time.monotonic()
        listed = (await call("GET", f"{server.url}/api/runs?limit=50"))[1]
        assert len(listed["runs"]) == 50
        assert time.monotonic() - began < 1.0
        assert len((await call("GET", f"{server.url}/api/runs?status=running"))[1]["runs"]) == 1
        assert (await finished_run(server.url, "writer", message="3 0"))["status"] == "completed"


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_a_kill_keeps_epoch_and_cursors_with_either_durability(server: Server, durability: str) -> None:
    server.args = (*server.args, "--durability", durability)
    async with server.running():
        run = await start(server.url, "writer", message="200 0.005")
        follower = Follower(lambda: server.url, run, KINDS[0], random.Random(1), cut=30)
        reading = asyncio.create_task(follower.follow())
        for _ in range(2):
            await asyncio.sleep(0.3)
            await server.kill()
            await server.start()
        checker = await reading
        checker.assert_gapless()
        checker.assert_order()
        assert checker.cursor is not None
        assert checker.cursor.split(".")[1] == "1"
        assert await settled(server.url, run) == "completed"


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_full_durability_syncs_before_it_acknowledges(
    server: Server, durability: str, tmp_path: Path
) -> None:
    server.args = (*server.args, "--durability", durability)
    async with server.running():
        trace = tmp_path / "trace"
        tracer = await asyncio.create_subprocess_exec(
            "strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(trace), "-p", str(server.pid),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert tracer.stderr is not None
        assert b"attached" in await tracer.stderr.readline()
        syncs = []
        for _ in range(5):
            await start(server.url, "hold", message="x")
            syncs.append(trace.read_text().count("sync("))
        tracer.terminate()
        await tracer.wait()
    before_each_answer = all(a < b for a, b in zip([0, *syncs], syncs, strict=False))
    assert before_each_answer is (durability == "full"), syncs

"""isolate="process": what a thread can't do, be stopped."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from pathlib import Path

import pytest

from mux.tools import run_tool, tool
from tests.support.tool_functions import add, fail, hang, slow, steps
from tests.support.tools import call, collect, context, until

pytestmark = pytest.mark.usefixtures("no_leaks")
_ROOT = Path(__file__).resolve().parents[2]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_the_function_runs_in_another_process_and_its_prints_are_no_answer() -> None:
    result = await call(add, a=2, b=3)
    assert result.data["sum"] == 5
    assert result.data["pid"] != os.getpid()


async def test_progress_and_yields_come_through() -> None:
    progress, result = await collect(steps)
    told = [(p.message, p.fraction) for p in progress if p.message]  # a slow start adds bare heartbeats
    assert told == [("begun", 0.5), ("half-way", None), ("the result", None)]
    assert result.output == "the result"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("problem", "looked it up\nchoose another city"),
        ("error", "ValueError: bad city"),
        ("exit", "ended with status 3 and no result. last words"),
    ],
)
async def test_every_way_to_fail_is_a_result(how: str, told: str) -> None:
    result = await call(fail, how=how)
    assert result.error == "tool_failed"
    assert told in result.output


@pytest.mark.allow_blocking  # the test itself looks into /proc
async def test_a_cancel_kills_the_process_and_its_children_at_once(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    async def consume() -> None:
        async for _ in run_tool(hang, "c", {"pid_file": str(pids)}, context()):
            pass

    task = asyncio.create_task(consume())
    await until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 10)
    mine, child = map(int, pids.read_text().split())
    assert _alive(mine)
    assert _alive(child)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not _alive(mine) and not _alive(child), 2)


@pytest.mark.allow_blocking  # the test itself looks into /proc
async def test_the_process_and_its_children_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = textwrap.dedent(f"""
        import asyncio
        from tests.support.tool_functions import hang
        from tests.support.tools import call
        asyncio.run(call(hang, pid_file={str(pids)!r}))
    """)
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=_ROOT)
    await until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 10)
    mine, child = map(int, pids.read_text().split())
    assert _alive(mine)
    server.kill()
    await server.wait()
    await until(lambda: not _alive(mine) and not _alive(child), 5)


async def test_a_timeout_kills_the_process() -> None:
    result = await call(slow)
    assert result.error == "timeout"
    assert "1 s" in result.output
    assert "thread" not in result.output


def test_a_function_that_a_child_could_not_find_is_refused_when_the_tool_is_made() -> None:
    with pytest.raises(TypeError, match="top level"):

        @tool(isolate="process")
        def inner() -> None: ...


async def test_a_tool_of_a_roster_file_is_found_by_its_path(tmp_path: Path) -> None:
    import importlib.util

    file = tmp_path / "some_agent.py"
    source = """
import mux.tools

@mux.tools.tool(isolate="process")
def double(x: int) -> int:
    "Double."
    return 2 * x
"""
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("_roster_x.some_agent", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    await asyncio.to_thread(spec.loader.exec_module, module)
    assert (await call(module.double, x=21)).output == "42"

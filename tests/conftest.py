"""Shared fixtures: every test must leave tasks and file descriptors as it found them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings as hypothesis_settings
from pydantic_monty import AsyncMonty

# These machines are shared: a slow example says nothing about the code. Every failure prints its seed.
hypothesis_settings.register_profile("mux", deadline=None, print_blob=True)
hypothesis_settings.load_profile("mux")

# The rehearsal model writes at a human pace; tests that do not look at the pace do not wait for it.
os.environ.setdefault("MUX_REHEARSAL_PACE", "0")

# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    """Logs are checked by the tests that care; nothing is printed otherwise."""
    structlog.reset_defaults()
    structlog.configure(processors=[_drop])
    yield
    structlog.reset_defaults()


def _drop(_: object, __: str, ___: object) -> str:
    raise structlog.DropEvent


@pytest.fixture(autouse=True)
def _blocking_calls_fail(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """A blocking call on the event loop fails the test (mark ``allow_blocking`` needs a reason)."""
    if request.node.get_closest_marker("allow_blocking"):
        yield None
        return
    with blockbuster_ctx("mux") as bb:
        # a commit to the page cache, and bounded
        for call in ("execute", "executemany"):
            bb.functions[f"sqlite3.Connection.{call}"].can_block_in("mux/log/sqlite/writer.py", "append_now")
        yield bb


@pytest.fixture(scope="module", autouse=True)
def _collections_are_short() -> None:
    """What is alive between two modules (imports, the tests themselves) is set aside from the collector.

    Every leak check collects, and would look at half a million old objects each time: 0.2 s of an idle
    machine, and more than half of the whole run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def sandbox_runtime() -> None:
    """The sandbox's native runtime opens its own descriptors once per process; here, so that no test is
    taken to have leaked them."""

    async def once() -> None:
        async with AsyncMonty(min_processes=1) as pool, pool.checkout() as session:
            await session.feed_run("None")

    asyncio.run(once())


def _open_files() -> dict[str, str]:
    """File descriptor → what it is, without the one that the listing itself opens."""
    links = {fd: Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")}
    return {fd: str(link.readlink()) for fd, link in links.items() if link.is_symlink()}


@pytest.fixture
async def no_leaks(sandbox_runtime: None) -> AsyncIterator[None]:
    """Tasks and file descriptors are back at the baseline when the test ends; for every async suite."""
    before_tasks = asyncio.all_tasks()
    gc.collect()
    before_files = set(_open_files())
    yield
    for turn in range(100):
        own = {asyncio.current_task()}  # the fixture is finalized in a task of its own
        left = {t for t in asyncio.all_tasks() - before_tasks - own if not t.done()}
        files = {fd: name for fd, name in _open_files().items() if fd not in before_files}
        if not left and not files:
            return
        if turn == 1:
            gc.collect()  # what only a cycle keeps open is no leak
        await asyncio.sleep(0.02)
    assert not left, f"tasks left: {left}"
    assert not files, f"file descriptors left: {files}"

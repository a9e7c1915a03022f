"""Shared fixtures: every test must leave tasks and file descriptors as it found them."""

from __future__ import annotations

import asyncio
import gc
import os
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
        yield bb


@pytest.fixture(scope="session")
def sandbox_runtime() -> None:
    """The sandbox's native runtime opens its own descriptors once per process; here, so that no test is
    taken to have leaked them."""

    async def once() -> None:
        async with AsyncMonty(min_processes=1) as pool, pool.checkout() as session:
            await session.feed_run("None")

    asyncio.run(once())


@pytest.fixture
async def no_leaks(sandbox_runtime: None) -> AsyncIterator[None]:
    """Tasks and file descriptors are back at the baseline when the test ends; for every async suite."""
    before_tasks = asyncio.all_tasks()
    gc.collect()
    before_fds = set(os.listdir("/proc/self/fd"))
    yield
    for _ in range(100):
        left = {t for t in asyncio.all_tasks() - before_tasks - {asyncio.current_task()} if not t.done()}
        gc.collect()
        fds = set(os.listdir("/proc/self/fd")) - before_fds
        if not left and len(fds) <= 0:
            return
        await asyncio.sleep(0.02)
    assert not left, f"tasks left: {left}"
    links = {f: Path("/proc/self/fd", f) for f in fds}
    names = {f: str(link.readlink()) for f, link in links.items() if link.is_symlink()}
    assert not names, f"file descriptors left: {names}"

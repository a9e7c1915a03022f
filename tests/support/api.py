"""Short ways to use the HTTP API in tests, over the hand-made client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.support.checker import Block, http

__all__ = ["call", "finished_run", "read", "settled", "start", "until"]


async def call(
    method: str, url: str, body: Any = None, *, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON (or ``None``) and headers of one request."""
    async with http(method, url, json_body=body, headers=headers) as response:
        if response.status in (204, 304) or method == "HEAD":
            return response.status, None, response.headers
        return response.status, await response.json(), response.headers


async def start(url: str, *agents: str, message: str = "3", **fields: Any) -> str:
    """Start a run; its id."""
    status, run, _ = await call("POST", f"{url}/api/runs", {"message": message, "agents": agents, **fields})
    assert status == 201, run
    return str(run["run"])


async def finished_run(url: str, *agents: str, message: str = "3") -> dict[str, Any]:
    """A run that is over; its snapshot."""
    body = {"message": message, "agents": agents or ["counter"]}
    status, run, headers = await call("POST", f"{url}/api/runs", body, headers={"Prefer": "wait=10"})
    assert (status, headers["preference-applied"]) == (201, "wait=10"), run
    assert isinstance(run, dict)
    return run


async def settled(url: str, run: str) -> str:
    """The status of a run, when it has its last one; the test's timeout is the bound."""
    while True:
        status = str((await call("GET", f"{url}/api/runs/{run}"))[1]["status"])
        if status not in ("queued", "running", "waiting"):
            return status
        await asyncio.sleep(0.02)


async def read(url: str, *, headers: dict[str, str] | None = None, until: str | None = None) -> list[Block]:
    """The blocks of a stream, to its end or to the first event of this type."""
    blocks: list[Block] = []
    async with http("GET", url, headers=headers) as response:
        assert response.status in (200, 201), await response.body()
        async for block in response.blocks():
            blocks.append(block)
            if block.data["type"] == until:
                break
    return blocks


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that the server does by itself; the test's timeout is the bound."""
    while not condition():  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)

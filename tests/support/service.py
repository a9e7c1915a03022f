"""The real server on a free port, for one test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mux.http.service import Service
from mux.settings import Settings

__all__ = ["make_settings", "running", "serving"]


def make_settings(**changes: Any) -> Settings:
    """Settings of a test server: memory store, rehearsal model, a free port."""
    return Settings.model_validate({"port": 0, "store": "memory:", "model": "rehearsal", **changes})


@asynccontextmanager
async def serving(settings: Settings | None = None, **changes: Any) -> AsyncIterator[Service]:
    """The server itself, started; stopped without a grace at the end."""
    service = await asyncio.to_thread(Service, settings or make_settings(**changes))  # looks at files
    try:
        await service.start()
        yield service
    finally:
        await service.stop(grace_s=0)


@asynccontextmanager
async def running(settings: Settings | None = None, **changes: Any) -> AsyncIterator[str]:
    """Its address."""
    async with serving(settings, **changes) as service:
        yield service.url


def write_agent(folder: Path, name: str, text: str) -> None:
    """A roster file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)

"""Recorded provider streams: the cases of shared/quirks and our own, and a player that serves them all."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "quirks"
OURS = Path(__file__).resolve().parents[1] / "providers" / "cases"  # the same format; made by us

needs_quirks = pytest.mark.skipif(
    not (SHARED / "player.py").is_file(),
    reason="PROVIDER QUIRKS ARE NOT TESTED: shared/quirks is not beside this checkout",
)


@dataclass(frozen=True)
class Case:
    """One recording."""

    name: str
    spec: dict[str, Any]

    @property
    def expect(self) -> dict[str, Any]:
        expect: dict[str, Any] = self.spec["expect"]
        return expect

    @property
    def api(self) -> Literal["chat", "responses"]:
        return "responses" if self.spec["api"] == "responses" else "chat"

    @property
    def in_bytes(self) -> bool:
        """Whether the bytes alone say what it expects, without statuses, pauses and resets."""
        http = self.spec["http"]
        silent = self.expect["error"] == "upstream_stall"
        return not (silent or http.get("forever") or (http.get("end") == "rst" and self.expect["error"]))

    def wire_bytes(self) -> bytes:
        """The body of the stream as bytes, without its pauses."""
        return b"".join(c for c in _player().expand(self.spec["chunks"]) if isinstance(c, bytes))


def load_cases() -> list[Case]:
    """All cases: those of shared/quirks by their numbers (none where it is absent), then ours."""
    files = sorted((SHARED / "cases").glob("*.json"), key=lambda f: int(f.name.split("-")[0]))
    specs = [json.loads(f.read_text(encoding="utf-8")) for f in [*files, *sorted(OURS.glob("*.json"))]]
    cases = [Case(s["name"], s) for s in specs]
    assert len({c.name for c in cases}) == len(cases), "a name is used twice"
    return cases


@dataclass
class Running:
    """A player that listens."""

    port: int
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def base_url(self, case: str) -> str:
        return f"http://127.0.0.1:{self.port}/{case}/v1"

    def requests(self, case: str) -> list[dict[str, Any]]:
        """What the player was asked for this case."""
        return [r for r in _player().LOG if r["name"] == case]


@asynccontextmanager
async def playing() -> AsyncIterator[Running]:
    """The player on a free port; it forgets earlier requests, and nothing of it is left afterwards."""
    module = _player()
    module.LOG.clear()
    module.COUNT.clear()
    player = module.Player(str(SHARED / "cases"))
    player.cases.update(module.Player(str(OURS)).cases)
    running = Running(0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.tasks.add(task)
        try:
            await player.handle(reader, writer)
        finally:
            running.tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 22)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        for task in tuple(running.tasks):
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        await server.wait_closed()


_loaded: dict[str, Any] = {}


def _player() -> Any:
    if "player" not in _loaded:
        spec = importlib.util.spec_from_file_location("quirk_player", SHARED / "player.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _loaded["player"] = module
    return _loaded["player"]

"""The shipped roster on the rehearsal model, all six agents in one run of the real server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mux.requests import StartRequest
from mux.run import TERMINAL
from tests.support.service import serving

AGENTS = ["assistant", "researcher", "analyst", "synthesizer", "lead", "critic"]
QUESTION = "How do cursors resume a stream, and what is 15% of 240 and 17*23?"


async def finished(engine: Any, run: str) -> dict[str, Any]:
    while True:
        snapshot: dict[str, Any] = await engine.snapshot(run)
        if snapshot["status"] in TERMINAL | {"partial"}:
            return snapshot
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.allow_blocking  # the whole server starts in this process; its parts are held to it on their own
@pytest.mark.usefixtures("no_leaks")
async def test_the_whole_roster_works_together_within_half_a_minute_at_a_human_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUX_REHEARSAL_PACE", raising=False)
    async with serving() as service:
        began = time.monotonic()
        started = await service.engine.start_run(StartRequest(message=QUESTION, agents=AGENTS))
        snapshot = await finished(service.engine, started.row.run)
        took = time.monotonic() - began
    assert snapshot["status"] == "completed"
    assert took < 30
    channels = {c["id"]: c for c in snapshot["channels"]}
    assert {*AGENTS, "researcher.2", "analyst.2"} == set(channels)
    for name, channel in channels.items():
        assert channel["status"] == "completed", name
        assert channel["reasoning"], name
        assert "rehearsal" in channel["text"], name
        assert channel["tools"] or name == "assistant", name
        assert channel["ttft_ms"] < 300, name
    assert "**391**" in channels["analyst"]["text"]
    assert "[1]" in channels["researcher"]["text"]
    assert any(t["is_error"] for t in channels["analyst"]["tools"])
    assert "`17*23` = 391" in channels["synthesizer"]["text"]
    assert "as analyst" in channels["critic"]["text"]
    assert "researcher.2" in channels["lead"]["text"]

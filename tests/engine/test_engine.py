"""The engine: starting runs, order of channels, ends, limits."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError

from mux.agent import AgentContext, Draft
from mux.errors import NotFound
from mux.events import Token
from mux.requests import StartRequest
from tests.support.agents import Scripted, echo, harness, says, types, until, waits

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_run_streams_its_channels_and_ends_with_run_finished() -> None:
    async with harness(says("a", "Hello, ", "world"), echo("b")) as h:
        started = await h.engine.start_run(StartRequest(message="hi", agents=["a", "b", "a"]))
        run = started.row.run
        assert started.created
        snapshot = await h.finished(run)
        assert [c["id"] for c in snapshot["channels"]] == ["a", "b", "a.2"]
        assert [c["text"] for c in snapshot["channels"]] == ["Hello, world", "b: hi", "Hello, world"]
        assert snapshot["status"] == "completed"
        events = await h.events(run)
        assert types(events) == ["run_started", "run_finished"]
        assert types(events, "a") == ["channel_started", "token", "token", "done"]
        assert [r.seq for r in h.published[run]] == [e.seq for e in events]
        row = await h.store.get(run)
        assert row.status == "completed"
        assert row.title == "hi"


async def test_cancel_now_closes_the_open_call_and_frees_the_agent() -> None:
    agent = waits("w")
    async with harness(agent, says("a", "x")) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["w", "a"]))).row.run
        await agent.started.wait()
        await until(lambda: any(r.type == "done" for r in h.published[run]))  # the other one's
        await h.engine.cancel(run)
        snapshot = await h.finished(run, 1.0)
        assert agent.stopped.is_set()
        assert snapshot["status"] == "partial"
        channel = snapshot["channels"][0]
        assert channel["status"] == "cancelled"
        assert channel["tools"][0]["error"] == "cancelled"
        assert "error" not in types(await h.events(run), "w")


async def test_a_failing_agent_ends_its_own_channel_only() -> None:
    async def broken(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Token(content="so far")
        raise RuntimeError("secret detail")

    async with harness(Scripted("bad", broken), says("good", "fine")) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["bad", "good"]))).row.run
        snapshot = await h.finished(run)
        assert snapshot["status"] == "partial"
        bad, good = snapshot["channels"]
        assert bad["error"]["code"] == "agent_failed"
        assert "secret" not in str(bad)
        assert good["text"] == "fine"


async def test_an_unknown_agent_is_refused_with_near_names_and_nothing_is_started() -> None:
    async with harness(says("assistant", "x")) as h:
        with pytest.raises(NotFound, match="assistant"):
            await h.engine.start_run(StartRequest(message="hi", agents=["asistant"]))
        with pytest.raises(ValidationError, match="message is empty"):
            StartRequest(message="  ")
        assert not await h.store.unfinished()

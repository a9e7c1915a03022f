"""What the driver makes of what agents say: decisions that come too late."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mux.agent import AgentContext, Draft
from mux.events import ApprovalResolved, MessageReceived, Token, ToolCall, ToolResult
from mux.requests import StartRequest
from tests.support.agents import Scripted, harness, types

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_an_approval_that_was_never_asked_for_can_be_withdrawn_without_harm() -> None:
    """An interrupt may cut the request off before it is written; its withdrawal comes all the same."""

    async def agent(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield ToolCall(call_id="c", tool="f")
        yield ApprovalResolved(call_id="c", decision="expired", by="interrupt")
        yield ToolResult(call_id="c", tool="f", output="stopped", is_error=True, error="interrupted")
        yield ApprovalResolved(call_id="c", decision="expired", by="interrupt")
        yield ApprovalResolved(call_id="unheard-of", decision="expired", by="interrupt")
        yield Token(content="on")

    async with harness(Scripted("a", agent)) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
        snapshot = await h.finished(run)
        assert (snapshot["channels"][0]["status"], snapshot["channels"][0]["text"]) == ("completed", "on")
        assert "approval_resolved" not in types(await h.events(run), "a")


async def test_an_agent_may_not_write_what_only_users_say() -> None:
    async def agent(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield MessageReceived(message_id="m", content="forged", mode="steer")

    async with harness(Scripted("a", agent)) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
        snapshot = await h.finished(run)
        assert snapshot["channels"][0]["error"]["code"] == "agent_failed"
        assert "forged" not in repr(await h.events(run))

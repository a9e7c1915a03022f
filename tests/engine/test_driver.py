"""What the driver makes of what agents say: decisions that come too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mux.agent import AgentContext, Draft, Nested, OpenGuard, Said
from mux.events import (
    ApprovalResolved,
    Body,
    MessageReceived,
    Phase,
    StepFinished,
    StepStarted,
    Token,
    ToolCall,
    ToolResult,
)
from mux.requests import StartRequest
from tests.support.agents import Scripted, harness, types, until

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


async def test_a_token_is_logged_and_shown_two_turns_of_the_loop_after_it_could_be_said() -> None:
    """The agent's own turn and the driver's: no queue, pump or timer between them."""
    word = asyncio.Event()

    async def agent(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Token(content="first")
        await word.wait()
        yield Token(content="second")

    async with harness(Scripted("a", agent)) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
        await until(lambda: any(r.type == "token" for r in h.published.get(run, ())))
        word.set()
        for _ in range(2):
            await asyncio.sleep(0)
        assert [r.type for r in h.published[run]].count("token") == 2
        await h.finished(run)


class Watching(OpenGuard):
    """Lets everything pass, but looks at every draft by itself, as a guard with rules does."""

    async def stream(self, drafts: AsyncIterator[Said]) -> AsyncIterator[Said | Draft]:
        async for draft in drafts:
            yield draft


_SPEECH: list[Draft] = [
    Token(content="before any step "), StepStarted(step=1), *(Token(content=f"{n} ") for n in range(150)),
    Phase(phase="thinking"), Token(content="é"), Nested(("sub",), Token(content="inner")),
    Token(content="on"), StepFinished(step=1, finish_reason="stop"), StepStarted(step=2),
    Token(content="last"),
]  # fmt: skip


@pytest.mark.parametrize("fault", [None, StepStarted(step=1), RuntimeError("broken")], ids=repr)
async def test_tokens_in_bursts_are_the_same_run_as_tokens_one_by_one(fault: Body | Exception | None) -> None:
    """Whether the channel ends well, breaks the order rules or fails: after the same events."""

    async def agent(ctx: AgentContext) -> AsyncIterator[Draft]:
        for draft in _SPEECH:
            yield draft
        if isinstance(fault, Exception):
            raise fault
        for draft in [] if fault is None else [fault, *(Token(content="never") for _ in range(100))]:
            yield draft

    shown = []
    for guard in (OpenGuard, Watching):
        async with harness(Scripted("a", agent), guard_for=lambda *_, made=guard: made()) as h:
            run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
            snapshot = (await h.finished(run))["channels"][0]
            events = [(e.seq, e.channel, e.cseq, e.type, e.path) for e in await h.events(run)]
            for name in ("started", "duration_ms", "ttft_ms"):
                snapshot.pop(name)
            shown.append((events, snapshot))
    assert shown[0] == shown[1]
    assert "never" not in shown[0][1]["text"]
    assert shown[0][1]["status"] == ("completed" if fault is None else "failed")

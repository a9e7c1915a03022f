"""The real LLM agent in the real engine, on a scripted model: tools, approvals, crashes, threads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mux.events import Record, Usage
from mux.llm.agent import LlmAgent
from mux.log import MemoryStore
from mux.requests import ApprovalAnswer, ChannelSpec, StartRequest, SteerRequest
from mux.tools import tool
from tests.engine.test_control import waiting_call
from tests.support.agents import harness, types, until
from tests.support.fake_host import runtime
from tests.support.fake_model import FakeModel, call, turn
from tests.support.fake_model import says as model_says

pytestmark = pytest.mark.usefixtures("no_leaks")


class SlowStore(MemoryStore):
    """Its appends take a while, so that whoever does not wait for the log is caught."""

    async def append(self, run: str, fence: int, records: Sequence[Record]) -> None:
        await asyncio.sleep(0.03)
        await super().append(run, fence, records)

    def logged(self, kind: str) -> int:
        return sum(r.type == kind for entry in self._runs.values() for r in entry.records.after(0))


def llm(model: FakeModel, *tools: Any, **options: Any) -> LlmAgent:
    names = [t.name for t in tools]
    return LlmAgent(name="llm", model="fake:m", tools=names, **options).bind(runtime(model, *tools))


async def test_a_tool_begins_only_when_its_start_is_in_the_log() -> None:
    store, seen = SlowStore(), []

    @tool
    async def look(n: int) -> str:
        """Look."""
        seen.append((n, store.logged("tool_start")))
        return "seen"

    model = FakeModel(turn(call(0, "look", '{"n": 1}'), call(1, "look", '{"n": 2}')), model_says("done"))
    async with harness(llm(model, look), store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        snapshot = await h.finished(run)
        assert snapshot["channels"][0]["output"] == "done"
        assert sorted(n for n, _ in seen) == [1, 2]
        assert all(logged >= 1 for _, logged in seen)
        await h.events(run)


async def test_a_crash_in_the_second_turn_goes_on_with_the_results_of_the_first() -> None:
    ran = []

    @tool
    async def look(n: int) -> str:
        """Look."""
        ran.append(n)
        return f"saw {n}"

    store, never = MemoryStore(), asyncio.Event()
    first = FakeModel(
        turn(call(0, "look", '{"n": 1}'), text="let me look", usage=Usage(input_tokens=5)),
        [*model_says("half an")[:1], never],
    )
    async with harness(llm(first, look), store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        await first.reached.wait()
        await until(lambda: [r.type for r in h.published[run]].count("token") == 2)
    second = FakeModel(model_says("the answer"))
    async with harness(llm(second, look), store=store) as h:
        snapshot = await h.finished(run)
        assert types(await h.events(run), "llm").count("step_reset") == 1
    assert ran == [1]
    assert snapshot["channels"][0]["text"] == "let me lookthe answer"
    assert [m.role for m in second.requests[0].messages] == ["user", "assistant", "tool"]
    assert second.requests[0].messages[-1].text == "saw 1"
    assert snapshot["status"] == "completed"


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_tool_that_ran_in_the_crash_runs_again_only_if_it_is_idempotent(idempotent: bool) -> None:
    ran, never = [], asyncio.Event()

    @tool(idempotent=idempotent)
    async def look(n: int) -> str:
        """Look."""
        ran.append(n)
        if len(ran) == 1:
            await never.wait()
        return "seen"

    store = MemoryStore()
    async with harness(llm(FakeModel(turn(call(0, "look", '{"n": 1}'))), look), store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        await until(lambda: bool(ran))
    async with harness(llm(FakeModel(model_says("ok")), look), store=store) as h:
        snapshot = await h.finished(run)
        kinds = types(await h.events(run), "llm")
    assert kinds.count("tool_start") == 1
    assert kinds.count("tool_result") == 1
    assert len(ran) == (2 if idempotent else 1)
    assert snapshot["channels"][0]["tools"][0].get("error") == (None if idempotent else "interrupted")


async def test_a_person_edits_a_call_before_it_runs() -> None:
    ran = []

    @tool(approval="always")
    async def remove(path: str) -> str:
        """Remove."""
        ran.append(path)
        return "removed"

    model = FakeModel(turn(call(0, "remove", '{"path": "a"}')), model_says("ok"))
    async with harness(llm(model, remove)) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        call_id = await waiting_call(h, run)
        await h.engine.answer(run, call_id, ApprovalAnswer(decision="edit", arguments={"path": "b"}))
        assert (await h.finished(run))["status"] == "completed"
        await h.events(run)
    assert ran == ["b"]


async def test_an_interrupt_cuts_the_turn_short_and_is_answered() -> None:
    never = asyncio.Event()
    model = FakeModel([*model_says("blah blah")[:1], never], model_says("as you say"))
    async with harness(llm(model)) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        await model.reached.wait()
        await h.engine.steer(run, "llm", SteerRequest(content="shorter", mode="interrupt"))
        snapshot = await h.finished(run)
        kinds = types(await h.events(run), "llm")
    assert kinds.index("message_received") < kinds.index("message_applied")
    assert snapshot["channels"][0]["output"] == "as you say"
    assert [m.text for m in model.requests[1].messages] == ["go", "blah", "shorter"]


async def test_cancelling_closes_the_model_s_stream() -> None:
    model = FakeModel([*model_says("blah")[:1], asyncio.Event()])
    async with harness(llm(model)) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        await model.reached.wait()
        await h.engine.cancel(run)
        assert (await h.finished(run, 1))["status"] == "cancelled"
        assert model.closed == 1


async def test_a_second_turn_on_the_thread_sends_the_first_with_its_tools() -> None:
    @tool
    async def look(n: int) -> str:
        """Look."""
        return "seen"

    model = FakeModel(turn(call(0, "look", '{"n": 1}')), model_says("first"), model_says("second"))
    async with harness(llm(model, look)) as h:
        row = (await h.engine.start_run(StartRequest(message="one"))).row
        await h.finished(row.run)
        again = (await h.engine.start_run(StartRequest(message="two", thread=row.thread))).row
        await h.finished(again.run)
    roles = [m.role for m in model.requests[-1].messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


async def test_a_channel_with_chosen_tools_has_no_others_also_in_its_retry_and_the_next_turn() -> None:
    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    @tool
    async def delete() -> str:
        """Delete."""
        raise AssertionError("it was not chosen")

    model = FakeModel(turn(call(0, "delete", "{}")), *[model_says("done") for _ in range(3)])
    async with harness(llm(model, look, delete)) as h:
        chosen = StartRequest(message="go", channels=[ChannelSpec(agent="llm", tools=["look"])])
        first = (await h.engine.start_run(chosen)).row
        snapshot = await h.finished(first.run)
        assert snapshot["channels"][0]["tools"][0]["error"] == "unknown_tool"
        again, _ = await h.engine.retry(first.run, "llm")
        await h.finished(again)
        follow_up = await h.engine.start_run(StartRequest(message="and?", thread=first.thread))
        await h.finished(follow_up.row.run)
        assert [[t.name for t in request.tools] for request in model.requests] == [["look"]] * 4

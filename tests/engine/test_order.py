"""Who waits for whom, what is handed over, and what a lane inherits on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mux.agent import AgentContext, Draft, OpenGuard, Outcome, Said, Verdict
from mux.errors import BadRequest, NotFound
from mux.events import StepFinished, StepStarted, Token
from mux.log import MemoryStore, RunRow
from mux.requests import ChannelSpec, ChatMessage, StartRequest
from tests.support.agents import Scripted, echo, harness, says, types, waits

pytestmark = pytest.mark.usefixtures("no_leaks")


async def fails(ctx: AgentContext) -> AsyncIterator[Draft]:
    yield Token(content="half an answer")
    raise ValueError("no")


def request(*channels: ChannelSpec, **more: Any) -> StartRequest:
    return StartRequest(message="task", channels=list(channels), **more)


async def test_outputs_are_handed_over_as_labelled_blocks_and_failures_are_named() -> None:
    last = echo("last")
    async with harness(says("good", "forty-two"), Scripted("bad", fails), last) as h:
        run = (
            await h.engine.start_run(
                request(
                    ChannelSpec(agent="last", depends_on=["good", "bad"]),
                    ChannelSpec(agent="good"),
                    ChannelSpec(agent="bad"),
                )
            )
        ).row.run
        await h.finished(run)
        task = last.seen[0].task
        assert task.startswith("task\n\n")
        assert '<output channel="good" agent="good" status="completed">\nforty-two\n</output>' in task
        assert 'status="failed"' in task
        assert "did not succeed" in task


@pytest.mark.parametrize(
    ("when", "status"), [("all", "cancelled"), ("any", "completed"), ("settled", "completed")]
)
async def test_when_decides_whether_a_channel_starts(when: Any, status: str) -> None:
    async with harness(says("good", "x"), Scripted("bad", fails), says("last", "y")) as h:
        spec = ChannelSpec(agent="last", depends_on=["good", "bad"], when=when)
        run = (
            await h.engine.start_run(request(ChannelSpec(agent="good"), ChannelSpec(agent="bad"), spec))
        ).row.run
        snapshot = await h.finished(run)
        assert snapshot["channels"][2]["status"] == status
        if status == "cancelled":
            assert types(await h.events(run), "last") == ["channel_started", "done"]


async def test_an_unmet_channel_cancels_those_that_need_it() -> None:
    async with harness(Scripted("bad", fails), says("a", "x"), says("b", "y")) as h:
        run = (
            await h.engine.start_run(
                request(
                    ChannelSpec(agent="bad"),
                    ChannelSpec(agent="a", depends_on=["bad"], when="all"),
                    ChannelSpec(agent="b", depends_on=["a"], when="all"),
                )
            )
        ).row.run
        snapshot = await h.finished(run)
        assert [c["status"] for c in snapshot["channels"]] == ["failed", "cancelled", "cancelled"]
        assert snapshot["status"] == "failed"


async def test_cycles_and_unknown_dependencies_are_refused() -> None:
    async with harness(says("a", "x"), says("b", "y")) as h:
        cycle = request(ChannelSpec(agent="a", depends_on=["b"]), ChannelSpec(agent="b", inputs=["a"]))
        for bad, code in [
            (cycle, "dependency_cycle"),
            (request(ChannelSpec(agent="a", depends_on=["nobody"])), "dependency_unknown"),
            (request(ChannelSpec(agent="a", inputs=["r0/a"])), "input_unknown"),
            (request(ChannelSpec(agent="a", id="x"), ChannelSpec(agent="b", id="x")), "channel_duplicate"),
        ]:
            with pytest.raises(BadRequest) as e:
                await h.engine.start_run(bad)
            assert e.value.code == code
        assert not (await h.store.unfinished())


async def test_an_output_of_an_earlier_run_can_be_an_input() -> None:
    reader = echo("reader")
    async with harness(says("a", "old news"), reader) as h:
        first = (await h.engine.start_run(StartRequest(message="x", agents=["a"]))).row.run
        await h.finished(first)
        run = (await h.engine.start_run(request(ChannelSpec(agent="reader", inputs=[f"{first}/a"])))).row.run
        await h.finished(run)
        assert "old news" in reader.seen[0].task
        with pytest.raises(BadRequest):  # another owner's run does not exist for them
            await h.engine.start_run(
                request(ChannelSpec(agent="reader", inputs=[f"{first}/a"])), owner="somebody-else"
            )


async def test_max_parallel_runs_one_after_the_other_and_shows_the_queue() -> None:
    agents = [waits(n) for n in "abc"]
    async with harness(*agents) as h:
        run = (
            await h.engine.start_run(StartRequest(message="x", agents=["a", "b", "c"], max_parallel=1))
        ).row.run
        for n, agent in enumerate(agents):
            await agent.started.wait()
            channels = (await h.engine.snapshot(run))["channels"]
            assert [c["queue_position"] for c in channels[n + 1 :]] == list(range(1, 3 - n))
            agent.release.set()
        assert (await h.finished(run))["status"] == "completed"


async def test_two_turns_on_three_lanes_and_no_lane_sees_another_s_text() -> None:
    lanes = [echo(n) for n in ("red", "green", "blue")]
    async with harness(*lanes) as h:
        first = (await h.engine.start_run(StartRequest(message="one", agents=["red", "green", "blue"]))).row
        await h.finished(first.run)
        second = (await h.engine.start_run(StartRequest(message="two", thread=first.thread))).row
        snapshot = await h.finished(second.run)
        assert [c["id"] for c in snapshot["channels"]] == ["red", "green", "blue"]
        for lane in lanes:
            said = [(m.role, m.text) for m in lane.seen[1].messages]
            assert said == [("user", "one"), ("assistant", f"{lane.name}: one"), ("user", "two")]


async def test_a_thread_of_another_owner_is_another_thread() -> None:
    lane = echo("a")
    async with harness(lane) as h:
        threads = {}
        for owner in ("ann", "bob", "ann", "bob", "local"):
            request = StartRequest(message=f"of {owner}", agents=["a"], thread="same")
            threads[owner] = (await h.engine.start_run(request, owner=owner)).row
            await h.finished(threads[owner].run)
        for seen, owner in zip(lane.seen, ("ann", "bob", "ann", "bob", "local"), strict=True):
            assert {m.text for m in seen.messages} <= {f"of {owner}", f"a: of {owner}"}
        assert [len(seen.messages) for seen in lane.seen] == [1, 1, 3, 3, 1]
        with pytest.raises(NotFound):
            await h.engine.snapshot(threads["ann"].run, owner="bob")


async def test_messages_of_the_chat_format_become_history_and_task() -> None:
    agent = echo("e")
    async with harness(agent) as h:
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": "data:"}},
        ]
        chat = [
            ChatMessage(role="developer", content="be brief"),
            ChatMessage(role="user", content="hello"),
            ChatMessage(role="assistant", content="hi"),
            ChatMessage(role="user", content=parts),
        ]
        run = (await h.engine.start_run(StartRequest(messages=chat))).row
        await h.finished(run.run)
        ctx = agent.seen[0]
        assert [m.role for m in ctx.messages] == ["system", "user", "assistant", "user"]
        assert ctx.task == "what is this?"
        assert ctx.messages[-1].content == parts
        assert run.title == "what is this?"


async def test_an_agent_opens_channels_that_belong_to_it_and_reads_their_results() -> None:
    async def lead(ctx: AgentContext) -> AsyncIterator[Draft]:
        first = await ctx.open_channel("worker", "part one")
        second = await ctx.open_channel("worker", "part two")
        for channel in (first, second):
            yield Token(content=(await ctx.channel_result(channel)).output + ";")
        yield Token(content=str(len(ctx.host.channels())))

    async with harness(Scripted("lead", lead), echo("worker")) as h:
        run = (await h.engine.start_run(StartRequest(message="x", agents=["lead"], max_parallel=1))).row.run
        snapshot = await h.finished(run)
        assert snapshot["channels"][0]["text"] == "worker: part one;worker: part two;2"
        assert [c.get("parent") for c in snapshot["channels"]] == [None, "lead", "lead"]


async def test_cancelling_an_agent_cancels_the_channels_that_it_opened() -> None:
    worker = waits("worker")

    async def lead(ctx: AgentContext) -> AsyncIterator[Draft]:
        channel = await ctx.open_channel("worker", "work")
        yield Token(content=(await ctx.channel_result(channel)).output)

    async with harness(Scripted("lead", lead), worker) as h:
        run = (await h.engine.start_run(StartRequest(message="x", agents=["lead"]))).row.run
        await worker.started.wait()
        await h.engine.cancel_channel(run, "lead")
        assert (await h.finished(run))["status"] == "cancelled"


class SlowStore(MemoryStore):
    """Takes its time with the row of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.updating = asyncio.Event()
        self.slow = False

    async def update(self, run: str, **changes: Any) -> RunRow:
        if self.slow:
            self.updating.set()
            await asyncio.sleep(0.05)
        return await super().update(run, **changes)


async def test_an_agent_that_is_stopped_while_it_opens_a_channel_leaves_no_orphan() -> None:
    store = SlowStore()

    async def lead(ctx: AgentContext) -> AsyncIterator[Draft]:
        store.slow = True
        yield Token(content=await ctx.open_channel("worker", "work"))

    async with harness(Scripted("lead", lead), waits("worker"), store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="x", agents=["lead"]))).row.run
        await store.updating.wait()
        await h.engine.cancel_channel(run, "lead")
        snapshot = await h.finished(run, 2)
        assert {c["status"] for c in snapshot["channels"]} == {"cancelled"}
        await h.events(run)


async def test_the_last_step_s_text_is_the_output_unless_the_agent_says_otherwise() -> None:
    async def steps(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        yield Token(content="let me see… ")
        yield StepFinished(step=1, finish_reason="tool_calls")
        yield StepStarted(step=2)
        yield Token(content="the answer")
        yield StepFinished(step=2, finish_reason="stop")

    async def says_otherwise(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Token(content="words")
        yield Outcome(output="structured")

    async with harness(Scripted("s", steps), Scripted("o", says_otherwise)) as h:
        run = (await h.engine.start_run(StartRequest(message="x", agents=["s", "o"]))).row.run
        one, two = (await h.finished(run))["channels"]
        assert (one["text"], one["output"]) == ("let me see… the answer", "the answer")
        assert two["output"] == "structured"


class Strict(OpenGuard):
    """Blocks one word in the input and masks another."""

    async def input(self, text: str) -> Verdict:
        if "forbidden" in text:
            return Verdict("blocked", None, ("no-forbidden",))
        if "secret" in text:
            return Verdict("masked", text.replace("secret", "[masked]"), ("no-secrets",))
        return Verdict("pass", text)


async def test_blocked_input_is_refused_before_the_agent_runs_and_masked_input_is_cleaned() -> None:
    agent = echo("e")
    async with harness(agent, guard_for=lambda *_: Strict()) as h:
        run = (await h.engine.start_run(StartRequest(message="a forbidden thing"))).row.run
        channel = (await h.finished(run))["channels"][0]
        assert channel["status"] == "refused"
        assert "guardrail" in channel["refusal"]
        assert types(await h.events(run), "e") == ["channel_started", "guardrail", "refusal", "done"]
        assert not agent.seen
        run = (await h.engine.start_run(StartRequest(message="my secret"))).row.run
        assert (await h.finished(run))["channels"][0]["text"] == "e: my [masked]"


class Closing(OpenGuard):
    """Stops the agent at its second draft."""

    def stream(self, drafts: AsyncIterator[Said]) -> AsyncIterator[Said | Draft]:
        return self._stream(drafts)

    async def _stream(self, drafts: AsyncIterator[Said]) -> AsyncIterator[Said | Draft]:
        first = await anext(drafts)
        yield first[0] if isinstance(first, list) else first
        await drafts.aclose()  # type: ignore[attr-defined]
        yield Outcome(status="refused", output="no")


async def test_a_guard_that_closes_its_drafts_stops_the_agent() -> None:
    stopped = asyncio.Event()

    async def endless(ctx: AgentContext) -> AsyncIterator[Draft]:
        try:
            while True:
                yield Token(content="x")
        finally:
            stopped.set()

    async with harness(Scripted("e", endless), guard_for=lambda *_: Closing()) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        channel = (await h.finished(run))["channels"][0]
        assert (channel["status"], channel["text"], channel["output"]) == ("refused", "x", "no")
        assert stopped.is_set()

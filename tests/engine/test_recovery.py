"""After a crash: going on from the last completed model turn, on a log that another process left."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from mux.agent import AgentContext, Draft, Outcome
from mux.engine.site import Times
from mux.events import (
    Event,
    StepFinished,
    StepStarted,
    Token,
    ToolCall,
    ToolResult,
    ToolStart,
)
from mux.log import MemoryStore, RunQuery, SqliteStore
from mux.requests import AddChannel, ApprovalAnswer, ChannelSpec, StartRequest, SteerRequest
from mux.run import RunState
from tests.engine.test_control import approving, waiting_call
from tests.support.agents import Scripted, echo, harness, says, types, until, waits

pytestmark = pytest.mark.usefixtures("no_leaks")

ROOT = Path(__file__).resolve().parents[2]


class Turns:
    """An agent with two tools after its first turn; stops at a place until it is released."""

    def __init__(self, stop_at: str) -> None:
        self.name = "t"
        self.description = ""
        self.resumable = "resume"
        self.stop_at = stop_at
        self.reached = asyncio.Event()
        self.seen: list[AgentContext] = []

    async def _at(self, place: str) -> None:
        if place == self.stop_at:
            self.reached.set()
            await asyncio.Event().wait()

    async def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        self.seen.append(ctx)
        resume = ctx.resume
        if resume is not None and resume.step:
            for pending in resume.pending:
                if pending.started:
                    yield ToolResult(
                        call_id=pending.call_id,
                        tool=pending.tool,
                        output="",
                        is_error=True,
                        error="interrupted",
                    )
                else:
                    yield ToolStart(call_id=pending.call_id, tool=pending.tool, arguments={})
                    yield ToolResult(call_id=pending.call_id, tool=pending.tool, output="late")
        else:
            yield StepStarted(step=1, model="local:m")
            yield Token(content="let me look")
            await self._at("turn")
            calls = [ctx.new_call_id(), ctx.new_call_id()]
            for call in calls:
                yield ToolCall(call_id=call, tool="look")
            await self._at("calls")
            yield StepFinished(step=1, finish_reason="tool_calls", provider_items=[{"signature": "s"}])
            await self._at("finished")
            yield ToolStart(call_id=calls[0], tool="look", arguments={"x": 1})
            await self._at("started")
            yield ToolResult(call_id=calls[0], tool="look", output="seen")
            await self._at("result")
            yield ToolStart(call_id=calls[1], tool="look", arguments={"x": 2})
            yield ToolResult(call_id=calls[1], tool="look", output="seen too")
        yield StepStarted(step=2)
        yield Token(content="so it is")
        await self._at("second turn")
        yield StepFinished(step=2, finish_reason="stop")


@pytest.mark.parametrize(
    ("place", "step", "pending", "resets"),
    [
        ("turn", 0, [], 1),
        ("calls", 0, [], 1),
        ("finished", 1, [False, False], 0),
        ("started", 1, [True, False], 0),
        ("result", 1, [False], 0),
        ("second turn", 1, [], 1),
    ],
)
async def test_an_agent_goes_on_from_its_last_completed_turn(
    place: str, step: int, pending: list[bool], resets: int
) -> None:
    store = MemoryStore()
    first = Turns(place)
    async with harness(first, store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go", agents=["t"]))).row.run
        await first.reached.wait()
        shown = {"turn": 4, "calls": 6, "finished": 7, "started": 8, "result": 9, "second turn": 13}[place]
        await until(lambda: len(h.published[run]) == shown)
        before = await h.events(run)
    second = Turns("nowhere")
    async with harness(second, store=store) as h:
        snapshot = await h.finished(run)
        events = await h.events(run)
    assert events[: len(before)] == before  # nothing that was acknowledged changes
    ctx = second.seen[0]
    assert ctx.resume is not None
    assert ctx.resume.step == step
    assert [p.started for p in ctx.resume.pending] == pending
    if step:
        assert ctx.resume.messages[0].text == "let me look"
        assert ctx.resume.messages[0].provider_items == [{"signature": "s"}]
        assert ctx.resume.messages[0].provider == "local"
    assert types(events, "t").count("step_reset") == resets
    assert types(events, "t").count("channel_started") == 1
    channel = snapshot["channels"][0]
    assert channel["text"] == "let me lookso it is"
    assert channel["status"] == snapshot["status"] == "completed"
    starts = [e.body.call_id for e in events if isinstance(e.body, ToolStart)]
    assert len(starts) == len(set(starts))  # a tool never starts twice
    if place == "started":
        assert channel["tools"][0]["error"] == "interrupted"


async def test_agents_that_can_t_resume_begin_again_or_fail_as_they_declare() -> None:
    store = MemoryStore()
    agents = [waits("again", resumable="restart"), waits("never")]
    async with harness(*agents, echo("after"), store=store) as h:
        request = StartRequest(
            message="go",
            channels=[
                ChannelSpec(agent="again"), ChannelSpec(agent="never"),
                ChannelSpec(agent="after", depends_on=["again", "never"]),
            ],
        )  # fmt: skip
        run = (await h.engine.start_run(request)).row.run
        for agent in agents:
            await agent.started.wait()
    again = waits("again", resumable="restart")
    again.release.set()
    async with harness(again, waits("never"), echo("after"), store=store) as h:
        snapshot = await h.finished(run)
        events = await h.events(run)
    one, two, three = snapshot["channels"]
    assert (one["attempt"], one["text"], one["status"]) == (2, "thinking done", "completed")
    assert two["error"]["code"] == "interrupted"
    assert types(events, "never")[-3:] == ["tool_result", "error", "done"]
    assert "did not succeed" in three["text"]


async def test_an_agent_that_left_the_roster_fails() -> None:
    store = MemoryStore()
    agent = waits("gone", resumable="restart")
    async with harness(agent, store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        await agent.started.wait()
    async with harness(says("other", "x"), store=store) as h:
        assert (await h.finished(run))["channels"][0]["error"]["code"] == "interrupted"


def _hangs(resumable: Literal["resume", "restart"]) -> tuple[Scripted, asyncio.Event]:
    """An agent that never completes its first step, and when it has begun."""
    began = asyncio.Event()

    async def run(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        yield Token(content="x")
        began.set()
        await asyncio.Event().wait()

    return Scripted("w", run, resumable=resumable), began


@pytest.mark.parametrize("resumable", ["resume", "restart"])
async def test_an_agent_that_brings_the_server_down_each_time_is_given_up(
    resumable: Literal["resume", "restart"],
) -> None:
    store = MemoryStore()
    run = ""
    for _ in range(6):
        agent, began = _hangs(resumable)
        async with harness(agent, store=store) as h:
            run = run or (await h.engine.start_run(StartRequest(message="go"))).row.run
            await began.wait()
    async with harness(_hangs(resumable)[0], store=store, times=Times(tries=5)) as h:
        snapshot = await h.finished(run)
        error = snapshot["channels"][0]["error"]
        assert (snapshot["status"], error["code"]) == ("failed", "interrupted")
        assert "5 times in a row" in error["message"]
        assert "taken_over" not in h.engine.summary((await h.engine.list_runs(RunQuery())).runs[0])
        await h.events(run)


async def test_an_agent_that_worked_for_a_while_before_each_crash_goes_on() -> None:
    store = MemoryStore()
    now = [1_000_000]
    run = ""
    for _ in range(8):
        agent, began = _hangs("restart")
        async with harness(agent, store=store, clock=lambda: now[0], times=Times(tries=5)) as h:
            run = run or (await h.engine.start_run(StartRequest(message="go"))).row.run
            await began.wait()
            now[0] += 61_000
            await h.engine.steer(run, "w", SteerRequest(content="are you there?"))
    async with harness(
        says("w", "done", resumable="restart"), store=store, clock=lambda: now[0], times=Times(tries=5)
    ) as h:
        assert (await h.finished(run))["status"] == "completed"


async def test_runs_that_waited_for_a_slot_start_after_a_restart() -> None:
    store = MemoryStore()
    agent = waits("w")
    async with harness(agent, echo("e"), store=store, max_runs=1) as h:
        await h.engine.start_run(StartRequest(message="go", agents=["w"]))
        queued = (await h.engine.start_run(StartRequest(message="me too", agents=["e"]))).row.run
    async with harness(waits("w"), echo("e"), store=store) as h:
        assert (await h.finished(queued))["channels"][0]["text"] == "e: me too"


async def test_channels_that_were_added_and_messages_that_waited_survive() -> None:
    store = MemoryStore()
    agent = waits("w", resumable="restart")
    async with harness(agent, echo("e"), store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go", agents=["w"]))).row.run
        await agent.started.wait()
        await h.engine.add_channel(run, AddChannel(agent="e", message="its own task", depends_on=["w"]))
        await h.engine.steer(run, "w", SteerRequest(content="hurry"))

    async def hears(ctx: AgentContext) -> AsyncIterator[Draft]:
        for message in ctx.host.take_messages(at_end=True):
            yield Token(content=message.content)

    async with harness(Scripted("w", hears, resumable="restart"), echo("e"), store=store) as h:
        snapshot = await h.finished(run)
    assert snapshot["channels"][0]["text"] == "hurry"
    assert snapshot["channels"][1]["text"].startswith("e: its own task")


@pytest.mark.parametrize("answered", ["before the agent asks again", "after"])
async def test_an_open_approval_survives_a_restart(answered: str) -> None:
    store = MemoryStore()
    async with harness(approving("x"), store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        call = await waiting_call(h, run)

    asking = asyncio.Event()
    if answered == "after":
        asking.set()

    async def resumed(ctx: AgentContext) -> AsyncIterator[Draft]:
        assert ctx.resume is not None
        (pending,) = ctx.resume.pending
        await asking.wait()
        decision = await ctx.host.approve(pending.call_id, pending.tool, {"path": "a"})
        yield ToolResult(call_id=pending.call_id, tool="rm", output=decision.decision)
        yield Outcome()

    async with harness(Scripted("x", resumed, resumable="resume"), store=store) as h:
        await h.engine.answer(run, call, ApprovalAnswer(decision="approve"), "ann")
        asking.set()
        snapshot = await h.finished(run)
        events = await h.events(run)
    assert snapshot["channels"][0]["tools"][0]["output"] == "approve"
    assert types(events, "x").count("approval_requested") == 1


async def test_a_run_whose_last_event_was_logged_is_only_closed() -> None:
    store = MemoryStore()
    async with harness(says("a", "x"), store=store) as h:
        run = (await h.engine.start_run(StartRequest(message="go"))).row.run
        await h.finished(run)
        before = await h.events(run)
        await store.update(run, status="running", finished=None)
    async with harness(says("a", "x"), store=store) as h:
        await h.finished(run)
        assert await h.events(run) == before
        assert (await store.get(run)).status == "completed"


# --- kill -9 ---------------------------------------------------------------------------------------------


async def crash(path: Path, *names: str, failpoint: str = "", kill_after_s: float | None = None) -> int:
    """Run the process of `tests.support.crash` to its end (or its death); returns its exit code."""
    env = os.environ | {"MUX_FAILPOINT": failpoint, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.crash", str(path), *names, cwd=ROOT, env=env
    )
    try:
        async with asyncio.timeout(kill_after_s if kill_after_s is not None else 20):
            await process.wait()
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert process.returncode is not None
    return process.returncode


async def checked_log(path: Path) -> tuple[str, list[Event]]:
    """The only run's log, folded: gapless and in order, or `IllegalEvent`."""
    store = SqliteStore(path)
    await store.open()
    try:
        (row,) = (await store.list(RunQuery())).runs
        page = await store.read(row.run, 0, limit=100_000, max_bytes=1 << 30)
        state = RunState(row.run)
        events = [r.event() for r in page.records]
        for event in events:
            state.apply(event)
        assert state.finished is not None
        assert row.status == state.finished.status
        assert state.channels["resumes"].done is not None
        return str(state.channels["resumes"].text), events
    finally:
        await store.close()


def check_effects(path: Path, events: list[Event]) -> None:
    """No tool ran twice, and none ran whose start is not in the log."""
    effects = path.with_suffix(".effects").read_text().split("\n")[:-1]
    assert len(effects) == len(set(effects))
    starts = [e.body.call_id for e in events if isinstance(e.body, ToolStart)]
    assert len(starts) == len(set(starts))
    assert {line.split()[1] for line in effects} <= set(starts)


FAILPOINTS = [
    "accept.after:1", "append.before:2", "append.after:1", "append.before:3", "append.after:4",
    "notify.before:2", "tool.start.after:1", "tool.start.after:2", "tool.result.after:1",
    "tool.result.after:4", "terminal.before:1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_a_kill_at_every_place_that_matters_loses_and_doubles_nothing(
    tmp_path: Path, failpoint: str
) -> None:
    path = tmp_path / "mux.db"
    code = await crash(path, "resumes", "restarts", "fails", failpoint=failpoint)
    assert code == -signal.SIGKILL
    assert await crash(path) == 0
    text, events = await checked_log(path)
    assert text == "step 1. step 2. step 3. "
    check_effects(path, events)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_kills_at_random_times_lose_and_double_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("MUX_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}: MUX_TEST_SEED={seed} repeats it")
    dice = random.Random(seed)
    path = tmp_path / "mux.db"
    for kills in itertools.count():
        point = dice.choice(
            ["append.before", "append.after", "notify.before", "tool.start.after", "terminal.before"]
        )
        if await crash(path, "resumes", failpoint=f"{point}:{dice.randint(1, 6)}") == 0:
            break
        assert kills < 40
    text, events = await checked_log(path)
    assert text == "step 1. step 2. step 3. "
    check_effects(path, events)

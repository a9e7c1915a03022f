"""Everything at once, at random: whatever callers do, every log keeps the order rules and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mux.agent import AgentContext, Draft
from mux.errors import MuxError
from mux.events import StepFinished, StepStarted, Token, ToolCall, ToolProgress, ToolResult, ToolStart
from mux.log import MemoryStore, SqliteStore, Store
from mux.requests import AddChannel, ApprovalAnswer, ChannelSpec, Grace, StartRequest, SteerRequest
from tests.support.agents import Harness, Scripted, harness

pytestmark = pytest.mark.usefixtures("no_leaks")


def agents(dice: random.Random) -> list[Scripted]:
    async def works(ctx: AgentContext) -> AsyncIterator[Draft]:
        for step in range(1, dice.randint(2, 5)):
            yield StepStarted(step=step)
            for _ in range(dice.randint(0, 40)):
                yield Token(content="word ")
            call = ctx.new_call_id()
            yield ToolCall(call_id=call, tool="t")
            if ctx.stopping:
                return  # leaves a call open: the engine closes it
            yield StepFinished(step=step, finish_reason="tool_calls")
            if dice.random() < 0.2:
                await ctx.host.approve(call, "t", {})
            yield ToolStart(call_id=call, tool="t", arguments={})
            await asyncio.sleep(dice.random() * 0.005)
            await ctx.emit(ToolProgress(call_id=call, elapsed_ms=1))
            yield ToolResult(call_id=call, tool="t", output="ok")
            ctx.host.take_messages(at_end=False)
            if dice.random() < 0.05:
                raise RuntimeError("bad luck")

    async def leads(ctx: AgentContext) -> AsyncIterator[Draft]:
        opened = [await ctx.open_channel("works", "part") for _ in range(dice.randint(1, 3))]
        for channel in opened:
            yield Token(content=(await ctx.channel_result(channel)).status)

    async def floods(ctx: AgentContext) -> AsyncIterator[Draft]:
        for _ in range(500):
            yield Token(content="x")

    return [
        Scripted("works", works, resumable="restart"), Scripted("leads", leads), Scripted("floods", floods)
    ]  # fmt: skip


async def meddle(h: Harness, run: str, dice: random.Random) -> None:
    """One caller who does what it likes; refusals are fine, anything but a `MuxError` is not."""
    for _ in range(dice.randint(0, 6)):
        await asyncio.sleep(dice.random() * 0.01)
        with contextlib.suppress(MuxError):
            snapshot = await h.engine.snapshot(run)
            channel = dice.choice(snapshot["channels"])
            waiting = [t["call_id"] for t in channel["tools"] if t["status"] == "waiting"]
            match dice.randint(0, 9):
                case 0:
                    await h.engine.cancel(run, dice.choice(["now", "graceful"]))
                case 1 | 2:
                    await h.engine.cancel_channel(run, channel["id"], dice.choice(["now", "graceful"]))
                case 3:
                    await h.engine.add_channel(run, AddChannel(agent="works", depends_on=[channel["id"]]))
                case 4:
                    await h.engine.retry(run, channel["id"])
                case 5:
                    await h.engine.steer(run, channel["id"], SteerRequest(content="hey"))
                case 6:
                    h.engine.viewer_joined(run)
                    h.engine.viewer_left(run)
                case _:
                    for call in waiting:
                        await h.engine.answer(
                            run, call, ApprovalAnswer(decision=dice.choice(["approve", "deny"]))
                        )


async def one_run(h: Harness, dice: random.Random) -> str | None:
    names = [dice.choice(["works", "leads", "floods"]) for _ in range(dice.randint(1, 4))]
    channels = [ChannelSpec(agent=n, id=f"c{i}") for i, n in enumerate(names)]
    if len(channels) > 1 and dice.random() < 0.4:
        channels[-1] = channels[-1].model_copy(
            update={"depends_on": ["c0"], "when": dice.choice(["all", "any"])}
        )
    request = StartRequest(
        message="go",
        channels=channels,
        max_parallel=dice.choice([None, 1, 2]),
        on_disconnect=dice.choice(["continue", "cancel", Grace(grace_s=0.01)]),
        timeout_s=dice.choice([None, None, 0.05]),
    )
    try:
        run = (await h.engine.start_run(request)).row.run
    except MuxError:
        return None
    await meddle(h, run, dice)
    return run


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
@pytest.mark.timeout(60)
async def test_a_storm_of_callers_breaks_nothing(backend: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("MUX_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}: MUX_TEST_SEED={seed} repeats it")
    dice = random.Random(seed)
    store: Store = MemoryStore() if backend == "memory" else SqliteStore(tmp_path / "mux.db")
    roster = agents(dice)
    runs: list[str | None] = []
    async with harness(*roster, store=store, max_runs=8, max_queue=20, approval_s=0.2) as h:
        for _ in range(3):
            runs += await asyncio.gather(*(one_run(h, dice) for _ in range(10)))
    if backend == "sqlite":
        await store.close()
    async with harness(
        *roster, store=store, max_runs=8, max_queue=20, approval_s=0.2
    ) as h:  # after a restart
        for row in await store.unfinished():
            assert await h.engine.wait(row.run, 10), await h.engine.snapshot(row.run)
        for run in filter(None, runs):
            if (await store.get(run)).status in ("queued", "running", "waiting"):
                await h.engine.wait(run, 10)
            assert (await h.events(run))[-1].type == "run_finished"
    await store.close()

"""The client's features on the real server; cuts and restarts are in test_cuts.py."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from mux.client import MuxClient, Run, SyncMuxClient
from mux.errors import BadRequest, Conflict, MuxError, NotFound
from mux.events import ApprovalRequested, ToolResult
from tests.support.service import serving

LISTENER = """
import asyncio
import mux

@mux.agent(name="listener", description="Says what it is told, until it is told to stop.")
async def agent(ctx):
    while True:
        for message in ctx.host.take_messages(at_end=False):
            yield mux.Token(content=f"heard {message.content}. ")
            if "stop" in message.content:
                return
        await asyncio.sleep(0.01)
"""


async def test_a_run_is_folded_to_the_servers_own_snapshot(url: str) -> None:
    async with MuxClient(url) as client:
        run = await client.start("What is 17*23?", agents=["analyst", "critic"])
        *_, (_, state) = [pair async for pair in run.follow()]
        ours, theirs = state.snapshot(), await run.snapshot()
    assert ours["channels"] == theirs["channels"]
    for key in ("run", "thread", "status", "message", "usage", "duration_ms"):
        assert ours[key] == theirs[key], key


async def test_filters_pass_what_they_name_and_the_runs_own_events(url: str) -> None:
    async with MuxClient(url) as client:
        run = await client.start("What is 17*23?", agents=["analyst", "critic"])
        everything = [e async for e in run.events()]
        only = [e async for e in run.events(channels=["critic"], types=["token", "tool_*"])]
        passing = {
            "token", "tool_call", "tool_args", "tool_start", "tool_progress", "tool_result",
        }  # fmt: skip
        assert only == [
            e for e in everything if e.channel is None or (e.channel == "critic" and e.type in passing)
        ]
        of_one = [e async for e in run.channel("analyst")]
        assert of_one == [e for e in everything if e.channel == "analyst"]
        assert [e.cseq for e in of_one] == list(range(1, len(of_one) + 1))
        snapshot = await run.snapshot()
        text = "".join([piece async for piece in run.text("analyst")])
        assert text == next(c["text"] for c in snapshot["channels"] if c["id"] == "analyst")
        middle = everything[len(everything) // 2].seq
        assert [e async for e in run.events(after=middle)] == everything[middle:]
        compact = [e async for e in run.events(compact=True)]
        assert len(compact) < len(everything)
        assert texts(compact) == texts(everything)


def texts(events: list[Any]) -> dict[tuple[str | None, str], str]:
    out: dict[tuple[str | None, str], str] = {}
    for event in events:
        if event.type in ("token", "reasoning", "tool_args"):
            key = (event.channel, event.type)
            out[key] = out.get(key, "") + event.body.content
    return out


async def test_a_channel_is_iterated_to_its_end_while_the_others_go_on(url: str) -> None:
    async with MuxClient(url) as client:
        run = await client.start("2", agents=["counter", "hold"])
        assert [e.type async for e in run.channel("counter")][-1] == "done"
        assert (await run.snapshot())["status"] == "running"
        await run.cancel("hold")
        final = await run.wait(10)
    assert {c["id"]: c["status"] for c in final["channels"]} == {"counter": "completed", "hold": "cancelled"}


async def test_waiting_has_a_deadline_and_leaves_the_run_alone(url: str) -> None:
    async with MuxClient(url) as client:
        run = await client.start("x", agents=["hold"])
        with pytest.raises(TimeoutError):
            await run.wait(0.2)
        assert (await run.snapshot())["status"] in ("queued", "running")
        await run.cancel(mode="graceful")
        assert (await run.wait(10))["channels"][0]["status"] == "cancelled"


async def test_steering_adding_and_retrying(no_leaks: None, tmp_path: Path, agents_dir: Path) -> None:
    (agents_dir / "listener.py").write_text(LISTENER)
    async with serving(agents=[agents_dir]) as service, MuxClient(service.url) as client:
        run = await client.start("x", agents=["listener"])
        await started(run, "listener")
        assert await run.steer("listener", "this")
        added = await run.add_channel("counter", message="2")
        assert added == "counter"
        await run.steer("listener", "stop")
        final = await run.wait(10)
        assert [c["text"] for c in final["channels"]] == ["heard this. heard stop. ", "0 1 "]
        with pytest.raises(Conflict, match="finished"):
            await run.add_channel("counter", message="2")
        again, channel = await run.retry("counter")
        assert again.id != run.id
        assert (await again.wait(10))["channels"][0]["text"] == "0 1 "
        assert channel in [c["id"] for c in (await again.snapshot())["channels"]]
        assert again.info["run"] == again.id


async def started(run: Run, channel: str) -> None:
    async for event in run.events(observe=True):
        if event.channel == channel and event.type == "channel_started":
            return


@pytest.mark.parametrize(
    ("decision", "options", "output"),
    [
        ("approve", {}, "17 * 23 is 391"),
        ("edit", {"arguments": {"expression": "1+1"}}, "1+1 is 391"),
        ("deny", {"reason": "not today"}, "not today"),
    ],
)
async def test_a_waiting_call_is_decided(
    url: str, decision: str, options: dict[str, Any], output: str
) -> None:
    async with MuxClient(url) as client:
        run = await client.start("What is 17*23?", agents=["asker"])
        result = None
        async for event in run.events():
            if isinstance(event.body, ApprovalRequested):
                await run.approve(event.body.call_id, decision, **options)
                with pytest.raises(Conflict):
                    await run.approve(event.body.call_id, "deny")
            if isinstance(event.body, ToolResult) and result is None:
                result = event.body
    assert result is not None
    assert output.replace(" ", "") in result.output.replace(" ", "")
    assert result.error == ("denied" if decision == "deny" else None)


async def test_runs_are_listed_changed_and_forgotten(url: str) -> None:
    async with MuxClient(url) as client:
        run = await client.start("1", agents=["counter"], metadata={"case": "a"})
        await run.wait(10)
        await client.start("1", agents=["counter"])
        changed = await run.update(title="one", starred=True)
        assert (changed["title"], changed["starred"]) == ("one", True)
        found = await client.runs(**{"metadata.case": "a", "limit": 5})
        assert [r["run"] for r in found["runs"]] == [run.id]
        assert {"counter", "asker"} <= {a["name"] for a in await client.agents()}
        assert await client.models() is not None
        await run.delete()
        with pytest.raises(NotFound) as error:
            await run.snapshot()
        assert error.value.code == "run_not_found"


async def test_the_same_key_gives_the_same_run_and_errors_keep_their_code(url: str) -> None:
    async with MuxClient(url) as client:
        first = await client.start("1", agents=["counter"], idempotency_key="k")
        assert (await client.start("1", agents=["counter"], idempotency_key="k")).id == first.id
        with pytest.raises(BadRequest) as error:
            await client.start("1", agents=["counter"], unknown_option=1)
        assert error.value.code == "request_invalid"
        with pytest.raises(NotFound, match="counter"):
            await client.start("1", agents=["conter"])


async def test_what_is_no_mux_server_is_told(url: str) -> None:
    async with MuxClient(f"{url}/docs") as client:
        with pytest.raises(MuxError):
            await client.agents()


async def test_a_thread_goes_on(url: str) -> None:
    async with MuxClient(url) as client:
        run = await client.start("What is 6*7?", agents=["analyst"])
        await run.wait(10)
        second = await client.start("And what did I ask before?", thread=run.info["thread"])
        assert [c["agent"] for c in (await second.wait(10))["channels"]] == ["analyst"]


async def test_without_asyncio_everything_works_too_and_leaves_no_thread(url: str) -> None:
    before = set(threading.enumerate())

    def work() -> None:
        with SyncMuxClient(url) as client:
            run = client.start("What is 17*23?", agents=["asker", "counter"], channels=None)
            for event in run.events():
                if isinstance(event.body, ApprovalRequested):
                    run.approve(event.body.call_id)
            assert "391" in "".join(run.text("asker"))
            assert run.snapshot()["status"] in ("completed", "partial")
            held = client.start("x", agents=["hold"])
            next(iter(held.events()))  # abandoned in the middle
            for event in held.channel("hold"):
                if event.type == "token":
                    held.cancel()
            assert held.wait(10)["status"] == "cancelled"
            again, _ = held.retry("hold")
            again.cancel()
            again.update(title="t")
            with pytest.raises(TimeoutError):
                client.run(client.start("x", agents=["hold"]).id).wait(0.1)
            assert client.agents()
            assert len(client.runs()["runs"]) == 4
            again.wait(10)
            again.delete()
            with pytest.raises(NotFound):
                again.snapshot()
            client.close()  # and once more when the block ends

    await asyncio.to_thread(work)
    await asyncio.sleep(0)
    assert [t.name for t in set(threading.enumerate()) - before if t.name == "mux-client"] == []


async def test_reading_without_asyncio_costs_little_more(url: str) -> None:
    """Events cross to the other thread in batches, not one by one."""
    async with MuxClient(url) as client:
        run = await client.start("5000", agents=["counter"])
        await run.wait(15)
        loop = asyncio.get_running_loop()
        began = loop.time()
        count = len([e async for e in run.events()])
        plain = loop.time() - began

        def work() -> int:
            with SyncMuxClient(url) as sync:
                return len(list(sync.run(run.id).events()))

        began = loop.time()
        assert await asyncio.to_thread(work) == count > 5000
        assert loop.time() - began < 3 * plain + 1.0

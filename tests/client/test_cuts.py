"""Nothing lost, nothing doubled: through cut connections, and through ``kill -9`` and a restart."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mux.client import MuxClient, Run
from mux.client import follow as follow_module
from mux.events import Event
from tests.client.test_client import texts
from tests.support.checker import assert_order, http
from tests.support.cutting import cutting
from tests.support.servers import Server, Zygote, zygote
from tests.support.service import write_agent

WRITER = """
import asyncio
import mux

@mux.agent(name="writer", description="Writes numbers, and begins again after a crash.", resumable="restart")
async def agent(ctx):
    yield mux.StepStarted(step=1)
    for n in range(int(ctx.task)):
        yield mux.Token(content=f"{n} ")
        await asyncio.sleep(0.004)
    yield mux.StepFinished(step=1, finish_reason="stop")
"""


@pytest.fixture(autouse=True)
def quick_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "FIRST_DELAY_S", 0.005)
    monkeypatch.setattr(follow_module, "LAST_DELAY_S", 0.1)


async def log_of(url: str, run: str) -> list[dict[str, Any]]:
    """The run's log as the server has it, read by hand in one piece."""
    headers = {"Accept": "application/x-ndjson"}
    async with http("GET", f"{url}/api/runs/{run}/events?observe=1", headers=headers) as response:
        return [block.data async for block in response.blocks() if "seq" in block.data]


def as_json(events: list[Event]) -> list[dict[str, Any]]:
    return [json.loads(event.to_json()) for event in events]


async def collect(run: Run, **options: Any) -> list[Event]:
    return [event async for event in run.events(**options)]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_cuts_of_the_connection(url: str, seed: int) -> None:
    async with cutting(url, seed=seed, mean=6000) as proxy, MuxClient(proxy.url) as client:
        run = await client.start("What is 17*23?", agents=["analyst", "counter", "researcher"],
                                 channels=None)  # fmt: skip
        whole, one, compact = await asyncio.gather(
            collect(run), collect(run, channels=["analyst"]), collect(run, compact=True)
        )
        folded = [state async for _, state in run.follow()][-1].snapshot()
        log = await log_of(url, run.id)
        assert proxy.cuts >= 3
        assert as_json(whole) == log
        assert as_json(one) == [e for e in log if e["channel"] in (None, "analyst")]
        assert texts(compact) == texts(whole)
        proxy.mean = 0
        assert folded["channels"] == (await run.snapshot())["channels"]
    assert_order(log)


@pytest.fixture(scope="module")
def forge() -> Iterator[Zygote]:
    with zygote() as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.allow_blocking  # starts servers in processes of their own
async def test_the_server_is_killed_and_started_again_on_the_same_file_and_port(
    forge: Zygote, tmp_path: Path
) -> None:
    write_agent(tmp_path / "agents", "writer.py", WRITER)
    server = Server(forge, tmp_path, "--store", f"sqlite:{tmp_path / 'mux.db'}", "--model", "rehearsal",
                    env={"MUX_REHEARSAL_PACE": "150"})  # fmt: skip
    dice = random.Random(5)
    try:
        await server.start()
        server.port = urlsplit(server.url).port or 0
        async with (
            cutting(server.url, seed=9, mean=20_000) as proxy,
            MuxClient(server.url) as direct,
            MuxClient(proxy.url) as client,
        ):
            run = await client.start("150", agents=["writer", "analyst", "critic"])
            readers = [
                asyncio.create_task(collect(r, **options))
                for r, options in (
                    (client.run(run.id), {}),
                    (direct.run(run.id), {}),
                    (client.run(run.id), {"channels": ["writer"]}),
                    (direct.run(run.id), {"compact": True}),
                )
            ]
            folding = asyncio.create_task(fold(client.run(run.id)))
            for _ in range(3):
                await asyncio.sleep(dice.uniform(0.2, 0.5))  # a kill at any time is the point
                await server.kill()
                # Asked for while nobody answers: the same key makes one run, whenever the server is back.
                pending = asyncio.create_task(
                    client.start("2", agents=["writer"], idempotency_key="while-down")
                )
                await server.start()
                again = (await pending).id
            final = await client.run(run.id).wait(60)
            whole, straight, one, compact = await asyncio.gather(*readers)
            log = await log_of(server.url, run.id)
            assert as_json(whole) == as_json(straight) == log
            assert as_json(one) == [e for e in log if e["channel"] in (None, "writer")]
            assert texts_of_last_attempt(compact) == texts_of_last_attempt(whole)
            assert final["status"] == "completed"
            assert (await folding)["channels"] == final["channels"]
            assert (await direct.runs())["runs"][0]["run"] == again
            assert len((await direct.runs())["runs"]) == 2
        await server.stop()
    finally:
        await server.kill()
    assert max(e.get("attempt", 1) for e in log if e["type"] == "channel_started") > 1


async def fold(run: Run) -> dict[str, Any]:
    return [state async for _, state in run.follow()][-1].snapshot()


def texts_of_last_attempt(events: list[Event]) -> str:
    """The writer's text after its last start."""
    text = ""
    for event in events:
        if event.channel == "writer" and event.type == "channel_started":
            text = ""
        if event.channel == "writer" and event.type == "token":
            text += event.body.content  # type: ignore[attr-defined]  # a token
    return text

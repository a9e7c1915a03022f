"""The composition root: starting, draining, stopping, and what goes wrong while starting."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from mux.errors import ConfigError, StoreError
from mux.http.service import Service, load_roster
from tests.support.api import call, finished_run, read, start, until
from tests.support.service import make_settings, serving

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_taken_port_is_an_error_and_opens_nothing(tmp_path: Path) -> None:
    store = tmp_path / "mux.db"
    async with serving() as first:
        port = int(first.url.rsplit(":", 1)[1])
        second = Service(make_settings(port=port, store=f"sqlite:{store}"))
        with pytest.raises(OSError, match="in use") as e:
            await second.start()
        assert e.value.errno == errno.EADDRINUSE
        await second.stop(grace_s=0)
    assert not await asyncio.to_thread(store.exists)


async def test_a_second_server_on_the_store_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'mux.db'}"
    async with serving(store=store) as first:
        second = Service(make_settings(store=store))
        with pytest.raises(StoreError) as e:
            await second.start()
        assert (e.value.code, e.value.extra["url"]) == ("store_locked", first.url)
        await second.stop(grace_s=0)
        assert (await call("GET", f"{first.url}/readyz"))[0] == 200


async def test_a_guardrail_that_cannot_work_stops_the_start() -> None:
    service = Service(make_settings(guardrails={"bad": {"pattern": "("}}))
    with pytest.raises(ConfigError):
        await service.start()
    await service.stop(grace_s=0)


async def test_a_guardrail_of_the_settings_holds_for_every_agent(agents_dir: Path) -> None:
    rules = {"no-three": {"pattern": "3 ", "action": "block"}}
    async with serving(agents=[agents_dir], guardrails=rules, refusal="Stopped here.") as service:
        run = await finished_run(service.url, "counter", message="9")
        assert run["channels"][0]["status"] == "refused"
        said = [b.data for b in await read(f"{service.url}/api/runs/{run['run']}/events")]
        assert "3 " not in "".join(e["content"] for e in said if e["type"] == "token")


async def test_a_drain_lets_runs_finish_and_refuses_new_ones(agents_dir: Path) -> None:
    async with serving(agents=[agents_dir]) as service:
        url = service.url
        run = await start(url, "hold")
        watching = asyncio.create_task(read(f"{url}/api/runs/{run}/events"))
        await until(lambda: service.hub.count)
        stopping = asyncio.create_task(service.stop(grace_s=10))
        assert (await watching)[-1].data["type"] == "stream_rotate"
        assert (await call("GET", f"{url}/readyz"))[0] == 503
        status, problem, headers = await call("GET", f"{url}/api/runs/{run}/events")
        assert (status, problem["code"]) == (503, "draining")
        assert "retry-after" in headers
        assert (await call("POST", f"{url}/api/runs", {"message": "1", "agents": ["counter"]}))[0] == 503
        assert (await call("POST", f"{url}/api/runs/{run}/cancel"))[0] == 202
        await asyncio.wait_for(stopping, 5)


async def test_a_second_stop_hurries_the_first(agents_dir: Path) -> None:
    async with serving(agents=[agents_dir]) as service:
        await start(service.url, "hold")
        stopping = asyncio.create_task(service.stop(grace_s=600))
        await asyncio.sleep(0)
        await asyncio.wait_for(service.stop(grace_s=0), 5)
        await stopping


async def test_an_unfinished_run_is_taken_over_at_the_next_start(agents_dir: Path, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'mux.db'}"
    async with serving(agents=[agents_dir], store=store) as service:
        run = await start(service.url, "hold")
        seen = await read(f"{service.url}/api/runs/{run}/events", until="token")
    async with serving(agents=[agents_dir], store=store) as service:
        url = f"{service.url}/api/runs/{run}/events"
        rest = await read(url, headers={"Last-Event-ID": str(seen[-1].id)})
        assert rest[-2].data["type"] == "run_finished"
        whole = await read(url)
        assert [b.data for b in whole if "seq" in b.data] == [b.data for b in seen + rest if "seq" in b.data]


async def test_what_was_loaded_from_where_is_said(agents_dir: Path) -> None:
    (agents_dir / "broken.md").write_text("---\nname: [\n---\n")
    async with serving(agents=[agents_dir]) as service:
        said = "\n".join(service.describe())
    assert "counter" in said
    assert "broken.md" in said
    assert "memory:" in said
    assert "rehearsal" in said


@pytest.mark.allow_blocking  # the command line has no loop yet
def test_the_roster_alone_needs_no_server(agents_dir: Path) -> None:
    assert {"counter", "assistant"} <= set(load_roster(make_settings(agents=[agents_dir])).agents)

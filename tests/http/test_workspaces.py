"""Lanes of an ACP agent on the real server: each on a copy, its diff, and taking it over."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mux.http.service import Service
from tests.support.service import serving

SCRIPTED = Path(__file__).parents[1] / "support" / "acp_scripted.py"
pytestmark = pytest.mark.allow_blocking  # the tests look at files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    return folder


@pytest.fixture
async def service(no_leaks: None, tmp_path: Path, project: Path) -> AsyncIterator[Service]:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "coder.md").write_text(
        f"---\nname: coder\ndescription: Writes.\nacp:\n  command: [{sys.executable}, {SCRIPTED}]\n"
        "workspace: ../project\n---\n"
    )
    configured = {"tuned": {"command": [sys.executable, str(SCRIPTED)], "workspace": str(project)}}
    async with serving(
        agents=[agents], acp=configured, workspaces={"dir": str(tmp_path / "spaces")}
    ) as running:
        yield running


@pytest.fixture
async def http(service: Service) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(service.url) as session:
        yield session


async def ran(http: aiohttp.ClientSession, channels: list[dict[str, Any]], **body: Any) -> dict[str, Any]:
    async with http.post(
        "/api/runs", json={"message": "go", "channels": channels, **body}, headers={"Prefer": "wait=15"}
    ) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status == 200 or answer.status == 201, found
        return found


def lane(name: str, agent: str = "coder") -> dict[str, Any]:
    script = f"open('{name}.txt', 'w').write('{name}\\n'); open('a.txt', 'a').write('{name}\\n'); say('ok')"
    return {"id": name, "agent": agent, "message": script}


async def test_four_lanes_work_at_once_and_one_is_taken_over(
    http: aiohttp.ClientSession, project: Path
) -> None:
    names = ["w", "x", "y", "z"]
    run = await ran(http, [lane(n, "tuned" if n == "z" else "coder") for n in names])
    assert run["status"] == "completed", run
    assert os.listdir(project) == ["a.txt"]
    for name in names:
        async with http.get(f"/api/runs/{run['run']}/channels/{name}/diff") as answer:
            found = await answer.json()
        assert [f["path"] for f in found["files"]] == ["a.txt", f"{name}.txt"]
        assert (found["insertions"], found["deletions"]) == (2, 0)
        assert f"+{name}\n" in found["diff"]
    async with http.get(
        f"/api/runs/{run['run']}/channels/x/diff", headers={"Accept": "text/x-diff"}
    ) as answer:
        assert answer.content_type == "text/x-diff"
        assert (await answer.text()).startswith("diff --git a/a.txt b/a.txt\n")
    async with http.post(f"/api/runs/{run['run']}/channels/x/apply") as answer:
        assert (await answer.json())["files"] == ["a.txt", "x.txt"]
    assert (project / "a.txt").read_text() == "one\nx\n"
    async with http.post(f"/api/runs/{run['run']}/channels/y/apply") as answer:
        problem = await answer.json()
        assert (answer.status, problem["code"]) == (409, "workspace_conflict")
        assert problem["files"] == ["a.txt"]
    assert not (project / "y.txt").exists()


async def test_the_stream_has_one_workspace_event(http: aiohttp.ClientSession) -> None:
    run = await ran(http, [lane("x")])
    async with http.get(
        f"/api/runs/{run['run']}/events", headers={"Accept": "application/x-ndjson"}
    ) as answer:
        events = [line async for line in answer.content]
    (event,) = [line for line in events if b'"name":"workspace"' in line]
    assert b'"x.txt"' in event


async def test_what_has_no_workspace_says_so(http: aiohttp.ClientSession) -> None:
    run = await ran(http, [{"id": "p", "agent": "assistant"}])
    for method, path in (("GET", "p/diff"), ("POST", "p/apply"), ("GET", "nobody/diff")):
        async with http.request(method, f"/api/runs/{run['run']}/channels/{path}") as answer:
            assert (answer.status, (await answer.json())["code"]) == (404, "workspace_unknown")
    async with http.get("/api/runs/nothing/channels/p/diff") as answer:
        assert (answer.status, (await answer.json())["code"]) == (404, "run_not_found")


async def test_a_working_channel_is_not_taken_over_yet_and_shows_its_diff(
    http: aiohttp.ClientSession,
) -> None:
    script = "open('x.txt', 'w').write('x'); say('now'); time.sleep(60)"
    body = {"channels": [{"id": "x", "agent": "coder", "message": script}], "message": "go"}
    async with http.post("/api/runs", json=body, headers={"Accept": "application/x-ndjson"}) as stream:
        run = stream.headers["Location"].rpartition("/")[2]
        async for line in stream.content:
            if b'"now"' in line:
                break
        async with http.get(f"/api/runs/{run}/channels/x/diff") as answer:
            assert [f["path"] for f in (await answer.json())["files"]] == ["x.txt"]
        async with http.post(f"/api/runs/{run}/channels/x/apply") as answer:
            assert (answer.status, (await answer.json())["code"]) == (409, "channel_running")
        async with http.post(f"/api/runs/{run}/channels/x/cancel", json={"mode": "now"}) as answer:
            assert answer.status == 202
        async for line in stream.content:
            if b'"run_finished"' in line:
                break
    async with http.get(f"/api/runs/{run}/channels/x/diff") as answer:
        assert [f["path"] for f in (await answer.json())["files"]] == ["x.txt"]


async def test_a_permission_is_answered_over_http(http: aiohttp.ClientSession) -> None:
    script = (
        "update('tool_call', toolCallId='c', title='Run', kind='execute', status='pending')\n"
        "say(permission('c')['outcome']['optionId'])\n"
        "update('tool_call_update', toolCallId='c', status='completed')"
    )
    body = {"channels": [{"id": "x", "agent": "coder", "message": script}], "message": "go"}
    text = b""
    async with http.post("/api/runs", json=body, headers={"Accept": "application/x-ndjson"}) as stream:
        run = stream.headers["Location"].rpartition("/")[2]
        async for line in stream.content:
            text += line
            if b'"approval_requested"' in line:
                call = line.partition(b'"call_id":"')[2].partition(b'"')[0].decode()
                async with http.post(
                    f"/api/runs/{run}/approvals/{call}", json={"decision": "approve"}
                ) as answer:
                    assert answer.status == 200, await answer.text()
            if b'"run_finished"' in line:
                break
    assert b'"content":"once"' in text
    assert b'"status":"completed"' in text

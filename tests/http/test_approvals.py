"""A person decides about a call: over the HTTP API, with a roster's own tool on the rehearsal model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mux.run import TERMINAL
from tests.support.agents_with_tools import wiper_folder
from tests.support.api import call, read, start
from tests.support.servers import Server, zygote
from tests.support.service import running

pytestmark = [pytest.mark.allow_blocking, pytest.mark.timeout(60)]  # the whole server starts in this process


async def snapshot_when(url: str, run: str, *statuses: str) -> dict[str, Any]:
    """The run's snapshot once it has one of these statuses."""
    while True:
        snapshot: dict[str, Any] = (await call("GET", f"{url}/api/runs/{run}"))[1]
        if snapshot["status"] in statuses:
            return snapshot
        assert snapshot["status"] not in TERMINAL, snapshot
        await asyncio.sleep(0.02)


async def asked(url: str, run: str) -> dict[str, Any]:
    """The `approval_requested` event."""
    blocks = await read(f"{url}/api/runs/{run}/events", until="approval_requested")
    return dict(blocks[-1].data)


async def events(url: str, run: str) -> list[dict[str, Any]]:
    return [dict(b.data) for b in await read(f"{url}/api/runs/{run}/events")]


def answer_url(url: str, run: str, call_id: str) -> str:
    return f"{url}/api/runs/{run}/approvals/{call_id}"


async def test_only_the_channel_that_asks_waits_and_the_first_answer_wins(tmp_path: Path) -> None:
    folder, effects = wiper_folder(tmp_path)
    async with running(agents=[folder]) as url:
        run = await start(url, "wiper", "talker", message="wipe Downloads")
        request = await asked(url, run)
        assert (request["tool"], request["channel"]) == ("wipe", "wiper")
        waiting = await snapshot_when(url, run, "waiting")
        states = {c["id"]: c["status"] for c in waiting["channels"]}
        assert states == {"wiper": "waiting", "talker": "completed"}
        assert effects.read_text() == ""
        answers = await asyncio.gather(
            *(
                call("POST", answer_url(url, run, request["call_id"]), {"decision": d})
                for d in ("approve", "deny", "approve")
            )
        )
        assert sorted(status for status, _, _ in answers) == [200, 409, 409]
        won = next(body for status, body, _ in answers if status == 200)
        for status, problem, headers in answers:
            if status == 409:
                assert headers["content-type"].startswith("application/problem+json")
                assert (problem["code"], problem["decision"]) == ("approval_decided", won["decision"])
        done = await snapshot_when(url, run, "completed")
        log = await events(url, run)
    decided = [e for e in log if e["type"] == "approval_resolved"]
    assert [e["decision"] for e in decided] == [won["decision"]]
    assert len(effects.read_text().split()) == (won["decision"] == "approve")
    assert {c["id"]: c["status"] for c in done["channels"]} == {"wiper": "completed", "talker": "completed"}


async def test_a_denial_and_its_reason_reach_the_model(tmp_path: Path) -> None:
    folder, effects = wiper_folder(tmp_path)
    async with running(agents=[folder]) as url:
        run = await start(url, "wiper", message="wipe Downloads")
        request = await asked(url, run)
        status, _, _ = await call(
            "POST", answer_url(url, run, request["call_id"]), {"decision": "deny", "reason": "not today"}
        )
        assert status == 200
        done = await snapshot_when(url, run, "completed")
        log = await events(url, run)
    (tool,) = done["channels"][0]["tools"]
    assert tool["is_error"]
    assert "not today" in tool["output"]
    assert [e["type"] for e in log].count("tool_start") == 0
    assert next(e for e in log if e["type"] == "tool_result")["error"] == "denied"
    assert effects.read_text() == ""


@pytest.mark.parametrize("reason", [7, ["no"], "x" * 2001], ids=["number", "list", "too long"])
async def test_a_reason_that_is_none_decides_nothing_over_any_face(tmp_path: Path, reason: object) -> None:
    folder, effects = wiper_folder(tmp_path)
    async with running(agents=[folder]) as url:
        run = await start(url, "wiper", message="wipe Downloads")
        approval = f"{run}/{(await asked(url, run))['call_id']}"
        payload = {"approved": True, "reason": reason}
        part = {
            "type": "dynamic-tool",
            "state": "approval-responded",
            "approval": {"id": approval, **payload},
        }
        bodies = {
            "/v1/responses": {
                "model": "wiper",
                "input": [
                    {
                        "type": "mcp_approval_response",
                        "approval_request_id": approval,
                        "approve": True,
                        "reason": reason,
                    }
                ],
            },
            "/api/agents/wiper/ui": {
                "id": "c",
                "messages": [{"id": "m", "role": "assistant", "parts": [part]}],
            },
            "/api/agents/wiper/ag-ui": {
                "threadId": "t",
                "runId": "r",
                "messages": [],
                "resume": [{"interruptId": approval, "status": "resolved", "payload": payload}],
            },
        }
        answers = [await call("POST", f"{url}{path}", body) for path, body in bodies.items()]
        assert [status for status, _, _ in answers] == [400, 400, 400], answers
        assert all("reason" in str(body) for _, body, _ in answers)
        assert effects.read_text() == ""


async def test_edited_arguments_are_what_runs_and_bad_ones_are_refused(tmp_path: Path) -> None:
    folder, effects = wiper_folder(tmp_path)
    async with running(agents=[folder]) as url:
        run = await start(url, "wiper", message="wipe Downloads")
        there = answer_url(url, run, (await asked(url, run))["call_id"])
        assert (await call("POST", there, {"decision": "edit"}))[1]["code"] == "arguments_missing"
        assert (await call("POST", there, {"decision": "perhaps"}))[0] in (400, 422)
        assert (await call("POST", answer_url(url, run, "call_0"), {"decision": "deny"}))[0] == 404
        edit = {"decision": "edit", "arguments": {"folder": "Temp"}}
        assert (await call("POST", there, edit))[0] == 200
        await snapshot_when(url, run, "completed")
        log = await events(url, run)
    assert effects.read_text() == "Temp\n"
    assert next(e for e in log if e["type"] == "tool_start")["arguments"] == {"folder": "Temp"}
    resolved = next(e for e in log if e["type"] == "approval_resolved")
    assert (resolved["decision"], resolved["arguments"]) == ("edit", {"folder": "Temp"})


async def test_what_a_person_writes_passes_the_guardrails_before_it_is_logged(tmp_path: Path) -> None:
    folder, effects = wiper_folder(tmp_path)
    rules = {"no-home": {"pattern": "/home/[a-z]+", "stage": ["tool_input"]}, "w": {"words": ["foo"]}}
    async with running(agents=[folder], guardrails=rules) as url:
        run = await start(url, "wiper", message="wipe Downloads")
        there = answer_url(url, run, (await asked(url, run))["call_id"])
        for answer in (
            {"decision": "edit", "arguments": {"folder": "/home/me"}},
            {"decision": "deny", "reason": "foo"},
        ):
            status, problem, _ = await call("POST", there, answer)
            assert (status, problem["code"]) == (400, "answer_blocked")
        assert (await call("POST", there, {"decision": "edit", "arguments": {"folder": "ok"}}))[0] == 200
        await snapshot_when(url, run, "completed")
        log = repr(await events(url, run))
    assert "/home" not in log
    assert "foo'" not in log
    assert effects.read_text() == "ok\n"


async def test_a_request_that_nobody_answers_expires_as_a_denial(tmp_path: Path) -> None:
    folder, effects = wiper_folder(tmp_path)
    async with running(agents=[folder], limits={"approval_s": 0.3}) as url:
        run = await start(url, "wiper", message="wipe Downloads")
        request = await asked(url, run)
        assert 0 < request["expires_at"] - request["ts"] <= 300
        await snapshot_when(url, run, "completed")
        log = await events(url, run)
        late = await call("POST", answer_url(url, run, request["call_id"]), {"decision": "approve"})
    assert late[0] == 409
    resolved = next(e for e in log if e["type"] == "approval_resolved")
    assert (resolved["decision"], resolved["by"]) == ("expired", "expiry")
    assert next(e for e in log if e["type"] == "tool_result")["error"] == "denied"
    assert effects.read_text() == ""


@pytest.mark.parametrize("mode", ["now", "graceful"])
async def test_a_cancel_ends_the_wait(tmp_path: Path, mode: str) -> None:
    folder, effects = wiper_folder(tmp_path)
    async with running(agents=[folder]) as url:
        run = await start(url, "wiper", message="wipe Downloads")
        await asked(url, run)
        await call("POST", f"{url}/api/runs/{run}/cancel", {"mode": mode})
        await snapshot_when(url, run, "cancelled", "completed")
        log = await events(url, run)
    assert [e["type"] for e in log].count("approval_resolved") == 1
    assert [e["type"] for e in log].count("tool_result") == 1
    assert effects.read_text() == ""


async def test_interrupts_at_any_moment_around_a_request_leave_an_orderly_channel(tmp_path: Path) -> None:
    """Also between the decision to ask and the request in the log: nothing may then be withdrawn."""
    folder, effects = wiper_folder(tmp_path)
    async with running(agents=[folder]) as url:
        for turn in range(12):
            run = await start(url, "wiper", message="wipe Downloads")
            seen = "tool_args" if turn % 2 else "approval_requested"
            await read(f"{url}/api/runs/{run}/events", until=seen)
            there = f"{url}/api/runs/{run}/channels/wiper/messages"
            await call("POST", there, {"content": "stop that", "mode": "interrupt"})
            while True:
                snapshot = (await call("GET", f"{url}/api/runs/{run}"))[1]
                if snapshot["status"] in TERMINAL | {"partial"}:
                    break
                for tool in snapshot["channels"][0]["tools"]:
                    await call("POST", answer_url(url, run, tool["call_id"]), {"decision": "deny"})
            assert snapshot["status"] == "completed", snapshot["channels"][0]["error"]
    assert effects.read_text() == ""


@pytest.mark.slow
async def test_a_request_survives_a_kill_of_the_server(tmp_path: Path) -> None:
    folder, effects = wiper_folder(tmp_path)
    store = f"sqlite:{tmp_path / 'mux.db'}"
    with zygote() as servers:
        server = Server(servers, tmp_path, "--store", store, "--agents", str(folder))
        async with server.running():
            run = await start(server.url, "wiper", message="wipe Downloads")
            request = await asked(server.url, run)
            await server.kill()
            await server.start()
            waiting = await snapshot_when(server.url, run, "waiting")
            assert waiting["channels"][0]["status"] == "waiting"
            assert effects.read_text() == ""
            there = answer_url(server.url, run, request["call_id"])
            assert (await call("POST", there, {"decision": "approve"}))[0] == 200
            done = await snapshot_when(server.url, run, "completed")
            log = await events(server.url, run)
    assert [e["type"] for e in log].count("approval_requested") == 1
    assert [e["type"] for e in log].count("tool_start") == 1
    assert len(effects.read_text().split()) == 1
    assert done["channels"][0]["tools"][0]["status"] == "done"

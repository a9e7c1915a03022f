"""What agents bring along, over HTTP: rules with refusals of their own, tool servers of their own."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import mcp_server
from tests.support.agents_with_tools import wiper_folder
from tests.support.api import call, finished_run, read, settled
from tests.support.checker import http
from tests.support.service import running, serving, write_agent

pytestmark = [pytest.mark.allow_blocking, pytest.mark.timeout(60)]  # the whole server starts in this process

SECRET = "AKIA" + "ABCDEFGHIJKLMNOP"

_OWN = """---
name: careful
description: Has rules of its own.
model: rehearsal
guardrails:
  no-cats:
    stage: input
    words: [cats]
    refusal: We do not talk about cats here.
---
Be careful.
"""

_UNKNOWN = """---
name: unsafe
description: Names a rule that does not exist.
model: rehearsal
guardrails: [no-such-rule]
---
Be careful.
"""

_SERVED = """---
name: served
description: Has a tool server of its own.
model: rehearsal
mcp:
  calc:
    command: {command}
    tools: [add]
---
Use your tool.
"""

_LOST = """---
name: lost
description: Its server does not exist.
model: rehearsal
mcp:
  gone:
    command: [no-such-program-at-all]
---
Do what you can.
"""

_LEAKY = """
import asyncio
import logging

import mux

KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


@mux.agent(name="leaky", description="Says a key in many ways.")
async def agent(ctx):
    how = ctx.task
    if how == "title":
        await ctx.open_channel("leaky", "none", title=KEY)
    elif how == "emit":
        await ctx.emit(mux.Custom(name="x", value={{"deep": [KEY]}}))
    elif how == "progress":
        await ctx.progress("found " + KEY)
    elif how == "raise":
        raise ValueError("bad " + KEY)
    elif how == "error":
        raise mux.AgentError("agent_failed", "bad " + KEY)
    elif how == "output":
        yield mux.Outcome(output=KEY)
    elif how == "approve":
        call = ctx.new_call_id()
        yield mux.ToolCall(call_id=call, tool="f")
        await ctx.host.approve(call, "f", {{"key": KEY}})
    elif how == "token":
        for c in "it is " + KEY + " ok":
            yield mux.Token(content=c)
    elif how == "held":
        yield mux.Token(content="it is " + KEY[:12])
        await asyncio.sleep(3600)
"""


async def test_an_agents_own_rule_shows_its_own_refusal_on_input(tmp_path: Path) -> None:
    folder = tmp_path / "agents"
    write_agent(folder, "careful.md", _OWN)
    async with running(agents=[folder], refusal="The general words.") as url:
        run = await finished_run(url, "careful", "assistant", message="about cats")
        log = [dict(b.data) for b in await read(f"{url}/api/runs/{run['run']}/events")]
    careful, assistant = run["channels"]
    assert (careful["status"], assistant["status"]) == ("refused", "completed")
    assert [e["content"] for e in log if e["type"] == "refusal"] == ["We do not talk about cats here."]
    assert next(e for e in log if e["type"] == "done" and e["channel"] == "careful")["output"].startswith(
        "We"
    )
    hits = [(e["rule"], e["stage"], e["action"]) for e in log if e["type"] == "guardrail"]
    assert hits == [("no-cats", "input", "blocked")]
    assert run["status"] == "completed"


async def test_an_agent_whose_rule_does_not_exist_is_warned_about_and_never_runs_without_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "agents"
    write_agent(folder, "unsafe.md", _UNKNOWN)
    async with serving(agents=[folder]) as service:
        (warning,) = [w for w in service.roster.warnings if "unsafe.md" in w]
        assert "no guardrail named 'no-such-rule'" in warning
        assert "secrets" in warning  # the names that exist
        run = await finished_run(service.url, "unsafe", message="hi")
    (channel,) = run["channels"]
    assert (channel["status"], channel["error"]["code"]) == ("failed", "guardrail_invalid")
    assert "no-such-rule" in channel["error"]["message"]
    assert not channel["text"]


@pytest.mark.parametrize(
    "how", ["title", "emit", "progress", "raise", "error", "output", "approve", "token", "held"]
)
async def test_no_way_that_an_agent_has_to_say_something_leads_past_the_rules(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = wiper_folder(tmp_path)
    (folder / "leaky.py").write_text(_LEAKY.format().lstrip())
    async with running(agents=[folder], guardrails={"keys": {"preset": "secrets"}}) as url:
        body = {"message": how, "agents": ["leaky", "talker"]}
        run = (await call("POST", f"{url}/api/runs", body))[1]["run"]
        there = f"{url}/api/runs/{run}"
        if how == "held":
            await read(f"{there}/events", until="token")
            await call("POST", f"{there}/cancel", {"mode": "now"})
        log = [dict(b.data) for b in await read(f"{there}/events")]
        seen = json.dumps([log, (await call("GET", there))[1], (await call("GET", f"{url}/api/runs"))[1]])
    assert "AKIA" not in seen
    assert "AKIA" not in "".join([*capsys.readouterr(), caplog.text])
    ended = {e["channel"]: e["status"] for e in log if e["type"] == "done"}
    assert ended["leaky"] == {
        "held": "cancelled",
        "raise": "failed",
        "error": "failed",
        "title": "failed",
    }.get(how, "refused")
    assert ended["talker"] == "completed"


async def test_an_agents_own_tool_server_is_its_alone(tmp_path: Path) -> None:
    folder = tmp_path / "agents"
    command = [sys.executable, str(Path(mcp_server.__file__)), "stdio", str(tmp_path / "notes")]
    write_agent(folder, "served.md", _SERVED.format(command=json.dumps(command)))
    write_agent(folder, "lost.md", _LOST)
    async with serving(agents=[folder]) as service:
        (warning,) = [w for w in service.roster.warnings if "lost.md" in w]
        assert "there is no program 'no-such-program-at-all'; the agent runs without it" in warning
        agents: list[dict[str, Any]] = (await call("GET", f"{service.url}/api/agents"))[1]["agents"]
        assert next(a for a in agents if a["name"] == "served")["mcp"] == ["calc"]
        run = await finished_run(service.url, "served", "lost", message="add 20 and 22")
        assert "calc_add" not in service.parts.tools.toolbox().tools
        log = [dict(b.data) for b in await read(f"{service.url}/api/runs/{run['run']}/events")]
    served, lost = run["channels"]
    assert [(t["tool"], t["is_error"]) for t in served["tools"]] == [("calc_add", False)]
    assert "42" in served["tools"][0]["output"]
    assert lost["status"] == "completed"
    said = [e["value"]["message"] for e in log if e["type"] == "custom" and e["channel"] == "lost"]
    assert said == ["The tool server 'gone' can't be used now: there is no program 'no-such-program-at-all'."]
    assert not [t for t in asyncio.all_tasks() if (t.get_name() or "").startswith("mcp ")]


@pytest.mark.parametrize("action", ["block", "mask"])
async def test_what_an_input_rule_stops_is_in_no_event_snapshot_list_or_search(
    tmp_path: Path, action: str
) -> None:
    rule = {"code": {"stage": "input", "pattern": "swordfish", "action": action}}
    async with running(guardrails=rule) as url:
        body = {"message": "The word is swordfish. What is 2+2?", "agents": ["analyst", "assistant"]}
        status, run, _ = await call("POST", f"{url}/api/runs", body)
        assert status == 201
        stream = await read(f"{url}/api/runs/{run['run']}/events")
        _, snapshot, _ = await call("GET", f"{url}/api/runs/{run['run']}")
        _, listed, _ = await call("GET", f"{url}/api/runs")
        _, found, _ = await call("GET", f"{url}/api/runs?q=swordfish")
    seen = json.dumps([[b.data for b in stream], snapshot, listed])
    assert "sword" not in seen
    assert found["runs"] == []
    expected = "refused" if action == "block" else "completed"
    assert {c["status"] for c in snapshot["channels"]} == {expected}


_STRICT = """---
name: strict
description: Has a rule of its own.
model: rehearsal
guardrails:
  badge:
    stage: input
    pattern: zq[0-9]{6}
    action: ACTION
---
Be strict.
"""
_BADGE = "zq" + "481516"
_PATIENT = """
import asyncio

import mux

@mux.agent(name="patient", description="Waits.")
async def agent(ctx):
    yield mux.Token(content="waiting")
    await asyncio.sleep(3600)
"""


def _kept(store: Path) -> bytes:
    """All that the store's files hold."""
    return b"".join(file.read_bytes() for file in store.parent.glob(f"{store.name}*"))


def _asked(how: str) -> dict[str, Any]:
    """A start whose caller writes the badge somewhere."""
    there = f"my badge is {_BADGE}, what is 2+2?"
    escaped = json.dumps({"badge": _BADGE}).replace("z", "\\u007a")
    task = {"message": "what is 2+2?", "agents": ["analyst"]}
    channel = {"agent": "analyst"}
    asked: dict[str, dict[str, Any]] = {
        "message": {"message": there, "agents": ["analyst"]},
        "title cut": {"message": "a" * 71 + there, "agents": ["analyst"]},
        "title": {**task, "title": there},
        "metadata": {**task, "metadata": {"note": {"deep": [there]}, _BADGE: 1, "ok": "yes"}},
        "channel": {"channels": [{**channel, "message": there}]},
        "channel title": {"message": "2+2", "channels": [{**channel, "title": there}]},
        "instructions": {"message": "2+2", "channels": [{**channel, "instructions": there}]},
        "params": {"message": "2+2", "channels": [{**channel, "params": {"user": _BADGE}}]},
        "messages": {"messages": [{"role": "user", "content": there}], "agents": ["analyst"]},
        "part": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": there}]}],
            "agents": ["analyst"],
        },
        "foreign part": {
            "messages": [{"role": "user", "content": [{"type": "file", "file": {"name": _BADGE}}]}],
            "agents": ["analyst"],
        },
        "earlier call": {
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": escaped}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": there},
                {"role": "user", "content": "what is 2+2?"},
            ],
            "agents": ["analyst"],
        },
    }
    return asked[how]


_WAYS = [
    "message", "title cut", "title", "metadata", "channel", "channel title", "instructions", "params",
    "messages", "part", "foreign part", "earlier call",
]  # fmt: skip


@pytest.mark.parametrize("action", ["block", "mask"])
@pytest.mark.parametrize("how", _WAYS)
async def test_what_an_input_rule_stops_is_kept_nowhere(
    tmp_path: Path, how: str, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"badge": {"stage": "input", "pattern": "zq[0-9]{6}", "action": action}}
    store = tmp_path / "runs.db"
    async with running(store=f"sqlite:{store}", guardrails=rule) as url:
        headers = {"Idempotency-Key": "k1", "Prefer": "wait=10"}
        status, run, _ = await call("POST", f"{url}/api/runs", _asked(how), headers=headers)
        assert status == 201, run
        there = f"{url}/api/runs/{run['run']}"
        again = (await call("POST", f"{url}/api/runs", _asked(how), headers=headers))[1]
        log = [dict(b.data) for b in await read(f"{there}/events")]
        export = await _text(f"{there}/export") if how == "message" else ""
        seen = json.dumps([log, run, (await call("GET", f"{url}/api/runs"))[1], export])
    assert again["run"] == run["run"]
    assert "zq4" not in seen
    assert b"zq4" not in _kept(store)
    assert "zq4" not in caplog.text
    stopped = action == "block" and how not in ("title", "metadata", "channel title")
    assert [c["status"] for c in run["channels"]] == ["refused" if stopped else "completed"]
    if how == "metadata":
        assert run["metadata"]["ok"] == "yes"
    if how == "message":
        hits = [(e["rule"], e["stage"], e["action"]) for e in log if e["type"] == "guardrail"]
        assert hits == [("badge", "input", "blocked" if action == "block" else "masked")]


async def _text(url: str) -> str:
    async with http("GET", url) as response:
        return (await response.body()).decode()


@pytest.mark.parametrize("action", ["block", "mask"])
async def test_an_agents_own_input_rule_leaves_the_others_their_task_also_in_retries_and_later_runs(
    tmp_path: Path, action: str
) -> None:
    folder = tmp_path / "agents"
    write_agent(folder, "strict.md", _STRICT.replace("ACTION", action))
    store = tmp_path / "runs.db"
    async with running(store=f"sqlite:{store}", agents=[folder]) as url:
        run = await finished_run(url, "strict", "analyst", message=f"{_BADGE}: what is 20 + 22?")
        there = f"{url}/api/runs/{run['run']}"
        strict, analyst = run["channels"]
        assert "zq4" not in json.dumps([run["message"], run["title"], strict])
        assert (strict["status"], analyst["status"]) == (
            "refused" if action == "block" else "completed",
            "completed",
        )
        assert "42" in analyst["text"]  # it was asked the whole question
        retried: dict[str, dict[str, Any]] = {}
        for channel in ("strict", "analyst"):
            _, new, _ = await call("POST", f"{there}/channels/{channel}/retry", {})
            await settled(url, new["run"])
            retried[channel] = (await call("GET", f"{url}/api/runs/{new['run']}"))[1]
        body = {"message": "and 1 + 1?", "thread": run["thread"], "agents": ["strict", "analyst"]}
        _, later, _ = await call("POST", f"{url}/api/runs", body, headers={"Prefer": "wait=10"})
    assert [c["status"] for c in retried["strict"]["channels"]] == [strict["status"]]
    assert "zq4" not in json.dumps(retried["strict"])
    assert "42" in retried["analyst"]["channels"][0]["text"]
    assert [c["status"] for c in later["channels"]] == ["completed", "completed"]


async def test_a_channel_that_joins_a_run_whose_message_was_stopped_needs_a_task_of_its_own(
    tmp_path: Path,
) -> None:
    rule = {"badge": {"stage": "input", "pattern": "zq[0-9]{6}"}}
    write_agent(tmp_path / "agents", "patient.py", _PATIENT)
    async with running(guardrails=rule, agents=[tmp_path / "agents"]) as url:
        channels = [{"agent": "analyst"}, {"agent": "patient", "message": "wait"}]
        _, run, _ = await call("POST", f"{url}/api/runs", {"message": _BADGE, "channels": channels})
        there = f"{url}/api/runs/{run['run']}"
        await read(f"{there}/events?channel=patient", until="token")
        assert run["message"] == "[stopped by a guardrail]"
        status, problem, _ = await call("POST", f"{there}/channels", {"agent": "analyst"})
        assert (status, problem["code"]) == (400, "message_empty")
        assert "guardrail" in problem["detail"]
        assert (await call("POST", f"{there}/channels", {"agent": "analyst", "message": "2+2"}))[0] == 201
        status, again, _ = await call("POST", f"{there}/channels/analyst/retry", {})
        assert status == 201
        await read(f"{there}/events?channel={again['channel']}", until="done")
        _, snapshot, _ = await call("GET", there)
        await call("POST", f"{there}/cancel", {})
    ended = {c["id"]: c["status"] for c in snapshot["channels"]}
    assert (ended["analyst"], ended[again["channel"]]) == ("refused", "refused")


async def test_edits_of_a_run_pass_the_input_rules(tmp_path: Path) -> None:
    rules = {
        "badge": {"stage": "input", "pattern": "zq[0-9]{6}"},
        "mail": {"stage": "input", "preset": "email", "action": "mask", "mask": "[mail]"},
    }
    async with running(guardrails=rules) as url:
        there = f"{url}/api/runs/{(await finished_run(url, 'assistant'))['run']}"
        edit: dict[str, Any]
        for edit in ({"title": _BADGE}, {"metadata": {"note": [_BADGE]}}, {"metadata": {_BADGE: "x"}}):
            status, problem, _ = await call("PATCH", there, edit)
            assert (status, problem["code"]) == (400, "edit_blocked")
        edit = {"title": "ask a@example.org", "starred": True, "metadata": {"note": "b@example.org"}}
        assert (await call("PATCH", there, edit))[0] == 200
        _, run, _ = await call("GET", there)
    assert (run["title"], run["starred"], run["metadata"]) == ("ask [mail]", True, {"note": "[mail]"})

"""Agents of other programs over ACP: what they tell is a channel as others are, whatever rules they break."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

import mux
from mux.adapters.acp import AcpAgent
from mux.agent import Decision, Draft, Message, Outcome, Steering
from mux.errors import AgentError, ConfigError
from mux.events import (
    Custom,
    GuardrailHit,
    Reasoning,
    Token,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
    UsageReport,
)
from mux.roster.markdown import read_markdown
from mux.settings import WorkspaceLimits
from mux.workspaces import Workspaces
from tests.support.fake_host import FakeHost, bodies_of, collect, context
from tests.support.legal import play

SCRIPTED = Path(__file__).parents[1] / "support" / "acp_scripted.py"
SDK_AGENT = Path(__file__).parents[1] / "support" / "acp_sdk_agent.py"
pytestmark = pytest.mark.allow_blocking  # the tests look at files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("one\ntwo\nthree\n")
    return folder


@pytest.fixture
def make(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def agent(script: Path = SCRIPTED, limits: WorkspaceLimits | None = None, **able: Any) -> AcpAgent:
        monkeypatch.setenv("ACP_ABLE", json.dumps(able))
        made = AcpAgent(name="a", command=(sys.executable, str(script)), env=("ACP_ABLE",), workspace=project)
        return made.in_workspaces(Workspaces(tmp_path / "spaces", limits or WorkspaceLimits()))

    return agent


class Deciding(FakeHost):
    """A host whose approvals are in the stream's order, as the engine's are."""

    gate: asyncio.Event | None = None

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Decision] = {}

    async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
        self.approvals.append((call_id, tool, arguments))
        if self.gate is not None:
            await self.gate.wait()
        if call_id not in self.made:
            self.made[call_id] = self.decisions.pop(0)
        return self.made[call_id]


async def told(agent: AcpAgent, script: str, host: FakeHost | None = None, **fields: Any) -> list[Draft]:
    drafts = await collect(agent.run(context(textwrap.dedent(script), host, **fields)))
    play(drafts)
    return drafts


def gone(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z"


def only(drafts: Sequence[Draft], kind: type[Any]) -> list[Any]:
    return [body for body in bodies_of(drafts) if isinstance(body, kind)]


def text(drafts: Sequence[Draft]) -> str:
    return "".join(t.content for t in only(drafts, Token))


def custom(drafts: Sequence[Draft], name: str) -> Any:
    return [c.value for c in only(drafts, Custom) if c.name == name][-1]


def outcome(drafts: Sequence[Draft]) -> Outcome:
    assert isinstance(drafts[-1], Outcome)
    return drafts[-1]


async def until_failed(
    agent: AcpAgent, script: str, host: FakeHost | None = None
) -> tuple[list[Draft], AgentError]:
    drafts: list[Draft] = []
    try:
        async for draft in agent.run(context(textwrap.dedent(script), host)):
            drafts.append(draft)  # noqa: PERF401 -- what came before the failure is wanted
    except AgentError as e:
        play(drafts, failed=True)
        return drafts, e
    pytest.fail("it did not fail")


async def test_text_thoughts_calls_with_diffs_plans_and_usage_come_through(make: Any) -> None:
    drafts = await told(make(), """
        update("agent_thought_chunk", content={"type": "text", "text": "hm"})
        say("I will ")
        update("tool_call", toolCallId="c", title="Edit a.txt", kind="edit", status="pending",
               rawInput={"path": "a.txt"}, locations=[{"path": "/a.txt", "line": 2}])
        update("tool_call_update", toolCallId="c", status="in_progress")
        update("tool_call_update", toolCallId="c", content=[{"type": "content",
               "content": {"type": "text", "text": "half"}}])
        update("tool_call_update", toolCallId="c", status="completed",
               content=[{"type": "diff", "path": "a.txt", "oldText": "one", "newText": "1"}])
        update("plan", entries=[{"content": "x", "priority": "high", "status": "pending"}])
        update("usage_update", used=10, size=100, cost={"amount": 0.5, "currency": "USD"})
        say("done")
        answer = {"stopReason": "max_tokens",
                  "usage": {"totalTokens": 7, "inputTokens": 4, "outputTokens": 3}}
    """)  # fmt: skip
    assert text(drafts) == "I will done"
    assert [r.content for r in only(drafts, Reasoning)] == ["hm"]
    (start,) = only(drafts, ToolStart)
    assert start.tool == "edit"
    assert start.arguments["path"] == "a.txt"
    assert start.arguments["title"] == "Edit a.txt"
    assert "half" in [p.content for p in only(drafts, ToolProgress)]
    (result,) = only(drafts, ToolResult)
    assert result.data["content"] == [{"type": "diff", "path": "a.txt", "oldText": "one", "newText": "1"}]
    assert result.output == "Edit a.txt"
    assert custom(drafts, "plan")["entries"][0]["content"] == "x"
    usage = outcome(drafts).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cost) == (4, 3, 0.5)
    assert outcome(drafts).finish_reason == "length"
    assert len(only(drafts, UsageReport)) == 2


async def test_files_are_served_in_the_workspace_and_nowhere_else(make: Any, project: Path) -> None:
    drafts = await told(
        make(),
        f"""
        say(ask("fs/read_text_file", path=os.getcwd() + "/a.txt", line=2, limit=1)["content"])
        ask("fs/write_text_file", path=os.getcwd() + "/new/b.txt", content="b\\u2028b\\fb\\nc\\n")
        say(ask("fs/read_text_file", path=os.getcwd() + "/new/b.txt", line=2)["content"])
        say(str(ask("fs/read_text_file", path={str(project / "a.txt")!r})["code"]))
        say(str(ask("fs/write_text_file", path="/tmp/../etc/x", content="")["code"]))
        say(str(ask("fs/read_text_file", path="nowhere")["code"]))
        say(str(ask("fs/read_text_file", path=7)["code"]))
    """,
    )
    assert text(drafts) == "two\nc\n-32602-32602-32002-32602"
    assert [h.rule for h in only(drafts, GuardrailHit)] == ["workspace", "workspace"]
    assert [f["path"] for f in custom(drafts, "workspace")["files"]] == ["new/b.txt"]
    assert sorted(os.listdir(project)) == ["a.txt"]


async def test_terminals_run_in_the_workspace_and_end_with_the_lane(make: Any, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    drafts = await told(
        make(),
        f"""
        t = ask("terminal/create", command="sh", args=["-c", "pwd; echo err >&2; exit 3"])["terminalId"]
        end = ask("terminal/wait_for_exit", terminalId=t)
        out = ask("terminal/output", terminalId=t)
        say(json.dumps([end, out["output"].endswith("tree\\nerr\\n"), out["exitStatus"]]))
        ask("terminal/release", terminalId=t)
        say(str(ask("terminal/output", terminalId=t)["code"]))
        say(str(ask("terminal/create", command="true", cwd="/")["code"]))
        t = ask("terminal/create", command="echo $$ > {mark}; sleep 100")["terminalId"]
        while not os.path.exists({str(mark)!r}) or not open({str(mark)!r}).read(): time.sleep(0.01)
    """,
    )
    assert text(drafts) == '[{"exitCode": 3}, true, {"exitCode": 3}]-32602-32602'
    pid = mark.read_text().strip()
    assert gone(int(pid))


PERMISSION = """
    update("tool_call", toolCallId="c", title="Run", kind="execute", status="pending",
           rawInput={"command": "ls"})
    say(json.dumps(permission("c")))
    update("tool_call_update", toolCallId="c", status="completed", rawOutput="ok")
"""


@pytest.mark.parametrize(
    ("decision", "option", "error"),
    [
        ("approve", "once", None),
        ("deny", "no", "denied"),
        ("edit", "no", "denied"),
        ("expired", "no", "denied"),
    ],
)
async def test_a_permission_is_an_approval_and_its_decision_picks_the_option(
    make: Any, decision: Any, option: str, error: str | None
) -> None:
    host = Deciding()
    host.decisions = [Decision(decision=decision, by="p", arguments={} if decision == "edit" else None)]
    drafts = await told(make(), PERMISSION, host)
    assert json.loads(text(drafts)) == {"outcome": {"outcome": "selected", "optionId": option}}
    (call,) = only(drafts, ToolCall)
    ((call_id, tool, arguments),) = host.approvals
    assert (call_id, tool, arguments["command"]) == (call.call_id, "execute", "ls")
    assert [o["optionId"] for o in arguments["options"]] == ["always", "once", "no"]
    (result,) = only(drafts, ToolResult)
    assert result.error == error
    assert len(only(drafts, ToolStart)) == (error is None)


async def test_asked_twice_one_decision_answers_both_and_a_running_call_has_one_of_its_own(make: Any) -> None:
    host = Deciding()
    host.decisions = [Decision(decision="approve", by="p"), Decision(decision="deny", by="p")]
    drafts = await told(make(), """
        update("tool_call", toolCallId="c", title="Run", kind="execute", status="pending")
        permission("c", wait=False)
        permission("c", wait=False)
        update("tool_call_update", toolCallId="c", status="in_progress")
        found = [read()["result"]["outcome"]["optionId"] for _ in range(2)]
        permission("c", wait=False)
        found.append(read()["result"]["outcome"]["optionId"])
        say(" ".join(found))
        update("tool_call_update", toolCallId="c", status="completed")
    """, host)  # fmt: skip
    assert text(drafts) == "once once no"
    assert len({call_id for call_id, _, _ in host.approvals}) == 2
    assert sorted(str(r.error) for r in only(drafts, ToolResult)) == ["None", "denied"]


async def test_a_turn_that_ends_while_a_decision_is_open_does_not_hang(make: Any) -> None:
    host = Deciding()
    host.gate = asyncio.Event()
    drafts = await collect(
        make().run(
            context('update("tool_call", toolCallId="c", title="x")\npermission("c", wait=False)', host)
        )
    )
    assert outcome(drafts).status == "completed"
    assert not only(drafts, ToolResult)  # the engine closes an open approval, then its call


async def test_an_agent_that_dies_in_mid_turn_fails_with_its_last_words_and_closed_calls(make: Any) -> None:
    drafts, error = await until_failed(
        make(),
        """
        say("half")
        open("left.txt", "w").write("x")
        update("tool_call", toolCallId="c", title="x", status="in_progress")
        sys.stderr.write("broken pump\\n"); sys.exit(3)
    """,
    )
    assert error.code == "agent_failed"
    assert "status 3" in error.message
    assert "broken pump" in error.message
    assert only(drafts, ToolResult)[0].error == "interrupted"
    assert custom(drafts, "workspace")["files"][0]["path"] == "left.txt"


async def test_what_breaks_the_protocol_is_passed_over_and_the_rest_comes_through(make: Any) -> None:
    drafts = await told(
        make(),
        """
        for junk in ("no json", "[]", "7", "{}", '{"id": []}', '{"id": 99, "result": 1}', '{"method": 3}',
                     '{"id": {}, "method": "x"}', '{"method": "qwen/notify/x", "params": 1}', "[" * 100000,
                     '{"method": "session/update"}', '{"method": "session/update", "params": {"update": 1}}',
                     '{"id": null, "method": "session/update"}', '{"id": 4, "error": "text"}'):
            send(junk)
        update("brand_new_update", x=1)
        update("tool_call", toolCallId=7)
        update("agent_message_chunk", content={"type": "hologram"})
        update("tool_call_update", toolCallId="unheard", status="completed", title="late")
        update("tool_call_update", toolCallId="unheard", status="failed")
        update("agent_message_chunk", content={"type": "image", "data": "aGk=", "mimeType": "image/png"})
        say(str(ask("not/a/method")["code"]))
        say(str(ask("session/request_permission", options=[])["code"]))
        say(str(ask("elicitation/create", mode="form", message="m", requestedSchema={})["code"]))
    """,
    )
    assert text(drafts).startswith("-32601-32602-326")
    (result,) = only(drafts, ToolResult)
    assert result.output == "late"
    assert custom(drafts, "content")["type"] == "image"


async def test_a_flood_is_read_as_fast_as_it_is_taken(make: Any) -> None:
    drafts = await told(make(), "for n in range(20000): say(f'{n} ')")
    assert text(drafts) == "".join(f"{n} " for n in range(20000))


async def test_a_line_without_end_is_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.adapters.acp._MAX_LINE", 100_000)
    _, error = await until_failed(
        make(), "sys.stdout.write('x' * 1000000); sys.stdout.flush(); time.sleep(60)"
    )
    assert "100,000 bytes" in error.message


@pytest.mark.parametrize("answer", ['{"stopReason": "bored"}', "{}", "7", "[]", "None"])
async def test_an_answer_that_the_protocol_does_not_have_is_a_failure(make: Any, answer: str) -> None:
    _, error = await until_failed(make(), f"answer = {answer}")
    assert error.code == "agent_failed"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("end_turn", "completed"), ("refusal", "refused"), ("cancelled", "cancelled"),
     ("max_turn_requests", "completed")],
)  # fmt: skip
async def test_how_a_turn_ends_is_how_the_channel_ends(make: Any, reason: str, status: str) -> None:
    drafts = await told(make(), f"say('x'); answer = {{'stopReason': {reason!r}}}")
    assert outcome(drafts).status == status


async def test_a_graceful_stop_cancels_the_turn_and_keeps_what_was_done(make: Any) -> None:
    host = FakeHost()
    script = """
        open("left.txt", "w").write("x")
        say("begun ")
        while read().get("method") != "session/cancel": pass
        say("stopped")
        answer = {"stopReason": "cancelled"}
    """
    drafts: list[Draft] = []
    async for draft in make().run(context(textwrap.dedent(script), host)):
        drafts.append(draft)
        host.stopping = host.stopping or isinstance(draft, Token)
    play(drafts)
    assert text(drafts) == "begun stopped"
    assert outcome(drafts).status == "cancelled"
    assert custom(drafts, "workspace")["files"][0]["path"] == "left.txt"


async def test_an_agent_that_ignores_a_cancel_is_ended(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.adapters.acp._CANCEL_S", 0.2)
    host = FakeHost()
    host.stopping = True
    drafts = await told(make(), "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)", host)
    assert outcome(drafts).status == "cancelled"


async def test_closing_the_channel_ends_the_program_and_its_children(make: Any, tmp_path: Path) -> None:
    script = (
        'import subprocess; p = subprocess.Popen(["sleep", "100"])\n'
        'say(f"{os.getpid()} {p.pid}"); time.sleep(60)'
    )
    pids: list[int] = []
    async with aclosing(cast("Any", make().run(context(script)))) as drafts:
        async for draft in drafts:
            if isinstance(draft, Token):
                pids = [int(pid) for pid in draft.content.split()]
                break
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


async def test_a_message_at_the_end_is_another_turn_and_an_interrupt_cuts_this_one(make: Any) -> None:
    host = FakeHost()
    host.at_end = [Steering(message_id="m", content="say('second')", mode="queue")]
    assert text(await told(make(), "say('first ')", host)) == "first second"
    host = FakeHost()
    host.interrupt("say('now')")
    script = "while read().get('method') != 'session/cancel': pass\nanswer = {'stopReason': 'cancelled'}"
    drafts = await told(make(), script, host)
    assert text(drafts) == "now"
    assert outcome(drafts).status == "completed"


async def test_an_agent_that_does_not_stop_is_given_no_message(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mux.adapters.acp._CANCEL_S", 0.2)
    host = FakeHost()
    host.interrupt("say('now')")
    _, error = await until_failed(make(), "time.sleep(60)", host)
    assert "did not stop" in error.message


async def test_a_failing_approval_fails_the_channel(make: Any) -> None:
    class Failing(FakeHost):
        async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
            raise AgentError("channel_ended", "No.")

    with pytest.raises(AgentError, match="No"):
        await collect(make().run(context(textwrap.dedent(PERMISSION) + "time.sleep(60)", Failing())))


TALK = (
    Message(role="user", content="what is it"),
    Message(role="assistant", content="a fish"),
    Message(role="user", content="why"),
)


async def test_the_next_run_loads_the_session_where_it_can_and_tells_the_talk_where_not(make: Any) -> None:
    able = {"can": {"loadSession": True}, "ECHO": 1}
    first = json.loads(text(await told(make(**able), "x")))
    drafts = await told(make(**able), "why", messages=TALK)
    again = json.loads(text(drafts))
    assert again["cwd"] == first["cwd"]
    assert again["prompt"] == [{"type": "text", "text": "why"}]
    assert custom(drafts, "session")["resumed"] is True
    unable = json.loads(text(await told(make(ECHO=1), "why", messages=TALK)))
    assert (
        unable["prompt"][0]["text"]
        == "The conversation so far:\n\nuser: what is it\n\nassistant: a fish\n\nwhy"
    )


IMAGE: list[dict[str, Any]] = [
    {"type": "text", "text": "see"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
]


async def test_images_go_in_where_the_agent_takes_them(make: Any) -> None:
    messages = (Message(role="user", content=IMAGE),)
    able = {"can": {"promptCapabilities": {"image": True}}, "ECHO": 1}
    told_ = json.loads(text(await told(make(**able), "see", messages=messages)))
    assert told_["prompt"][1] == {"type": "image", "data": "aGk=", "mimeType": "image/png"}
    with pytest.raises(AgentError, match="no images"):
        await told(make(ECHO=1), "see", messages=messages)


OFFERS = {
    "modes": {"currentModeId": "ask", "availableModes": [{"id": i, "name": i} for i in ("ask", "code")]},
    "configOptions": [
        {"type": "select", "id": "m", "name": "Model", "category": "model", "currentValue": "small",
         "options": [{"value": "small", "name": "S"}, {"value": "big", "name": "B"}]}
    ],
}  # fmt: skip


async def test_modes_and_models_are_what_the_agent_offers(make: Any) -> None:
    drafts = await told(make(session=OFFERS), "say('x')", model="big", params={"mode": "code"})
    assert custom(drafts, "session") == {
        "mode": "code", "modes": ["ask", "code"], "model": "big", "models": ["small", "big"],
    }  # fmt: skip
    for fields, word in (({"model": "huge"}, "small, big"), ({"params": {"mode": "x"}}, "ask, code"),
                         ({"params": {"top_p": 1}}, "params")):  # fmt: skip
        with pytest.raises(AgentError, match=word) as caught:
            await told(make(session=OFFERS), "say('x')", **fields)
        assert caught.value.code == "not_supported"
    with pytest.raises(AgentError, match="offers no model"):
        await told(make(), "say('x')", model="big")


async def test_what_stops_a_session_from_opening_is_told(make: Any, tmp_path: Path) -> None:
    with pytest.raises(AgentError) as caught:
        await told(make(login=1), "x")
    assert caught.value.code == "login_required"
    with pytest.raises(AgentError, match="version 9"):
        await told(make(version=9), "x")
    with pytest.raises(AgentError, match="no-such-program"):
        await told(make().model_copy(update={"command": ("no-such-program",)}), "x")


async def test_a_lane_above_its_quota_is_stopped(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.adapters.acp._SIZE_EVERY_S", 0.0)
    agent = make(limits=WorkspaceLimits(max_mb=1))
    drafts, error = await until_failed(agent, "open('big', 'wb').write(bytes(3000000)); time.sleep(60)")
    assert error.code == "workspace_full"
    assert custom(drafts, "workspace")["error"]["code"] == "workspace_full"


async def test_an_agent_on_the_sdks_own_server_half_works(make: Any, project: Path) -> None:
    host = Deciding()
    host.decisions = [Decision(decision="approve", by="p")]
    drafts = await told(make(SDK_AGENT), "shout", host)
    assert text(drafts) == "Done: shout"
    assert custom(drafts, "session") == {"agent": "writer 1.0"}
    (result,) = only(drafts, ToolResult)
    assert result.data["content"][0]["newText"] == "ONE\nTWO\nTHREE\n"
    assert custom(drafts, "workspace")["insertions"] == 3
    assert (project / "a.txt").read_text() == "one\ntwo\nthree\n"


def test_the_manuals_example_is_an_agent_and_what_is_wrong_in_one_is_named(tmp_path: Path) -> None:
    manual = (Path(mux.__file__).parent / "docs" / "acp.md").read_text()
    example = manual.partition("```markdown\n")[2].partition("```")[0]
    path = tmp_path / "qwen.md"
    path.write_text(example)
    agent, warnings = read_markdown(path)
    assert warnings == []
    assert isinstance(agent, AcpAgent)
    assert agent.command == ("qwen", "--acp", "--auth-type", "openai")
    assert agent.env[0] == "OPENAI_API_KEY"
    assert agent.workspace == tmp_path / "../project"
    assert agent.instructions == "Answer briefly."
    for line, word in (
        ("acp: qwen", "mapping"),
        ("acp: {command: []}", "command"),
        ("acp: {command: [a], cwd: x}", "cwd"),
        ("acp: {command: [a]}\ntemperature: 1", "temperature"),
        ("acp: {command: [a]}\ncommand: [b]", "command"),
    ):
        path.write_text(f"---\nname: q\n{line}\n---\n")
        with pytest.raises(ConfigError, match=word):
            read_markdown(path)

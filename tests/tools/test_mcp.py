"""Tools of real MCP servers, in child processes: our own over stdio and HTTP, and a published one."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mux.settings import McpServer, Settings
from mux.telemetry import redact_secrets
from mux.tools import ToolResources
from mux.tools.base import Tool, ToolProblem
from mux.tools.mcp import McpManager
from mux.tools.mcp_link import mcp_problem, written_secrets
from mux.tools.mcp_values import mcp_tool_names
from tests.support import mcp_server, npm_package, odd_mcp_server
from tests.support.api import finished_run, read, start
from tests.support.service import make_settings, serving, write_agent
from tests.support.tools import call, collect, until

# Spawning a child stats and opens files; the SDK does it on the loop, once for each connection.
pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.allow_blocking, pytest.mark.timeout(60)]

EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
SCRIPT = str(Path(mcp_server.__file__))


def stdio(notes: Path, **more: Any) -> McpServer:
    return McpServer(command=(sys.executable, SCRIPT, "stdio", str(notes)), timeout_s=20, **more)


@asynccontextmanager
async def connected(**servers: McpServer) -> AsyncIterator[McpManager]:
    manager = McpManager(servers, backoff_s=0.05)
    await manager.start()
    try:
        assert await manager.ready(30), manager.states()
        yield manager
    finally:
        await manager.aclose()


def named(manager: McpManager, name: str) -> Tool:
    return next(t for t in manager.tools() if t.name == name)


async def test_a_stdio_servers_tools_are_used_like_any_other(tmp_path: Path) -> None:
    async with connected(calc=stdio(tmp_path / "n")) as manager:
        add = named(manager, "calc_add")
        assert add.source == "mcp:calc"
        assert add.description == "Add two numbers."
        assert set(add.parameters["properties"]) == {"a", "b"}
        _, result = await collect(add, a=2, b=3)
        assert (result.data, result.is_error) == ({"sum": 5}, False)
        assert "5" in result.output
        progress, result = await collect(named(manager, "calc_count"), n=3)
        assert result.output == "counted to 3"
        assert ("step 2", 2 / 3) in [(p.message, p.fraction) for p in progress]
        assert manager.states() == {"calc": ("ready", "")}


async def test_errors_of_a_tool_are_results_that_the_model_sees(tmp_path: Path) -> None:
    async with connected(s=stdio(tmp_path / "n")) as manager:
        _, result = await collect(named(manager, "s_fail"))
        assert (result.is_error, result.error) == (True, "tool_failed")
        assert "out of paper" in result.output
        _, result = await collect(named(manager, "s_add"), a=1, b=2)
        assert not result.is_error


async def test_a_picture_is_described_and_kept_as_data(tmp_path: Path) -> None:
    async with connected(s=stdio(tmp_path / "n")) as manager:
        _, result = await collect(named(manager, "s_picture"))
    assert "image/png" in result.output
    assert result.data["content"][0]["data"] == "iVBORw=="


async def test_a_timeout_or_cancel_reaches_the_server(tmp_path: Path) -> None:
    notes = tmp_path / "n"
    server = stdio(notes).model_copy(update={"timeout_s": 1.0})
    async with connected(s=stdio(notes)) as manager:
        hang = named(manager, "s_hang")
        ready = asyncio.Event()

        class Context:
            async def progress(self, *_: Any) -> None:
                ready.set()

        call = asyncio.ensure_future(hang.handler({}, Context()))  # type: ignore[arg-type]
        await ready.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: notes.exists() and "cancelled" in notes.read_text())
        _, result = await collect(named(manager, "s_add"), a=1, b=1)
        assert not result.is_error
    async with connected(s=server) as manager:
        _, result = await collect(named(manager, "s_hang"))
        assert result.error == "timeout"


async def test_a_server_that_dies_is_restarted_and_says_so(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with connected(s=stdio(tmp_path / "n")) as manager:
            _, result = await collect(named(manager, "s_die"))
            assert (result.is_error, result.error) == (True, "tool_failed")
            assert "being restarted" in result.output
            assert named(manager, "s_add")  # still listed meanwhile
            _, result = await collect(named(manager, "s_add"), a=20, b=22)
            assert result.data == {"sum": 42}
    events = [e["event"] for e in logs if e["log_level"] != "debug"]
    assert events == ["mcp server ready", "mcp server lost", "mcp server ready"]


async def test_a_server_is_given_only_the_environment_that_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUX_TEST_SECRET", "not-for-servers")
    monkeypatch.setenv("MUX_TEST_SHARED", "shared-value-1")
    server = stdio(tmp_path / "n", env={"PLAIN": "1"}, env_from=("MUX_TEST_SHARED",))
    async with connected(s=server) as manager:
        _, result = await collect(named(manager, "s_environment"))
    given = set(result.data["result"])
    assert {"PLAIN", "MUX_TEST_SHARED", "PATH"} <= given
    assert "MUX_TEST_SECRET" not in given
    assert given <= {"PLAIN", "MUX_TEST_SHARED", "PATH", "LC_CTYPE"}  # LC_CTYPE: Python sets it for itself


async def test_secrets_that_stand_in_a_server_s_settings_get_into_no_log(tmp_path: Path) -> None:
    env = {"MY_TOKEN": "canary-of-the-env", "MODE": "production"}
    async with connected(calc=stdio(tmp_path / "n", env=env)):
        assert redact_secrets("canary-of-the-env in production") == "[secret] in production"
    far = McpServer(
        url="http://me:canary-password@127.0.0.1:9/mcp?api_key=canary-of-the-url&lang=some-language"
    )
    assert list(written_secrets(far)) == ["canary-password", "canary-of-the-url"]
    near = McpServer(
        command=(
            "srv",
            "--api-key",
            "canary-1",
            "--token=canary-2",
            "postgres://u:canary-3@h/db",
            "--port",
            "80",
        ),
        env={"DATABASE_URL": "postgres://u:canary-4@h/db"},
    )
    assert sorted(written_secrets(near)) == ["canary-1", "canary-2", "canary-3", "canary-4"]


async def test_a_server_that_needs_home_is_given_it_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with connected(s=stdio(tmp_path / "n", env_from=("HOME",))) as manager:
        _, result = await collect(named(manager, "s_environment"))
    assert "HOME" in result.data["result"]
    assert "USER" not in result.data["result"]


async def test_only_the_configured_tools_are_offered(tmp_path: Path) -> None:
    server = stdio(tmp_path / "n", tools=("add", "gone"), approval="always", idempotent=True)
    with capture_logs() as logs:
        async with connected(s=server) as manager:
            assert [t.name for t in manager.tools()] == ["s_add"]
            assert (manager.tools()[0].approval, manager.tools()[0].idempotent) == ("always", True)
    assert any(e.get("missing") == ["gone"] for e in logs)


async def test_servers_that_never_answer_delay_neither_start_nor_stop(tmp_path: Path) -> None:
    servers = {
        "absent": McpServer(command=("no-such-program-here",)),
        "mute": McpServer(command=(sys.executable, "-c", "import sys; sys.stdin.read()")),
        "odd": McpServer(),
        "keyless": McpServer(command=("x",), env_from=("MUX_TEST_UNSET",)),
    }
    manager = McpManager(servers, backoff_s=0.05)
    async with asyncio.timeout(2):
        await manager.start()
    assert manager.tools() == []
    await until(lambda: {s for s, (state, _) in manager.states().items() if state == "restarting"} >= {
        "absent", "odd", "keyless"})  # fmt: skip
    assert "MUX_TEST_UNSET" in manager.states()["keyless"][1]
    async with asyncio.timeout(15):
        await manager.aclose()


async def test_a_call_while_the_server_is_away_says_so(tmp_path: Path) -> None:
    manager = McpManager({"s": stdio(tmp_path / "n")}, backoff_s=30, patience_s=0.05)
    await manager.start()
    assert await manager.ready(30)
    add = named(manager, "s_add")
    await collect(named(manager, "s_die"))
    await until(lambda: manager.states()["s"][0] == "restarting")
    _, result = await collect(add, a=1, b=1)
    assert result.is_error
    assert "'s' is restarting (the connection was lost)" in result.output
    await manager.aclose()


async def test_a_server_with_everything_slightly_wrong_is_used_as_far_as_it_can_be() -> None:
    config = McpServer(command=(sys.executable, str(Path(odd_mcp_server.__file__))))
    manager = McpManager({"odd": config})
    await manager.start()
    try:
        with capture_logs() as logs:
            assert await manager.ready(15)
        left_out = {e["tool"]: e["reason"] for e in logs if e["event"] == "mcp tool left out"}
        assert left_out.keys() == {"no schema", "{'description': 'no name'}", "no tool"}
        assert "not a JSON Schema" in left_out["no schema"]
        mended = {e["tool"]: e["reason"] for e in logs if e["event"] == "mcp tool mended"}
        assert mended["odd hint"] == "odd and left out: annotations"
        assert {"without schema", "null schema"} <= mended.keys()
        assert [e["tool"] for e in logs if e["event"] == "mcp tool listed twice"] == ["good"]
        tools = {t.name: t for t in manager.tools()}
        assert {"odd_good", "odd_abroad", "odd__n_code_name"} <= tools.keys()
        for name, x, told in (("good", "q", "not of type"), ("abroad", 1, "own schema can't be used")):
            with pytest.raises(ToolProblem, match=told):
                tools[f"odd_{name}"].validate({"x": x})
        began = time.thread_time()
        with pytest.raises(ToolProblem, match="Invalid arguments"):
            tools["odd_slow-pattern"].validate({"x": "a" * 40 + "b"})
        assert time.thread_time() - began < 2
        result = await call(tools["odd_error"])
        assert (result.error, "refused the call: no paper" in result.output) == ("tool_failed", True)
        assert (await call(tools["odd_nonsense"])).output == "what"  # a text where a list should be
        assert "[… cut here: 100,000 of 1,000,000" in (await call(tools["odd_huge"])).output
        assert (await call(tools["odd_more"])).output == "(no output)"
        for name, output in (
            ("without_schema", "fine"),
            ("null_schema", "fine"),
            ("odd_hint", "fine"),
            ("strict", "n is one"),
            ("list", "[1, 2]"),
            ("parts", '{"type": "video", "url": "u"}\nnull\n{"type": "image", "data": "AA=="}\nt'),
            ("half", "half \ufffd pair"),
            ("bytes", "M\ufffdller"),
        ):
            assert (await call(tools[f"odd_{name}"])).output == output, name
        began = time.monotonic()
        result = await call(tools["odd_torn"])
        assert (result.error, "its answer could not be read" in result.output) == ("tool_failed", True)
        assert time.monotonic() - began < 5
        with capture_logs() as logs:
            assert (await call(tools["odd_noise"])).output == "scanned"
        assert 0 < len([e for e in logs if e["event"] == "mcp server printed what is no message"]) <= 20
        assert len(logs) <= 21
        await until(lambda: any(t.name == "odd_added" for t in manager.tools()))
        assert (await call(tools["odd_good"], x=1)).output == "fine"  # it was never restarted
        assert manager.states() == {"odd": ("ready", "")}
    finally:
        await manager.aclose()


async def test_without_the_extra_the_servers_are_unusable_and_the_log_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    manager = McpManager({"s": stdio(tmp_path / "n")})
    await manager.start()
    await until(lambda: manager.states()["s"][0] == "unusable")
    assert "pip install 'mux-agents[mcp]'" in manager.states()["s"][1]
    await manager.aclose()


@asynccontextmanager
async def http_server(notes: Path, port: int = 0) -> AsyncIterator[tuple[int, Callable[[], Any]]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, SCRIPT, "http", str(notes), str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: notes.exists() and "port" in notes.read_text(), 20)
        yield _port(notes), process.kill
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_server_over_http_is_used_likewise_and_survives_its_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUX_TEST_TOKEN", "token-value-1")
    async with http_server(tmp_path / "n") as (port, kill):
        config = McpServer(
            url=f"http://127.0.0.1:{port}/mcp", headers_env={"X-Token": "MUX_TEST_TOKEN"}, timeout_s=15
        )
        async with connected(web=config) as manager:
            progress, result = await collect(named(manager, "web_count"), n=3)
            assert result.output == "counted to 3"
            assert "step 3" in [p.message for p in progress]
            _, result = await collect(named(manager, "web_fail"))
            assert "out of paper" in result.output
            kill()
            await until(lambda: not _listening(port), 10)
            _, result = await collect(named(manager, "web_add"), a=1, b=1)
            assert result.is_error
            assert "restart" in result.output
            async with http_server(tmp_path / "n2", port):
                await until(lambda: manager.states()["web"][0] == "ready", 20)
                _, result = await collect(named(manager, "web_add"), a=1, b=1)
                assert result.data == {"sum": 2}


def _port(notes: Path) -> int:
    return int(notes.read_text().split()[1])


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_published_server_works() -> None:
    """mcp-server-time from PyPI, on an SDK and a protocol version of its own choosing."""
    server = McpServer(command=(sys.executable, "-m", "mcp_server_time"), timeout_s=20)
    async with connected(time=server) as manager:
        _, result = await collect(
            named(manager, "time_convert_time"),
            source_timezone="Europe/Berlin", time="12:00", target_timezone="Asia/Tokyo",
        )  # fmt: skip
        assert not result.is_error
        assert "+09:00" in result.output
        _, result = await collect(named(manager, "time_get_current_time"), timezone="Nowhere/None")
        assert result.is_error


@pytest.mark.timeout(120)
async def test_a_published_server_from_npm_works() -> None:
    """The protocol's own test server: Node, another SDK, progress notifications, content of several kinds."""
    script = await asyncio.to_thread(npm_package.installed, EVERYTHING, "dist/index.js")
    server = McpServer(command=("node", str(script), "stdio"), timeout_s=30)
    async with connected(every=server) as manager:
        _, result = await collect(named(manager, "every_echo"), message="from mux")
        assert (result.output, result.is_error) == ("Echo: from mux", False)
        _, result = await collect(named(manager, "every_get-sum"), a=2, b=40)
        assert "42" in result.output
        progress, result = await collect(
            named(manager, "every_trigger-long-running-operation"), duration=0.4, steps=4
        )
        assert not result.is_error
        assert [p.fraction for p in progress if p.fraction][-1:] == [1.0]
        _, result = await collect(named(manager, "every_get-tiny-image"))
        assert "image/png" in result.output
        _, result = await collect(named(manager, "every_get-structured-content"), location="New York")
        assert result.data["temperature"]
        _, result = await collect(named(manager, "every_get-env"))
        assert set(json.loads(result.output)) <= {"PATH"}


async def test_an_agents_own_servers_start_when_it_first_runs_and_stop_with_the_service(
    tmp_path: Path,
) -> None:
    resources = ToolResources(Settings())
    servers = {"s": stdio(tmp_path / "n", tools=("add",))}
    tools, problems = await resources.connect(servers, [])
    assert ([t.name for t in tools], problems) == (["s_add"], [])
    again, _ = await resources.connect(dict(servers), [])
    assert again[0] is tools[0]  # the same server
    assert "s_add" not in resources.toolbox().tools
    broken = {"gone": McpServer(command=("no-such-program-at-all",))}
    assert await resources.connect(broken, []) == (
        [], ["The tool server 'gone' can't be used now: there is no program 'no-such-program-at-all'."]
    )  # fmt: skip
    await resources.aclose()
    assert await resources.connect(servers, []) == ([], ["The server is shutting down."])


def test_what_is_wrong_with_a_server_is_known_before_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUX_TEST_UNSET", raising=False)
    assert mcp_problem(McpServer()) == "it needs exactly one of command and url"
    assert mcp_problem(McpServer(command=("x",), url="http://x")) == "it needs exactly one of command and url"
    unset = McpServer(url="http://x", headers_env={"A": "MUX_TEST_UNSET"})
    assert mcp_problem(unset) == "the environment variable MUX_TEST_UNSET is not set"
    assert mcp_problem(McpServer(command=("no-such",))) == "there is no program 'no-such'"
    assert mcp_problem(McpServer(command=(sys.executable,))) is None


async def test_a_tool_whose_name_is_taken_is_left_out_with_a_warning(tmp_path: Path) -> None:
    manager = McpManager({"s": stdio(tmp_path / "n", tools=("add", "fail"))}, reserved=["s_add"])
    await manager.start()
    assert await manager.ready(30)
    with capture_logs() as logs:
        assert [t.name for t in manager.tools()] == ["s_fail"]
        manager.tools()
    assert [e["tool"] for e in logs] == ["s_add"]
    await manager.aclose()


async def test_the_tool_resources_offer_them_beside_the_built_in_ones(tmp_path: Path) -> None:
    resources = ToolResources(Settings(mcp={"s": stdio(tmp_path / "n")}))
    await resources.start()
    await until(lambda: "s_add" in resources.toolbox().tools, 30)
    assert "calculator" in resources.toolbox().tools
    await resources.aclose()


def test_names_are_what_providers_accept_and_unique() -> None:
    names = mcp_tool_names("my server", ["read.file", "read/file", "x" * 80, "x" * 90])
    assert list(names.values())[:2] == ["my_server_read_file", "my_server_read_file_2"]
    assert all(len(n) <= 64 for n in names.values())
    assert len(set(names.values())) == 4


# --- a run that starts before its servers are there ---------------------------------------------------------


SLOW = """
import sys, time
time.sleep({seconds})
sys.argv = [{script!r}, "stdio", {notes!r}]
exec(compile(open({script!r}).read(), {script!r}, "exec"))
"""


def clerk(tmp_path: Path, seconds: float) -> Settings:
    """An agent with a tool of a server that takes so long to start."""
    folder = tmp_path / "agents"
    write_agent(folder, "clerk.md", "---\nname: clerk\ndescription: Adds.\ntools: [calc_add]\n---\nAdd.\n")
    code = SLOW.format(seconds=seconds, script=SCRIPT, notes=str(tmp_path / "n"))
    server = McpServer(command=(sys.executable, "-c", code))
    return make_settings(agents=[folder], mcp={"calc": server})


async def test_a_run_waits_for_a_server_that_is_still_connecting_and_says_so(tmp_path: Path) -> None:
    async with serving(clerk(tmp_path, 2.0)) as service:
        run = await start(service.url, "clerk", message="hello")
        events = [b.data for b in await read(f"{service.url}/api/runs/{run}/events")]
        waited = [e for e in events if e["type"] == "phase" and e["phase"] == "waiting"]
        first = next(e for e in events if e["type"] == "step_started")
        assert len(waited) == 1
        assert first["ts"] - waited[0]["ts"] > 500
        assert not [e for e in events if e["type"] == "custom"]
        again = await start(service.url, "clerk", message="hello")  # it is there now
        events = [b.data for b in await read(f"{service.url}/api/runs/{again}/events")]
        assert not [e for e in events if e["type"] == "phase" and e["phase"] == "waiting"]


async def test_a_run_goes_on_without_a_server_that_cannot_start_and_says_which(tmp_path: Path) -> None:
    settings = clerk(tmp_path, 0.0)
    settings = settings.model_copy(update={"mcp": {"calc": McpServer(command=("no-such-program",))}})
    async with serving(settings) as service:
        snapshot = await finished_run(service.url, "clerk", message="hello")
        assert snapshot["status"] == "completed"
        events = [b.data for b in await read(f"{service.url}/api/runs/{snapshot['run']}/events")]
        (note,) = [e for e in events if e["type"] == "custom"]
        assert note["value"]["message"] == (
            "The tool server 'calc' can't be used now: there is no program 'no-such-program'."
        )


# --- what is left behind ------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


FORKING = """
import subprocess, sys
child = subprocess.Popen(["sleep", "600"])
open({pids!r}, "w").write(str(child.pid))
sys.argv = [{script!r}, "stdio", {notes!r}]
exec(compile(open({script!r}).read(), {script!r}, "exec"))
"""


@pytest.mark.parametrize("killed", [False, True])
async def test_the_children_of_a_server_go_with_it(tmp_path: Path, killed: bool) -> None:
    pids = tmp_path / "pids"
    code = FORKING.format(pids=str(pids), script=SCRIPT, notes=str(tmp_path / "n"))
    server = McpServer(command=(sys.executable, "-c", code))
    if killed:  # us, by kill -9
        program = (
            "import asyncio, sys\nfrom mux.settings import McpServer\nfrom mux.tools.mcp import McpManager\n"
            "async def main():\n    manager = McpManager({'s': McpServer.model_validate_json(sys.argv[1])})\n"
            "    await manager.start()\n    await manager.ready(30)\n    print('ready', flush=True)\n"
            "    await asyncio.sleep(600)\nasyncio.run(main())"
        )
        us = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, server.model_dump_json(), stdout=asyncio.subprocess.PIPE
        )
        assert us.stdout is not None
        while (await us.stdout.readline()) != b"ready\n":  # lines of its log
            assert us.returncode is None
        us.kill()
        await us.communicate()
    else:
        async with connected(s=server):
            assert alive(int(pids.read_text()))
    await until(lambda: not alive(int(pids.read_text())))

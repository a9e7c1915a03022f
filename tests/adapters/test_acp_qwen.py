"""The real Qwen Code as a lane, on a scripted model. Needs npm; says loudly if it is absent."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mux.adapters.acp import AcpAgent
from mux.agent import Decision, Draft
from mux.events import Custom, Token, ToolResult
from mux.settings import WorkspaceLimits
from mux.workspaces import Workspaces
from tests.support.fake_host import FakeHost, bodies_of, collect, context
from tests.support.legal import play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.allow_blocking]
PACKAGE = "@qwen-code/qwen-code@0.24"


class _Yes(FakeHost):
    async def approve(self, call_id: str, tool: str, arguments: dict[str, Any]) -> Decision:
        return Decision(decision="approve", by="p")


async def _installed(folder: Path) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("NPM IS NOT INSTALLED: the real Qwen Code was NOT tried as a lane")
    process = await asyncio.create_subprocess_exec(
        "npm", "install", "--no-audit", "--no-fund", PACKAGE, cwd=folder,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    if process.returncode:
        pytest.skip(f"NPM CAN'T INSTALL {PACKAGE}: it was NOT tried as a lane: {errors.decode()[-300:]}")
    return folder / "node_modules" / ".bin" / "qwen"


async def _complete(request: web.Request) -> web.StreamResponse:
    """Writes a file on the first request with tools, then says that all is done."""
    body = await request.json()
    tools = [t["function"]["name"] for t in body.get("tools") or []]
    place = re.search(r"/[^\s\"\\]*/spaces/[0-9a-f]+/tree", json.dumps(body["messages"]))
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"content": "All "}, None),
        ({"content": "done."}, "stop"),
    ]
    if "write_file" in tools and body["messages"][-1]["role"] != "tool" and place:
        arguments = json.dumps({"file_path": f"{place[0]}/made.txt", "content": "made\n"})
        function = {"name": "write_file", "arguments": arguments}
        call = {"index": 0, "id": "c1", "type": "function", "function": function}
        deltas = [({"tool_calls": [call]}, "tool_calls")]
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "{}"}, "finish_reason": "stop"}
        return web.json_response({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for delta, reason in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {
            "id": "x",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def test_the_real_qwen_code_writes_a_file_in_its_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aiohttp_server: Any
) -> None:
    program = await _installed(tmp_path)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _complete)
    server = await aiohttp_server(app)
    for name in ("home", "project"):
        (tmp_path / name).mkdir()
    (tmp_path / "project" / "a.txt").write_text("a\n")
    variables = {
        "HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": str(server.make_url("/v1")),
        "OPENAI_MODEL": "m",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    agent = AcpAgent(
        name="q", command=(str(program), "--acp", "--auth-type", "openai"), env=tuple(variables),
        workspace=tmp_path / "project",
    ).in_workspaces(Workspaces(tmp_path / "spaces", WorkspaceLimits()))  # fmt: skip
    drafts: list[Draft] = await collect(agent.run(context("Write made.txt", _Yes())))
    play(drafts)
    bodies = bodies_of(drafts)
    assert "All done." in "".join(b.content for b in bodies if isinstance(b, Token))
    assert [b.error for b in bodies if isinstance(b, ToolResult)] == [None]
    (kept,) = [b.value for b in bodies if isinstance(b, Custom) and b.name == "workspace"]
    assert [f["path"] for f in kept["files"]] == ["made.txt"]
    assert not (tmp_path / "project" / "made.txt").exists()

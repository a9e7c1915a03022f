"""The OpenAI face with a second program that speaks only OpenAI: the AI SDK in Node, with strict schemas."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.test_openai import BROKEN, COUNTER, ENDLESS, LEAKY
from tests.support.api import call
from tests.support.process import ROOT
from tests.support.service import running, write_agent

FOLDER = ROOT / "tests" / "openai_js"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.allow_blocking]  # npm and node


@pytest.fixture(scope="module")
def program() -> Path:
    """The program, with what it imports installed from its lock file where that is not there yet."""
    marker = FOLDER / "node_modules" / ".installed"
    lock = (FOLDER / "package-lock.json").read_text(encoding="utf-8")
    if not marker.exists() or marker.read_text(encoding="utf-8") != lock:
        command = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, timeout=240)
        marker.write_text(lock, encoding="utf-8")
    return FOLDER / "ask.mjs"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    folder = tmp_path / "agents"
    for name, text in (("counter", COUNTER), ("broken", BROKEN), ("endless", ENDLESS), ("leaky", LEAKY)):
        write_agent(folder, f"{name}.py", text)
    rule = {"secret": {"pattern": "swordfish", "action": "block"}}
    async with running(agents=[str(folder)], guardrails=rule) as base:
        yield base


async def ask(program: Path, url: str, model: str, **options: Any) -> dict[str, Any]:
    asked = {"baseURL": f"{url}/v1", "model": model, "prompt": "What is 17*23?", **options}
    node = await asyncio.create_subprocess_exec(
        "node", str(program), json.dumps(asked), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = await node.communicate()
    assert node.returncode == 0, errors.decode()
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.mark.parametrize("stream", [True, False])
async def test_it_reads_text_finish_and_usage(program: Path, url: str, stream: bool) -> None:
    answer = await ask(program, url, "analyst", stream=stream)
    assert answer["errors"] == []
    assert "391" in answer["text"]
    assert answer["finish"] == "stop"
    assert answer["usage"]["inputTokens"] > 0
    assert answer["usage"]["outputTokens"] > 0
    if stream:
        assert "tool-call" not in answer["parts"]
        assert "reasoning-delta" in answer["parts"]


async def test_it_is_told_of_a_failed_agent(program: Path, url: str) -> None:
    streamed = await ask(program, url, "broken", stream=True)
    assert streamed["text"] == "word"
    assert "agent failed" in streamed["errors"][0]["message"]
    whole = await ask(program, url, "broken")
    assert whole["errors"][0]["statusCode"] == 502
    assert "secret detail" not in json.dumps([streamed, whole])


async def test_a_block_is_a_content_filter(program: Path, url: str) -> None:
    for stream in (True, False):
        answer = await ask(program, url, "leaky", stream=stream)
        assert answer["finish"] == "content-filter"
        assert "swordfish" not in json.dumps(answer)


async def test_unknown_agents_are_named_as_it_expects(program: Path, url: str) -> None:
    answer = await ask(program, url, "nobody")
    assert answer["errors"][0]["statusCode"] == 404
    assert "nobody" in answer["errors"][0]["message"]


async def test_its_abort_cancels_the_run(program: Path, url: str) -> None:
    answer = await ask(program, url, "endless", stream=True, stopAfter="begun")
    assert answer["aborted"]
    async with asyncio.timeout(20):
        while (await call("GET", f"{url}/api/runs"))[1]["runs"][0]["status"] != "cancelled":  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.01)


async def test_a_conversation_with_its_own_roles_is_passed_on(program: Path, url: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "What is 6*7?"}]},
    ]
    answer = await ask(program, url, "analyst", stream=True, messages=messages)
    assert answer["errors"] == []
    assert "42" in answer["text"]

"""`mux judge` against a server with agents whose answers are known."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mux.cli.parser import parse
from tests.support.service import serving, write_agent

AGENTS = """
import json
import mux

@mux.agent(name="{name}", description="Known answers.")
async def agent(ctx: mux.AgentContext):
    yield mux.Token(content={answer})
"""
JUDGE = """(lambda t: json.dumps({"winner": "A" if "gold" in t.split("Answer A:")[1].split("Answer B:")[0]
    else "B" if "gold" in t.split("Answer B:")[1] else "tie"}))(str(ctx.task))"""
EXPERIMENT = """
prompts: ["say {{word}}"]
lanes: [{id: good, agent: good}, {id: poor, agent: poor}]
tests:
  - {vars: {word: one}, assert: [{type: contains, value: gold}]}
  - {vars: {word: two}, assert: [{type: contains, value: gold}]}
judge: {agent: referee, pairwise: true}
"""


@pytest.mark.allow_blocking  # the command runs in a thread of its own, with a loop of its own
async def test_the_ranking_comes_out_right_and_resuming_runs_nothing_a_second_time(tmp_path: Path) -> None:
    folder = tmp_path / "roster"
    for name, answer in (("good", "'gold'"), ("poor", "'lead'"), ("referee", JUDGE)):
        await asyncio.to_thread(
            write_agent, folder, f"{name}.py", AGENTS.replace("{name}", name).replace("{answer}", answer)
        )
    file, out = tmp_path / "e.yaml", tmp_path / "out.json"
    file.write_text(EXPERIMENT)

    async def judge(*more: str) -> tuple[int, Any]:
        args = parse(["judge", str(file), "--url", url, "--json", str(out), *more])
        status = await asyncio.to_thread(args.load(), args)
        return status, json.loads(out.read_text())

    async with serving(agents=[folder]) as service:
        url = service.url
        status, report = await judge("--fail-under", "0.6", "--junit", str(tmp_path / "j.xml"))
        assert status == 1
        assert report["pass_rate"] == 0.5
        assert [r["lane"] for r in report["ranking"]["lanes"]] == ["good", "poor"]
        assert report["ranking"]["matrix"] == [[0, 2], [0, 0]]
        assert (tmp_path / "j.xml").read_text().count("<failure") == 2
        status, again = await judge("--resume", "--fail-under", "0.5", "--baseline", str(out))
        assert status == 0
        assert [c["run"] for c in again["cells"]] == [c["run"] for c in report["cells"]]
        _, afresh = await judge()
        assert not {c["run"] for c in afresh["cells"]} & {c["run"] for c in report["cells"]}

"""Agents from files: Markdown, Python, what fails, what is only warned about, and changes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mux._paths import bundled
from mux.agent import Agent, FunctionAgent
from mux.errors import NotFound
from mux.events import Token
from mux.llm.agent import LlmAgent
from mux.roster import Roster
from mux.settings import GuardrailRule, McpServer, Settings
from mux.tools.builtin import builtin_tools
from mux.tools.decorator import tool
from tests.support.fake_host import collect, context, runtime
from tests.support.fake_model import FakeModel, call, says, turn

ROOT = Path(__file__).resolve().parent.parent


@tool
async def calculator(expression: str) -> str:
    """Calculate.

    Args:
        expression: what
    """
    return expression


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "agents"
    made.mkdir()
    return made


def load(*folders: Path, builtin: Path | None = None, model: FakeModel | None = None) -> Roster:
    settings = Settings(
        model="fake:m",
        mcp={"files": McpServer(command=("x",))},
        guardrails={"no-keys": GuardrailRule(pattern="sk-[a-z]{20}")},
    )
    roster = Roster(
        folders,
        runtime(model or FakeModel(), calculator, settings=settings),
        builtin=builtin or folders[0].parent / "none",
    )
    roster.load()
    return roster


def llm(agent: Agent) -> LlmAgent:
    assert isinstance(agent, LlmAgent)
    return agent


def test_a_markdown_file_is_an_agent(folder: Path) -> None:
    (folder / "poet.md").write_text(
        """---
name: poet
description: Rhymes.
model: x:big
tools: [calculator]
temperature: 0.1
params: {top_p: 0.5}
guardrails: [no-keys]
budget: {steps: 3}
examples: [Rhyme on orange.]
---
Answer in two lines.

Always.
"""
    )
    roster = load(folder)
    agent = llm(roster.get("poet"))
    assert (agent.description, agent.model, agent.tool_names) == ("Rhymes.", "x:big", ("calculator",))
    assert agent.instructions == "Answer in two lines.\n\nAlways."
    assert agent.params == {"temperature": 0.1, "top_p": 0.5}
    assert agent.guardrails == ("no-keys",)
    assert agent.budget is not None
    assert agent.budget.steps == 3
    assert not roster.problems
    assert not roster.warnings
    assert roster.describe() == [
        {
            "name": "poet",
            "description": "Rhymes.",
            "model": "x:big",
            "tools": ["calculator"],
            "source": str(folder / "poet.md"),
            "budget": {"steps": 3},
            "examples": ["Rhyme on orange."],
        }
    ]


async def test_a_coding_assistants_sub_agent_loads_with_warnings_and_runs(folder: Path) -> None:
    (folder / "reviewer.md").write_text(
        """---
name: code-reviewer
description: Use this agent when: code was written. Context: <example>user: "look"</example>
tools: Read, Bash, calculator
model: nosuch-sonnet
color: blue
---
You review code.
"""
    )
    model = FakeModel(turn(call(0, "calculator", '{"expression": "1"}')), says("fine"))
    roster = await asyncio.to_thread(load, folder, model=model)
    agent = roster.get("code-reviewer")
    assert agent.description.startswith("Use this agent when: code was written.")
    warnings = "\n".join(roster.warnings)
    for part in ("'Read'", "'Bash'", "'nosuch-sonnet'", "line by line"):
        assert part in warnings
    assert not roster.problems
    await collect(agent.run(context()))
    assert [t.name for t in model.requests[0].tools] == ["calculator"]
    described = roster.describe()[0]
    assert (described["model"], described["tools"]) == ("fake:m", ["calculator"])


def test_inherit_means_the_default_model_and_the_file_name_is_the_default_name(folder: Path) -> None:
    (folder / "plain.md").write_text("---\nmodel: inherit\ndescription: x\n---\nHi.\n")
    roster = load(folder)
    assert llm(roster.get("plain")).model is None
    assert not roster.warnings


def test_python_files_are_agents_of_any_kind(folder: Path) -> None:
    (folder / "_helper.py").write_text("WORD = 'three'\n")
    (folder / "counter.py").write_text(
        "from __future__ import annotations\nimport mux\nfrom ._helper import WORD\n"
        "@mux.agent(name='counter', description='Counts to ' + WORD)\n"
        "async def agent(ctx: mux.AgentContext):\n    yield mux.Token(content='1')\n"
    )
    (folder / "own.py").write_text(
        "class Own:\n    name = 'own'\n    description = 'Own class.'\n"
        "    async def run(self, ctx):\n        yield None\nagent = Own()\n"
    )
    roster = load(folder)
    assert not roster.problems
    assert isinstance(roster.get("counter"), FunctionAgent)
    assert roster.get("counter").description == "Counts to three"
    assert roster.describe()[1] == {
        "name": "own",
        "description": "Own class.",
        "tools": [],
        "source": str(folder / "own.py"),
    }


async def test_roster_files_define_tools_that_markdown_agents_use_by_name(folder: Path) -> None:
    (folder / "weather.py").write_text(
        "import mux\n@mux.tool\nasync def get_weather(city: str, ctx: mux.ToolContext) -> str:\n"
        "    '''Weather.\n\n    Args:\n        city: where\n    '''\n    return 'rain in ' + city\n"
    )
    (folder / "forecaster.md").write_text("---\ndescription: x\ntools: get_weather\n---\nGo.\n")
    model = FakeModel(turn(call(0, "get_weather", '{"city": "Oslo"}')), says("wet"))
    roster = await asyncio.to_thread(load, folder, model=model)
    assert not roster.problems
    assert not roster.warnings
    assert roster.tools["get_weather"].source == str(folder / "weather.py")
    drafts = await collect(roster.get("forecaster").run(context()))
    assert "rain in Oslo" in [getattr(d, "output", None) for d in drafts]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("broken.py", "import mux\n1 / 0\n", "line 2: ZeroDivisionError"),
        ("syntax.py", "def f(:\n", "line 1"),
        ("exits.py", "raise SystemExit(3)\n", "SystemExit"),
        ("missing.py", "import no_such_module_anywhere\n", "no_such_module_anywhere"),
        ("none.py", "x = 1\n", "no value named 'agent'"),
        ("wrong.py", "agent = 42\n", "is of type int, not an agent"),
        (
            "returns.py",
            "import mux\n@mux.agent(name='r', description='x')\nasync def agent(ctx):\n    return 'x'\n",
            "yields nothing",
        ),
        (
            "object.py",
            "class A:\n  name = description = 'r'\n  async def run(self, ctx): pass\nagent = A()",
            "yields nothing",
        ),
        ("mcp.md", "---\nname: x\nmcp: {a: {command: npx server}}\n---\nx\n", "should be a valid list"),
        ("name.py", "import mux\nagent = mux.LlmAgent(name='a b')\n", "may have only"),
        ("nothing.md", "Just text.\n", "no front matter"),
        ("list.md", "---\n- a\n---\nx\n", "must be a mapping"),
        ("budget.md", "---\nname: x\nbudget: {stepps: 3}\n---\nx\n", "stepps"),
        ("steps.md", "---\nname: x\nmax_steps: many\n---\nx\n", "many"),
    ],
)
def test_a_file_that_fails_is_reported_and_stops_no_other(
    folder: Path, name: str, text: str, reason: str
) -> None:
    (folder / name).write_text(text)
    (folder / "good.md").write_text("---\ndescription: x\n---\nHi.\n")
    roster = load(folder)
    (problem,) = roster.problems
    assert problem.path == folder / name
    assert reason in problem.reason
    assert list(roster.agents) == ["good"]


def test_a_misspelt_key_is_a_warning_and_a_readme_is_no_agent(folder: Path) -> None:
    (folder / "README.md").write_text("# About\n")
    (folder / "a.md").write_text("---\ndescription: x\ntool: calculator\n---\nHi.\n")
    roster = load(folder)
    assert not roster.problems
    assert "did you mean 'tools'" in roster.warnings[0]


def test_tools_of_configured_mcp_servers_are_awaited_without_a_warning(folder: Path) -> None:
    (folder / "a.md").write_text("---\ndescription: x\ntools: [files_read, other_read]\n---\nHi.\n")
    roster = load(folder)
    assert [w for w in roster.warnings if "files_read" in w] == []
    assert len(roster.warnings) == 1


def test_earlier_folders_win_and_two_of_one_name_in_a_folder_are_a_problem(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, text in ((first, "mine"), (second, "theirs")):
        directory.mkdir()
        (directory / "assistant.md").write_text(f"---\ndescription: {text}\n---\nHi.\n")
    (second / "copy.md").write_text("---\nname: assistant\ndescription: x\n---\nHi.\n")
    roster = load(first, second, tmp_path / "absent", builtin=bundled("agents"))
    assert roster.get("assistant").description == "mine"
    assert {p.reason for p in roster.problems} == {"there is no such folder"}
    alone = load(second)
    assert "already defines" in alone.problems[0].reason
    assert next(d for d in roster.describe() if d["name"] == "lead")["source"] == "built-in"


def test_a_folder_that_may_not_be_read_is_a_problem_and_stops_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (folder / "good.md").write_text("---\ndescription: x\n---\nHi.\n")
    listed, allowed = Path.iterdir, os.access

    def iterdir(path: Path) -> Iterator[Path]:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    # root, as whom the tests may run, is refused nothing
    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and allowed(path, mode))
    roster = load(closed, folder)
    assert [(p.path, p.reason) for p in roster.problems] == [(closed, "this folder may not be read")]
    assert list(roster.agents) == ["good"]


def test_an_unknown_agent_is_a_404_with_near_names(folder: Path) -> None:
    (folder / "researcher.md").write_text("---\ndescription: x\n---\nHi.\n")
    with pytest.raises(NotFound, match="researcher") as caught:
        load(folder).get("reseacher")
    assert (caught.value.code, caught.value.status) == ("agent_unknown", 404)


def test_changes_are_picked_up_and_running_agents_keep_theirs(folder: Path) -> None:
    path = folder / "a.py"
    path.write_text("import mux\nagent = mux.LlmAgent(name='a', description='old')\n")
    roster = load(folder)
    old = roster.get("a")
    assert not roster.refresh()
    path.write_text("import mux\nagent = mux.LlmAgent(name='a', description='newer')\n")
    (folder / "b.md").write_text("---\ndescription: b\n---\nHi.\n")
    assert roster.refresh()
    assert (old.description, roster.get("a").description) == ("old", "newer")
    (folder / "b.md").unlink()
    assert roster.refresh()
    assert list(roster.agents) == ["a"]
    path.write_text("nonsense(\n")
    os.utime(path, ns=(1, 1))
    assert roster.refresh()
    assert roster.problems
    assert not roster.agents


def test_the_shipped_roster_has_its_six_agents_and_only_tools_that_exist() -> None:
    roster = Roster([], runtime(FakeModel(), *builtin_tools(Settings())), builtin=bundled("agents"))
    roster.load()
    assert set(roster.agents) == {"assistant", "researcher", "analyst", "synthesizer", "lead", "critic"}
    assert not roster.problems
    assert not roster.warnings
    assert all(d["description"] and d["source"] == "built-in" for d in roster.describe())
    assert not (bundled("agents") / "__init__.py").exists()


def test_a_roster_file_finds_the_openai_agents_sdk_under_its_own_name(folder: Path) -> None:
    (folder / "sdk.py").write_text(
        "from agents import Agent\n"
        "agent = Agent(name='My helper', instructions='Hi.', handoff_description='Helps.')\n"
    )
    roster = load(folder)
    assert not roster.problems, roster.problems
    assert roster.get("My-helper").description == "Helps."


def test_importing_mux_is_cheap_and_the_decorators_are_there_whatever_is_imported_first() -> None:
    code = (
        "import sys, mux\n"
        "assert not {'pydantic', 'openai', 'aiohttp'} & set(sys.modules), 'import mux pulls in libraries'\n"
        "import mux.agent\n"
        "@mux.agent(name='x')\n"
        "async def f(ctx):\n    yield mux.Token(content='a')\n"
        "assert f.name == 'x'\n"
        "assert all(getattr(mux, n) is not None for n in mux.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=15)


async def test_what_a_function_agent_yields_is_what_it_says(folder: Path) -> None:
    (folder / "one.py").write_text(
        "import mux\n@mux.agent(name='one')\nasync def agent(ctx):\n    yield mux.Token(content=ctx.task)\n"
    )
    roster = await asyncio.to_thread(load, folder)
    assert await collect(roster.get("one").run(context("hello"))) == [Token(content="hello")]

"""Agent files that were written for other programs: what they say holds, and they never gain rights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.llm.agent import LlmAgent
from mux.roster import Roster
from mux.roster.rights import rights_of
from mux.settings import McpServer, Settings
from mux.tools.decorator import tool
from tests.support.fake_host import runtime
from tests.support.fake_model import FakeModel


def _tools() -> list[Any]:
    async def work(text: str) -> str:
        """Work."""
        return text

    names = ("calculator", "run_python", "fetch_url", "search_docs", "files_read", "files_write")
    return [tool(name=name)(work) for name in names]


def load(folder: Path, **settings: Any) -> Roster:
    given = Settings(model="fake:m", mcp={"files": McpServer(command=("x",))}, **settings)
    roster = Roster([folder], runtime(FakeModel(), *_tools(), settings=given), builtin=folder / "_none")
    roster.load()
    return roster


def tools_of(folder: Path, front: str) -> tuple[str, ...]:
    (folder / "x.md").write_text(f"---\nname: x\ndescription: d\n{front}\n---\nHi.\n")
    agent = load(folder).get("x")
    assert isinstance(agent, LlmAgent)
    return agent.tool_names


@pytest.mark.parametrize(
    ("front", "tools"),
    [
        ("tools: {run_python: false, search_docs: true}", ("search_docs",)),
        ("tools: {run_python: ask, search_docs: true}", ("search_docs",)),
        ("tools: {'*': false}", ()),
        ("tools: [run_python, search_docs]\ndisallowedTools: [run_python]", ("search_docs",)),
        ("tools: run_python, search_docs\ndisallowed-tools: Bash", ("search_docs",)),
        ("tools: [run_python, search_docs]\ndisallowedTools: {run_python: true}", ("search_docs",)),
        ("tools: [run_python, search_docs]\ndisallowedTools: 7", ()),
        ("tools: [run_python, search_docs]\ndisallowedTools: [run_python", ()),
        ("tools: [run_python, search_docs]\npermission: {edit: deny}", ("run_python", "search_docs")),
        ("tools: [run_python, search_docs]\npermission: {bash: ask}", ("search_docs",)),
        (
            "tools: [run_python, search_docs]\npermission: {bash: {'git *': allow, '*': deny}}",
            ("search_docs",),
        ),
        ("tools: [run_python, search_docs]\npermission: {bash: allow}", ("run_python", "search_docs")),
        ("tools: [search_docs]\npermission: {bash: allow}", ("search_docs",)),
        ("tools: [run_python]\npermission: deny", ()),
        ("tools: [run_python]\npermission: {'*': deny}", ()),
        ("tools: [fetch_url, search_docs]\npermissions: {deny: [WebFetch]}", ("search_docs",)),
        ("tools: [run_python, search_docs]\npermissionMode: plan", ("search_docs",)),
        ("tools: [run_python, search_docs]\nreadonly: true", ("search_docs",)),
        ("tools: [run_python, search_docs]\nallowed-tools: [search_docs]", ("search_docs",)),
        ("tools: ['!run_python', search_docs]", ("search_docs",)),
        ("tools: ['files_*']", ("files_read", "files_write")),
        ("tools: ['files_*']\ndisallowedTools: mcp__files__write", ("files_read",)),
        ("tools: [mcp__files__read]", ("files_read",)),
        ("tools: mcp__files", ("files_read", "files_write")),
        ("disallowedTools: [fetch_url]", ()),
    ],
)
def test_what_is_not_plainly_given_is_taken_away(tmp_path: Path, front: str, tools: tuple[str, ...]) -> None:
    assert tools_of(tmp_path, front) == tools


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["allow", "deny", "ask", "Bash", "run_python"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bash", "*", "deny", "allow"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(value=_VALUES, key=st.sampled_from(["disallowedTools", "permission", "permissionMode", "readonly"]))
def test_no_restriction_of_any_form_gives_a_tool(value: Any, key: str) -> None:
    assert set(rights_of({"tools": "search_docs", key: value}).given) <= {"search_docs"}
    assert not rights_of({key: value}).given


def test_a_comma_in_brackets_parts_no_names(tmp_path: Path) -> None:
    assert "run_python" not in tools_of(tmp_path, "tools: Bash(git add, run_python, x), search_docs")


def test_an_odd_value_costs_the_others_neither_their_types_nor_their_lines(tmp_path: Path) -> None:
    (tmp_path / "flow.md").write_text(
        '---\nname: flow\ndescription: Use it. Examples:\n\n<example>\nuser: "Is berth 4 free?"\n'
        'assistant: "yes"\n</example>\n\ntools: [search_docs, calculator]\n'
        "temperature: 0.2\nmax_tokens: 300\n"
        "budget:\n  steps: 3\ncolor: teal\n---\nHi.\n"
    )
    agent = load(tmp_path).get("flow")
    assert isinstance(agent, LlmAgent)
    assert agent.tool_names == ("search_docs", "calculator")
    assert agent.params == {"temperature": 0.2, "max_tokens": 300}
    assert agent.budget is not None
    assert agent.budget.steps == 3
    assert agent.description.endswith('user: "Is berth 4 free?" assistant: "yes" </example>')


def test_a_tools_line_in_an_example_gives_nothing(tmp_path: Path) -> None:
    front = "description: a: b\n\ntools: [run_python]\n\ntools: [search_docs]\ndescription: c: d"
    assert tools_of(tmp_path, front) == ()


def test_a_name_for_people_is_the_title_and_the_file_names_the_agent(tmp_path: Path) -> None:
    (tmp_path / "code reviewer (v2).md").write_text("---\nname: Code Reviewer ✓\ndescription: x\n---\nHi.\n")
    roster = load(tmp_path)
    (described,) = roster.describe()
    assert (described["name"], described["title"]) == ("code-reviewer-v2", "Code Reviewer ✓")
    assert not roster.problems


def test_sub_folders_are_read_and_what_is_passed_over_is_told(tmp_path: Path) -> None:
    for path, text in {
        "team/a.md": "---\nname: a\n---\nHi.\n",
        "team/deep/b.md": "---\nname: b\n---\nHi.\n",
        "team/notes.md": "Notes.\n",
        "team/c.py": "raise SystemExit\n",
        ".hidden/d.md": "---\nname: d\n---\nHi.\n",
        "twin/a.md": "---\nname: a\n---\nHi.\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    roster = load(tmp_path)
    assert sorted(roster.agents) == ["a", "b"]
    assert [p.reason for p in roster.problems] == ["team/a.md already defines an agent named 'a'"]
    assert sum("passed over" in w for w in roster.warnings) == 2


def test_keys_that_mean_nothing_are_named_once_and_an_alias_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("---\nmodel: nosonnet\ncolor: red\nmode: all\nhooks: {}\n---\nHi.\n")
    roster = load(tmp_path, aliases={"nosonnet": "fake:big"})
    assert roster.describe()[0]["model"] == "fake:big"
    (warning,) = roster.warnings
    assert "color, mode, hooks" in warning


def test_a_limit_of_turns_in_any_spelling_limits_the_steps(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("---\nmaxTurns: 4\nmax_steps: 9\n---\nHi.\n")
    agent = load(tmp_path).get("x")
    assert isinstance(agent, LlmAgent)
    assert agent.max_steps == 4


def test_plain_typed_functions_are_tools(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "import mux\ndef tide(port: str) -> str:\n    'Tide.'\n    return port\n"
        "agent = mux.LlmAgent(name='x', tools=[tide, 'calculator'])\n"
    )
    roster = load(tmp_path)
    assert roster.describe()[0]["tools"] == ["tide", "calculator"]
    assert not roster.problems


@pytest.mark.parametrize(
    "odd",
    [
        "tools = 7", "tools = [len, 3, object()]", "examples = 3", "budget = object()", "model = object()",
        "guardrails = 5",
        "tools = property(lambda self: 1 / 0)",
        "description = property(lambda self: 1 / 0)",
        "description = 7",
    ],
)  # fmt: skip
def test_an_agent_of_odd_parts_never_hurts_the_list(tmp_path: Path, odd: str) -> None:
    (tmp_path / "good.md").write_text("---\ndescription: x\n---\nHi.\n")
    (tmp_path / "odd.py").write_text(
        f"class Odd:\n    name = 'odd'\n    description = 'd'\n    {odd}\n"
        "    async def run(self, ctx):\n        yield 'a'\nagent = Odd()\n"
    )
    roster = load(tmp_path)
    names = [described["name"] for described in roster.describe()]
    assert "good" in names
    assert "odd" in names or [p.path.name for p in roster.problems] == ["odd.py"]


def test_a_program_in_front_matter_is_an_agent_and_misfits_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("---\ncommand: [echo, '{task}']\nformat: lines\ncwd: .\n---\nBe brief.\n")
    (tmp_path / "y.md").write_text("---\ncommand: echo hi\n---\n")
    (tmp_path / "z.md").write_text("---\ncommand: [echo]\ntools: [run_python]\n---\n")
    roster = load(tmp_path)
    assert list(roster.agents) == ["x"]
    assert [p.path.name for p in roster.problems] == ["y.md", "z.md"]
    assert "tools says nothing to a program" in roster.problems[1].reason

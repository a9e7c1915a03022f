"""Roster agents that ask the player for one recorded case each, with that case's tools."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mux.agent import Budget
from mux.llm.agent import LlmAgent
from mux.tools.base import Tool
from mux.tools.decorator import tool

__all__ = ["RAN", "case_agent", "write_roster"]

RAN: dict[str, list[str]] = defaultdict(list)
"""Case → arguments of every call that really ran, as JSON."""


def case_agent(case: str, tools: Sequence[str]) -> LlmAgent:
    """An agent whose provider is named like the case. One step: the player repeats itself for a second."""
    return LlmAgent(
        name=case,
        model=f"{case}:quirk-1",
        tools=[_recorded(case, name) for name in tools],
        budget=Budget(steps=1),
    )


def _recorded(case: str, name: str) -> Tool:
    @tool(name=name, description="A tool of the recording.", parameters={"type": "object"})
    async def recorded(**arguments: Any) -> str:
        RAN[case].append(json.dumps(arguments, sort_keys=True))
        return "ok"

    return recorded


def write_roster(folder: Path, cases: Sequence[tuple[str, Sequence[str]]]) -> Path:
    """A roster of one file per case."""
    folder.mkdir()
    for case, tools in cases:
        (folder / f"{case.replace('-', '_')}.py").write_text(
            "from tests.support.quirk_agents import case_agent\n\n"
            f"agent = case_agent({case!r}, {list(tools)!r})\n"
        )
    return folder

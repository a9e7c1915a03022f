"""A server with agents that a client's features need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.agents_for_http import agents_folder
from tests.support.service import running, write_agent

_ASKER = """
import mux

@mux.tool(name="calculator", approval="always")
async def calculator(expression: str) -> str:
    \"\"\"Calculate, when a person lets it.\"\"\"
    return f"{expression} is 391"

agent = mux.LlmAgent(name="asker", description="Asks before it calculates.", tools=[calculator])
"""


@pytest.fixture
def agents_dir(tmp_path: Path) -> Path:
    folder = agents_folder(tmp_path)
    write_agent(folder, "asker.py", _ASKER)
    return folder


@pytest.fixture
async def url(no_leaks: None, agents_dir: Path) -> AsyncIterator[str]:
    async with running(agents=[agents_dir]) as base:
        yield base

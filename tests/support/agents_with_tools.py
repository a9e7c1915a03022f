"""Roster files whose agents have a tool of their own, on the rehearsal model."""

from __future__ import annotations

from pathlib import Path

__all__ = ["wiper_folder"]

_WIPER = """
import os
from pathlib import Path

import mux

EFFECTS = Path({effects!r})


@mux.tool(approval={approval!r})
async def wipe(folder: str) -> str:
    \"\"\"Wipe a folder.

    Args:
        folder: Which one.
    \"\"\"
    fd = os.open(EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (folder + "\\n").encode())
    os.close(fd)
    return "wiped " + folder


agent = mux.LlmAgent(name="wiper", description="Wipes.", model="rehearsal", tools=[wipe]{more})
"""

_TALKER = """
import mux

@mux.agent(name="talker", description="Says one word.")
async def agent(ctx):
    yield mux.Token(content="hello")
"""


def wiper_folder(base: Path, *, approval: str = "always", more: str = "") -> tuple[Path, Path]:
    """A folder with the agents ``wiper`` and ``talker``, and the file that lists what was wiped."""
    folder, effects = base / "agents", base / "effects"
    folder.mkdir()
    effects.write_text("")
    code = _WIPER.format(effects=str(effects), approval=approval, more=f", {more}" if more else "")
    (folder / "wiper.py").write_text(code.lstrip())
    (folder / "talker.py").write_text(_TALKER.lstrip())
    return folder, effects

"""Small agents that do what a test of the HTTP API needs, as roster files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["agents_folder"]

_COUNTER = """
import mux

@mux.agent(name="counter", description="Counts to the number in the task.")
async def agent(ctx):
    for n in range(int(ctx.task)):
        yield mux.Token(content=f"{n} ")
"""

_HOLD = """
import asyncio
import mux

@mux.agent(name="hold", description="Says one word and waits until it is stopped.")
async def agent(ctx):
    yield mux.Token(content="holding ")
    while not ctx.stopping:
        await asyncio.sleep(0.02)
"""

_BULK = """
import mux

@mux.agent(name="bulk", description="Says more than socket buffers hold.")
async def agent(ctx):
    for n in range(int(ctx.task)):
        yield mux.Token(content=f"{n} " * 2000)
"""

_NASTY = r"""
import mux

@mux.agent(name="nasty", description="Says what could break frames.")
async def agent(ctx):
    for text in ("a\r\nb", "\n\ndata: forged\n\n", "nul\0", "\u2028", '"\\"', ctx.task):
        yield mux.Token(content=text)
"""


def agents_folder(base: Path) -> Path:
    """A folder with the agents ``counter``, ``hold``, ``bulk`` and ``nasty``."""
    folder = base / "roster"
    folder.mkdir()
    for name, code in (("counter", _COUNTER), ("hold", _HOLD), ("bulk", _BULK), ("nasty", _NASTY)):
        (folder / f"{name}.py").write_text(code.lstrip())
    return folder

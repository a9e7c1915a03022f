"""Sync tools in a child process of their own (``isolate="process"``): a cancel or a timeout kills it.

The child loads the tool's module by name, or by path for a roster file, and gets its arguments as JSON. It
answers in JSON lines on what was its stdout, which the tool does not see: what it prints is no answer.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from mux.errors import AgentError
from mux.process import Program, running
from mux.tools.base import ToolContext, ToolOutput, ToolProblem

__all__ = ["check_importable", "run_in_process"]

_MAX_LINE = 16 << 20  # bytes of one answer
_STDERR_SHOWN = 2_000


def check_importable(function: Callable[..., Any]) -> None:
    """Raise TypeError if a child process could not find the function."""
    if "<" in function.__qualname__:
        raise TypeError(f"isolate='process': define {function.__name__!r} at the top level of its file")


async def run_in_process(function: Callable[..., Any], arguments: dict[str, Any], ctx: ToolContext) -> Any:
    """Run the function in a child process; its progress comes through. The process and its children end with
    the call, and with the server.

    Raises:
        ToolProblem: the tool's own, or ``tool_failed`` when it raised or its process died.
    """
    order = {
        "module": function.__module__,
        "file": await asyncio.to_thread(inspect.getsourcefile, function),
        "name": function.__qualname__,
        "arguments": json.loads(to_json(arguments)),
        "ctx": {"run": ctx.run, "channel": ctx.channel, "call_id": ctx.call_id, "tool": ctx.tool},
        "path": sys.path,
    }
    command = [sys.executable, "-m", "mux.tools._child"]
    async with running(command, cwd=Path(), env=os.environ, max_line=_MAX_LINE) as child:
        try:
            child.send(json.dumps(order) + "\n")
            return await _converse(child, ctx)
        finally:
            child.kill()


async def _converse(child: Program, ctx: ToolContext) -> Any:
    lines = child.lines()
    try:
        async for line in lines:
            answer = json.loads(line)
            if answer["kind"] == "progress":
                await ctx.progress(**answer["update"])
            elif answer["kind"] == "result":
                return ToolOutput(**answer["output"])
            else:
                raise ToolProblem(answer["message"], answer["error"], printed=answer["printed"])
    except AgentError:
        raise ToolProblem("The tool's result is too large; return less.") from None
    finally:
        await lines.aclose()
    status = await child.ended()
    tail = child.errors()[-_STDERR_SHOWN:]
    raise ToolProblem(f"The tool's process ended with status {status} and no result. {tail}".strip())

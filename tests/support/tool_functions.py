"""Tool functions at the top level of a module, as `isolate="process"` needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mux.tools import ToolContext, ToolProblem, tool


@tool(isolate="process", timeout_s=30)
def add(a: int, b: int) -> dict[str, int]:
    """Add two numbers in a child process."""
    print("noise that is no answer")
    return {"sum": a + b, "pid": os.getpid()}


@tool(isolate="process", timeout_s=30)
def hang(pid_file: str) -> str:
    """Note our process and a child of it, then never end."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
    return "never"


@tool(isolate="process", timeout_s=1, name="slow")
def slow() -> str:
    """Outlive the timeout."""
    time.sleep(600)
    return "never"


@tool(isolate="process")
def steps(ctx: ToolContext) -> Iterator[str]:
    """Report and yield."""
    ctx.progress_sync("begun", fraction=0.5)
    yield "half-way"
    yield "the result"


@tool(isolate="process")
def fail(how: str) -> str:
    """Fail in the given way."""
    if how == "problem":
        raise ToolProblem("choose another city", "tool_failed", printed="looked it up\n")
    if how == "exit":
        print("last words", file=sys.stderr)
        os._exit(3)
    raise ValueError("bad city")

"""Sync tools in a child process of their own (``isolate="process"``): a cancel or a timeout kills it.

The child loads the tool's module by name, or by path for a roster file, and gets its arguments as JSON. It
answers in JSON lines on a pipe of its own, so that what the tool prints can't be taken for an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from mux.tools.base import ToolContext, ToolOutput, ToolProblem

__all__ = ["check_importable", "run_in_process"]

_MAX_LINE = 16 << 20  # bytes of one answer
_STDERR_KEPT = 2_000


def check_importable(function: Callable[..., Any]) -> None:
    """Raise TypeError if a child process could not find the function."""
    if "<" in function.__qualname__:
        raise TypeError(f"isolate='process': define {function.__name__!r} at the top level of its file")


async def run_in_process(function: Callable[..., Any], arguments: dict[str, Any], ctx: ToolContext) -> Any:
    """Run the function in a child process; its progress comes through.

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
    read_fd, write_fd = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mux.tools._child",
            str(write_fd),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(write_fd,),
            start_new_session=True,  # its own group, so that its children die with it
        )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    transport = None
    errors = asyncio.create_task(_tail(process.stderr))
    try:
        reader = asyncio.StreamReader(limit=_MAX_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", 0)
        )
        return await _converse(process, reader, order, ctx, errors)
    finally:
        if transport is not None:
            transport.close()
        await _kill(process, errors)


async def _converse(
    process: asyncio.subprocess.Process,
    reader: asyncio.StreamReader,
    order: dict[str, Any],
    ctx: ToolContext,
    errors: asyncio.Task[str],
) -> Any:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead child is told by its pipe's end
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        process.stdin.close()
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            raise ToolProblem("The tool's result is too large; return less.") from None
        if not line:
            status = await process.wait()
            tail = (await errors).strip()
            raise ToolProblem(f"The tool's process ended with status {status} and no result. {tail}".strip())
        answer = json.loads(line)
        if answer["kind"] == "progress":
            await ctx.progress(**answer["update"])
        elif answer["kind"] == "result":
            return ToolOutput(**answer["output"])
        else:
            raise ToolProblem(answer["message"], answer["error"], printed=answer["printed"])


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """Read stderr to its end and keep the last of it, so that the child never blocks on a full pipe."""
    kept = b""
    while stream is not None and (chunk := await stream.read(65_536)):
        kept = (kept + chunk)[-_STDERR_KEPT:]
    return kept.decode(errors="replace")


async def _kill(process: asyncio.subprocess.Process, errors: asyncio.Task[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.shield(process.wait())
    finally:
        errors.cancel()

"""The child process of ``isolate="process"``: reads one order from stdin, answers on stdout."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from types import ModuleType
from typing import Any

from pydantic_core import to_json

from mux.tools.base import Tool, ToolProblem
from mux.tools.decorator import drain
from mux.tools.results import as_output

_MAX_OUTPUT = 4_000_000  # characters; the parent cuts to the tool's own limit


class ChildContext:
    """A :class:`~mux.tools.base.ToolContext` whose progress goes to the parent."""

    agent: Any = None  # channels and results of others can't be reached from here

    def __init__(self, send: Callable[[dict[str, Any]], None], names: dict[str, str]) -> None:
        self._send = send
        self.run, self.channel = names["run"], names["channel"]
        self.call_id, self.tool = names["call_id"], names["tool"]

    def progress_sync(
        self, message: str | None = None, fraction: float | None = None, content: str | None = None
    ) -> None:
        update = {"message": message, "fraction": fraction, "content": content}
        self._send({"kind": "progress", "update": update})

    async def progress(
        self, message: str | None = None, fraction: float | None = None, content: str | None = None
    ) -> None:
        self.progress_sync(message, fraction, content)

    def waiting(self) -> AbstractContextManager[None]:
        return nullcontext()


def _load(module: str, file: str | None) -> ModuleType:
    """By name where that finds the same file, else by path: roster files are no importable modules."""
    if module != "__main__":
        try:
            return importlib.import_module(module)
        except ImportError:
            if file is None:
                raise
    spec = importlib.util.spec_from_file_location("_mux_tool_module", file or "")
    if spec is None or spec.loader is None:
        raise ImportError(f"no module {module!r} and no file for it")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _tool(order: dict[str, Any]) -> Tool:
    found: Any = _load(order["module"], order["file"])
    for part in order["name"].split("."):
        found = getattr(found, part)
    if isinstance(found, Tool):
        return found
    # `tool(function)` under another name: the function itself is found, and made a tool as it was
    from mux.tools.decorator import tool

    return tool(found)


def _run(order: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    tool = _tool(order)
    ctx = ChildContext(send, order["ctx"])
    arguments = tool.validate(order["arguments"])
    if name := tool.meta.get("context"):
        arguments[name] = ctx
    value = tool.meta["function"](**arguments)
    if inspect.isgenerator(value):
        value = drain(value, ctx)
    send({"kind": "result", "output": asdict(as_output(value, _MAX_OUTPUT))})


def main() -> None:
    """Run one order."""
    answers = os.fdopen(os.dup(1), "wb", 0)  # not inherited by the tool's own children
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what the tool prints is no answer

    def send(answer: dict[str, Any]) -> None:
        answers.write(to_json(answer, inf_nan_mode="null") + b"\n")

    order = json.loads(sys.stdin.readline())
    sys.path[:] = order["path"]
    try:
        _run(order, send)
    except ToolProblem as e:
        send({"kind": "problem", "message": e.message, "error": e.error, "printed": e.printed})
    except Exception as e:  # noqa: BLE001 - the boundary: the parent makes a result of it
        message = f"{type(e).__name__}: {e}"
        send({"kind": "problem", "message": message, "error": "tool_failed", "printed": ""})


if __name__ == "__main__":
    main()

"""Tools: ``@tool`` makes one, ``run_tool`` runs one, ``ToolResources`` holds the built-in ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.decorator import tool
from mux.tools.runtime import Toolbox, run_tool

if TYPE_CHECKING:
    from mux.tools.builtin import ToolResources, builtin_tools

__all__ = [
    "Tool",
    "ToolContext",
    "ToolOutput",
    "ToolProblem",
    "ToolResources",
    "Toolbox",
    "builtin_tools",
    "run_tool",
    "tool",
]


def __getattr__(name: str) -> Any:
    """The built-ins on first use: they bring the sandbox and HTTP, for which a tool's child process, started
    for a single call, has no use."""
    if name not in ("ToolResources", "builtin_tools"):
        raise AttributeError(f"module 'mux.tools' has no attribute {name!r}")
    from mux.tools import builtin

    return getattr(builtin, name)

"""Tools: ``@tool`` makes one, ``run_tool`` runs one, ``ToolResources`` holds the built-in ones."""

from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.builtin import ToolResources, builtin_tools
from mux.tools.decorator import tool
from mux.tools.runtime import Toolbox, run_tool

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

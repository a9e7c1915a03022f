"""The built-in tools, and what they hold open: one :class:`ToolResources` per server."""

from __future__ import annotations

from pathlib import Path

from mux.settings import Settings
from mux.tools.base import Tool
from mux.tools.calculator import calculator
from mux.tools.documents import document_tools
from mux.tools.index import DocumentIndex
from mux.tools.roots import Roots
from mux.tools.runtime import Toolbox
from mux.tools.sandbox import Sandbox, sandbox_tool
from mux.tools.sources import Sources

__all__ = ["ToolResources", "builtin_tools"]

_DOCS = Path(__file__).resolve().parent.parent / "docs"  # the manual: something to search on the first run


class ToolResources:
    """What the built-in tools share. Everything is opened on first use and closed by `aclose`.

    Args:
        settings: roots, hosts and servers that the tools may use.
    """

    def __init__(self, settings: Settings) -> None:
        roots = Roots(settings.documents.roots or (_DOCS,))
        self._index = DocumentIndex(roots)
        self._sandbox = Sandbox(roots)
        sources = Sources()
        self._builtin = [
            calculator(),
            *document_tools(roots, self._index, sources),
            sandbox_tool(self._sandbox),
        ]

    def toolbox(self) -> Toolbox:
        """All tools there are now: built-in ones, and those of the MCP servers that are connected."""
        return Toolbox(self._builtin)

    async def start(self) -> None:
        """Begin to connect the MCP servers, in the background."""

    async def aclose(self) -> None:
        """Free threads, processes and connections."""
        await self._sandbox.aclose()
        await self._index.aclose()


def builtin_tools(settings: Settings) -> list[Tool]:
    """The built-in tools alone, for listings; whoever runs them keeps a `ToolResources` and closes it."""
    return list(ToolResources(settings).toolbox().tools.values())

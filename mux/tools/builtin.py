"""The built-in tools, and what they hold open: one :class:`ToolResources` per server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mux.net import Net
from mux.settings import McpServer, Settings
from mux.tools.base import Tool
from mux.tools.calculator import calculator
from mux.tools.delegate import delegate_tools
from mux.tools.documents import document_tools
from mux.tools.fetch import fetch_tool
from mux.tools.index import DocumentIndex
from mux.tools.mcp import McpManager
from mux.tools.mcp_agents import CONNECT_S, AgentServers, cannot_be_used
from mux.tools.reader import Reader
from mux.tools.roots import Roots
from mux.tools.runtime import Toolbox
from mux.tools.sandbox import Sandbox, sandbox_tool
from mux.tools.sources import Sources
from mux.tools.web_search import web_search_tool

__all__ = ["ToolResources", "builtin_tools"]

_DOCS = Path(__file__).resolve().parent.parent / "docs"  # the manual: something to search on the first run


class ToolResources:
    """What the built-in tools share. Everything is opened on first use and closed by `aclose`.

    Args:
        settings: roots, hosts and servers that the tools may use.
    """

    def __init__(self, settings: Settings) -> None:
        roots = Roots(settings.documents.roots or (_DOCS,))
        self._reader = Reader()
        self._index_reader = Reader(processes=1)  # what agents read holds no search up
        self._index = DocumentIndex(roots, self._index_reader)
        self._sandbox = Sandbox(roots)
        net = Net(settings.fetch)
        sources = Sources()
        search = web_search_tool(settings.web_search, net, sources, lambda name: self.toolbox().get(name))
        self._builtin = [
            calculator(),
            *document_tools(roots, self._index, self._reader, sources),
            fetch_tool(net, self._reader, sources),
            *([search] if search is not None else []),
            sandbox_tool(self._sandbox),
            *delegate_tools(),
        ]
        self._mcp = McpManager(settings.mcp, reserved=self._names())
        self._own_mcp = AgentServers(self._names())

    def _names(self) -> list[str]:
        return [t.name for t in self._builtin]

    def toolbox(self) -> Toolbox:
        """All tools there are now: built-in ones, and those of the MCP servers that are connected."""
        return Toolbox([*self._builtin, *self._mcp.tools()])

    async def start(self) -> None:
        """Begin to connect the MCP servers, in the background."""
        await self._mcp.start()

    def missing(self, names: Iterable[str]) -> list[str]:
        """The configured MCP servers whose tools may be among these, and that are not there (yet)."""
        states = self._mcp.states()
        return [name for name in self._mcp.bringing(names) if states[name][0] != "ready"]

    async def connect(
        self, own: Mapping[str, McpServer], missing: Sequence[str]
    ) -> tuple[list[Tool], list[str]]:
        """Wait, for a bounded time, for MCP servers: those of ``missing``, and an agent's ``own``, which are
        started when they are first asked for.

        Returns:
            The tools of ``own``, and a sentence for each server that can't be used now.
        """
        (tools, problems), away = await asyncio.gather(
            self._own_mcp.tools(own), self._mcp.tried(CONNECT_S, missing)
        )
        return tools, [*(cannot_be_used(name, why) for name, why in away.items()), *problems]

    async def aclose(self) -> None:
        """Free threads, processes and connections."""
        await self._own_mcp.aclose()
        await self._mcp.aclose()
        await self._sandbox.aclose()
        await self._index.aclose()
        await self._reader.aclose()
        await self._index_reader.aclose()


def builtin_tools(settings: Settings) -> list[Tool]:
    """The built-in tools alone, for listings; whoever runs them keeps a `ToolResources` and closes it."""
    return list(ToolResources(settings).toolbox().tools.values())

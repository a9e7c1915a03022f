"""MCP servers that agents bring along: started on first use, one per configuration, closed together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from mux.settings import McpServer
from mux.tools.base import Tool
from mux.tools.mcp import McpManager

__all__ = ["CONNECT_S", "AgentServers", "cannot_be_used"]

CONNECT_S = 20.0  # how long an agent waits for its servers before it works without them
_MAX_SERVERS = 32  # configurations; a file that is edited leaves its old one behind


class AgentServers:
    """The servers of all agents of one process.

    Args:
        reserved: names that other tools have already.
        connect_s: seconds that an agent waits for its servers.
    """

    def __init__(self, reserved: Iterable[str], *, connect_s: float = CONNECT_S) -> None:
        self._reserved = list(reserved)
        self._connect_s = connect_s
        self._managers: OrderedDict[str, McpManager] = OrderedDict()
        self._closed = False

    async def tools(self, servers: Mapping[str, McpServer]) -> tuple[list[Tool], list[str]]:
        """The tools of these servers, and a sentence for each that can't be used now."""
        if not servers:
            return [], []
        if self._closed:
            return [], ["The server is shutting down."]
        key = repr(sorted((name, server.model_dump_json()) for name, server in servers.items()))
        manager = self._managers.get(key)
        if manager is None:
            manager = self._managers[key] = McpManager(servers, reserved=self._reserved)
            await manager.start()
        self._managers.move_to_end(key)
        if len(self._managers) > _MAX_SERVERS:
            _, oldest = self._managers.popitem(last=False)
            await oldest.aclose()
        away = await manager.tried(self._connect_s)
        return manager.tools(), [cannot_be_used(name, why) for name, why in away.items()]

    async def aclose(self) -> None:
        """Stop every server."""
        self._closed = True
        while self._managers:
            await self._managers.popitem()[1].aclose()


def cannot_be_used(server: str, why: str) -> str:
    """The sentence for whoever runs an agent without one of its tool servers."""
    return f"The tool server {server!r} can't be used now: {why}."

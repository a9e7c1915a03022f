"""MCP servers that agents bring along: started on first use, one per configuration, closed together."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

from mux.settings import McpServer
from mux.tools.base import Tool
from mux.tools.mcp import McpManager

__all__ = ["AgentServers", "mcp_problem"]

_CONNECT_S = 20.0  # how long an agent waits for its servers before it works without them
_MAX_SERVERS = 32  # configurations; a file that is edited leaves its old one behind


class AgentServers:
    """The servers of all agents of one process.

    Args:
        reserved: names that other tools have already.
        connect_s: seconds that an agent waits for its servers.
    """

    def __init__(self, reserved: Iterable[str], *, connect_s: float = _CONNECT_S) -> None:
        self._reserved = list(reserved)
        self._connect_s = connect_s
        self._managers: OrderedDict[str, McpManager] = OrderedDict()
        self._closed = False

    async def tools(self, servers: Mapping[str, McpServer]) -> tuple[list[Tool], list[str]]:
        """The tools of these servers, and a sentence for each that can't be used now."""
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
        await manager.tried(self._connect_s)
        problems = [
            f"The tool server {name!r} can't be used now: {why or 'it does not answer'}."
            for name, (state, why) in manager.states().items()
            if state != "ready"
        ]
        return manager.tools(), problems

    async def aclose(self) -> None:
        """Stop every server."""
        self._closed = True
        while self._managers:
            await self._managers.popitem()[1].aclose()


def mcp_problem(server: McpServer) -> str | None:
    """Why a server can't work as it is configured, as far as that can be known without starting it."""
    if bool(server.command) == bool(server.url):
        return "it needs exactly one of command and url"
    for name in (*server.env_from, *server.headers_env.values()):
        if name not in os.environ:
            return f"the environment variable {name} is not set"
    if server.command:
        program = server.command[0]
        where = Path(server.cwd or ".") / program if os.sep in program else program
        if shutil.which(where, path=server.env.get("PATH")) is None:
            return f"there is no program {program!r}"
    return None

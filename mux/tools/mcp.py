"""Tools of MCP servers: a command spoken to over stdio, or a URL (streamable HTTP).

Each server has one owner task that connects, waits for the connection's end, and connects again with
back-off: the SDK's cancel scopes must be entered and left in the same task. Calls come from any task. While
a server is away its tools stay listed, and a call of one says so, so that agents keep their tool names.

The SDK (``pip install 'mux-agents[mcp]'``) is imported when the first server is started.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import ValidationError

from mux.settings import McpServer
from mux.telemetry import get_logger, register_secret
from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.mcp_link import Unconfigured, mcp_problem, readable, stdio, written_secrets
from mux.tools.mcp_link import why as reason_of
from mux.tools.mcp_values import mcp_tool_names, to_output
from mux.tools.schema import schema_validator

if TYPE_CHECKING:
    import mcp
    import mcp_types
    from mcp.client._transport import Transport

__all__ = ["McpManager", "McpState"]

McpState: TypeAlias = Literal["connecting", "ready", "restarting", "unusable"]

_HINT = "MCP servers need the extra: pip install 'mux-agents[mcp]'"
_STEADY_S = 60.0  # a server that was up for so long has recovered: its back-off begins anew
_CONNECT_S = 60.0  # a command may first have to be downloaded (npx, uvx)
_MAX_BACKOFF_S = 60.0
_CLOSE_S = 10.0  # for a server to stop; the SDK itself kills a command after 4 s
_MAX_PAGES = 100
_CLOSED = "Connection closed"  # the SDK's own words for calls that were open when the connection ended
_STDERR_LINES_PER_CONNECTION = 200  # a chatty server must not fill the log
_NOTES_PER_CONNECTION = 20


class McpManager:
    """The configured MCP servers and their tools.

    Args:
        servers: ``[mcp.NAME]`` by name.
        reserved: names that other tools have already.
        on_change: called when the tools have changed.
        backoff_s: seconds before the first restart; doubles with each failure up to a minute.
        patience_s: seconds that a call waits for a server that is connecting.
    """

    def __init__(
        self,
        servers: Mapping[str, McpServer],
        *,
        reserved: Iterable[str] = (),
        on_change: Callable[[], None] | None = None,
        backoff_s: float = 0.5,
        patience_s: float = 5.0,
    ) -> None:
        self._reserved = dict.fromkeys(reserved, "built-in")
        self._on_change = on_change
        self._servers = {
            name: _Server(name, config, self._changed, backoff_s, patience_s)
            for name, config in servers.items()
        }

    async def start(self) -> None:
        """Begin to connect every server, in the background."""
        for server in self._servers.values():
            server.start()

    async def ready(self, timeout_s: float) -> bool:
        """Wait until every server has been connected once; whether that happened in time."""
        try:
            async with asyncio.timeout(timeout_s):
                for server in self._servers.values():
                    await server.listed.wait()
        except TimeoutError:
            return False
        return True

    async def tried(self, timeout_s: float, servers: Iterable[str] | None = None) -> dict[str, str]:
        """Wait until each of these servers was reached or has failed once, or the time is over.

        Args:
            servers: their names; all if not given.

        Returns:
            Why one can't be used now, by its name.
        """
        chosen = [self._servers[name] for name in (self._servers if servers is None else servers)]
        waits = [asyncio.ensure_future(server.tried.wait()) for server in chosen]
        if waits:
            await asyncio.wait(waits, timeout=timeout_s)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return {s.name: s.reason or "it does not answer" for s in chosen if s.state != "ready"}

    def bringing(self, names: Iterable[str]) -> list[str]:
        """The servers whose tools may be among these names, which may be patterns."""
        found = []
        for server in self._servers:
            prefix = mcp_tool_names(server, [""])[""]
            starts = [re.split(r"[*?[]", name, maxsplit=1) for name in names]
            if any(head.startswith(prefix) or (tail and prefix.startswith(head)) for head, *tail in starts):
                found.append(server)
        return found

    def tools(self) -> list[Tool]:
        """The tools of all servers that were reached so far, under ``<server>_<tool>``."""
        tools: list[Tool] = []
        taken = dict(self._reserved)
        for server in self._servers.values():
            for tool in server.tools:
                if tool.name in taken:  # servers "a" and "a_b" can make the same name
                    server.warn_clash(tool.name, taken[tool.name])
                    continue
                taken[tool.name] = tool.source
                tools.append(tool)
        return tools

    def states(self) -> dict[str, tuple[McpState, str]]:
        """How each server stands, and why it is not ready."""
        return {name: (server.state, server.reason) for name, server in self._servers.items()}

    async def aclose(self) -> None:
        """Stop every server."""
        await asyncio.gather(*(server.stop() for server in self._servers.values()))

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()


class _Server:
    """One server, its owner task and its tools."""

    def __init__(
        self, name: str, config: McpServer, changed: Callable[[], None], backoff_s: float, patience_s: float
    ) -> None:
        self.name = name
        self.config = config
        self.tools: list[Tool] = []
        self.state: McpState = "connecting"
        self.reason = ""
        self.listed = asyncio.Event()  # the tools are known
        self.tried = asyncio.Event()  # they are, or the first attempt has failed
        self._changed = changed
        self._backoff_s = backoff_s
        self._patience_s = patience_s
        self._client: mcp.Client | None = None
        self._up = asyncio.Event()
        self._wake = asyncio.Event()  # the owner has something to look at: one of the three below
        self._lost = self._stale = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._clashes: set[str] = set()
        self._notes = self._lines = 0
        self._log = get_logger(mcp_server=name)

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._own(), name=f"mcp {self.name}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping.set()
        self._wake.set()
        if self._client is None:  # connecting, or between two tries
            task.cancel()
        _, late = await asyncio.wait([task], timeout=_CLOSE_S)
        if late:
            task.cancel()
            await asyncio.wait([task], timeout=_CLOSE_S)

    def warn_clash(self, tool: str, other: str) -> None:
        """Say once that a tool is left out because another server's has its name."""
        if tool not in self._clashes:
            self._clashes.add(tool)
            self._log.warning("mcp tool left out", tool=tool, taken_by=other)

    # --- the owner ---------------------------------------------------------------------------------------

    async def _own(self) -> None:
        failures = 0
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            began = clock()
            try:
                await self._connection()
                why = "the connection was lost"
            except ImportError as e:
                self._set("unusable", _HINT)
                self._log.error("mcp server unusable", reason=_HINT, missing=e.name)
                return
            except Exception as e:  # noqa: BLE001 - one server's failure ends neither the others nor us
                why = reason_of(e)
            if self._stopping.is_set():
                return
            failures = 1 if clock() - began > _STEADY_S else failures + 1
            delay = min(_MAX_BACKOFF_S, self._backoff_s * 2 ** (failures - 1)) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            self._set("restarting", why)
            self._log.warning("mcp server lost", reason=why, failures=failures, retry_in_s=round(delay, 2))
            await asyncio.sleep(delay)

    def _set(self, state: McpState, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self.tried.set()
        if state == "ready":
            self._up.set()
        else:
            self._up.clear()

    async def _connection(self) -> None:
        """Connect, and stay until the connection is lost or we are stopped."""
        await asyncio.to_thread(importlib.import_module, "mcp")  # takes a second: not on the loop
        import mcp

        self._lost = self._stale = False
        self._notes = self._lines = 0
        async with AsyncExitStack() as stack:
            deadline = await stack.enter_async_context(asyncio.timeout(_CONNECT_S))
            transport = await self._transport(stack)
            client = mcp.Client(
                readable(transport, self._on_lost, self._note),
                raise_exceptions=False,
                message_handler=self._on_message,
            )
            await stack.enter_async_context(client)
            await self._list(client)
            deadline.reschedule(None)
            self._client = client
            self._set("ready")
            self._log.info("mcp server ready", tools=len(self.tools))
            try:
                await self._watch(client)
            finally:
                self._client = None
                self._up.clear()

    async def _watch(self, client: mcp.Client) -> None:
        while not (self._lost or self._stopping.is_set()):
            self._wake.clear()
            if self._stale:
                self._stale = False
                async with asyncio.timeout(_CONNECT_S):
                    await self._list(client)
                continue
            await self._wake.wait()

    def _on_lost(self) -> None:
        self._lost = True
        self._wake.set()

    async def _on_message(self, message: object) -> None:
        import mcp_types

        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._stale = True
            self._wake.set()

    async def _list(self, client: mcp.Client) -> None:
        found: list[mcp_types.Tool] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor, cache_mode="bypass")
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        wanted = self.config.tools
        if missing := set(wanted) - {t.name for t in found}:
            self._log.warning("mcp server lacks configured tools", missing=sorted(missing))
        found = [t for t in self._once(found) if not wanted or t.name in wanted]
        names = mcp_tool_names(self.name, [t.name for t in found])
        self.tools = list(filter(None, (self._usable(names[t.name], t) for t in found)))
        self.listed.set()
        self._changed()

    def _once(self, tools: list[mcp_types.Tool]) -> list[mcp_types.Tool]:
        """Each name once: a server that lists one twice can only be called by it."""
        by_name: dict[str, mcp_types.Tool] = {}
        for tool in tools:
            if by_name.setdefault(tool.name, tool) is not tool:
                self._note("mcp tool listed twice", tool=tool.name)
        return list(by_name.values())

    # --- how it is reached -------------------------------------------------------------------------------

    async def _transport(self, stack: AsyncExitStack) -> Transport:
        config = self.config
        for secret in written_secrets(config):
            register_secret(secret)
        if config.url and not config.command:
            from mcp.client.streamable_http import streamable_http_client
            from mcp.shared._httpx_utils import create_mcp_http_client

            headers = {header: self._secret(name) for header, name in config.headers_env.items()}
            http = await stack.enter_async_context(create_mcp_http_client(headers=headers))
            return streamable_http_client(config.url, http_client=http)
        if (problem := await asyncio.to_thread(mcp_problem, config)) is not None:
            raise Unconfigured(problem)
        env = dict(config.env) | {name: self._secret(name) for name in config.env_from}
        return stdio(config, env, note=self._note, says=self._says)

    def _note(self, event: str, **members: Any) -> None:
        """Something of what the server sent could not be used as it is. Said so often, and no more."""
        self._notes += 1
        if self._notes <= _NOTES_PER_CONNECTION:
            self._log.warning(event, **members)
        elif self._notes == _NOTES_PER_CONNECTION + 1:
            self._log.warning("mcp server sends more that can't be read", said=_NOTES_PER_CONNECTION)

    def _says(self, line: str) -> None:
        self._lines += 1
        if self._lines <= _STDERR_LINES_PER_CONNECTION:
            self._log.debug("mcp server says", line=line)

    def _secret(self, name: str) -> str:
        value = os.environ.get(name)
        if value is None:
            raise Unconfigured(f"the environment variable {name} is not set")
        register_secret(value)
        return value

    # --- its tools ---------------------------------------------------------------------------------------

    def _usable(self, name: str, tool: mcp_types.Tool) -> Tool | None:
        """The tool, or ``None`` for one whose schema is none: the server's others are as good as ever."""
        try:
            return self._tool(name, tool)
        except Exception as e:  # noqa: BLE001 - one odd tool costs none of the others
            self._log.warning("mcp tool left out", tool=tool.name, reason=str(e)[:300])
            return None

    def _tool(self, name: str, tool: mcp_types.Tool) -> Tool:
        schema = dict(tool.input_schema) or {"type": "object", "properties": {}}
        hints = tool.annotations

        async def handler(arguments: dict[str, Any], ctx: ToolContext) -> ToolOutput:
            return await self._call(tool.name, arguments, ctx)

        return Tool(
            name=name,
            description=tool.description or tool.title or tool.name,
            parameters=schema,
            validate=schema_validator(schema),
            handler=handler,
            timeout_s=self.config.timeout_s,
            approval=self.config.approval,
            # A server's own hint only counts where the user trusts it: it is what a crash may run again.
            idempotent=self.config.idempotent,
            source=f"mcp:{self.name}",
            meta={"mcp_tool": tool.name, "read_only": bool(hints and hints.read_only_hint)},
        )

    async def _call(self, tool: str, arguments: dict[str, Any], ctx: ToolContext) -> ToolOutput:
        import mcp_types
        from mcp.shared.exceptions import MCPError

        client = await self._connected()

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            fraction = min(1.0, max(0.0, progress / total)) if total else None
            await ctx.progress(message or None, fraction)

        try:
            result = await client.call_tool(tool, arguments, progress_callback=on_progress)
        except MCPError as e:
            # servers use this code for reasons of their own, too
            closed = e.code == mcp_types.CONNECTION_CLOSED and (self.config.url or e.message == _CLOSED)
            if self._lost or closed:
                self._on_lost()
                raise ToolProblem(
                    f"The tool server {self.name!r} went away while it worked on this call. It is being"
                    " restarted; try again in a moment, or go on without it."
                ) from e
            raise ToolProblem(f"The tool server {self.name!r} refused the call: {e.message}") from e
        except (ValidationError, RuntimeError):
            raise ToolProblem(
                f"The tool server {self.name!r} answered with what is no result of a tool."
            ) from None
        return to_output(result)

    async def _connected(self) -> mcp.Client:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._up.wait()
        except TimeoutError:
            pass
        if self._client is None:
            detail = f" ({self.reason})" if self.reason else ""
            raise ToolProblem(
                f"The tool server {self.name!r} is {self.state}{detail}. Try again in a moment, or go on"
                " without it."
            )
        return self._client

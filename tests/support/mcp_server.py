"""A small MCP server for the tests, run as a child process: ``python mcp_server.py stdio|http FILE``.

FILE is where it writes what the tests can't see otherwise: its port and the calls that were cancelled.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("test-server", log_level="ERROR")
notes = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(os.devnull)


def note(line: str) -> None:
    with notes.open("a") as file:
        file.write(line + "\n")


@server.tool()
def add(a: int, b: int) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": a + b}


@server.tool()
async def count(n: int, ctx: Context[Any, Any]) -> str:
    """Count up to n, reporting each step."""
    for i in range(n):
        await ctx.report_progress(i + 1, n, f"step {i + 1}")
    return f"counted to {n}"


@server.tool()
async def hang(ctx: Context[Any, Any]) -> str:
    """Wait for ever."""
    await ctx.report_progress(0, None, "hanging")
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        note("cancelled")
        raise
    return "never"


@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("out of paper")


@server.tool()
def die() -> str:
    """End the server at once."""
    os._exit(3)


@server.tool()
def environment() -> list[str]:
    """Names of the environment variables that the server was given."""
    return sorted(os.environ)


@server.tool()
def picture() -> Image:
    """A picture."""
    return Image(data=b"\x89PNG", format="png")


def main() -> None:
    if sys.argv[1] == "stdio":
        sys.stderr.write("test server says hello\n")
        sys.stderr.flush()
        server.run("stdio")
        return
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[3]) if len(sys.argv) > 3 else 0))
    note(f"port {listener.getsockname()[1]}")
    app = server.streamable_http_app(host="127.0.0.1")
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()

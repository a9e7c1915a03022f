"""Between the MCP SDK and us: knowing when a connection has ended, and why one could not be made."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from mux.settings import McpServer

if TYPE_CHECKING:
    from mcp.client._transport import Transport, TransportStreams

__all__ = ["Unconfigured", "alone", "watched", "why", "written_secrets"]

# names of values that are secret; others ("production", "en") are words that a log may hold
_SECRET = re.compile(r"key|token|secret|passw|auth|credential", re.IGNORECASE)


class Unconfigured(Exception):
    """The configuration can't work as it is; tried again, since an environment may be mended."""


def why(error: BaseException) -> str:
    """The first cause inside the SDK's exception groups, in words without an upstream's own."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, FileNotFoundError):
        return f"there is no program {error.filename!r}" if error.filename else "its program was not found"
    if isinstance(error, Unconfigured):
        return str(error)
    return f"it could not be reached ({type(error).__name__})"


def alone(command: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The command, started without what the SDK would let it inherit of our environment but PATH.

    HOME and USER say who runs this server and where their secrets are. A server that needs them is given
    them by ``env_from = ["HOME"]``. Only names stand on the command line, never values. Looks at the disk.
    """
    from mcp.client.stdio import DEFAULT_INHERITED_ENV_VARS

    env_program = shutil.which("env") if os.name == "posix" else None
    if env_program is None or "=" in command[0]:  # Windows can't run programs without its own variables
        return list(command)
    drop = [name for name in DEFAULT_INHERITED_ENV_VARS if name != "PATH" and name not in env]
    if os.sep not in command[0] and shutil.which(command[0], path=env.get("PATH")) is None:
        return list(command)  # so that the error names this program, and not `env`
    return [env_program, *(part for name in drop for part in ("-u", name)), *command]


def written_secrets(server: McpServer) -> Iterator[str]:
    """What of a server's settings must not get into a log: they may stand there by value."""
    yield from (value for name, value in server.env.items() if _SECRET.search(name))
    address = urlsplit(server.url or "")
    if address.password:
        yield address.password
    yield from (value for name, value in parse_qsl(address.query) if _SECRET.search(name))


class _WatchedRead:
    """A read stream that says when it has ended."""

    def __init__(self, stream: Any, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> _WatchedRead:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._ended()
            raise

    async def __aenter__(self) -> _WatchedRead:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        closed: bool | None = await self._stream.__aexit__(*exc)
        return closed


@asynccontextmanager
async def watched(transport: Transport, ended: Callable[[], None]) -> AsyncIterator[TransportStreams]:
    """The transport, which calls ``ended`` when the server has closed its side."""
    async with transport as (read, write):
        reading: Any = _WatchedRead(read, ended)
        yield reading, write

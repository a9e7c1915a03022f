"""Between the MCP SDK and us: a command as a server, messages made readable, and why one can't be reached.

What a server says is mended message by message before the SDK validates it as a whole: one tool with an odd
annotation, one block of a kind that nobody knows, half an emoji or a line of a log must not cost the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mux.errors import MuxError
from mux.process import Program, running
from mux.settings import McpServer
from mux.telemetry import secrets_in
from mux.tools.mcp_values import mended
from mux.tools.results import clean_text

if TYPE_CHECKING:
    from mcp.client._transport import Transport, TransportStreams
    from mcp.shared.message import SessionMessage

__all__ = ["Unconfigured", "mcp_problem", "readable", "stdio", "why", "written_secrets"]

Note = Callable[..., None]  # an event and its members, for the log

_ID = re.compile(r'"id"\s{0,9}:\s{0,9}([0-9]{1,15}|"[^"\\]{1,99}")', re.ASCII)
_SHOWN = 300  # characters of a line that is no message


class Unconfigured(Exception):
    """The configuration can't work as it is; tried again, since an environment may be mended."""


def why(error: BaseException) -> str:
    """The first cause inside the SDK's exception groups, in words without an upstream's own."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, Unconfigured):
        return str(error)
    if isinstance(error, MuxError):
        return error.message
    return f"it could not be reached ({type(error).__name__})"


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


def written_secrets(server: McpServer) -> Iterator[str]:
    """What of a server's settings must not get into a log: they may stand there by value."""
    for name, value in server.env.items():
        yield from secrets_in(name, value)
    option = ""
    for argument in server.command or ():
        name, equals, value = argument.partition("=")
        yield from secrets_in(name, value) if equals else secrets_in(option, argument)
        option = argument if argument.startswith("-") and not equals else ""
    yield from secrets_in("", server.url or "")


# --- a command as a server ----------------------------------------------------------------------------------


@asynccontextmanager
async def stdio(
    server: McpServer, env: Mapping[str, str], *, note: Note, says: Callable[[str], None]
) -> AsyncIterator[TransportStreams]:
    """A transport to a server that is a command: JSON-RPC, a message a line.

    It sees of our environment what ``env`` names and PATH: HOME and USER would say who runs it and where
    secrets are. Its process group goes with the connection, and with this process however that ends.

    Args:
        note: told what could not be read.
        says: told each line that it writes to stderr.
    """
    import anyio
    from mcp.shared.message import SessionMessage

    incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)

    async def read_messages(program: Program) -> None:
        async with incoming:
            with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                async for line in program.lines():
                    if (message := _message(line, note)) is not None:
                        await incoming.send(message)

    async def write_messages(program: Program) -> None:
        with suppress(OSError):  # it has ended, which its reader tells
            async for message in outgoing:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await program.write(clean_text(text).encode() + b"\n")

    async with (
        read, write, incoming, outgoing,
        running(
            server.command,
            cwd=Path(server.cwd or "."),
            env={"PATH": os.environ.get("PATH", os.defpath), **env},
            on_error=_by_line(says),
        ) as program,
        anyio.create_task_group() as group,
    ):  # fmt: skip
        group.start_soon(read_messages, program)
        group.start_soon(write_messages, program)
        try:
            yield read, write
        finally:
            group.cancel_scope.cancel()


def _by_line(says: Callable[[str], None]) -> Callable[[bytes], None]:
    """Lines, as far as chunks hold whole ones: a line may be longer than any limit."""

    def take(chunk: bytes) -> None:
        for line in chunk.decode(errors="replace").splitlines():
            if line.strip():
                says(line[:500])

    return take


def _message(line: str, note: Note) -> SessionMessage | None:
    """A line as a message; ``None`` for what is none, such as a line of a log.

    Half a surrogate pair is U+FFFD. An answer that can't be read fails the call that it answers, at once.
    """
    import mcp_types as types
    from mcp.shared.message import SessionMessage

    if not line.strip():
        return None
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(line)
        value = json.loads(clean_text(json.dumps(value, ensure_ascii=False)))
    if isinstance(value, dict) and "jsonrpc" in value:
        with suppress(ValueError):
            return SessionMessage(types.jsonrpc_message_adapter.validate_python(value, by_name=False))
    identity = value.get("id") if isinstance(value, dict) else _identity(line)
    if isinstance(identity, int | str) and not isinstance(identity, bool):
        note("mcp server sent an answer that can't be read", line=line[:_SHOWN])
        error = types.ErrorData(code=types.PARSE_ERROR, message="its answer could not be read")
        return SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=identity, error=error))
    note("mcp server printed what is no message", line=line[:_SHOWN])
    return None


def _identity(line: str) -> int | str | None:
    """The id of an answer that is no JSON, if it looks like one."""
    if '"jsonrpc"' not in line or '"method"' in line or (match := _ID.search(line)) is None:
        return None
    identity: int | str = json.loads(match[1])
    return identity


# --- any transport ------------------------------------------------------------------------------------------


class _Read:
    """A read stream whose answers are mended, and that says when it has ended."""

    def __init__(self, stream: Any, ended: Callable[[], None], note: Note) -> None:
        self._stream = stream
        self._ended = ended
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> _Read:
        return self

    async def __anext__(self) -> Any:
        try:
            message = await self._stream.__anext__()
        except StopAsyncIteration:
            self._ended()
            raise
        inner: Any = getattr(message, "message", None)
        if isinstance(result := getattr(inner, "result", None), dict):
            inner.result = mended(result, self._note)
        return message

    async def __aenter__(self) -> _Read:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        closed: bool | None = await self._stream.__aexit__(*exc)
        return closed


@asynccontextmanager
async def readable(
    transport: Transport, ended: Callable[[], None], note: Note
) -> AsyncIterator[TransportStreams]:
    """The transport with its answers mended, which calls ``ended`` when the server has closed its side."""
    async with transport as (read, write):
        reading: Any = _Read(read, ended, note)
        yield reading, write

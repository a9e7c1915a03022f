"""The bytes of a provider's answer, told of in the turn of the event loop in which the socket had them.

Live, a chunk comes alone, and waking a task for it costs more than all the rest of its way. So while one
answer is read, a protocol of ours stands before the SDK's transport, and after each read of the socket says
that something arrived; whoever reads takes it from aiohttp's buffer at once. Bytes that nobody takes stay in
that buffer, which pauses the transport when it is full: that is the back-pressure.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeAlias

__all__ = ["Arrivals", "Read", "arrivals", "drain"]

Read: TypeAlias = Callable[[], Awaitable[bytes]]  # the next bytes; b"" at the end

DRAIN_S: Final = 0.05  # how long to wait for the end after [DONE], so that the connection can be used again


class Arrivals(asyncio.Protocol):
    """One body, while it is listened to (``with``).

    Args:
        content: aiohttp's ``StreamReader`` of the body, which is as known (see `_as_known`).
    """

    def __init__(self, content: Any) -> None:
        self._content = content
        self._inner: Any = content._protocol
        self._arrived: Callable[[], object] = _nothing
        self._transport: Any = None

    def listen(self, arrived: Callable[[], object]) -> Self:
        """Have this called whenever there is something to take, or the end."""
        self._arrived = arrived
        self._transport = self._inner.transport
        if self._transport is not None:  # else all of it is here
            self._transport.set_protocol(self)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._arrived = _nothing
        if self._transport is not None:
            self._transport.set_protocol(self._inner)
            self._transport = None

    def take(self) -> bytes:
        """All that is there; ``b""`` if nothing is. Raises what broke the connection, after what came."""
        content = self._content
        if not content._buffer:
            if content._exception is not None:
                raise content._exception
            return b""
        return _buffered(content)

    async def read(self) -> bytes:
        """Wait for what comes next; ``b""`` at the end. Nobody is told of arrivals any more."""
        while not (data := self.take()) and not self.ended:
            came = asyncio.Event()
            self._arrived = came.set
            await came.wait()
        return data

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        return bool(self._content._eof) and not self._content._buffer

    # --- the transport's side -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)
        self._arrived()

    def eof_received(self) -> bool | None:
        keep: bool | None = self._inner.eof_received()
        return keep

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._inner.connection_lost(exc)
        self._arrived()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _nothing() -> None:
    """Nobody listens."""


def _buffered(content: Any) -> bytes:
    """All that is buffered. Leaves the reader as its own ``read_nowait`` does (see `_as_known`), which takes
    one chunk of HTTP's coding after the other, and after each runs the parser over nothing: an eighth of what
    a chunk costs where many come in one read."""
    buffer, splits = content._buffer, content._http_chunk_splits
    data: bytes = buffer[0] if len(buffer) == 1 else b"".join(buffer)
    buffer.clear()
    content._size = 0
    content._cursor += len(data)
    if splits:
        last = splits[-1]
        splits.clear()
        if last == content._cursor:
            splits.append(last)  # by it an empty chunk is told
    if content._protocol._reading_paused:
        content._protocol.resume_reading()
    return data


def arrivals(stream: object) -> Arrivals | Read | None:
    """The body of an answer of the SDK's client. Where the transport's buffer is another than known (a test
    notices), its own ``readany``; ``None`` where there is none, or half a chunk is read already: then the
    public way is taken.
    """
    content: Any = stream
    for name in ("_stream", "_aiohttp_response", "content"):
        content = getattr(content, name, None)
    protocol: Any = type(getattr(content, "_protocol", None))
    if not _as_known(protocol):
        read: Read | None = getattr(content, "readany", None)
        return read
    return None if content._buffer_offset else Arrivals(content)


_HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_READS: Final = (b"1\r\na\r\n2\r\nbc\r\n3\r\nd", b"ef\r\n1\r\ng\r\n5\r\nhi", b"jkl\r\n")


@functools.cache
def _as_known(protocol: Any) -> bool:
    """Whether the transport is the one that `_buffered` knows: fed an answer in whole and half chunks, and so
    much of it that it pauses, it is afterwards in the same state whether we or its reader take what it holds.
    """
    loop = asyncio.get_running_loop()
    states: list[list[Any]] = []
    try:
        for take in (_buffered, lambda content: content.read_nowait()):
            connection = protocol(loop)
            connection.set_response_params(read_bufsize=1)
            connection.data_received(_HEAD)
            content = connection._payload
            seen = [content._exception, content._eof, callable(connection.connection_lost)]
            for data in _READS:
                connection.data_received(data)
                seen += [connection._reading_paused, take(content), connection._reading_paused]
                own = ("_protocol", "_timer", "_loop", "_eof_callbacks")
                seen += [repr(getattr(content, name)) for name in type(content).__slots__ if name not in own]
            connection.data_received(b"0\r\n\r\n")
            states.append([*seen, content._eof])
    except Exception:  # noqa: BLE001 - whatever is missing or otherwise there: it is not as known
        return False
    return states[0] == states[1] and states[0][:4] == [None, False, True, True]


async def drain(body: Arrivals | Read) -> None:
    """Read to the end of the answer, if it is near: a connection can only be used again after that."""
    read = body.read if isinstance(body, Arrivals) else body
    with contextlib.suppress(Exception):  # the turn is over: how its connection ends changes nothing
        async with asyncio.timeout(DRAIN_S):
            while await read():
                pass

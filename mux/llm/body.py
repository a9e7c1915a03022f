"""The bytes of a provider's answer, taken from the buffer of the SDK's transport."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

__all__ = ["Read", "direct_reader", "drain"]

Read: TypeAlias = Callable[[], Awaitable[bytes]]  # the next bytes; b"" at the end

DRAIN_S: Final = 0.05  # how long to wait for the end after [DONE], so that the connection can be used again


class _Direct:
    """Takes all that aiohttp's ``StreamReader`` holds at once.

    Its own ``readany`` takes one chunk of HTTP's coding after the other, and after each it resumes the
    transport and runs the parser over nothing: an eighth of what a chunk costs where many come in one read.
    """

    __slots__ = ("_content",)

    def __init__(self, content: Any) -> None:
        self._content = content

    async def read(self) -> bytes:
        content = self._content
        if content._exception is not None:
            raise content._exception
        while not content._buffer:
            if content._eof:
                return b""
            await content._wait("read")
        return _taken(content)


def _taken(content: Any) -> bytes:
    """All that is buffered. Leaves the reader as its own ``read_nowait`` does (see `_as_known`)."""
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


def direct_reader(stream: object) -> Read | None:
    """What reads the transport's buffer, without the four generators that the SDK's client puts around it:
    they cost a third of the CPU of a chunk that comes alone. Where the buffer is another than known (a test
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
    return None if content._buffer_offset else _Direct(content).read


_HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_READS: Final = (b"1\r\na\r\n2\r\nbc\r\n3\r\nd", b"ef\r\n1\r\ng\r\n5\r\nhi", b"jkl\r\n")


@functools.cache
def _as_known(protocol: Any) -> bool:
    """Whether the transport is the one that `_Direct` knows: fed an answer in whole and half chunks, and so
    much of it that it pauses, it is afterwards in the same state whether we or its reader take what it holds.
    """
    loop = asyncio.get_running_loop()
    told: list[list[Any]] = []
    try:
        for take in (_taken, lambda content: content.read_nowait()):
            connection = protocol(loop)
            connection.set_response_params(read_bufsize=1)
            connection.data_received(_HEAD)
            content = connection._payload
            seen = [content._exception, content._eof, callable(content._wait)]
            for data in _READS:
                connection.data_received(data)
                seen += [connection._reading_paused, take(content), connection._reading_paused]
                own = ("_protocol", "_timer", "_loop", "_eof_callbacks")
                seen += [repr(getattr(content, name)) for name in type(content).__slots__ if name not in own]
            connection.data_received(b"0\r\n\r\n")
            told.append([*seen, content._eof])
    except Exception:  # noqa: BLE001 - whatever is missing or otherwise there: it is not as known
        return False
    return told[0] == told[1] and told[0][:4] == [None, False, True, True]


async def drain(read: Read) -> None:
    """Read to the end of the answer, if it is near: a connection can only be used again after that."""
    with contextlib.suppress(Exception):  # the turn is over: how its connection ends changes nothing
        async with asyncio.timeout(DRAIN_S):
            while await read():
                pass

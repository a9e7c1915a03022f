"""Taking the transport's buffer at once tells and leaves what aiohttp's own reader would."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.client_proto import ResponseHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from mux.llm.body import Arrivals, Read, arrivals

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    """Gives what it has piece by piece, and nothing while it is paused."""

    def __init__(self, protocol: asyncio.Protocol, pieces: list[bytes]) -> None:
        super().__init__()
        self._protocol = protocol
        self._pieces = pieces
        self.paused = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def give(self) -> bool:
        """One piece; ``False`` if there is none or nobody wants it."""
        if self.paused or not self._pieces:
            return False
        self._protocol.data_received(self._pieces.pop(0))
        return True

    def lose(self, error: Exception) -> None:
        """The connection is lost."""
        self._protocol.connection_lost(error)

    def close(self) -> None:
        self._pieces.clear()


def opened(pieces: list[bytes], *, limit: int = 2**16) -> tuple[Any, Transport]:
    """An answer of which the head is read, as the SDK's stream has it; and its transport."""
    protocol = ResponseHandler(asyncio.get_running_loop())
    transport = Transport(protocol, pieces)
    protocol.connection_made(transport)
    protocol.set_response_params(read_bufsize=limit)
    protocol.data_received(HEAD)
    return protocol._payload, transport


def body(content: Any) -> Arrivals | Read | None:
    """The body of this answer, as the SDK's stream has it."""
    return arrivals(
        SimpleNamespace(_stream=SimpleNamespace(_aiohttp_response=SimpleNamespace(content=content)))
    )


def direct(content: Any) -> Read:
    """Its reader, while it is listened to."""
    found = body(content)
    assert isinstance(found, Arrivals), "aiohttp's reader has changed: see mux.llm.body"
    return found.listen(lambda: None).read


async def read_all(read: Read, transport: Transport, bursts: list[int]) -> bytes:
    """The body, read after so many pieces at a time."""
    got = b""
    for at in range(100_000):
        for _ in range(bursts[at % len(bursts)]):
            transport.give()
        task = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        while not task.done():
            assert transport.give(), "the transport stays paused though all was read"
            await asyncio.sleep(0)
        if not task.result():
            return got
        got += task.result()
    raise AssertionError("the body has no end")


def framed(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


async def test_who_listens_is_told_in_the_turn_in_which_the_bytes_came() -> None:
    content, transport = opened([framed([b"abc"])])
    found = body(content)
    assert isinstance(found, Arrivals)
    came: list[bytes] = []
    with found.listen(lambda: came.append(found.take())):
        transport.give()
        assert came == [b"abc"]
    assert found.ended


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=12),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from([1, 3, 2**16]),
)
async def test_every_byte_comes_once_however_it_is_cut_and_paused(
    chunks: list[bytes], cuts: list[int], bursts: list[int], limit: int
) -> None:
    data = framed(chunks)
    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(data[at : at + size])
        at += size
    content, transport = opened(pieces, limit=limit)
    assert await read_all(direct(content), transport, bursts) == b"".join(chunks)
    assert content.at_eof()
    assert not transport.paused


async def test_so_many_chunks_that_the_transport_pauses_are_all_read() -> None:
    chunks = [b"%d," % i for i in range(20_000)]  # more than aiohttp holds, by their number
    data = framed(chunks)
    content, transport = opened([data[i : i + 65_536] for i in range(0, len(data), 65_536)])
    assert transport.give()
    assert transport.paused
    assert await read_all(direct(content), transport, [1]) == b"".join(chunks)


async def test_a_connection_that_is_lost_is_told_to_who_waits_and_to_who_comes_later() -> None:
    content, transport = opened([])
    read = direct(content)
    task = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    transport.lose(ConnectionResetError())
    with pytest.raises(ClientPayloadError):
        await task
    with pytest.raises(ClientPayloadError):
        await read()


async def test_a_reader_that_was_begun_by_somebody_else_is_left_to_the_public_way() -> None:
    content, transport = opened([framed([b"abc"])])
    assert transport.give()
    assert await content.read(1) == b"a"
    assert body(content) is None


async def test_a_reader_that_behaves_otherwise_is_asked_by_its_public_method() -> None:
    class Other(ResponseHandler):
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._payload is not None:
                self._payload._cursor = 0  # counts otherwise than the reader that is known

    protocol = Other(asyncio.get_running_loop())
    protocol.set_response_params()
    protocol.data_received(HEAD + framed([b"abc"]))
    content: Any = protocol._payload
    read = body(content)
    assert read == content.readany
    assert await content.readany() == b"abc"

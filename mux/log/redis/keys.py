"""Keys in Redis; see `mux.log.protocols.KeyStore`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from mux.clock import now_ms
from mux.log.redis.link import Link

__all__ = ["RedisKeys"]

_PREFIX = "mux:{keys}:"


class RedisKeys:
    """All of them are in one slot of their own.

    Args:
        writes, reads: the store's links.
    """

    def __init__(self, writes: Link, reads: Link) -> None:
        self._writes = writes
        self._reads = reads

    async def put(self, kind: str, name: str, data: bytes, *, expires: int | None = None) -> None:
        end = "" if expires is None else expires
        await self._writes.call("key_put", _PREFIX + "all", kind, name, data, end, now_ms())

    async def get(self, kind: str, name: str) -> bytes | None:
        data = await self._reads.command("HGET", _PREFIX + kind, name)
        return bytes(data) if data is not None else None

    async def all(self, kind: str) -> Sequence[bytes]:
        found = await self._reads.command("HVALS", _PREFIX + kind)
        return [bytes(data) for data in found]

    async def pop(self, kind: str, name: str) -> bytes | None:
        (_, data) = await self._writes.call("key_pop", _PREFIX + "all", kind, name, secrets.token_hex(8))
        return bytes(data) if data is not None else None

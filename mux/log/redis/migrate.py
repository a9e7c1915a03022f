"""From the format of Mux 0.1 (one server a database, all keys in one slot) to this one's.

Old keys begin with ``mux:{mux}:``. Each run is copied whole before its old keys go, and copying it again does
no harm; so a migration that was cut is gone on with by the next server.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from mux.errors import StoreError
from mux.log.redis.link import Link
from mux.log.redis.rows import INDEX, places_of, row_of
from mux.log.redis.scripts import FIELDS, run_key
from mux.log.redis.url import Target
from mux.telemetry import get_logger

__all__ = ["migrate"]

_OLD = "mux:{mux}:"
_LOCK = "mux:{runs}:migrating"
_LOCK_S = 60
_WAIT_S = 0.2
_BLOCK = 200


async def migrate(link: Link, target: Target) -> None:
    """Bring an old database into today's format; returns at once where there is none.

    Raises:
        StoreError: ``store_locked``: a server of Mux 0.1 uses the database.
    """
    token = secrets.token_hex(8)
    while await link.command("EXISTS", _OLD + "meta"):
        holder = await link.command("HGET", _OLD + "lease", "info")
        if holder is not None:
            url = json.loads(holder).get("url")
            raise StoreError(
                "store_locked",
                f"A server of Mux 0.1{f' at {url}' if url else ''} uses {target.shown}. Stop it first: its "
                "runs are then brought into the new format.",
                retryable=False,
            )
        if await link.command("SET", _LOCK, token, "NX", "EX", _LOCK_S):
            try:
                await _move(link, target)
            finally:
                await link.command("DEL", _LOCK)
        else:
            await asyncio.sleep(_WAIT_S)


async def _move(link: Link, target: Target) -> None:
    moved = 0
    while members := await link.command("ZRANGE", _OLD + "runs", 0, _BLOCK - 1):
        for member in members:
            await _move_run(link, member[17:].decode())
            await link.command("ZREM", _OLD + "runs", member)
            moved += 1
        await link.command("EXPIRE", _LOCK, _LOCK_S)
    highest = await link.command("HGET", _OLD + "meta", "number")
    known = await link.command("HGET", INDEX, "number")
    if highest is not None and int(highest) > int(known or 0):
        await link.command("HSET", INDEX, "number", highest)
    cursor: Any = 0
    while True:
        cursor, keys = await link.command("SCAN", cursor, "MATCH", _glob(_OLD) + "*", "COUNT", 500)
        for key in keys:
            if key != (_OLD + "meta").encode():
                await _move_other(link, key.decode())
        if int(cursor) == 0:
            break
    await link.command("DEL", _OLD + "meta")
    get_logger().info("store brought into the format of this version", store=target.shown, runs=moved)


async def _move_run(link: Link, run: str) -> None:
    new = run_key(run)
    if not await link.command("EXISTS", _OLD + "run:" + run):
        return
    for old, key in (
        (f"{_OLD}log:{run}", f"mux:{{{run}}}:log"),
        (f"{_OLD}text:{run}", f"mux:{{{run}}}:text"),
        (f"{_OLD}convs:{run}", f"mux:{{{run}}}:convs"),
        (f"{_OLD}run:{run}", new),
    ):
        await _copy(link, old, key)
    values = await link.command("HMGET", new, *FIELDS, "n")
    row = row_of(run, values[:-1])
    places = places_of(row)
    await link.call("index", INDEX, int(values[-1]), row.created, run, len(places), *places)
    for kind in ("run", "log", "text", "convs"):
        await link.command("UNLINK", f"{_OLD}{kind}:{run}")


async def _move_other(link: Link, old: str) -> None:
    kind, _, rest = old.removeprefix(_OLD).partition(":")
    new = {
        "conv": f"mux:{{c:{rest}}}:conv",
        "convz": f"mux:{{c:{rest}}}:order",
        "key": f"mux:{{k:{rest}}}:key",
    }.get(kind)
    if new is not None:
        await _copy(link, old, new)
        if kind == "key":
            await link.command("HSET", new, "made", 1)
    await link.command("UNLINK", old)


async def _copy(link: Link, old: str, new: str) -> None:
    """Slots may differ, so it goes through here."""
    data = await link.command("DUMP", old)
    if data is not None:
        left = await link.command("PTTL", old)
        await link.command("RESTORE", new, max(0, left), data, "REPLACE")


def _glob(text: str) -> str:
    return text.replace("{", "\\{").replace("}", "\\}")

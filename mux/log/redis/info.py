"""What a Redis says of itself: which process it is, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mux.errors import StoreError
from mux.log.protocols import StoreInfo
from mux.log.redis.link import Link
from mux.log.redis.url import Target

__all__ = ["Server", "ask_server", "durability"]

_OLDEST = (6, 2)  # XTRIM MINID


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis process.

    Attributes:
        process: its identity: another one after each start of it.
        sure: a restart of it loses nothing that it acknowledged.
        info: what that means for Mux.
    """

    process: str
    sure: bool
    info: StoreInfo


async def ask_server(link: Link, target: Target) -> Server:
    """Ask.

    Raises:
        StoreError: ``store_failed``: it is too old, or does not answer; ``store_readonly``: it is a replica.
    """
    told = _lines(await link.command("INFO"))
    version = told.get("redis_version", "0")
    if tuple(int(n) for n in version.split(".")[:2] if n.isdecimal()) < _OLDEST:
        raise StoreError(
            "store_failed", f"{target.shown} is Redis {version}; Mux needs 6.2 or newer.", retryable=False
        )
    if told.get("role") in ("slave", "replica"):
        raise StoreError(
            "store_readonly", f"{target.shown} is a replica. Use its master's address with --store.",
            retryable=False,
        )  # fmt: skip
    settings: dict[str, str] | None = {}
    for name in ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy"):
        try:
            answer = await link.command("CONFIG", "GET", name)
        except StoreError as e:
            if "does not answer" in e.message:
                raise
            settings = None  # hosted ones forbid or rename it
            break
        if answer and settings is not None:
            settings[name] = answer[1].decode()
    kept, note = durability(settings)
    # A replica that becomes the master may have less than it, whatever it syncs.
    sure = kept == "power" and told.get("connected_slaves", "0") == "0"
    return Server(told.get("run_id", ""), sure, StoreInfo(target.shown, kept, note))


def durability(settings: dict[str, str] | None) -> tuple[Any, str]:
    """What survives, for `StoreInfo`, and what to say about it. ``None``: Redis does not tell."""
    if not settings:
        return "process", "what a crash of Redis loses is unknown: CONFIG GET is forbidden"
    notes = []
    kept = "process"
    if settings.get("appendonly") == "yes":
        sync = settings.get("appendfsync")
        if sync == "always":
            kept = "power"
        elif sync == "everysec":
            notes.append("a crash of its machine may lose a second; appendfsync always loses nothing")
        else:
            notes.append("a crash of its machine may lose half a minute; appendfsync always loses nothing")
    elif settings.get("save"):
        notes.append(
            f"a crash of Redis loses what came after its last snapshot (save {settings['save']}); "
            "set appendonly yes"
        )
    else:
        notes.append("everything is lost when Redis stops; set appendonly yes")
    policy = settings.get("maxmemory-policy", "noeviction")
    if settings.get("maxmemory", "0") != "0" and policy != "noeviction":
        notes.append(f"it drops keys when its memory is full ({policy}); set maxmemory-policy noeviction")
    return kept, "; ".join(notes)


def _lines(answer: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in answer.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}

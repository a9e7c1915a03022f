"""What a Redis says of itself: which process it is, and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import exceptions as refusals

from mux.errors import StoreError
from mux.log.protocols import StoreInfo
from mux.log.redis.link import GONE, refusal
from mux.log.redis.url import Target

__all__ = ["Server", "ask_servers", "durability"]

_OLDEST = (6, 2)  # XTRIM MINID
_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")


@dataclass(frozen=True, slots=True)
class Server:
    """The Redis behind a URL: one process, or the masters of a cluster.

    Attributes:
        cluster: whether it is a cluster.
        processes: node → which process it is (another one after each start of it), and whether a restart of
            it loses nothing that it acknowledged.
        info: what that means for Mux.
    """

    cluster: bool
    processes: Mapping[str, tuple[str, bool]]
    info: StoreInfo


async def ask_servers(target: Target) -> Server:
    """Ask all there are.

    Raises:
        StoreError: ``store_failed``: it is too old, or does not answer; ``store_readonly``: it is a replica;
            ``store_unfit``: it drops keys when its memory is full.
    """
    client = target.client(cluster=False)
    try:
        first = await client.info()
        cluster = first.get("cluster_enabled") == 1
        if not cluster:
            nodes = {"": (first, await _settings(client))}
        else:
            nodes = await _ask_cluster(target)
    except (*GONE, refusals.RedisError) as e:
        raise refusal(e, target) from None
    finally:
        await client.aclose()
    for facts, settings in nodes.values():
        _check(target, facts, settings)
    promises = {name: durability(settings) for name, (_, settings) in nodes.items()}
    processes = {
        name: (
            str(facts.get("run_id", "")),
            # A replica that becomes the master may have less than it, whatever it syncs.
            promises[name][0] == "power" and not facts.get("connected_slaves"),
        )
        for name, (facts, _) in nodes.items()
    }
    weakest = min(promises.values(), key=lambda promise: promise[0] == "power")
    return Server(cluster, processes, StoreInfo(target.shown, *weakest))


async def _ask_cluster(target: Target) -> dict[str, tuple[Mapping[str, Any], dict[str, str] | None]]:
    client = target.client(cluster=True)
    try:
        await client.initialize()
        found = {}
        for node in client.get_primaries():
            facts = await client.info(target_nodes=node)
            found[node.name] = (facts, await _settings(client, target_nodes=node))
        return found
    finally:
        await client.aclose()


async def _settings(client: Any, **where: Any) -> dict[str, str] | None:
    try:
        found = {}
        for name in _SETTINGS:
            found.update(await client.config_get(name, **where))
    except refusals.ResponseError:  # hosted ones forbid or rename it
        return None
    return {_text(k): _text(v) for k, v in found.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check(target: Target, facts: Mapping[str, Any], settings: Mapping[str, str] | None) -> None:
    version = str(facts.get("redis_version", "0"))
    if tuple(int(n) for n in version.split(".")[:2] if n.isdecimal()) < _OLDEST:
        raise StoreError(
            "store_failed", f"{target.shown} is Redis {version}; Mux needs 6.2 or newer.", retryable=False
        )
    if facts.get("role") in ("slave", "replica"):
        raise StoreError(
            "store_readonly", f"{target.shown} is a replica. Use its master's address with --store.",
            retryable=False,
        )  # fmt: skip
    policy = (settings or {}).get("maxmemory-policy", "noeviction")
    if (settings or {}).get("maxmemory", "0") != "0" and policy != "noeviction":
        raise StoreError(
            "store_unfit",
            f"{target.shown} drops keys when its memory is full (maxmemory-policy {policy}), and so would "
            "lose parts of runs in silence. Set maxmemory-policy noeviction.",
            retryable=False,
        )


def durability(settings: Mapping[str, str] | None) -> tuple[Any, str]:
    """What survives, for `StoreInfo`, and what to say about it. ``None``: Redis does not tell."""
    if not settings:
        return "process", "what a crash of Redis loses is unknown: CONFIG GET is forbidden"
    if settings.get("appendonly") == "yes":
        sync = settings.get("appendfsync")
        if sync == "always":
            return "power", ""
        lost = "a second" if sync == "everysec" else "half a minute"
        return "process", f"a crash of its machine may lose {lost}; appendfsync always loses nothing"
    if settings.get("save"):
        return "process", (
            f"a crash of Redis loses what came after its last snapshot (save {settings['save']}); "
            "set appendonly yes"
        )
    return "process", "everything is lost when Redis stops; set appendonly yes"

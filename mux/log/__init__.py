"""The event log and the store of runs: protocols, backends, and the way from a URL to a backend."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, TypeGuard

from mux._paths import data_folder
from mux.errors import ConfigError
from mux.log.memory import MemoryStore
from mux.log.protocols import (
    EventLog,
    Head,
    Holder,
    Idempotency,
    KeyStore,
    Page,
    RunPage,
    RunQuery,
    RunRow,
    RunStore,
    Store,
    StoreInfo,
)
from mux.log.redis.url import SCHEMES, target_of
from mux.log.sqlite.backup import back_up, restore
from mux.log.sqlite.lock import read_holder
from mux.log.sqlite.store import SqliteStore

__all__ = [
    "EventLog",
    "Head",
    "Holder",
    "Idempotency",
    "KeyStore",
    "MemoryStore",
    "Page",
    "RunPage",
    "RunQuery",
    "RunRow",
    "RunStore",
    "SqliteStore",
    "Store",
    "StoreInfo",
    "back_up_store",
    "default_store_path",
    "open_keys",
    "open_store",
    "restore_store",
    "store_holder",
]


def open_store(
    url: str | None = None, *, durability: Literal["normal", "full"] = "normal", lease_s: float = 10.0
) -> Store:
    """The backend for a URL, not opened yet (`Store.open`).

    Args:
        url: ``memory:``, ``sqlite:PATH``, ``redis://HOST:PORT/DATABASE`` (or ``rediss:``, ``valkey:``,
            ``unix:``), or ``None`` for sqlite in the user's data directory.
        lease_s: how long the runs of a worker that does not answer stay its own (Redis).
        durability: what sqlite's acknowledgement means; see `mux.log.sqlite`.

    Raises:
        ConfigError: ``store_unknown``, ``extra_missing``.
    """
    if url is not None and url.rstrip("/") == "memory:":
        return MemoryStore()
    if _is_redis(url):
        from mux.log.redis.store import RedisStore

        return RedisStore(url, lease_s=lease_s)
    return SqliteStore(_sqlite_path(url), durability=durability)


@contextlib.asynccontextmanager
async def open_keys(url: str | None = None) -> AsyncIterator[KeyStore]:
    """The keys of a store, also while a server has it open.

    Args:
        url: as of `open_store`.

    Raises:
        ConfigError, StoreError: as `open_store` and `Store.open`.
    """
    store = open_store(url)
    if isinstance(store, SqliteStore):
        try:
            yield store.keys
        finally:
            await store.keys.close()
        return
    await store.open()
    try:
        yield store.keys
    finally:
        await store.close()


def back_up_store(url: str | None, to: Path) -> tuple[Path, int]:
    """Write the whole store to a file, also while a server uses it; the file and its bytes.

    Args:
        url: as of `open_store`.

    Raises:
        ConfigError: ``backup_unsupported``: not of this store.
        StoreError: ``store_failed``.
    """
    return to, back_up(_file_of(url), to)


def restore_store(url: str | None, file: Path) -> tuple[Path, int]:
    """Make a backup the store; its file and its bytes. Raises as `back_up_store`; ``store_locked``, too."""
    path = _file_of(url)
    return path, restore(file, path)


def _file_of(url: str | None) -> Path:
    if url is not None and url.rstrip("/") == "memory:":
        raise ConfigError("backup_unsupported", "Nothing of a store in memory can be kept.")
    if _is_redis(url):
        raise ConfigError(
            "backup_unsupported",
            "Redis and Valkey make their own backups: BGSAVE writes dump.rdb, and redis-cli --rdb FILE"
            " fetches it from another machine.",
        )
    return _sqlite_path(url)


def store_holder(url: str | None = None) -> Holder | None:
    """The server that uses this store now, as its lock names it; ``None`` if there is none.

    Raises:
        ConfigError: ``store_unknown``, ``extra_missing``.
    """
    if url is not None and url.rstrip("/") == "memory:":
        return None
    if _is_redis(url):
        from mux.log.redis.lease import live_servers

        return next((h for h in live_servers(target_of(url)) if h.url), None)
    return read_holder(_sqlite_path(url))


def _is_redis(url: str | None) -> TypeGuard[str]:
    """Whether it is a Redis URL. Raises ConfigError ``extra_missing`` before redis-py is imported."""
    if url is None or url.partition(":")[0] not in SCHEMES:
        return False
    target_of(url)
    return True


def _sqlite_path(url: str | None) -> Path:
    if url is None:
        return default_store_path()
    scheme, colon, rest = url.partition(":")
    if scheme != "sqlite" or not colon or not rest:
        raise ConfigError(
            "store_unknown",
            f"There is no store for {scheme + colon!r}. Use --store memory:, --store sqlite:PATH or "
            "--store redis://HOST:PORT/DATABASE.",
        )
    if rest.startswith("///"):  # sqlite:///absolute
        rest = rest[2:]
    return Path(rest).expanduser()


def default_store_path() -> Path:
    """``mux.db`` in the user's data folder."""
    return data_folder() / "mux.db"

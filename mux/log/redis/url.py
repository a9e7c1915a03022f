"""Where a Redis or Valkey is: its URL, without what is secret in it, and the way to connections."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mux.errors import ConfigError
from mux.telemetry import register_secret

__all__ = ["SCHEMES", "Target", "target_of"]

SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")
_AS_REDIS = {"valkey": "redis", "valkeys": "rediss"}
CONNECT_S = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """One database of one server.

    Attributes:
        shown: its URL for people: no name, no password, no options.
        options: arguments of redis-py's connections.
    """

    shown: str
    options: dict[str, Any] = field(repr=False)

    def connection(self) -> Any:
        """An asyncio connection, not connected yet. It never retries by itself: `Link` does."""
        from redis.asyncio.connection import Connection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        options = dict(self.options)
        kind = options.pop("connection_class", Connection)
        return kind(
            **options, protocol=2, driver_info=None, retry=Retry(NoBackoff(), 0), socket_timeout=None,
            socket_connect_timeout=CONNECT_S,
        )  # fmt: skip

    def client(self) -> Any:
        """A blocking client with one connection, for threads."""
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.connection import Connection, ConnectionPool, SSLConnection
        from redis.connection import UnixDomainSocketConnection as UnixConnection
        from redis.retry import Retry

        options = dict(self.options)
        name = getattr(options.pop("connection_class", Connection), "__name__", "")
        kinds = {k.__name__: k for k in (Connection, SSLConnection, UnixConnection)}
        pool = ConnectionPool(
            connection_class=kinds[name], max_connections=2, protocol=2, driver_info=None,
            retry=Retry(NoBackoff(), 0), socket_timeout=CONNECT_S, socket_connect_timeout=CONNECT_S,
            **options,
        )  # fmt: skip
        return Redis.from_pool(pool)


def target_of(url: str) -> Target:
    """Read a URL: ``redis://``, ``rediss://`` (TLS), ``valkey://``, ``valkeys://`` or ``unix://``.

    Raises:
        ConfigError: ``extra_missing``: redis-py is not installed; ``store_unknown``: no such URL.
    """
    if importlib.util.find_spec("redis") is None:
        raise ConfigError("extra_missing", "A Redis store needs redis-py: pip install 'mux-agents[redis]'")
    from redis.asyncio.connection import parse_url

    scheme, _, rest = url.partition(":")
    wrong = ConfigError(
        "store_unknown",
        f"This {scheme} URL can't be used. Write redis://HOST:PORT/DATABASE or unix:///PATH?db=DATABASE.",
    )
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = dict(parse_url(f"{_AS_REDIS.get(scheme, scheme)}:{rest}"))
        port = parts.port
    except ValueError:
        raise wrong from None  # its text may quote the password
    path = parts.path.strip("/")
    if not rest.startswith("//") or (scheme == "unix" and not path):
        raise wrong
    if scheme != "unix" and path and not path.isdecimal():
        raise wrong
    try:
        Target("", options).connection()
    except (TypeError, ValueError, ImportError):  # an option that no connection has
        raise wrong from None
    for secret in (parts.password, *parse_qs(parts.query).get("password", ())):
        register_secret(secret)
        register_secret(unquote(secret) if secret else None)
    database = options.get("db", 0)
    if scheme == "unix":
        return Target(f"unix://{options['path']}?db={database}", options)
    host = options.setdefault("host", "localhost")
    shown = f"[{host}]" if ":" in host else host
    return Target(f"{scheme}://{shown}:{port or 6379}/{database}", options)

"""Where a Redis or Valkey is: its URL, without what is secret in it, and the way to clients."""

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


@dataclass(frozen=True, slots=True)
class Target:
    """One database of one server, or a cluster that this server belongs to.

    Attributes:
        shown: its URL for people: no name, no password, no options.
        url: the whole URL, as redis-py reads it.
        database: its number.
    """

    shown: str
    url: str = field(repr=False)
    database: int

    def client(self, *, cluster: bool, answer_s: float = 5.0, connect_s: float = 2.0) -> Any:
        """An asyncio client; it connects with its first command. It does not retry: `Link` does.

        Args:
            answer_s: a server that takes longer for one answer is as good as gone.
            connect_s: the same for a connection.
        """
        from redis.asyncio import Redis, RedisCluster

        return (RedisCluster if cluster else Redis).from_url(
            self._url(cluster), **_options(answer_s, connect_s, asynchronous=True)
        )

    def blocking_client(self, *, cluster: bool) -> Any:
        """A blocking client, for threads."""
        from redis import Redis, RedisCluster

        return (RedisCluster if cluster else Redis).from_url(
            self._url(cluster), **_options(2.0, 2.0, asynchronous=False)
        )

    def _url(self, cluster: bool) -> str:
        if not cluster:
            return self.url
        parts = urlsplit(self.url)  # a cluster has one database, which its clients do not name
        return parts._replace(path="").geturl()


def _options(answer_s: float, connect_s: float, *, asynchronous: bool) -> dict[str, Any]:
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return {
        "protocol": 2,
        "driver_info": None,
        "socket_timeout": answer_s,
        "socket_connect_timeout": connect_s,
        "retry": AsyncRetry(NoBackoff(), 0) if asynchronous else Retry(NoBackoff(), 0),
    }


def target_of(url: str) -> Target:
    """Read a URL: ``redis://``, ``rediss://`` (TLS), ``valkey://``, ``valkeys://`` or ``unix://``.

    Raises:
        ConfigError: ``extra_missing``: redis-py is not installed; ``store_unknown``: no such URL.
    """
    if importlib.util.find_spec("redis") is None:
        raise ConfigError("extra_missing", "A Redis store needs redis-py: pip install 'mux-agents[redis]'")
    from redis.asyncio.connection import ConnectionPool, parse_url

    scheme, _, rest = url.partition(":")
    wrong = ConfigError(
        "store_unknown",
        f"This {scheme} URL can't be used. Write redis://HOST:PORT/DATABASE or unix:///PATH?db=DATABASE.",
    )
    as_redis = f"{_AS_REDIS.get(scheme, scheme)}:{rest}"
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = dict(parse_url(as_redis))
        port = parts.port
    except ValueError:
        raise wrong from None  # its text may quote the password
    path = parts.path.strip("/")
    if not rest.startswith("//") or (scheme == "unix" and not path):
        raise wrong
    if scheme != "unix" and path and not path.isdecimal():
        raise wrong
    try:
        pool: Any = ConnectionPool.from_url(as_redis, driver_info=None)
        pool.make_connection()
    except (TypeError, ValueError, ImportError):  # an option that no connection has
        raise wrong from None
    for secret in (parts.password, *parse_qs(parts.query).get("password", ())):
        register_secret(secret)
        register_secret(unquote(secret) if secret else None)
    database = int(options.get("db", 0))
    if scheme == "unix":
        return Target(f"unix://{options['path']}?db={database}", as_redis, database)
    host = options.get("host", "localhost")
    shown = f"[{host}]" if ":" in host else host
    return Target(f"{scheme}://{shown}:{port or 6379}/{database}", as_redis, database)

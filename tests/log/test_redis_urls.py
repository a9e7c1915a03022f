"""From a URL to a Redis: what it keeps, what it refuses, and what is never shown."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from mux.errors import ConfigError, StoreError
from mux.log import open_store, store_holder
from mux.log.redis.server import durability
from mux.log.redis.store import RedisStore
from tests.log.test_contract import read_all, started
from tests.support.redis_server import RedisServer, opened, redis_server
from tests.support.stores import records

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.allow_blocking,  # starts and kills Redis, and looks into it
]


# --- what Redis refuses -------------------------------------------------------------------------------------


async def test_a_full_memory_is_said_and_keeps_nothing_of_the_batch(own: RedisServer) -> None:
    async with opened(own.url) as store:
        fence = await started(store, events=2)
        with contextlib.closing(own.client()) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreError) as caught:
                await store.append("r1", fence, records("r1", 3, 1))
            assert caught.value.code == "store_full"
            with pytest.raises(StoreError) as caught:
                await store.check()
            assert caught.value.code == "store_full"
            client.config_set("maxmemory", 0)
        await store.check()
        await store.append("r1", fence, records("r1", 3, 1))
        assert await read_all(store) == records("r1", 1, 3)


async def test_a_redis_that_drops_keys_when_it_is_full_is_refused(tmp_path: Path) -> None:
    options = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with redis_server(tmp_path, **options) as server:
        with pytest.raises(StoreError, match="noeviction") as caught:
            await RedisStore(server.url).open()
        assert caught.value.code == "store_unfit"


async def test_a_replica_is_refused(tmp_path: Path) -> None:
    with redis_server(tmp_path, replicaof="127.0.0.1 1") as server:
        with pytest.raises(StoreError, match="replica") as caught:
            await RedisStore(server.url).open()
        assert caught.value.code == "store_readonly"


async def test_a_password_is_used_and_never_shown(tmp_path: Path) -> None:
    with redis_server(tmp_path, requirepass="open-sesame-1") as server:
        url = f"redis://:open-sesame-1@127.0.0.1:{server.port}/0"
        with structlog.testing.capture_logs() as lines:
            async with opened(url) as store:
                await started(store, events=1)
                assert store.info.url == server.url
            wrong = RedisStore(url.replace("sesame", "barley"))
            with pytest.raises(StoreError) as caught:
                await wrong.open()
            assert not caught.value.retryable
            with pytest.raises(StoreError, match="name or password"):
                await RedisStore(server.url).open()
        for text in (str(caught.value), repr(wrong._target), str(lines), str(wrong.info)):
            assert "sesame" not in text
            assert "barley" not in text


async def test_a_user_who_may_not_read_the_configuration_can_still_be_used(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        with contextlib.closing(server.client()) as client:
            client.execute_command(
                "ACL", "SETUSER", "app", "on", ">app-password", "~*", "&*", "+@all", "-config"
            )
            client.execute_command("ACL", "SETUSER", "poor", "on", ">app-password", "~*", "+info", "+ping")
        at = f"127.0.0.1:{server.port}"
        async with opened(f"redis://app:app-password@{at}/0") as store:
            assert "unknown" in store.info.note
            await started(store, events=1)
        with pytest.raises(StoreError, match="may not run the commands"):
            await RedisStore(f"redis://poor:app-password@{at}/0").open()


@pytest.mark.parametrize(
    ("settings", "kept", "said"),
    [
        ({"appendonly": "yes", "appendfsync": "always", "save": ""}, "power", ""),
        ({"appendonly": "yes", "appendfsync": "everysec", "save": "3600 1"}, "process", "a second"),
        ({"appendonly": "yes", "appendfsync": "no", "save": ""}, "process", "half a minute"),
        ({"appendonly": "no", "save": "3600 1"}, "process", "(save 3600 1)"),
        ({"appendonly": "no", "save": ""}, "process", "everything is lost when Redis stops"),
        (None, "process", "unknown"),
    ],
)  # fmt: skip
def test_what_redis_keeps_is_said(settings: dict[str, str] | None, kept: str, said: str) -> None:
    assert durability(settings)[0] == kept
    note = durability(settings)[1]
    assert said in note if said else note == ""


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://me:secret-word@host:7/3", "redis://host:7/3"),
        ("rediss://:secret-word@host/1?ssl_cert_reqs=none", "rediss://host:6379/1"),
        ("valkeys://host", "valkeys://host:6379/0"),
        ("redis://[::1]:7/0", "redis://[::1]:7/0"),
        ("unix:///run/redis.sock?db=2&password=secret-word", "unix:///run/redis.sock?db=2"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    store = open_store(url)
    assert isinstance(store, RedisStore)
    assert store.info.url == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis:",
        "redis:host",
        "redis://host/name",
        "redis://:secret@host:port/0",
        "redis://host?secret=1",
        "unix://",
        "unix:x",
    ],
)
def test_a_url_that_means_nothing_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert caught.value.code == "store_unknown"
    assert "secret" not in str(caught.value)


def test_without_redis_py_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "redis" else find(name))
    for call in (open_store, store_holder):
        with pytest.raises(ConfigError, match=r"pip install 'mux-agents\[redis\]'") as caught:
            call("redis://host")
        assert caught.value.code == "extra_missing"


def test_other_stores_do_not_load_redis_py() -> None:
    code = "import sys, mux.log; mux.log.open_store('memory:'); sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

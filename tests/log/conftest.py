"""One Redis for all tests of this folder, emptied before each that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer, redis_cluster, redis_server, valkey_path


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("valkey"), valkey_path()) as server:
        yield server


@pytest.fixture(scope="session")
def cluster_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Three nodes; any of them leads to all."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest.fixture
def redis(redis_process: RedisServer) -> RedisServer:
    redis_process.empty()
    return redis_process


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be killed: what it acknowledged is on its disk."""
    with redis_server(tmp_path, appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that loses what came after its last SAVE."""
    with redis_server(tmp_path, save="3600 1000000") as server:
        yield server

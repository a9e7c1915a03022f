"""From a URL to a backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from mux.errors import ConfigError
from mux.log import MemoryStore, SqliteStore, default_store_path, open_store, store_holder


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:a/b.db", "a/b.db"), ("sqlite:/a/b.db", "/a/b.db"), ("sqlite:///a/b.db", "/a/b.db")],
)
def test_an_sqlite_url_names_a_file(url: str, path: str) -> None:
    store = open_store(url, durability="full")
    assert isinstance(store, SqliteStore)
    assert store.path == Path(path)
    assert store.info.durable == "power"


def test_memory_needs_no_path() -> None:
    assert isinstance(open_store("memory:"), MemoryStore)
    assert store_holder("memory:") is None


def test_the_default_is_in_the_users_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/data/home")
    assert default_store_path() == Path("/data/home/mux/mux.db")
    store = open_store()
    assert isinstance(store, SqliteStore)
    assert store.path == default_store_path()
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_store_path() == Path("/home/me/.local/share/mux/mux.db")


@pytest.mark.parametrize("url", ["sqlite:", "sqlite", "", "mysql:x"])
def test_an_unknown_store_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:PATH") as caught:
        open_store(url)
    assert caught.value.code == "store_unknown"


def test_nobody_holds_a_store_that_is_not_there(tmp_path: Path) -> None:
    assert store_holder(f"sqlite:{tmp_path}/mux.db") is None

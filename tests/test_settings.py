"""Settings: precedence, files, errors that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mux.errors import ConfigError
from mux.settings import load_settings


def write(path: Path, text: str) -> Path:
    file = path / "mux.toml"
    file.write_text(text)
    return file


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    write(tmp_path, 'port = 1\nhost = "file"\nmodel = "file:m"')
    settings = load_settings({"port": 3}, env={"MUX_PORT": "2", "MUX_HOST": "env"}, cwd=tmp_path)
    assert (settings.port, settings.host, settings.model, settings.role) == (3, "env", "file:m", "all")


def test_without_anything_the_model_is_the_rehearsal(tmp_path: Path) -> None:
    assert load_settings(env={}, cwd=tmp_path).default_model() == "rehearsal"


def test_openai_variables_alone_make_a_provider(tmp_path: Path) -> None:
    settings = load_settings(env={"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, cwd=tmp_path)
    assert settings.providers["openai"].base_url == "http://127.0.0.1:9/v1"
    assert settings.default_model().startswith("openai:")


def test_a_configured_provider_named_openai_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, '[providers.openai]\nbase_url = "http://a/v1"')
    settings = load_settings(env={"OPENAI_API_KEY": "k"}, cwd=tmp_path)
    assert settings.providers["openai"].base_url == "http://a/v1"


def test_relative_paths_of_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'agents = ["mine"]\n[documents]\nroots = ["./docs"]')
    settings = load_settings(config=file, env={}, cwd=Path("/"))
    assert settings.agents == (tmp_path / "mine",)
    assert settings.documents.roots == (tmp_path / "docs",)


def test_one_path_may_stand_without_a_list_and_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = 'agents = "mine"\nstore = "sqlite:runs.db"\n[documents]\nroots = "~/docs"\n'
    text += '[mcp.m]\ncommand = ["m"]\ncwd = "c"'
    settings = load_settings(config=write(tmp_path, text), env={}, cwd=Path("/"))
    assert settings.agents == (tmp_path / "mine",)
    assert settings.documents.roots == (Path("/home/me/docs"),)
    assert settings.store == f"sqlite:{tmp_path}/runs.db"
    assert settings.mcp["m"].cwd == tmp_path / "c"


@pytest.mark.parametrize("store", ["memory:", "sqlite:/var/x.db", "sqlite:~/x.db", "redis://h/0"])
def test_a_store_that_is_not_beside_the_file_stays_where_it_is(tmp_path: Path, store: str) -> None:
    file = write(tmp_path, f'store = "{store}"')
    assert load_settings(config=file, env={}, cwd=Path("/")).store == store


@pytest.mark.parametrize(
    ("env", "flags", "name"),
    [
        ({"MUX_PORT": "abc"}, {}, "MUX_PORT"),
        ({"MUX_LOG_LEVEL": "loud"}, {}, "MUX_LOG_LEVEL"),
        ({"MUX_PORT": "1"}, {"port": 99_999}, "--port"),
        ({"OPENAI_BASE_URL": "nonsense"}, {}, "OPENAI_BASE_URL"),
    ],
)
def test_a_wrong_value_is_told_by_the_variable_or_flag_that_it_came_from(
    tmp_path: Path, env: dict[str, str], flags: dict[str, object], name: str
) -> None:
    file = write(tmp_path, "")
    with pytest.raises(ConfigError) as error:
        load_settings(flags, config=file, env=env)
    assert f"({name})" in error.value.message
    assert "mux.toml" not in error.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[limits]\nmax_run = 3", "max_runs"),
        ("prot = 1", "port"),
        ('[providers.x]\nbase_url = "http://u"\ntimeouts = { first_byte = 1 }', "first_byte_s"),
        ("[limits]\nmax_runs = 0", "limits.max_runs"),
        ("port = 'x'", "port"),
        ("agents = 5", "agents"),
        ("providers = 5", "providers"),
        ('[providers.x]\nbase_url = "localhost:11434"', "http://127.0.0.1:11434/v1"),
        ('[providers.x]\nbase_url = "http://h:port/v1"', "providers.x.base_url"),
        ("port =", "can't be read"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file_and_the_nearest_known(
    tmp_path: Path, text: str, hint: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_settings(config=file, env={}, cwd=tmp_path)
    assert hint in error.value.message
    assert "mux.toml" in error.value.message


def test_a_missing_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(config=tmp_path / "none.toml", env={})
    assert error.value.code == "config_missing"

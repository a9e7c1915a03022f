"""``mux config``: the settings in force. Keys never appear, only the names of their variables."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import urlsplit

from mux.cli.parser import settings_from
from mux.telemetry import secrets_in
from mux.tools.mcp_link import written_secrets

__all__ = ["command"]

_HIDDEN = "…"


def command(args: argparse.Namespace) -> int:
    """Print the merged settings as JSON, with the file that they were read from."""
    settings = settings_from(args)
    shown = settings.model_dump(mode="json", exclude_none=True)
    for name, server in settings.mcp.items():
        secrets = list(filter(None, written_secrets(server)))
        shown["mcp"][name]["command"] = [_without(part, secrets) for part in server.command or ()]
        shown["mcp"][name]["env"] = dict.fromkeys(server.env, _HIDDEN)  # what its secrets are passed in
    print(json.dumps(_quiet("", shown), indent=2, ensure_ascii=False))
    return 0


def _quiet(name: str, value: Any) -> Any:
    """The value without what may be secret in it; names of variables are none."""
    if isinstance(value, dict):
        plain = name.endswith("_env")  # what it holds are names
        return {k: _quiet(name if plain else k, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_quiet(name, v) for v in value]
    if isinstance(value, str) and not name.endswith(("_env", "env_from")):
        shown = _bare(value) if value.partition("://")[0].isalpha() else value
        return _without(shown, secrets_in(name, value))
    return value


def _bare(url: str) -> str:
    """An address without what may be secret in it: name and password, and the query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _HIDDEN
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _without(text: str, secrets: Any) -> str:
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return text

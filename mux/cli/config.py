"""``mux config``: the settings in force. Keys never appear, only the names of their variables."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

from mux.cli.parser import settings_from
from mux.settings import McpServer

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Print the merged settings as JSON, with the file that they were read from."""
    settings = settings_from(args)
    shown = {
        name: provider.model_copy(update={"base_url": _bare(provider.base_url)})
        for name, provider in settings.providers.items()
    }
    store = settings.store
    if store is not None and "://" in store and not store.startswith("sqlite:"):
        store = _bare(store)
    search = settings.web_search
    if search.url is not None:
        search = search.model_copy(update={"url": _bare(search.url)})
    settings = settings.model_copy(
        update={
            "providers": shown,
            "store": store,
            "mcp": {name: _quiet(server) for name, server in settings.mcp.items()},
            "web_search": search,
        }
    )
    print(settings.model_dump_json(indent=2, exclude_none=True))
    return 0


def _quiet(server: McpServer) -> McpServer:
    """A tool server without the values that it is given: they are what its secrets are passed in."""
    return server.model_copy(
        update={
            "env": dict.fromkeys(server.env, "…"),
            "url": None if server.url is None else _bare(server.url),
        }
    )


def _bare(url: str) -> str:
    """An address without what may be secret in it: name and password, and the query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

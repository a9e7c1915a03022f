"""``mux keys``: make, list and revoke keys, in the store itself: who may write that needs no key."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from mux.cli.parser import settings_from
from mux.clock import now_ms
from mux.errors import ConfigError
from mux.http.keys import Grant, Keys, NewKey
from mux.log import open_keys
from mux.settings import Settings, problem_of

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Do what is asked. A new key goes to standard output, alone; words about it to stderr."""
    return asyncio.run(_main(args, settings_from(args)))


async def _main(args: argparse.Namespace, settings: Settings) -> int:
    if settings.store is not None and settings.store.rstrip("/") == "memory:":
        raise ConfigError(
            "store_not_shared", "Keys in memory are the server's alone: make them with POST /api/keys."
        )
    async with open_keys(settings.store) as kept:
        keys = Keys(kept)
        if args.what == "add":
            key, text = await keys.add(_new(args))
            print(text)
            print(f"mux: {key.id} for {key.owner}; it is not shown again", file=sys.stderr)
        elif args.what == "revoke":
            await keys.revoke(args.id)
            print(f"mux: {args.id} is revoked", file=sys.stderr)
        else:
            found = await keys.all("key")
            lines = [json.dumps(key.listed()) for key in found] if args.json else _table(found)
            for line in lines:
                print(line)
    return 0


def _new(args: argparse.Namespace) -> NewKey:
    limits = dict(text.partition("=")[::2] for text in args.limit)
    value: dict[str, Any] = {
        "owner": args.owner,
        "scopes": args.scope.split(","),
        "agents": args.of_agents.split(",") if args.of_agents else None,
        "expires_s": args.expires,
        "title": args.title,
        "limits": limits,
    }
    try:
        return NewKey.model_validate(value)
    except ValidationError as e:
        place, why = problem_of(e)
        raise ConfigError("key_unusable", f"{'.'.join(map(str, place))}: {why}.") from None


def _table(keys: list[Grant] | Any) -> Iterator[str]:
    yield f"{'id':12}  {'owner':20}  {'scopes':14}  {'until':16}  about"
    for key in keys:
        about = [key.title] if key.title else []
        about += [f"agents {', '.join(key.agents)}"] if key.agents else []
        about += [f"{name} {most:g}" for name, most in key.limits.model_dump(exclude_none=True).items()]
        yield f"{key.id:12}  {key.owner:20}  {','.join(key.scopes):14}  {_until(key):16}  {'; '.join(about)}"


def _until(key: Grant) -> str:
    if key.revoked is not None:
        return "revoked"
    if key.expires is None:
        return "for ever"
    if key.expires <= now_ms():
        return "expired"
    return datetime.fromtimestamp(key.expires / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")

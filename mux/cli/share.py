"""``mux share``: a read-only link to one run."""

from __future__ import annotations

import argparse
import asyncio
import os

from mux.cli.parser import settings_from
from mux.client import MuxClient
from mux.errors import ConfigError
from mux.log import store_holder
from mux.settings import Settings

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Print the link; or, as asked, the run's links, or end one. The key is ``MUX_KEY``'s."""
    return asyncio.run(_main(args, settings_from(args)))


async def _main(args: argparse.Namespace, settings: Settings) -> int:
    url = args.url or os.environ.get("MUX_URL")
    if not url:
        holder = await asyncio.to_thread(store_holder, settings.store)
        if holder is None or not holder.url:
            raise ConfigError("server_missing", "No server has this store open: start one, or give --url.")
        url = holder.url
    path = f"/api/runs/{args.run}/share"
    async with MuxClient(url) as client:
        if args.revoke:
            await client.request("DELETE", f"{path}/{args.revoke}")
        elif args.list:
            for one in (await client.request("GET", path))["shares"]:
                print(one["id"], *(one.get("channels") or ["all lanes"]))
        else:
            body = {"channels": args.channels and args.channels.split(","), "expires_s": args.expires}
            body = {k: v for k, v in body.items() if v is not None} | {"plan": args.plan}
            print((await client.request("POST", path, json=body))["url"])
    return 0

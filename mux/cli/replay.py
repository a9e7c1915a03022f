"""``mux replay``: a recorded run again, at its own pace or faster."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from urllib.parse import quote

from mux.cli.parser import settings_from
from mux.cli.render import renderer, show
from mux.cli.run import connected
from mux.errors import BadRequest, NotFound
from mux.events import Event
from mux.files import json_lines
from mux.telemetry import configure_logging

__all__ = ["command", "paced", "read_file"]

_LONGEST_PAUSE_S = 5.0


def command(args: argparse.Namespace) -> int:
    """Play to the end; exit 0."""
    configure_logging("console", "warning")
    asyncio.run(_main(args))
    return 0


async def _main(args: argparse.Namespace) -> None:
    view = renderer(as_json=args.json, plain=args.plain)
    path = Path(args.source)
    if await asyncio.to_thread(path.is_file):
        await show(paced(read_file(path), args.speed), view)
        return
    async with connected(settings_from(args), args.url or os.environ.get("MUX_URL") or None) as client:
        run = client.run(quote(args.source, safe=""))
        try:
            await run.snapshot()  # an unknown run is an error before anything is drawn
        except NotFound as e:
            message = f"There is neither a file {args.source!r} nor a run of that id in the store."
            raise NotFound(e.code, message) from e
        await show(paced(run.events(observe=True), args.speed), view)


async def read_file(path: Path) -> AsyncIterator[Event]:
    """The events of an exported run; lines of other kinds (the header) are passed over.

    Raises:
        BadRequest: ``export_invalid``, naming the line; or there is no event in the file.
    """
    try:
        lines = await asyncio.to_thread(lambda: list(json_lines(path)))
    except ValueError as e:
        raise BadRequest("export_invalid", str(e)) from None
    found = False
    for number, value in lines:
        if not isinstance(value, dict) or "seq" not in value:
            continue
        try:
            event = Event.parse(value)
        except (ValueError, TypeError, KeyError) as e:
            raise BadRequest("export_invalid", f"{path}, line {number}: {e}") from e
        found = True
        yield event
    if not found:
        message = f"{path} holds no events: give an exported run, or what mux run --json printed."
        raise BadRequest("export_invalid", message)


async def paced(events: AsyncIterable[Event], speed: float) -> AsyncIterator[Event]:
    """The events with their recorded distances divided by ``speed``; 0 = at once; pauses are 5 s at most."""
    before: int | None = None
    async for event in events:
        if speed > 0 and before is not None and event.ts > before:
            await asyncio.sleep(min((event.ts - before) / 1000 / speed, _LONGEST_PAUSE_S))
        before = event.ts
        yield event

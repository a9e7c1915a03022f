"""``mux replay``: a recorded run again, at its own pace or faster."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from mux.cli.parser import settings_from
from mux.cli.render import renderer, show
from mux.cli.run import connected
from mux.errors import BadRequest
from mux.events import Event
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
        run = client.run(args.source)
        await run.snapshot()  # an unknown run is an error before anything is drawn
        await show(paced(run.events(observe=True), args.speed), view)


async def read_file(path: Path) -> AsyncIterator[Event]:
    """The events of an exported run; lines of other kinds (the header) are passed over.

    Raises:
        BadRequest: ``export_invalid``, naming the line.
    """
    lines = (await asyncio.to_thread(path.read_text, encoding="utf-8")).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            obj = json.loads(line)
            if "seq" not in obj:
                continue
            event = Event.parse(obj)
        except (ValueError, TypeError) as e:
            raise BadRequest("export_invalid", f"{path}, line {number}: {e}") from e
        yield event


async def paced(events: AsyncIterable[Event], speed: float) -> AsyncIterator[Event]:
    """The events with their recorded distances divided by ``speed``; 0 = at once; pauses are 5 s at most."""
    before: int | None = None
    async for event in events:
        if speed > 0 and before is not None and event.ts > before:
            await asyncio.sleep(min((event.ts - before) / 1000 / speed, _LONGEST_PAUSE_S))
        before = event.ts
        yield event

"""An agent that says as much, as fast, as its task asks: ``{"events": 1000, "rate": 800, "gate": FILE}``.

It begins when the gate is there. With ``"burst": 20`` it says that many at once, at the same rate.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import mux


@mux.agent(name="firehose", description="Says a number of words, at full speed or at a rate.")
async def agent(ctx: mux.AgentContext) -> AsyncIterator[str]:
    """At full speed every word is the same; at a rate each carries the time at which it was due."""
    ask = json.loads(ctx.task)
    rate = ask.get("rate")
    while ask.get("gate") and not Path(ask["gate"]).exists():
        await asyncio.sleep(0.02)
    if not rate:
        for _ in range(ask["events"]):
            yield "hello "
        return
    due = time.monotonic()
    burst = ask.get("burst", 1)
    for n in range(ask["events"]):
        if n % burst == 0:
            due += burst / rate
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
        yield f"@{time.monotonic_ns()} "

"""Types mixed Markdown at a given rate: what the dashboard is measured with."""

import asyncio
import re
from collections.abc import AsyncIterator

import mux
from mux.agent import Draft

TEXT = """## How a stream is resumed

The log is **append-only**: every event gets a *sequence number* when it is written, and a viewer is only a
`cursor` into it. Nothing is sent before it is stored, so that a cut connection loses nothing at all. What was
sent is never changed, and whoever comes back continues behind the last frame that he has handled.

1. The client remembers the last `id` that it saw, and nothing else.
2. It reconnects with `Last-Event-ID`, or with the cursor in the address.
3. The server replays what came after, then goes on live.

A viewer that is slow hurts nobody. It falls behind, reads pages from the store, and catches up when it can;
the agents and the other viewers never notice, because nothing waits for it.

| part | bound | when full |
|---|---:|---|
| merge buffer | 64 | the agent pauses |
| viewer page | 256 | it reads from the store |
| reply | 32 MiB | it is cut, with a reason |

```python
async def follow(run: str, after: str | None = None) -> AsyncIterator[Event]:
    # resume behind the last complete frame
    async for frame in connect(run, after):
        yield parse(frame)
```

> What is not bounded grows; what is bounded says what happens when it is full.

- one scheduler, two phases a flush
- sealed blocks are never drawn again

"""
PIECES = re.findall(r"\s*\S{1,5}|\s+$", TEXT)


@mux.agent(name="typist", description="Types at a given rate: <at once> <then> <a second>.")
async def agent(ctx: mux.AgentContext) -> AsyncIterator[Draft]:
    burst, count, rate = (int(n) for n in ctx.task.split())
    loop = asyncio.get_running_loop()
    yield mux.StepStarted(step=1)
    for n in range(burst):
        yield PIECES[n % len(PIECES)]
    began = loop.time()
    for n in range(count):
        yield PIECES[(burst + n) % len(PIECES)]
        wait = began + n / rate - loop.time()
        if wait > 0.002:
            await asyncio.sleep(wait)
    yield mux.StepFinished(step=1, finish_reason="stop")

"""What the scripted agents say and do; by hand: ``python -m tests.e2e.scripts PORT``."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from aiohttp import web

from tests.e2e.fake_server import FakeServer, Lane, ScriptedEnd

PROSE = """## What the log gives

The log is **append-only**: every event gets a sequence number when it is written, and a viewer is \
*only a cursor* into it. Nothing is sent before it is stored, so a cut connection loses nothing.

1. The client remembers the last `id` it saw.
2. It reconnects with `Last-Event-ID`.
3. The server replays what came after, then goes on live.

| part | bound | when full |
|---|---:|---|
| merge buffer | 64 | the agent pauses |
| viewer page | 256 | reads from the store |
| reply | 32 MiB | cut with a reason |

```python
async def follow(run: str, after: str | None = None) -> AsyncIterator[Event]:
    # resume from the last complete frame
    async for frame in connect(run, after):
        yield parse(frame)
```

> A viewer that is slow hurts nobody: it falls behind, and catches up from the store.

- [x] nothing lost
- [x] nothing doubled
- [ ] nobody waits

The cost of a replay is $n \\cdot c$, here about 0.2 s for 50,000 events. See [the manual](https://example.org/manual).
"""


async def assistant(lane: Lane) -> None:
    """Plain: a little reasoning, then prose."""
    lane.begin()
    lane.emit("phase", phase="thinking")
    await lane.say(
        "The question is about resumption.\nI should explain the log first, then cursors.", kind="reasoning"
    )
    lane.emit("phase", phase="responding")
    await lane.say(PROSE)
    lane.end(input_tokens=412, output_tokens=388, cost=0.0031, currency="USD")


async def researcher(lane: Lane) -> None:
    """Searches documents, then writes."""
    lane.begin()
    await lane.say("I will search the manual for cursors.", kind="reasoning")
    call = await lane.call("search_docs", {"query": "cursor resume", "limit": 3}, pause=0.02)
    lane.end("tool_calls", input_tokens=300, output_tokens=40, cost=0.001, currency="USD")
    lane.emit("phase", phase="tool_executing")
    lane.emit(
        "tool_start", call_id=call, tool="search_docs", arguments={"query": "cursor resume", "limit": 3}
    )
    for i in range(3):
        lane.emit(
            "tool_progress",
            call_id=call,
            elapsed_ms=100 * i,
            message=f"{i + 1} of 3 documents",
            fraction=(i + 1) / 3,
        )
        await lane.pause(0.12)
    hits = [
        {
            "title": "Resuming a stream",
            "path": "streams.md",
            "snippet": "The cursor is exclusive: what comes after it.",
        },
        {"title": "Event log", "path": "log.md", "snippet": "Append, then publish."},
    ]
    lane.result(call, "search_docs", "2 hits: streams.md, log.md", data={"results": hits}, elapsed_ms=382)
    lane.begin()
    await lane.say(PROSE[:900])
    lane.end(input_tokens=900, output_tokens=220, cost=0.004, currency="USD")


async def analyst(lane: Lane) -> None:
    """Calculates with two tools at once, one of them failing first."""
    lane.begin()
    one = await lane.call("calculator", {"expression": "17 * 23 + 4.5"})
    two = await lane.call("run_python", {"code": "for i in range(3):\n    print(i * 17)\n1 / 0"})
    lane.end("tool_calls")
    lane.emit("tool_start", call_id=one, tool="calculator", arguments={"expression": "17 * 23 + 4.5"})
    lane.emit(
        "tool_start",
        call_id=two,
        tool="run_python",
        arguments={"code": "for i in range(3):\n    print(i * 17)\n1 / 0"},
    )
    lane.emit("tool_progress", call_id=two, elapsed_ms=40, content="0\n17\n34\n")
    await lane.pause(0.2)
    lane.result(one, "calculator", "395.5", elapsed_ms=3)
    lane.result(
        two, "run_python", "0\n17\n34\nZeroDivisionError", is_error=True, error="tool_failed", elapsed_ms=61
    )
    lane.begin()
    await lane.say("The value is **395.5**. The division failed as it should.\n\n" + PROSE[:400])
    lane.end(input_tokens=640, output_tokens=130, cost=0.0022, currency="USD")


async def synthesizer(lane: Lane) -> None:
    """Reads the others."""
    lane.begin()
    await lane.say(
        "Both [A] and [B] agree that the log comes first. [B] adds how a gap is reported.\n\n" + PROSE[:300]
    )
    lane.end(input_tokens=1500, output_tokens=90, cost=0.005, currency="USD")


async def lead(lane: Lane) -> None:
    """Delegates to sub-agents inside its lane, and opens a pane for a worker."""
    lane.begin()
    await lane.say("I split the task in two.")
    lane.end("tool_calls")
    path = ["scout"]
    await lane.say("Looking at the index first. ", kind="reasoning", path=path)
    call = await lane.call("read_doc", {"path": "log.md"}, path=path)
    lane.emit("tool_start", call_id=call, tool="read_doc", arguments={"path": "log.md"}, path=path)
    lane.result(call, "read_doc", "The log is append-only.", path=path)
    await lane.say("The log is *append-only*.", path=path)
    await lane.say("And deeper still.", path=["scout", "reader"])
    server = lane.run.server
    name = server._free(lane.run, "worker", ".")
    server.join(lane.run, name, {"agent": "assistant", "message": "Summarise cursors."}, parent=lane.id)
    lane.begin()
    await lane.say("The scout is done; the worker has its own pane.")
    lane.end()


async def approver(lane: Lane) -> None:
    """Asks a person before it deletes."""
    lane.begin()
    arguments = {"path": "/srv/data/old", "recursive": True, "why": "it is no longer needed"}
    call = await lane.call("delete_folder", arguments)
    lane.end("tool_calls")
    future: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
    lane.run.approvals[call] = future
    lane.emit(
        "approval_requested",
        call_id=call,
        tool="delete_folder",
        arguments=arguments,
        expires_at=int(time.time() * 1000) + 600_000,
    )
    while not future.done():
        await lane.pause(0.02)
    answer = future.result()
    lane.emit("approval_resolved", call_id=call, decision=answer["decision"], by="local")
    if answer["decision"] == "deny":
        lane.result(
            call,
            "delete_folder",
            f"denied: {answer.get('reason', '')}",
            is_error=True,
            error="denied",
            elapsed_ms=0,
        )
    else:
        lane.emit(
            "tool_start", call_id=call, tool="delete_folder", arguments=answer.get("arguments", arguments)
        )
        lane.result(call, "delete_folder", "deleted")
    lane.begin()
    await lane.say(f"The answer was {answer['decision']}.")
    lane.end()


async def failing(lane: Lane) -> None:
    """Writes a little, then its provider is rate limited."""
    lane.begin()
    lane.emit("retry", step=1, attempt=2, reason="rate_limited", delay_ms=800)
    await lane.say("This begins well")
    raise ScriptedEnd(
        "failed",
        {"code": "rate_limited", "message": "The provider allows no more requests now.", "retryable": True},
    )


async def refusing(lane: Lane) -> None:
    lane.begin()
    lane.emit("guardrail", rule="no-keys", stage="output", action="blocked")
    await lane.say("I can't show that.", kind="refusal")
    lane.end()
    raise ScriptedEnd("refused")


async def spending(lane: Lane) -> None:
    lane.begin()
    await lane.say("This costs a lot.")
    lane.end(input_tokens=10_000, output_tokens=20_000, cost=1.5, currency="USD")
    raise ScriptedEnd("budget_exceeded")


async def silent(lane: Lane) -> None:
    """Says a word and then nothing until it is stopped."""
    lane.begin()
    await lane.say("Hm")
    await lane.pause(3600)


PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQV"
    "R42mMwSDhAEmIY1TCqYfhqAAARLlAQxTcVdQAAAABJRU5ErkJggg=="
)
PATCH = "--- a/log.py\n+++ b/log.py\n@@ -1,2 +1,2 @@\n def append():\n-    pass\n+    return seq\n"


async def typed(lane: Lane) -> None:
    """Tools with every kind of result."""
    lane.begin()
    results: dict[str, tuple[str, Any]] = {
        "tree": ('{"store": {"kind": "sqlite", "open": true}}', None),
        "rows": ("two rows", [{"lane": "A", "tokens": 3}, {"lane": "B", "tokens": 5}]),
        "patch": (PATCH, None),
        "picture": ("a picture", {"image": PICTURE}),
        "long": ("\n".join(f"line {n}" for n in range(2000)), None),
    }
    calls = {tool: await lane.call(tool, {}) for tool in results}
    lane.end("tool_calls")
    for tool, (output, data) in results.items():
        lane.emit("tool_start", call_id=calls[tool], tool=tool, arguments={})
        lane.result(calls[tool], tool, output, data=data)
    lane.begin()
    await lane.say("That was all.")
    lane.end()


async def connecting(lane: Lane) -> None:
    """Sends its request and gets no answer."""
    lane.begin()
    await lane.pause(3600)


async def cut(lane: Lane) -> None:
    """Reaches the token limit in the middle of a word."""
    lane.begin()
    await lane.say("This ends in the mid")
    lane.end("length", input_tokens=10, output_tokens=8)


async def thinking(lane: Lane) -> None:
    lane.begin()
    lane.emit("phase", phase="thinking")
    while True:
        await lane.say("Weighing one side against the other, once more. ", kind="reasoning", rate=20)


async def tooling(lane: Lane) -> None:
    """A tool that runs until it is stopped, reporting."""
    lane.begin()
    call = await lane.call("run_python", {"code": "while True: pass"})
    lane.end("tool_calls")
    lane.emit("tool_start", call_id=call, tool="run_python", arguments={"code": "while True: pass"})
    for i in range(100_000):
        lane.emit(
            "tool_progress", call_id=call, elapsed_ms=i * 500, message="running", fraction=min(0.95, i / 40)
        )
        await lane.pause(0.5)


async def writer(lane: Lane) -> None:
    """Long: streams until it is stopped."""
    lane.begin()
    n = 0
    while True:
        n += 1
        await lane.say(
            f"Paragraph {n} of the long answer, which goes on so that the pane has to scroll.\n\n",
            rate=60,
        )


async def steered(lane: Lane) -> None:
    """Waits for a message and answers it."""
    lane.begin()
    await lane.say("Tell me more.")
    while lane.inbox.empty():
        await lane.pause(0.02)
    message = lane.inbox.get_nowait()
    lane.emit("message_applied", **message)
    await lane.say(f"\n\nYou said: {message['content']}")
    lane.end()


async def resetting(lane: Lane) -> None:
    """A step that is cut and done again."""
    lane.begin()
    await lane.say("First step. ")
    lane.end()
    lane.begin()
    start = lane.cseq
    await lane.say("This was never to be seen.")
    lane.emit("step_reset", step=2, from_cseq=start)
    await lane.say("Second step, done again.")
    lane.end()


async def load(lane: Lane) -> None:
    """100 tokens a second of mixed prose, lists, tables and code."""
    lane.begin()
    text = PROSE * 40
    await lane.say(text[: 4 * 100 * int(lane.spec.get("seconds", 20))], rate=100)
    lane.end()


AGENTS = {
    "assistant": assistant, "researcher": researcher, "analyst": analyst, "synthesizer": synthesizer,
    "lead": lead, "critic": assistant, "approver": approver, "failing": failing, "refusing": refusing,
    "spending": spending,
    "silent": silent, "connecting": connecting, "cut": cut, "typed": typed,
    "thinking": thinking, "tooling": tooling, "writer": writer, "steered": steered,
    "resetting": resetting, "load": load,
}  # fmt: skip
TOOLS = {
    "researcher": ["search_docs", "read_doc", "fetch_url"],
    "analyst": ["calculator", "run_python"],
    "lead": ["delegate", "ask_channels"],
}


def furnished() -> FakeServer:
    """A server with every scripted agent."""
    server = FakeServer()
    for name, script in AGENTS.items():
        about = (script.__doc__ or f"The {name}.").splitlines()[0]
        folder = {"documents": ["docs"]} if name == "researcher" else {}
        server.agent(name, script, description=about, tools=TOOLS.get(name, []), **folder)
    return server


if __name__ == "__main__":
    web.run_app(furnished().app, host="127.0.0.1", port=int(sys.argv[1]))

"""A local OpenAI-compatible endpoint for real SDKs: chat completions as a script of turns, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from aiohttp import web

__all__ = ["FakeOpenAI", "serving", "text_chunks", "tool_chunks"]

Chunk: TypeAlias = dict[str, Any] | asyncio.Event | int


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _usage() -> dict[str, Any]:
    numbers = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {**_chunk({}), "choices": [], "usage": numbers}


def text_chunks(*pieces: str) -> list[Chunk]:
    """A turn that answers with text."""
    return [*(_chunk({"role": "assistant", "content": p}) for p in pieces), _chunk({}, "stop"), _usage()]


def tool_chunks(*calls: tuple[str, str, str]) -> list[Chunk]:
    """A turn that asks for tools: (id, name, arguments), the arguments in two pieces."""
    chunks: list[Chunk] = []
    for index, (call_id, name, arguments) in enumerate(calls):
        begun = {"index": index, "id": call_id, "type": "function"}
        half = len(arguments) // 2
        chunks.append(_chunk({"tool_calls": [{**begun, "function": {"name": name, "arguments": ""}}]}))
        chunks.extend(
            _chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
            for part in (arguments[:half], arguments[half:])
        )
    return [*chunks, _chunk({}, "tool_calls"), _usage()]


class FakeOpenAI:
    """Plays one turn per request; an event in a turn is waited for, a number is the status to answer with.

    Attributes:
        url: the base URL.
        requests: the bodies seen.
        reached: set when a turn waits for an event.
        gone: set when a client went away in the middle of a turn.
    """

    def __init__(self, turns: Sequence[Sequence[Chunk]]) -> None:
        self._turns = list(turns)
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.reached = asyncio.Event()
        self.gone = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        turn = self._turns.pop(0)
        if isinstance(turn[0], int):
            error = {"error": {"message": "the key sk-SECRET is bad", "type": "x"}}
            return web.json_response(error, status=turn[0])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for chunk in turn:
                if isinstance(chunk, asyncio.Event):
                    self.reached.set()
                    await chunk.wait()
                else:
                    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
            raise
        return response


@asynccontextmanager
async def serving(*turns: Sequence[Chunk]) -> AsyncIterator[FakeOpenAI]:
    """The endpoint on a free port."""
    fake = FakeOpenAI(turns)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", fake.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()

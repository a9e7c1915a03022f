"""A scripted model: each request plays the next turn of its script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

from mux.errors import UpstreamError
from mux.events import Usage
from mux.llm.model import (
    CallArgs,
    CallBegan,
    CompleteCall,
    Delta,
    ModelRequest,
    TextDelta,
    TurnEnd,
)

__all__ = ["FakeModel", "call", "says", "turn"]

Step: TypeAlias = Delta | BaseException | asyncio.Event


def call(key: int, name: str, raw: str = "{}", *, error: str | None = None, **extra: Any) -> CompleteCall:
    """A complete call as the end of a turn tells it."""
    arguments = None if error else json.loads(raw)
    return CompleteCall(key, name, arguments, raw, error, **extra)


def says(text: str, *, finish: Any = "stop", usage: Usage | None = None, **end: Any) -> list[Step]:
    """A turn that answers with text, in two pieces."""
    half = len(text) // 2
    return [TextDelta(text[:half]), TextDelta(text[half:]), TurnEnd(finish, usage=usage, **end)]


def turn(*calls: CompleteCall, text: str = "", finish: Any = "tool_calls", **end: Any) -> list[Step]:
    """A turn that asks for tools."""
    steps: list[Step] = [TextDelta(text)] if text else []
    for c in calls:
        steps += [CallBegan(c.key, c.name), CallArgs(c.key, c.raw)]
    return [*steps, TurnEnd(finish, calls, **end)]


class FakeModel:
    """Plays turns in order; an exception in a turn is raised, an event is waited for.

    Attributes:
        requests: every request seen.
        closed: how many streams were closed, ended or not.
        reached: set when a stream waits for an event of its script.
    """

    def __init__(self, *turns: Sequence[Step]) -> None:
        self._turns = list(turns)
        self.requests: list[ModelRequest] = []
        self.closed = 0
        self.reached = asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncIterator[Delta]:
        self.requests.append(request)
        if not self._turns:
            raise UpstreamError("upstream_rejected", "The script has no further turn.")
        try:
            for step in self._turns.pop(0):
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, asyncio.Event):
                    self.reached.set()
                    await step.wait()
                else:
                    yield step
        finally:
            self.closed += 1

    async def aclose(self) -> None:
        return None

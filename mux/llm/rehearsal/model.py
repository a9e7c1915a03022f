"""Streams what the policy decided, at a human pace."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator

from mux.events import Usage
from mux.llm.model import (
    CallArgs,
    CallBegan,
    CompleteCall,
    Delta,
    ModelRequest,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TurnEnd,
)
from mux.llm.rehearsal.policy import Plan, decide
from mux.llm.rehearsal.situation import Situation

__all__ = ["RehearsalModel"]

_PACE = 48.0  # tokens per second: about what a reader follows
_WORD = re.compile(r"\s*\S{1,12}|\s+")
_JSON = re.compile(r".{1,9}", re.DOTALL)
_RHYTHM = (1.0, 0.7, 1.2, 0.9, 1.4, 0.8, 1.0, 1.1)  # of the pauses between tokens: people expect it uneven
_MAX_BEHIND_S = 0.25  # after a pause of the reader, go on at the pace; don't catch up in one burst
_BREATHE = 16  # tokens between two yields to the event loop when the pace is 0


def pieces(text: str) -> list[str]:
    """The text cut into tokens of a word or a part of one; joined they are the text again."""
    return _WORD.findall(text)


class RehearsalModel:
    """A model that needs no key and no network.

    Args:
        pace: tokens per second; 0 = as fast as possible; ``None`` = ``MUX_REHEARSAL_PACE``, else 48.
    """

    def __init__(self, pace: float | None = None) -> None:
        if pace is None:
            try:
                pace = float(os.environ.get("MUX_REHEARSAL_PACE", _PACE))
            except ValueError:
                pace = _PACE
        self._pace = max(pace, 0.0)

    async def stream(self, request: ModelRequest) -> AsyncIterator[Delta]:
        """One turn; never fails."""
        began = time.monotonic()
        situation = Situation.of(request)
        plan = decide(situation)
        deltas = _deltas(plan, "\n\n" if situation.rounds else "")
        first = due = began
        for i, delta in enumerate(deltas):
            if self._pace and i:
                now = time.monotonic()
                due = max(due + _RHYTHM[i % len(_RHYTHM)] / self._pace, now - _MAX_BEHIND_S)
                if due > now:
                    await asyncio.sleep(due - now)
            elif i % _BREATHE == 0:
                await asyncio.sleep(0)
            if not i:
                first = due = time.monotonic()
            yield delta
        ended = time.monotonic()
        read = sum(len(pieces(m.text)) for m in request.messages)
        reasoned = sum(isinstance(d, ReasoningDelta) for d in deltas)
        yield TurnEnd(
            "tool_calls" if plan.calls else "stop",
            calls=_complete(plan),
            usage=Usage(input_tokens=read, output_tokens=len(deltas), reasoning_tokens=reasoned),
            model="rehearsal",
            ttft_ms=round((first - began) * 1000),
            generation_ms=round((ended - first) * 1000),
        )

    async def aclose(self) -> None:
        """Nothing to free."""


def _deltas(plan: Plan, gap: str) -> list[Delta]:
    """The turn's deltas; ``gap`` sets its thoughts apart from those of the turn before."""
    deltas: list[Delta] = [ReasoningDelta(p) for p in pieces(gap + plan.reasoning)]
    deltas += [RefusalDelta(p) for p in pieces(plan.refusal)]
    deltas += [TextDelta(p) for p in pieces(plan.text)]
    for key, (name, arguments) in enumerate(plan.calls):
        deltas.append(CallBegan(key, name))
        deltas += [CallArgs(key, p) for p in _JSON.findall(_json(arguments))]
    return deltas


def _complete(plan: Plan) -> tuple[CompleteCall, ...]:
    return tuple(CompleteCall(k, name, args, _json(args)) for k, (name, args) in enumerate(plan.calls))


def _json(arguments: dict[str, object]) -> str:
    return json.dumps(arguments, ensure_ascii=False)

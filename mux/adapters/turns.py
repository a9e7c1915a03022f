"""What foreign agents report, as drafts in the order that a channel's events must have.

Every adapter reads another protocol, and each has its own idea of when a turn begins and of what a call is
known by. `Turns` holds what they need in common: it opens a step before what belongs into one, ends it before
a tool runs, gives calls ids of ours, opens a call that is only heard of in the middle, and gives every call
one result. It does no I/O.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mux.agent import Draft, Nested
from mux.events import (
    Body,
    Phase,
    PhaseName,
    Reasoning,
    StepFinished,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolErrorCode,
    ToolProgress,
    ToolResult,
    ToolStart,
    Usage,
    UsageReport,
)

__all__ = ["Turns"]

_MAX_OUTPUT = 100_000  # characters of a result that are kept, as for tools of our own


@dataclass(slots=True)
class _Call:
    call_id: str
    tool: str
    path: tuple[str, ...]
    args: bool = False
    began: float | None = None


@dataclass(slots=True)
class Turns:
    """The turns and calls of one channel.

    Attributes:
        new_call_id: mints our call ids.
        model: the model's name, as far as it is known.
        usage: totals of what was reported.
        step: the number of the last step.
        texts: the text of the last step.
    """

    new_call_id: Callable[[], str]
    model: str | None = None
    usage: Usage | None = None
    step: int = 0
    texts: list[str] = field(default_factory=list)
    _in_step: bool = False
    _phase: PhaseName | None = None
    _calls: dict[str, _Call] = field(default_factory=dict)
    _answered: set[str] = field(default_factory=set)

    @property
    def running(self) -> bool:
        """Whether a call runs, so that progress is due every 2 s."""
        return any(call.began is not None for call in self._calls.values())

    # --- the model's turn --------------------------------------------------------------------------------

    def begin(self) -> list[Draft]:
        """Open a step, if none is open."""
        if self._in_step:
            return []
        self.step += 1
        self._in_step = True
        self.texts.clear()
        return [StepStarted(step=self.step, model=self.model), *self._phased("thinking")]

    def text(self, content: str, path: tuple[str, ...] = ()) -> list[Draft]:
        """A piece of the answer (of a sub-agent's, with ``path``)."""
        if not content:
            return []
        if path:
            return [Nested(path, Token(content=content))]
        opening = self.begin()
        self.texts.append(content)
        return [*opening, *self._phased("responding"), Token(content=content)]

    def reasoning(self, content: str, path: tuple[str, ...] = ()) -> list[Draft]:
        """A piece of the agent's thoughts."""
        if not content:
            return []
        if path:
            return [Nested(path, Reasoning(content=content))]
        return [*self.begin(), *self._phased("thinking"), Reasoning(content=content)]

    def finish(self, reason: str = "stop", usage: Usage | None = None) -> list[Draft]:
        """End the step, if one is open."""
        if not self._in_step:
            return []
        self._in_step, self._phase = False, None
        return [StepFinished(step=self.step, finish_reason=reason, usage=usage), *self.used(usage)]

    def used(self, usage: Usage | None) -> list[Draft]:
        """What was used since the last report."""
        if usage is None or usage == Usage():
            return []
        self.usage = usage if self.usage is None else self.usage + usage
        return [UsageReport(step=max(self.step, 1), **usage.model_dump())]

    def _phased(self, phase: PhaseName) -> list[Draft]:
        if self._phase == phase:
            return []
        self._phase = phase
        return [Phase(phase=phase)]

    # --- calls -------------------------------------------------------------------------------------------

    def call(self, foreign: str, tool: str, path: tuple[str, ...] = ()) -> list[Draft]:
        """The agent begins to write a call; ``foreign`` is the id that it has over there."""
        if foreign in self._calls or foreign in self._answered:
            return []
        call = self._calls[foreign] = _Call(self.new_call_id(), (tool or "tool")[:128], path)
        opening = [] if path else self.begin()
        return [*opening, _at(call, ToolCall(call_id=call.call_id, tool=call.tool))]

    def call_id(self, foreign: str) -> str | None:
        """Our id of a call that has no result yet."""
        call = self._calls.get(foreign)
        return None if call is None else call.call_id

    def runs(self, foreign: str) -> bool:
        """Whether this call runs."""
        call = self._calls.get(foreign)
        return call is not None and call.began is not None

    def leave(self, foreign: str) -> None:
        """Leave the end of a call to the engine: it closes an approval that is still open before its call."""
        self._calls.pop(foreign, None)
        self._answered.add(foreign)

    def args(self, foreign: str, content: str) -> list[Draft]:
        """A piece of a call's arguments, as the agent wrote it."""
        call = self._calls.get(foreign)
        if call is None or call.began is not None or not content:
            return []
        call.args = True
        return [_at(call, ToolArgs(call_id=call.call_id, content=content))]

    def start(
        self, foreign: str, tool: str, arguments: dict[str, Any], path: tuple[str, ...] = ()
    ) -> list[Draft]:
        """The call runs now; it is opened first where it was not heard of before."""
        found = self.call(foreign, tool, path)
        call = self._calls.get(foreign)
        if call is None or call.began is not None:
            return found
        if not call.args:
            found += self.args(foreign, json.dumps(arguments, ensure_ascii=False, default=str))
        if not call.path:
            found += self.finish("tool_calls")
        call.began = time.monotonic()
        start = ToolStart(call_id=call.call_id, tool=call.tool, arguments=arguments)
        return [*found, *([] if call.path else self._phased("tool_executing")), _at(call, start)]

    def progress(self, foreign: str | None = None, content: str | None = None) -> list[Draft]:
        """A sign of life of one call, or of every call that runs."""
        return [
            _at(call, ToolProgress(call_id=call.call_id, elapsed_ms=_elapsed(call), content=content))
            for known, call in self._calls.items()
            if call.began is not None and foreign in (None, known)
        ]

    def result(
        self,
        foreign: str,
        output: str,
        *,
        tool: str = "tool",
        data: Any = None,
        error: ToolErrorCode | None = None,
    ) -> list[Draft]:
        """The result of a call; a second one is ignored."""
        if foreign in self._answered:
            return []
        found = [] if foreign in self._calls else self.start(foreign, tool, {})
        call = self._calls.pop(foreign)
        self._answered.add(foreign)
        if not call.path:
            found += self.finish("tool_calls")
        body = ToolResult(
            call_id=call.call_id,
            tool=call.tool,
            output=output[:_MAX_OUTPUT],
            data=data,
            is_error=error is not None,
            error=error,
            elapsed_ms=_elapsed(call),
        )
        return [*found, _at(call, body)]

    def close(self, error: ToolErrorCode, why: str) -> list[Draft]:
        """A result for every call that is open, and the end of the step."""
        found = [draft for foreign in list(self._calls) for draft in self.result(foreign, why, error=error)]
        return [*found, *self.finish("stop" if error == "interrupted" else error)]


def _elapsed(call: _Call) -> int:
    """Milliseconds since the call began to run; 0 if it never did."""
    return 0 if call.began is None else round((time.monotonic() - call.began) * 1000)


def _at(call: _Call, body: Body) -> Draft:
    return Nested(call.path, body) if call.path else body

"""Stream events of the OpenAI Agents SDK as drafts of ours.

The SDK passes the Responses API's raw events on (for chat models it makes them itself), and adds an item
event for each finished thing. Text and arguments come from the raw events; results and hand-offs from items.
Argument deltas are not text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agents.stream_events import (
    AgentUpdatedStreamEvent,
    RawResponsesStreamEvent,
    RunItemStreamEvent,
    StreamEvent,
)

from mux.agent import Draft, Nested
from mux.events import (
    Body,
    Custom,
    Phase,
    PhaseName,
    Reasoning,
    Refusal,
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

__all__ = ["OpenCall", "Translator", "sdk_name"]

_TOOL_FAILED = "An error occurred while running the tool"  # how the SDK's default error function begins
_REASONING = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})


def sdk_name(agent: Any) -> str:
    """The name of an SDK agent."""
    return str(getattr(agent, "name", "agent"))


@dataclass(slots=True)
class OpenCall:
    """A call without a result yet; ``path`` is that of the agent that wrote it."""

    call_id: str
    tool: str
    path: tuple[str, ...]
    raw: list[str] = field(default_factory=list)
    began: float | None = None
    started: bool = False

    def arguments(self) -> dict[str, Any] | None:
        """The arguments as an object; ``None`` if they are none."""
        try:
            value = json.loads("".join(self.raw) or "{}")
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


@dataclass(slots=True)
class Translator:
    """The state of one run of the SDK.

    Attributes:
        new_call_id: mints our call ids.
        model: the model's name, as far as it is known.
        open: calls without a result, by the SDK's call id.
        text: text of the present step.
        usage: totals.
        path: the agent that has the word, if it is not the first one.
    """

    new_call_id: Callable[[], str]
    start: str
    model: str | None = None
    open: dict[str, OpenCall] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    usage: Usage | None = None
    path: tuple[str, ...] = ()
    ttft_ms: int | None = None
    step: int = 0
    in_turn: bool = False
    _by_index: dict[int, str] = field(default_factory=dict)
    _phase: PhaseName | None = None
    _sent: float = field(default_factory=time.monotonic)

    def drafts(self, event: StreamEvent) -> list[Draft]:
        """What one SDK event says."""
        if isinstance(event, RawResponsesStreamEvent):
            return [self._own(body) for body in self._raw(event.data)]
        if isinstance(event, AgentUpdatedStreamEvent):
            return self._handed_to(sdk_name(event.new_agent))
        return self._item(event)

    def _own(self, body: Body, path: tuple[str, ...] | None = None) -> Draft:
        path = self.path if path is None else path
        return Nested(path, body) if path else body

    def _handed_to(self, name: str) -> list[Draft]:
        path = () if name == self.start else (name,)
        if path == self.path:
            return []
        before, self.path, self._phase = self.path, path, None
        return [
            Custom(name="handoff", value={"from": before[-1] if before else self.start, "to": name}),
        ]

    # --- a model turn ------------------------------------------------------------------------------------

    def begin(self) -> list[Draft]:
        """The drafts that open a step, if none is open."""
        return [self._own(body) for body in self._opening()]

    def _opening(self) -> list[Body]:
        if self.in_turn:
            return []
        self.step += 1
        self.in_turn = True
        self.text.clear()
        self._by_index.clear()
        self._sent = time.monotonic()
        self._phase = "thinking"
        return [StepStarted(step=self.step, model=self.model), Phase(phase="thinking")]

    def _raw(self, data: Any) -> list[Body]:
        kind = str(getattr(data, "type", ""))
        found = self._opening()
        if kind == "response.output_text.delta":
            self.text.append(data.delta)
            return [*found, *self._delta(Token(content=data.delta), "responding")]
        if kind == "response.refusal.delta":
            return [*found, *self._delta(Refusal(content=data.delta), "responding")]
        if kind in _REASONING:
            return [*found, *self._delta(Reasoning(content=data.delta), "thinking")]
        if kind == "response.output_item.added" and getattr(data.item, "type", "") == "function_call":
            return [*found, *self._call(data.item.call_id, data.item.name, data.output_index)]
        if kind == "response.function_call_arguments.delta":
            call = self.open.get(self._by_index.get(data.output_index, ""))
            if call is None:
                return found
            call.raw.append(data.delta)
            return [*found, ToolArgs(call_id=call.call_id, content=data.delta)]
        if kind in ("response.completed", "response.incomplete"):
            return [*found, *self._finished(data.response)]
        return found

    def _delta(self, body: Body, phase: PhaseName) -> list[Body]:
        if not getattr(body, "content", ""):
            return []
        if self.ttft_ms is None:
            self.ttft_ms = round((time.monotonic() - self._sent) * 1000)
        return [*self._phased(phase), body]

    def _phased(self, phase: PhaseName) -> list[Body]:
        if self._phase == phase:
            return []
        self._phase = phase
        return [Phase(phase=phase)]

    def _call(self, sdk_id: str, name: str, index: int | None = None) -> list[Body]:
        if sdk_id in self.open:
            return []
        self.open[sdk_id] = OpenCall(self.new_call_id(), name, self.path)
        if index is not None:
            self._by_index[index] = sdk_id
        return [ToolCall(call_id=self.open[sdk_id].call_id, tool=name)]

    def _finished(self, response: Any) -> list[Body]:
        self.in_turn = False
        usage = _usage(getattr(response, "usage", None))
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage + usage
        bodies: list[Body] = []
        for item in getattr(response, "output", None) or ():  # calls that were never streamed
            if getattr(item, "type", "") == "function_call" and item.call_id not in self.open:
                bodies += self._call(item.call_id, item.name)
                self.open[item.call_id].raw.append(item.arguments)
                bodies.append(ToolArgs(call_id=self.open[item.call_id].call_id, content=item.arguments))
        reason = "tool_calls" if self.open else "stop"
        if getattr(response, "status", None) == "incomplete":
            reason = "length"
        bodies.append(StepFinished(step=self.step, finish_reason=reason, usage=usage))
        if usage is not None:
            bodies.append(UsageReport(step=self.step, **usage.model_dump()))
        return bodies

    # --- tools -------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[OpenCall]:
        """Calls that are complete and have not been said to run yet."""
        return [] if self.in_turn else [c for c in self.open.values() if not c.started]

    def started(self, call: OpenCall, arguments: dict[str, Any]) -> list[Draft]:
        """The drafts that say that a call runs now."""
        call.started, call.began = True, time.monotonic()
        bodies = [
            *self._phased("tool_executing"),
            ToolStart(call_id=call.call_id, tool=call.tool, arguments=arguments),
        ]
        return [self._own(body, call.path) for body in bodies]

    def progress(self) -> list[Draft]:
        """A sign of life of every call that runs; the SDK itself gives none."""
        return [
            self._own(ToolProgress(call_id=c.call_id, elapsed_ms=_elapsed(c)), c.path)
            for c in self.open.values()
            if c.began is not None
        ]

    def _item(self, event: RunItemStreamEvent) -> list[Draft]:
        item: Any = event.item
        if item.type not in ("tool_call_output_item", "handoff_output_item"):
            return []
        raw = item.raw_item if isinstance(item.raw_item, dict) else item.raw_item.model_dump()
        output = item.output if item.type == "tool_call_output_item" else raw.get("output")
        call = self.open.pop(str(raw.get("call_id") or raw.get("id") or ""), None)
        if call is None:  # a tool that ran at the provider: its call was never streamed as a function call
            return []
        text = output if isinstance(output, str) else json.dumps(output, default=str, ensure_ascii=False)
        failed = text.startswith(_TOOL_FAILED)
        result = ToolResult(
            call_id=call.call_id,
            tool=call.tool,
            output=text,
            data=_jsonable(output),
            is_error=failed,
            error="tool_failed" if failed else None,
            elapsed_ms=_elapsed(call),
        )
        return [self._own(result, call.path)]

    def close(self, error: ToolErrorCode, why: str) -> list[Draft]:
        """A result for every call that is open."""
        left = list(self.open.values())
        self.open.clear()
        return [
            self._own(
                ToolResult(call_id=c.call_id, tool=c.tool, output=why, is_error=True, error=error), c.path
            )
            for c in left
        ]


def _elapsed(call: OpenCall) -> int:
    return 0 if call.began is None else round((time.monotonic() - call.began) * 1000)


def _jsonable(output: Any) -> Any:
    if not isinstance(output, dict | list):
        return None
    return json.loads(json.dumps(output, default=str))


def _usage(raw: Any) -> Usage | None:
    if raw is None:
        return None
    details = getattr(raw, "input_tokens_details", None)
    thought = getattr(raw, "output_tokens_details", None)
    usage = Usage(
        input_tokens=raw.input_tokens,
        output_tokens=raw.output_tokens,
        cached_tokens=getattr(details, "cached_tokens", None) or None,
        reasoning_tokens=getattr(thought, "reasoning_tokens", None) or None,
    )
    return usage if usage.input_tokens or usage.output_tokens else None

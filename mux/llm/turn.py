"""One model turn as drafts: deltas are passed on the moment they arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from mux.errors import UpstreamError
from mux.events import Body, Phase, PhaseName, Reasoning, Refusal, Token, ToolArgs, ToolCall, ToolResult
from mux.llm.interrupt import Interrupted, Interruption
from mux.llm.model import (
    CallArgs,
    CallBegan,
    Delta,
    Model,
    ModelRequest,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TurnEnd,
)

__all__ = ["Turn"]


@dataclass(slots=True)
class Turn:
    """What one request to a model yields.

    Attributes:
        new_call_id: mints our call ids.
        phase: the phase that the channel shows.
        text, reasoning, refusal: pieces so far.
        calls: our call id and the tool's name by the call's key in the turn, in the order begun.
        end: how the turn ended; ``None`` while it runs, and when it failed or was interrupted.
        interrupted: a message cut it short.
    """

    new_call_id: Callable[[], str]
    phase: PhaseName | None = None
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    end: TurnEnd | None = None
    interrupted: bool = False

    def restart(self, phase: PhaseName) -> None:
        """Forget what came of an earlier try."""
        self.phase, self.end, self.interrupted = phase, None, False
        self.text, self.reasoning, self.refusal, self.calls = [], [], [], {}

    @property
    def shown(self) -> bool:
        """Whether anything of the turn has been passed on: from then on it can't be retried unseen."""
        return bool(self.text or self.reasoning or self.refusal or self.calls)

    async def drafts(
        self, model: Model, request: ModelRequest, interruption: Interruption
    ) -> AsyncGenerator[str | Body, None]:
        """Ask the model and pass on what it says, text as `str`; closing this closes the provider's stream.

        Raises:
            UpstreamError: the model failed (open calls are still open: see `close_calls`).
        """
        stream = model.stream(request)
        try:
            while True:
                try:
                    delta = await interruption.next(stream)
                except StopAsyncIteration:
                    break
                except Interrupted:
                    self.interrupted = True
                    return
                if type(delta) is TextDelta and self.phase == "responding":  # three of four deltas
                    self.text.append(delta.text)
                    yield delta.text
                    continue
                if isinstance(delta, TurnEnd):
                    self.end = delta
                    continue  # read on to the end: the provider's connection goes back to its pool
                for body in self._bodies(delta):
                    yield body
        finally:
            close = getattr(stream, "aclose", None)  # an iterator that is no generator may have none
            if close is not None:
                await close()
        if self.end is None:
            raise UpstreamError(
                "upstream_truncated", "The model's stream ended before its turn was over.", retryable=True
            )

    def _bodies(self, delta: Delta) -> list[Body]:
        match delta:
            case TextDelta(text):
                self.text.append(text)
                return self._with_phase("responding", Token.of(text))
            case ReasoningDelta(text):
                self.reasoning.append(text)
                return self._with_phase("thinking", Reasoning.of(text))
            case RefusalDelta(text):
                self.refusal.append(text)
                return self._with_phase("responding", Refusal(content=text))
            case CallBegan(key, name):
                call_id = self.new_call_id()
                self.calls[key] = (call_id, name)
                return [ToolCall(call_id=call_id, tool=name)]
            case CallArgs(key, text):
                return [ToolArgs(call_id=self.calls[key][0], content=text)]
        return []

    def _with_phase(self, phase: PhaseName, body: Body) -> list[Body]:
        if self.phase == phase:
            return [body]
        self.phase = phase
        return [Phase(phase=phase), body]

    def close_calls(self, why: str) -> list[Body]:
        """A result for every call of a turn that did not end, so that none stays open."""
        return [
            ToolResult(call_id=call_id, tool=name, output=why, is_error=True, error="interrupted")
            for call_id, name in self.calls.values()
        ]

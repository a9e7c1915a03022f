"""The model ↔ tool loop: ask the model, run the tools that it asked for, ask again, until it answers.

One `Loop` is one channel of one LLM agent, one `Turn` one request to its model. The rules of order are those
of the wire contract: a tool starts only after its step has ended upstream, and every call gets exactly one
result. Calls of tools that came with the request are the client's to run: they end the channel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mux.agent import (
    AgentContext,
    Draft,
    Message,
    MessageCall,
    Outcome,
    PendingCall,
    Resume,
    Steering,
)
from mux.errors import UpstreamError
from mux.events import (
    Body,
    Custom,
    DoneStatus,
    Phase,
    PhaseName,
    Reasoning,
    Refusal,
    Retry,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolResult,
    Usage,
    UsageReport,
)
from mux.llm.arguments import parse_arguments
from mux.llm.calls import Call, CallRunner
from mux.llm.history import fit, schema_tokens
from mux.llm.interrupt import Interrupted, Interruption
from mux.llm.model import (
    CallArgs,
    CallBegan,
    Delta,
    Model,
    ModelRequest,
    OtherChoice,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TextWasThought,
    ToolSchema,
    TurnEnd,
)
from mux.llm.setup import Setup
from mux.llm.usage import estimated_usage

__all__ = ["Loop", "Turn", "backoff"]

_MAX_WAIT_S = 20.0  # in all, for the retries of one step; a longer Retry-After gives up at once
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 8.0
_LOOK_S = 0.25  # how often a waiting retry looks whether the channel is to stop
_AFTER_SHOWN = frozenset(
    {"upstream_truncated", "upstream_stall"}
)  # worth another try although text was shown


def backoff(attempt: int, retry_after: float | None, roll: float) -> float:
    """Seconds to wait before the next try.

    Args:
        attempt: 1 after the first failure, and so on.
        retry_after: what the provider asks for, in seconds; never waited less.
        roll: 0 to 1: jitter, so that channels that failed together do not come back together.
    """
    if retry_after is not None:
        return max(retry_after, 0.0) + 0.25 * roll
    return min(_FIRST_DELAY_S * 2.0 ** (attempt - 1), _MAX_DELAY_S) * (0.5 + 0.5 * roll)


@dataclass(slots=True)
class _Totals:
    """What the channel used so far, and the measures of its ``done``."""

    usage: Usage | None = None
    tool_calls: int = 0
    ttft_ms: int | None = None
    generated: int = 0
    generation_ms: int = 0

    def add(self, end: TurnEnd, usage: Usage | None) -> None:
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage + usage
        if self.ttft_ms is None:
            self.ttft_ms = end.ttft_ms
        if usage is not None and usage.output_tokens and end.generation_ms:
            self.generated += usage.output_tokens
            self.generation_ms += end.generation_ms

    @property
    def tokens_per_s(self) -> float | None:
        return round(self.generated * 1000 / self.generation_ms, 1) if self.generation_ms else None


@dataclass(slots=True)
class _Tries:
    """The tries of one step."""

    max_retries: int
    roll: Callable[[], float]
    attempt: int = 1
    waited: float = 0.0

    def next_delay(self, error: UpstreamError) -> float:
        """Seconds to wait before the next try; raises the error where there is none."""
        delay = backoff(self.attempt, error.retry_after, self.roll())
        if not error.retryable or self.attempt > self.max_retries or self.waited + delay > _MAX_WAIT_S:
            raise error
        self.attempt, self.waited = self.attempt + 1, self.waited + delay
        return delay


@dataclass(slots=True)
class Turn:
    """What one request to a model yields, as drafts: deltas are passed on the moment they arrive.

    Attributes:
        new_call_id: mints our call ids.
        client_tools: names of tools whose calls go to the client.
        offer: puts a piece of text on the channel at once; ``False`` where it can't take it now.
        reopening: what begins the step again after a `StepReset`.
        phase: the phase that the channel shows.
        text, reasoning, refusal: pieces so far.
        outputs: what came that is no text.
        calls: our call id and the tool's name by the call's key in the turn, in the order begun.
        end: how the turn ended; ``None`` while it runs, and when it failed or was interrupted.
        interrupted: a message cut it short.
    """

    new_call_id: Callable[[], str]
    client_tools: Collection[str] = ()
    offer: Callable[[str | Reasoning], bool] = lambda _: False
    reopening: Callable[[], list[Body]] = list
    phase: PhaseName | None = None
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    outputs: list[OutputDelta] = field(default_factory=list)
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    end: TurnEnd | None = None
    interrupted: bool = False

    def restart(self, phase: PhaseName) -> None:
        """Forget what came of an earlier try."""
        self.phase, self.end, self.interrupted = phase, None, False
        self.text, self.reasoning, self.refusal, self.outputs, self.calls = [], [], [], [], {}

    @property
    def passed_on(self) -> bool:
        """Whether anything of the turn has been passed on: from then on it can't be retried unseen."""
        return bool(self.text or self.reasoning or self.refusal or self.outputs or self.calls)

    @property
    def answered(self) -> bool:
        """Whether there is anything in it that answers: text, a refusal, a picture, a further choice."""
        said = "".join(self.text).strip() or self.refusal or any(not o.silent for o in self.outputs)
        return bool(said or (self.end and any(self.end.choices)))

    def take(self, delta: Delta) -> bool:
        """Take a piece of text in the turn of the event loop in which it was read, past all iterators;
        ``False``: it has to come as a delta."""
        if type(delta) is TextDelta:
            if self.phase == "responding" and self.offer(delta.text):
                self.text.append(delta.text)
                return True
        elif type(delta) is ReasoningDelta and self.phase == "thinking" and self.reasoning:
            if taken := self.offer(Reasoning.of(delta.text)):
                self.reasoning.append(delta.text)
            return taken
        return False

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
            case OutputDelta(name, value):
                self.outputs.append(delta)
                return [Custom(name=name, value=value)]
            case TextWasThought():
                return self._text_was_thought()
            case CallBegan(key, name):
                call_id = self.new_call_id()
                self.calls[key] = (call_id, name)
                return [ToolCall(call_id=call_id, tool=name, client=(name in self.client_tools) or None)]
            case CallArgs(key, text):
                return [ToolArgs(call_id=self.calls[key][0], content=text)]
        return []

    def _text_was_thought(self) -> list[Body]:
        thought = "".join(self.text)
        if not thought.strip():
            return []
        self.text = []
        self.reasoning.append(thought)
        self.phase = "thinking"
        outputs = [Custom(name=o.name, value=o.value) for o in self.outputs]
        return [*self.reopening(), Reasoning(content=thought), *outputs]

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


@dataclass(slots=True)
class Loop:
    """The state of one channel's conversation.

    Attributes:
        setup: model, tools and settings, resolved for this channel.
        messages: the conversation so far.
        step: number of the present step, from 1.
    """

    ctx: AgentContext
    setup: Setup
    messages: list[Message] = field(default_factory=list)
    step: int = 0
    totals: _Totals = field(default_factory=_Totals)
    _runner: CallRunner = field(init=False)
    _schemas: tuple[ToolSchema, ...] = ()
    _client_tools: frozenset[str] = frozenset()
    _finish: str | None = None  # of the last turn, where it is not "stop"
    _trimmed: tuple[int, int] = (0, 0)
    _reset_used: bool = False
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        tools = self.setup.tools
        approved = set(self.ctx.resume.approved) if self.ctx.resume else set()
        self._runner = CallRunner(self.ctx, tools, self.setup.run_tool, approved)
        own = (ToolSchema(t.name, t.description, t.parameters) for t in tools.values())
        asked = self.ctx.client_tools
        self._schemas = (*own, *(ToolSchema(t.name, t.description, t.parameters, t.strict) for t in asked))
        self._client_tools = frozenset(t.name for t in asked)
        if self.setup.instructions:
            self.messages.append(Message(role="system", content=self.setup.instructions))
        self.messages.extend(self.ctx.messages)

    # --- the whole channel -------------------------------------------------------------------------------

    async def run(self) -> AsyncIterator[Draft]:
        """Drafts of the whole channel; the last is its `Outcome`.

        Raises:
            UpstreamError: the model failed for good; its open calls are closed by then.
        """
        outcome: Outcome | None = None
        resume = self.ctx.resume
        if resume is not None and (resume.step or resume.messages):
            async with aclosing(self._resume(resume)) as bodies:
                async for body in bodies:
                    yield body
            last = self.messages[-1]
            answered = last.role == "assistant" and not last.calls  # only its `done` was missing
            outcome = self._at_end("completed", last.text) if answered else None
            outcome = outcome or self._handed_over([self._pending(c) for c in resume.pending], last.text)
            outcome = outcome or (None if answered else self._between())
        while outcome is None:
            self.step += 1
            turn = Turn(self.ctx.new_call_id, self._client_tools, self.ctx.host.offer, self._reopening)
            async with aclosing(self._turn(turn)) as drafts:
                async for draft in drafts:
                    yield draft
            if turn.interrupted or turn.end is None:
                for body in self._cut_short(turn):
                    yield body
                outcome = self._between()
                continue
            calls = _calls(turn, turn.end)
            self._finish = None if turn.end.finish == "stop" else turn.end.finish
            self.messages.append(self._message(turn, turn.end, calls))
            text = "".join([*turn.text, *turn.refusal])
            if calls:
                async with aclosing(self._tools(calls)) as bodies:
                    async for body in bodies:
                        yield body
                outcome = self._handed_over(calls, text) or self._between()
            else:
                refused = turn.end.finish == "content_filter" or (turn.refusal and not turn.text)
                outcome = self._at_end("refused" if refused else "completed", text)
        yield outcome

    def _handed_over(self, calls: Sequence[Call], text: str) -> Outcome | None:
        """The end of a channel whose model called a tool of the client's."""
        handed = any(call.tool in self._client_tools for call in calls)
        return self._outcome("completed", text) if handed else None

    def _between(self) -> Outcome | None:
        """Between two steps: whether the channel ends here; if not, messages for it are heard."""
        if self.ctx.stopping:
            return self._outcome("cancelled")
        name = self._reached()
        if name is not None:
            self.ctx.log.info("budget_exceeded", budget=name, step=self.step)
            return self._outcome("budget_exceeded")
        self._hear(self.ctx.host.take_messages(at_end=False))
        return None

    def _at_end(self, status: DoneStatus, text: str) -> Outcome | None:
        """At a final answer: the outcome, unless a message waits that may still be answered."""
        if not self.ctx.stopping and self._reached() is None:
            late = self.ctx.host.take_messages(at_end=True)
            if late:
                self._hear(late)
                return None
        return self._outcome(status, text)

    def _reached(self) -> str | None:
        return self._budget() or self.ctx.host.budget_exceeded()

    def _budget(self) -> str | None:
        """The channel's own budget that is reached. The host knows the log, which may lag a batch behind."""
        if self.step >= self.setup.max_steps:
            return "max_steps"
        budget, usage = self.ctx.budget, self.totals.usage or Usage()
        if budget is None:
            return None
        reached = (
            ("steps", budget.steps, self.step),
            ("tokens", budget.tokens, (usage.input_tokens or 0) + (usage.output_tokens or 0)),
            ("cost", budget.cost, usage.cost or 0.0),
            ("tool_calls", budget.tool_calls, self.totals.tool_calls),
            ("seconds", budget.seconds, time.monotonic() - self._began),
        )
        return next((n for n, limit, value in reached if limit is not None and value >= limit), None)

    def _outcome(self, status: DoneStatus, output: str | None = None) -> Outcome:
        t = self.totals
        return Outcome(status, output, t.usage, t.ttft_ms, t.tokens_per_s, self._finish)

    def _hear(self, messages: Sequence[Steering]) -> None:
        self.messages.extend(Message(role="user", content=m.content) for m in messages)

    # --- one turn ----------------------------------------------------------------------------------------

    async def _turn(self, turn: Turn) -> AsyncGenerator[str | Body, None]:
        """One step's model turn with its retries; fills ``turn``."""
        for body in self._opening():
            yield body
        request, notes = self._request(turn)
        for note in notes:
            yield note
        tries = _Tries(self.setup.max_retries, self.setup.roll)
        async with Interruption(self.ctx.host) as interruption:
            while True:
                turn.restart("thinking")
                try:
                    async with aclosing(turn.drafts(self.setup.model, request, interruption)) as drafts:
                        async for draft in drafts:
                            yield draft
                    for body in self._closing(turn, request):
                        yield body
                    return
                except UpstreamError as error:
                    for body in turn.close_calls("The model's reply broke off, so this call did not run."):
                        yield body
                    if turn.passed_on:
                        for body in self._start_over(error):
                            yield body
                    else:
                        delay = tries.next_delay(error)
                        yield Retry(
                            step=self.step,
                            attempt=tries.attempt,
                            reason=error.code,
                            delay_ms=round(delay * 1000),
                        )
                        try:
                            await interruption.wait(self._pause, delay)
                        except Interrupted:
                            turn.interrupted = True
                        if turn.interrupted or self.ctx.stopping:
                            return

    async def _pause(self, delay: float) -> None:
        """Wait before a retry, but not while a graceful stop waits for this step."""
        sleep = asyncio.ensure_future(self.setup.sleep(delay))
        try:
            while not self.ctx.stopping and not sleep.done():
                await asyncio.wait({sleep}, timeout=_LOOK_S)
        finally:
            sleep.cancel()

    def _opening(self) -> list[Body]:
        return [StepStarted(step=self.step, model=self.setup.spec), Phase(phase="thinking")]

    def _start_over(self, error: UpstreamError) -> list[Body]:
        """Take back what was shown of the step, where the agent allows that, once; else raise the error."""
        worth_it = error.retryable or error.code in _AFTER_SHOWN
        if not worth_it or not self.setup.retry_after_reset or self._reset_used:
            raise error
        self._reset_used = True
        return self._reopening()

    def _reopening(self) -> list[Body]:
        return [StepReset(step=self.step, from_cseq=0), *self._opening()]  # the engine knows the number

    def _closing(self, turn: Turn, request: ModelRequest) -> list[Body]:
        """The bodies that close a turn which ended upstream (none if it was interrupted).

        Raises:
            UpstreamError: ``upstream_empty``: it said nothing and asked for nothing.
        """
        end = turn.end
        if end is None:
            return []
        if not (end.calls or turn.answered or end.finish == "content_filter"):
            why = (
                "The model used up its output limit before it said anything: raise max_tokens."
                if end.finish == "length"
                else "The model ended its turn without saying anything."
            )
            raise UpstreamError("upstream_empty", why, retryable=end.finish != "length")
        usage = self.setup.priced(end.usage or self._estimated(turn, end, request))
        self.totals.add(end, usage)
        choices = [self._choice(index, other) for index, other in enumerate(end.choices, 1)]
        finished = StepFinished(
            step=self.step, finish_reason=end.finish, usage=usage, provider_items=end.provider_items
        )
        reported = [] if usage is None else [UsageReport(step=self.step, **usage.model_dump())]
        return [*choices, finished, *reported]

    def _estimated(self, turn: Turn, end: TurnEnd, request: ModelRequest) -> Usage:
        """What the turn used about, where the endpoint does not say: budgets hold all the same."""
        calls = [text for call in end.calls for text in (call.name, call.raw)]
        written = [*turn.text, *turn.reasoning, *turn.refusal, *calls]
        return estimated_usage(request.messages, request.tools, written)

    def _choice(self, index: int, other: OtherChoice) -> Custom:
        value: dict[str, Any] = {"step": self.step, "index": index, "content": other.text}
        if other.refusal:
            value["refusal"] = other.refusal
        if other.calls:
            value["tool_calls"] = [{"tool": name, "arguments": raw} for name, raw in other.calls]
        return Custom(name="choice", value=value)

    def _request(self, turn: Turn) -> tuple[ModelRequest, list[Body]]:
        limit = self.setup.context_tokens
        reserve = 0 if limit is None else schema_tokens(self._schemas) + self.setup.answer_tokens
        fitted = fit(self.messages, limit, reserve=reserve)
        notes: list[Body] = []
        if fitted.trimmed and (fitted.shortened, fitted.dropped) != self._trimmed:
            self._trimmed = (fitted.shortened, fitted.dropped)
            notes.append(Custom(name="history_trimmed", value=fitted.report(self.setup.context_tokens or 0)))
        request = ModelRequest(
            model=self.setup.model_name,
            messages=fitted.messages,
            tools=self._schemas,
            params=self._params(),
            run=self.ctx.run,
            channel=self.ctx.channel,
            step=self.step,
            take=turn.take,
        )
        return request, notes

    def _params(self) -> Mapping[str, Any]:
        """The model's parameters. A choice of tool that forces a call holds for one: with the tool's result
        before it the model would be forced to call again, for ever."""
        params = self.setup.params
        forced = params.get("tool_choice") not in (None, "auto", "none")
        if not forced or self.messages[-1].role != "tool":
            return params
        return {name: value for name, value in params.items() if name != "tool_choice"}

    def _message(self, turn: Turn, end: TurnEnd, calls: list[Call]) -> Message:
        return Message(
            role="assistant",
            content="".join([*turn.text, *turn.refusal]),
            reasoning="".join(turn.reasoning) or None,
            calls=tuple(MessageCall(call_id=c.call_id, tool=c.tool, arguments=c.raw) for c in calls),
            provider_items=end.provider_items,
            provider=self.setup.provider,
        )

    def _cut_short(self, turn: Turn) -> list[Body]:
        """End a turn that a message interrupted: what was said stays, what was asked for did not run."""
        if turn.text:
            self.messages.append(Message(role="assistant", content="".join(turn.text)))
        closing = turn.close_calls("A new message stopped the model before this call was complete.")
        return [*closing, StepFinished(step=self.step, finish_reason="interrupted")]

    # --- tools -------------------------------------------------------------------------------------------

    async def _tools(self, asked: list[Call]) -> AsyncGenerator[Body, None]:
        calls = [call for call in asked if call.tool not in self._client_tools]
        if calls:
            yield Phase(phase="tool_executing")
            self.totals.tool_calls += len(calls)
            async with aclosing(self._runner.run(calls)) as bodies:
                async for body in bodies:
                    yield body
        for call in asked:
            if call.tool in self._client_tools:
                yield ToolResult(call_id=call.call_id, tool=call.tool, output="", client=True)
        for call in calls:
            result = self._runner.results.pop(call.call_id)
            self.messages.append(
                Message(role="tool", content=result.output, call_id=result.call_id, is_error=result.is_error)
            )

    async def _resume(self, resume: Resume) -> AsyncGenerator[Body, None]:
        """Take up a channel that a crash cut off: its last completed turn stands."""
        self.step, self.totals.usage = resume.step, resume.usage
        self.messages.extend(resume.messages)
        self.totals.tool_calls = sum(m.role == "tool" for m in resume.messages)
        calls = [self._pending(call) for call in resume.pending]
        if calls:
            async with aclosing(self._tools(calls)) as bodies:
                async for body in bodies:
                    yield body

    def _pending(self, call: PendingCall) -> Call:
        raw, arguments, problem = parse_arguments(call.arguments)
        tool = self.setup.tools.get(call.tool)
        lost = call.started and (tool is None or not tool.idempotent)
        return Call(call.call_id, call.tool, arguments, raw, problem, started=call.started, lost=lost)


def _calls(turn: Turn, end: TurnEnd) -> list[Call]:
    """The turn's complete calls under our ids."""
    return [
        Call(turn.calls[c.key][0], c.name, None if c.error else c.arguments, c.raw, c.error)
        for c in end.calls
    ]

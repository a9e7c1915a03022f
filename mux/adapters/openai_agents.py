"""Agents written with the OpenAI Agents SDK, as channels beside ours.

Optional: ``pip install "mux-agents[openai-agents]"``. The SDK's own tracing, which sends prompts to another
service, is off unless it is asked for.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from mux.agent import AgentContext, Draft, Message, Nested, Outcome
from mux.errors import AgentError, ConfigError, MuxError, UpstreamError
from mux.events import Body, DoneStatus, GuardrailHit, Refusal, Token, ToolCall, ToolResult

try:
    import openai
    from agents import Agent as SdkAgent
    from agents import ModelSettings, RunConfig, Runner
    from agents.exceptions import (
        InputGuardrailTripwireTriggered,
        MaxTurnsExceeded,
        OutputGuardrailTripwireTriggered,
        UserError,
    )
    from agents.result import RunResultStreaming
    from agents.run_state import RunState
    from agents.stream_events import StreamEvent
except ImportError as e:
    raise ConfigError(
        "extra_missing",
        'The OpenAI Agents SDK is not installed: pip install "mux-agents[openai-agents]".',
    ) from e

from mux.adapters._openai_agents_events import OpenCall, Translator, sdk_name

__all__ = ["OpenAIAgentsAgent"]

_HEARTBEAT_S = 1.5  # the promise is progress every 2 s while a tool runs
_STOP_S = 5.0  # for the SDK's own clean-up after a cancel
_BAD_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_REFUSED = "A guardrail of this agent stopped the reply."


class OpenAIAgentsAgent:
    """An agent of the OpenAI Agents SDK as one of ours.

    Args:
        agent: the SDK's agent.
        name: its name in the roster; default: its own, with what a name may not have replaced by ``-``.
        description: default: its ``handoff_description``, else the first line of its instructions.
        context: handed to its tools as the SDK's run context.
        max_turns: model calls at most.
        run_config: the SDK's run configuration; tracing in it stays as it is.
        tracing: let the SDK send traces, where no ``run_config`` is given.
        resumable: what happens to its channel after a crash of the server: begin again, or fail.
    """

    def __init__(
        self,
        agent: SdkAgent[Any],
        *,
        name: str | None = None,
        description: str | None = None,
        context: Any = None,
        max_turns: int = 24,
        run_config: RunConfig | None = None,
        tracing: bool = False,
        resumable: Literal["restart", "fail"] = "fail",
    ) -> None:
        self.name = name or _BAD_NAME.sub("-", sdk_name(agent)).strip("-")[:64] or "agent"
        self.description = description or _description(agent)
        self.tools = tuple(str(getattr(t, "name", type(t).__name__)) for t in agent.tools)
        self.model = _model_name(agent.model)
        self.resumable = resumable
        self._agent = agent
        self._context = context
        self._max_turns = max_turns
        self._config = run_config or RunConfig(tracing_disabled=not tracing)

    def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        """Do the task.

        Raises:
            UpstreamError: the model's endpoint failed.
            AgentError: ``agent_failed``: anything else went wrong in the SDK or in a tool.
        """
        return _Channel(self, ctx).run()

    def holds_text(self, agent: SdkAgent[Any]) -> bool:
        """Whether a turn's text waits until the SDK's output guardrails have seen it."""
        return bool(agent.output_guardrails or self._config.output_guardrails)

    def start(
        self, ctx: AgentContext, given: str | list[Any] | RunState[Any], agent: SdkAgent[Any]
    ) -> RunResultStreaming:
        """Start the SDK's run, or go on with one that waited for approvals, with the request's overrides."""
        config = self._config
        if ctx.params:
            known = {k: v for k, v in ctx.params.items() if k in ModelSettings.__dataclass_fields__}
            settings = ModelSettings(**known)
            given_settings = config.model_settings
            config = replace(
                config, model_settings=given_settings.resolve(settings) if given_settings else settings
            )
        if ctx.model is not None and isinstance(agent.model, str | None):
            config = replace(config, model=ctx.model)
        return Runner.run_streamed(
            agent, given, context=self._context, max_turns=self._max_turns, run_config=config
        )

    def first(self, ctx: AgentContext) -> SdkAgent[Any]:
        """The SDK's agent to begin with, with the request's overrides."""
        changes: dict[str, Any] = {}
        if ctx.instructions is not None:
            changes["instructions"] = ctx.instructions
        if ctx.tools is not None:
            pairs = zip(self._agent.tools, self.tools, strict=True)
            changes["tools"] = [tool for tool, name in pairs if name in ctx.tools]
        if ctx.model is not None and not isinstance(self._agent.model, str | None):
            # a model object has its own client: keep that, or the SDK asks OpenAI with its own key
            model: Any = copy.copy(self._agent.model)
            model.model = ctx.model
            changes["model"] = model
        return self._agent.clone(**changes) if changes else self._agent


class _Stopped(Exception):
    """A guardrail of ours stopped the run."""


class _Channel:
    """One channel: one run of the SDK, and another for each message that came while it ran."""

    def __init__(self, owner: OpenAIAgentsAgent, ctx: AgentContext) -> None:
        self._owner = owner
        self._ctx = ctx
        self._agent = owner.first(ctx)
        self._seen = Translator(ctx.new_call_id, sdk_name(self._agent), ctx.model or owner.model)
        self._stop: DoneStatus | None = None
        self._held: list[Draft] = []
        self._resumed: RunState[Any] | None = None

    async def run(self) -> AsyncGenerator[Draft, None]:  # noqa: C901 -- every way out, side by side
        given: str | list[Any] | RunState[Any] = _input(self._ctx.messages)
        agent = self._agent
        while True:
            result = self._owner.start(self._ctx, given, agent)
            try:
                async with aclosing(self._drafts(result)) as drafts:
                    async for draft in drafts:
                        yield draft
                if self._stop is None and result.interruptions:
                    async for draft in self._decided(result):
                        yield draft
                    if self._resumed is not None:
                        given, agent = self._resumed, result.last_agent
                        continue
            except _Stopped:
                for draft in self._seen.close("blocked", "A guardrail of this server stopped the run."):
                    yield draft
                yield Refusal(content=_REFUSED)
                yield self._outcome("refused", _REFUSED)
                return
            except Exception as error:  # noqa: BLE001 -- `_failed` raises all but the SDK's own ends
                self._ctx.log.warning("sdk_agent_failed", error=type(error).__name__)
                for draft in self._failed(error):
                    yield draft
                return
            for draft in self._seen.close("interrupted", "The run ended before this call was done."):
                yield draft
            if self._stop is None:
                late = self._ctx.host.take_messages(at_end=True)
                if late:
                    said = [{"role": "user", "content": m.content} for m in late]
                    given, agent = [*result.to_input_list(), *said], result.last_agent
                    continue
            yield self._outcome(self._stop or "completed", _text(result.final_output))
            return

    async def _drafts(self, result: RunResultStreaming) -> AsyncGenerator[Draft, None]:
        """The run's drafts; closing this cancels the run and waits until it has stopped."""
        resumed, self._resumed = self._resumed is not None, None
        for draft in [] if resumed else self._seen.begin():
            yield draft
        stream = result.stream_events()
        try:
            async with aclosing(self._with_heartbeat(stream)) as events:
                async for event in events:
                    if event is None:
                        for draft in self._seen.progress():
                            yield draft
                        continue
                    for draft in self._seen.drafts(event):
                        for checked in await self._checked(draft):
                            for ready in self._ready(checked, result):
                                yield ready
                    for call in self._seen.waiting:
                        if self._may_wait(call, result.current_agent):
                            continue
                        for draft in await self._admitted(call):
                            yield draft
                    self._wind_down(result)
            held, self._held = self._held, []
            for draft in held:
                yield draft
        finally:
            await _stopped(result, stream)

    def _ready(self, draft: Draft, result: RunResultStreaming) -> list[Draft]:
        """What may be shown now.

        Text that the SDK's output guardrails have yet to see waits for the end, and what follows it with it.
        Text before a call is none of the answer.
        """
        body = getattr(draft, "body", draft)
        if isinstance(body, ToolCall):
            held, self._held = self._held, []
            return [*held, draft]
        if self._held or (isinstance(body, Token) and self._owner.holds_text(result.current_agent)):
            self._held.append(draft)
            return []
        return [draft]

    # --- approvals ---------------------------------------------------------------------------------------

    def _may_wait(self, call: OpenCall, agent: SdkAgent[Any]) -> bool:
        """Whether a person may have to approve the call first: it starts when that is decided."""
        tools = (t for t in agent.tools if getattr(t, "name", None) == call.tool)
        return any(getattr(tool, "needs_approval", False) is not False for tool in tools)

    async def _decided(self, result: RunResultStreaming) -> AsyncGenerator[Draft, None]:
        """Ask for every call that waits, and prepare the SDK's run to go on with the answers."""
        state = result.to_state()
        for item in result.interruptions:
            call = self._seen.open.get(item.call_id or "")
            if call is None:
                state.reject(item)
                continue
            decision = await self._ctx.host.approve(call.call_id, call.tool, call.arguments() or {})
            if decision.decision == "approve":
                for draft in await self._admitted(call):
                    yield draft
                state.approve(item)
            else:
                edited = (
                    decision.decision == "edit"
                )  # the SDK runs a call as the model wrote it, or not at all
                why = "Edited arguments are not supported." if edited else decision.reason or "It was denied."
                state.reject(item, rejection_message=why)
                call.started = True
        self._resumed = state

    async def _with_heartbeat(
        self, stream: AsyncIterator[StreamEvent]
    ) -> AsyncGenerator[StreamEvent | None, None]:
        """The SDK's events, with ``None`` whenever tools have been running silently for a while."""
        waiting: asyncio.Task[StreamEvent] | None = None
        try:
            while True:
                if not self._seen.open:
                    try:
                        yield await anext(stream)
                    except StopAsyncIteration:
                        return
                    continue
                waiting = asyncio.ensure_future(_next(stream))
                while not (await asyncio.wait({waiting}, timeout=_HEARTBEAT_S))[0]:
                    yield None
                try:
                    event = waiting.result()
                except _Ended:
                    return
                finally:
                    waiting = None
                yield event
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting})

    def _wind_down(self, result: RunResultStreaming) -> None:
        """End after this turn, where that is asked for or a budget is reached."""
        if self._stop is not None or self._seen.in_turn:
            return
        if self._ctx.stopping:
            self._stop = "cancelled"
        elif self._seen.open and self._ctx.host.budget_exceeded() is not None:
            self._stop = "budget_exceeded"
        else:
            return
        result.cancel(mode="after_turn")

    # --- guardrails --------------------------------------------------------------------------------------

    async def _admitted(self, call: OpenCall) -> list[Draft]:
        """The start of a call. The SDK runs it at the same time, so a block ends the whole run."""
        arguments = call.arguments()
        if arguments is None:
            call.started = True  # the SDK answers the model; no start is shown for what can't run
            return []
        verdict = await self._ctx.guard.tool_input(call.tool, arguments)
        if verdict.action == "blocked":
            for rule in verdict.rules:
                await self._ctx.emit(GuardrailHit(rule=rule, stage="tool_input", action="blocked"))
            raise _Stopped
        return self._seen.started(call, verdict.value)

    async def _checked(self, draft: Draft) -> Sequence[Draft]:
        """A tool's result as the log may show it."""
        body = getattr(draft, "body", draft)
        if not isinstance(body, ToolResult):
            return [draft]
        verdict = await self._ctx.guard.tool_output(body.tool, body.output, body.data)
        if verdict.action == "pass":
            return [draft]
        blocked = verdict.action == "blocked"
        output, data = ("A guardrail withheld this result.", None) if blocked else verdict.value
        changed = {"output": output, "data": data}
        if blocked:
            changed |= {"is_error": True, "error": "blocked"}
        hits: list[Draft] = [
            GuardrailHit(rule=r, stage="tool_output", action="blocked" if blocked else "masked")
            for r in verdict.rules
        ]
        shown: Body = body.model_copy(update=changed)
        return [*hits, _like(draft, shown)]

    # --- ends --------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> Iterator[Draft]:
        """What closes a run that an exception ended. Raises what the channel fails with, where it fails."""
        for draft in self._held:  # of an answer that a guardrail stopped, nothing is shown
            if not isinstance(getattr(draft, "body", draft), Token):
                yield draft
        self._held.clear()
        yield from self._seen.close("interrupted", "The agent failed before this call was done.")
        final = self._ended_by(error)
        if isinstance(final, MuxError):
            raise final from error
        if isinstance(error, InputGuardrailTripwireTriggered | OutputGuardrailTripwireTriggered):
            stopped_input = isinstance(error, InputGuardrailTripwireTriggered)
            rule = _guardrail_name(error.guardrail_result.guardrail)
            stage: Literal["input", "output"] = "input" if stopped_input else "output"
            yield GuardrailHit(rule=rule, stage=stage, action="blocked")
            yield Refusal(content=_REFUSED)
        yield final

    def _outcome(self, status: DoneStatus, output: str | None = None) -> Outcome:
        return Outcome(status, output, self._seen.usage, self._seen.ttft_ms)

    def _ended_by(self, error: Exception) -> Outcome | MuxError:
        """What an exception of the SDK means; its own words stay out, since they can quote an endpoint."""
        match error:
            case MuxError():
                return error
            case MaxTurnsExceeded():
                return self._outcome("budget_exceeded")
            case InputGuardrailTripwireTriggered() | OutputGuardrailTripwireTriggered():
                return self._outcome("refused", _REFUSED)
            case UserError():  # the SDK's own words about how it is used
                return AgentError("agent_failed", f"The agent {self._owner.name} failed: {str(error)[:500]}")
            case openai.RateLimitError():
                return UpstreamError("rate_limited", "The endpoint limits requests (429).", retryable=True)
            case openai.APITimeoutError():
                return UpstreamError("upstream_stall", "The endpoint did not answer in time.", retryable=True)
            case openai.APIConnectionError():
                return UpstreamError("upstream_unavailable", "The endpoint can't be reached.", retryable=True)
            case openai.APIStatusError():
                rejected = error.status_code < 500
                code = "upstream_rejected" if rejected else "upstream_error"
                text = f"The endpoint {'rejected the request' if rejected else 'failed'}"
                return UpstreamError(code, f"{text} (HTTP {error.status_code}).", retryable=not rejected)
            case openai.OpenAIError() if "OPENAI_API_KEY" in str(error):
                return AgentError(
                    "agent_failed",
                    f"The agent {self._owner.name} has no key: set OPENAI_API_KEY, or give it a client.",
                )
            case openai.OpenAIError():
                return UpstreamError("upstream_error", "The endpoint reported an error.")
            case _:
                return AgentError(
                    "agent_failed", f"The agent {self._owner.name} failed: {type(error).__name__}."
                )


class _Ended(Exception):
    """The SDK's stream is at its end (a task can't carry StopAsyncIteration)."""


async def _next(stream: AsyncIterator[StreamEvent]) -> StreamEvent:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        raise _Ended from None


async def _stopped(result: RunResultStreaming, stream: AsyncIterator[StreamEvent]) -> None:
    """Cancel what still runs of an SDK run, and wait for it, but not for ever."""
    task = result.run_loop_task
    if task is not None and not task.done():
        result.cancel(mode="immediate")
        await asyncio.wait({task}, timeout=_STOP_S)
    close = getattr(stream, "aclose", None)
    if close is not None:
        try:
            await close()
        except Exception as error:
            if task is None or task.cancelled() or task.exception() is None:
                name = type(error).__name__  # its own words can quote an endpoint
                raise AgentError("agent_failed", f"The SDK's stream could not be closed: {name}.") from error


def _guardrail_name(guardrail: Any) -> str:
    return str(guardrail.get_name())[:128] or "guardrail"


def _like(draft: Draft, body: Body) -> Draft:
    return Nested(draft.path, body) if isinstance(draft, Nested) else body


def _description(agent: SdkAgent[Any]) -> str:
    if agent.handoff_description:
        return agent.handoff_description
    instructions = agent.instructions if isinstance(agent.instructions, str) else ""
    return instructions.strip().partition("\n")[0][:200]


def _model_name(model: Any) -> str | None:
    if isinstance(model, str):
        return model
    name = getattr(model, "model", None)
    return str(name) if name else None


def _text(output: Any) -> str | None:
    if output is None or isinstance(output, str):
        return output
    dump = getattr(output, "model_dump_json", None)
    return str(dump()) if callable(dump) else str(output)


def _input(messages: Sequence[Message]) -> list[Any]:
    """Our conversation as the SDK's input items."""
    items: list[Any] = []
    for message in messages:
        if message.role == "tool":
            items.append({"type": "function_call_output", "call_id": message.call_id, "output": message.text})
            continue
        if message.content or not message.calls:
            items.append({"role": message.role, "content": _content(message)})
        items.extend(
            {"type": "function_call", "call_id": c.call_id, "name": c.tool, "arguments": c.arguments}
            for c in message.calls
        )
    return items


def _content(message: Message) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str) or message.role != "user":
        return message.text
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if part.get("type") == "text":
            parts.append({"type": "input_text", "text": part.get("text", "")})
        elif part.get("type") == "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            parts.append({"type": "input_image", "image_url": url, "detail": "auto"})
    return parts

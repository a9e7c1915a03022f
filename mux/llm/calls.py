"""Runs the calls of one step: checks each, asks where a person must approve, runs all in parallel.

Every call ends in exactly one `ToolResult`, whatever happens to it. Nothing here starts before the step has
ended upstream: the loop calls it with complete calls only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from mux.agent import AgentContext, Decision
from mux.events import (
    ApprovalResolved,
    Body,
    GuardrailHit,
    ToolErrorCode,
    ToolProgress,
    ToolResult,
    ToolStart,
)
from mux.tools.base import Tool, ToolProblem
from mux.tools.runtime import abandoned_note

__all__ = ["Call", "CallRunner", "RunTool"]

RunTool: TypeAlias = Callable[
    [Tool, str, dict[str, Any], AgentContext], AsyncIterator[ToolProgress | ToolResult]
]

_QUEUE = 32  # drafts of parallel tools that wait for the channel; a full queue holds the tools back
_SCHEMA_CHARS = 800  # of a schema that is shown to the model in an error


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call, ready to be judged.

    Attributes:
        arguments: the parsed object; ``None`` if it may not run, and ``problem`` says why.
        raw: the arguments as the model wrote them.
        started: it had its ``tool_start`` before a crash, and runs again without a second one.
        lost: it ran when the server stopped, and may not run twice.
    """

    call_id: str
    tool: str
    arguments: dict[str, Any] | None
    raw: str
    problem: str | None = None
    started: bool = False
    lost: bool = False


class _Answered(Exception):
    """The call may not run; the result says why."""

    def __init__(self, error: ToolErrorCode, output: str) -> None:
        super().__init__(output)
        self.error = error
        self.output = output


@dataclass(slots=True)
class CallRunner:
    """Runs calls for one channel.

    Attributes:
        tools: what the agent may call, by name.
        run_tool: runs one validated call (`mux.tools.runtime.run_tool`).
        approved: tools with ``approval="once"`` that a person has approved on this channel.
        results: the result of each call by its id, as it was yielded.
    """

    ctx: AgentContext
    tools: Mapping[str, Tool]
    run_tool: RunTool
    approved: set[str] = field(default_factory=set)
    results: dict[str, ToolResult] = field(default_factory=dict)
    _asking: set[str] = field(default_factory=set)
    _turns: dict[str, asyncio.Lock] = field(default_factory=dict)  # tool → whose call asks, one at a time
    _logged: dict[str, asyncio.Event] = field(
        default_factory=dict
    )  # call_id → its `tool_start` is in the log

    async def run(self, calls: Sequence[Call]) -> AsyncGenerator[Body, None]:
        """Run the calls in parallel and yield what they say as it comes; closing this stops them all.

        An ``interrupt`` message stops them too; calls without a result are then ``interrupted``.
        """
        queue: asyncio.Queue[Body | None] = asyncio.Queue(_QUEUE)

        def wake(_: object) -> None:
            if not queue.full():  # a full queue wakes the reader anyway
                queue.put_nowait(None)

        tasks = [asyncio.create_task(self._pump(call, queue)) for call in calls]
        for task in tasks:
            task.add_done_callback(wake)
        watcher = asyncio.create_task(self.ctx.host.interruption())
        watcher.add_done_callback(lambda _: _cancel(tasks))
        try:
            while not (queue.empty() and all(t.done() for t in tasks)):
                draft = await queue.get()
                if isinstance(draft, ToolResult):
                    self.results[draft.call_id] = draft
                if draft is not None:
                    yield draft
                if isinstance(draft, ToolStart):  # the engine asks for more only when it is in the log
                    self._logged[draft.call_id].set()
        finally:
            _cancel([watcher, *tasks])
            await asyncio.gather(watcher, *tasks, return_exceptions=True)
        for call in calls:
            if call.call_id not in self.results:
                for body in self._interrupted(call):
                    yield body

    async def _pump(self, call: Call, queue: asyncio.Queue[Body | None]) -> None:
        async with aclosing(self._drafts(call)) as drafts:
            async for draft in drafts:
                if isinstance(draft, ToolStart):
                    # A tool begins only when the log says so: after a crash nobody could know that it had.
                    logged = self._logged[draft.call_id] = asyncio.Event()
                    await queue.put(draft)
                    await logged.wait()
                    del self._logged[draft.call_id]
                else:
                    await queue.put(draft)

    def _interrupted(self, call: Call) -> list[Body]:
        tool = self.tools.get(call.tool)
        note = abandoned_note(tool) if tool is not None else ""
        result = _refused(call, "interrupted", f"A new message stopped this call before it was done.{note}")
        self.results[call.call_id] = result
        if call.call_id in self._asking:  # nobody needs to decide about it any more
            return [ApprovalResolved(call_id=call.call_id, decision="expired", by="interrupt"), result]
        return [result]

    # --- one call ----------------------------------------------------------------------------------------

    async def _drafts(self, call: Call) -> AsyncGenerator[Body, None]:
        hits: list[GuardrailHit] = []
        try:
            tool, given, arguments = await self._admit(call, hits)
        except _Answered as no:
            for hit in hits:
                yield hit
            yield _refused(call, no.error, no.output)
            return
        except Exception:  # a guardrail or the approval broke: fail closed, on this call alone
            self.ctx.log.exception("tool_call_failed", tool=call.tool, call_id=call.call_id)
            yield _refused(call, "tool_failed", "The call could not be checked, so it did not run.")
            return
        for hit in hits:
            yield hit
        if not call.started:
            yield ToolStart(call_id=call.call_id, tool=tool.name, arguments=given)
        async with aclosing(self._work(tool, call, arguments)) as work:
            async for body in work:
                yield body

    async def _work(self, tool: Tool, call: Call, arguments: dict[str, Any]) -> AsyncGenerator[Body, None]:
        result: ToolResult | None = None
        try:
            running = self.run_tool(tool, call.call_id, arguments, self.ctx)
            try:
                async for item in running:
                    if isinstance(item, ToolResult):
                        result = item
                    else:
                        yield item
            finally:
                close = getattr(running, "aclose", None)
                if close is not None:
                    await close()
        except Exception:  # the runtime turns a tool's exceptions into results; this is a fault of ours
            self.ctx.log.exception("tool_runtime_failed", tool=tool.name, call_id=call.call_id)
        if result is None:
            yield _refused(call, "tool_failed", "The tool ended without a result.")
            return
        for body in await self._checked(result):
            yield body

    async def _checked(self, result: ToolResult) -> list[Body]:
        """The result as log and model may see it, with the guardrails' hits before it."""
        try:
            verdict = await self.ctx.guard.tool_output(result.tool, result.output, result.data)
        except Exception:  # a rule that fails blocks
            self.ctx.log.exception("guardrail_failed", stage="tool_output", tool=result.tool)
            return [_blocked(result)]
        action: Literal["blocked", "masked"] = "blocked" if verdict.action == "blocked" else "masked"
        hits: list[Body] = [
            GuardrailHit(rule=rule, stage="tool_output", action=action) for rule in verdict.rules
        ]
        if verdict.action == "blocked":
            return [*hits, _blocked(result)]
        if verdict.action == "masked":
            output, data = verdict.value
            result = result.model_copy(update={"output": output, "data": data})
        return [*hits, result]

    async def _admit(
        self, call: Call, hits: list[GuardrailHit]
    ) -> tuple[Tool, dict[str, Any], dict[str, Any]]:
        """Tool, arguments as JSON, and the handler's arguments of a call that may run.

        Raises:
            _Answered: it may not.
        """
        if call.lost:
            raise _Answered(
                "interrupted",
                "The server stopped while this call ran. Whether it took effect is unknown: check before"
                " calling it again.",
            )
        tool = self.tools.get(call.tool)
        if tool is None:
            known = ", ".join(sorted(self.tools)) or "none"
            raise _Answered("unknown_tool", f"There is no tool {call.tool!r}. Tools that exist: {known}.")
        if call.arguments is None:
            raise _Answered("invalid_arguments", _explain(call, tool))
        arguments = _validated(tool, call.arguments)
        if call.started:  # checked and approved before the crash
            return tool, call.arguments, arguments
        given = await self._guarded(tool, call.arguments, hits)
        if given is not call.arguments:
            arguments = _validated(tool, given)
        edited = await self._approval(tool, call, given)
        if edited is not None:
            _validated(tool, edited)
            given = await self._guarded(tool, edited, hits)
            arguments = _validated(tool, given)
        return tool, given, arguments

    async def _approval(self, tool: Tool, call: Call, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Ask a person where one must be asked; the arguments if they edited them.

        Raises:
            _Answered: they said no, or nothing.
        """
        if tool.approval == "never":
            return None
        if tool.approval == "always":
            return await self._approved(tool, call, arguments)
        async with self._turns.setdefault(tool.name, asyncio.Lock()):  # parallel calls ask once, too
            if tool.name in self.approved:
                return None
            return await self._approved(tool, call, arguments)

    async def _guarded(
        self, tool: Tool, arguments: dict[str, Any], hits: list[GuardrailHit]
    ) -> dict[str, Any]:
        verdict = await self.ctx.guard.tool_input(tool.name, arguments)
        action: Literal["blocked", "masked"] = "blocked" if verdict.action == "blocked" else "masked"
        hits.extend(GuardrailHit(rule=rule, stage="tool_input", action=action) for rule in verdict.rules)
        if verdict.action == "blocked":
            raise _Answered("blocked", "A guardrail of this server stopped the call. Go on without it.")
        if verdict.action == "masked":
            masked: dict[str, Any] = verdict.value
            return masked
        return arguments

    async def _approved(self, tool: Tool, call: Call, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Ask a person; the arguments if they edited them."""
        self._asking.add(call.call_id)  # stays there if the wait is cut short
        decision: Decision = await self.ctx.host.approve(call.call_id, tool.name, arguments)
        self._asking.discard(call.call_id)
        if decision.decision in ("deny", "expired"):
            why = (
                "Nobody approved the call in time."
                if decision.decision == "expired"
                else "A person denied it."
            )
            reason = f" Their reason: {decision.reason}" if decision.reason else ""
            raise _Answered(
                "denied", f"{why}{reason} It did not run; go on without it or ask for something else."
            )
        if tool.approval == "once":
            self.approved.add(tool.name)
        return decision.arguments if decision.decision == "edit" else None


def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Once each: a second cancel would cut a task's waiting for its tool to clean up short."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()


def _refused(call: Call, error: ToolErrorCode, output: str) -> ToolResult:
    return ToolResult(call_id=call.call_id, tool=call.tool, output=output, is_error=True, error=error)


def _blocked(result: ToolResult) -> ToolResult:
    return ToolResult(
        call_id=result.call_id,
        tool=result.tool,
        output="A guardrail of this server withheld the tool's result.",
        is_error=True,
        error="blocked",
        elapsed_ms=result.elapsed_ms,
    )


def _validated(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return tool.validate(arguments)
    except ToolProblem as problem:
        raise _Answered("invalid_arguments", problem.message) from problem


def _explain(call: Call, tool: Tool) -> str:
    what = {
        "truncated": "Your reply was cut off while you wrote the arguments (output limit), so nothing ran."
        " Send fewer or shorter arguments.",
        "not_an_object": "The arguments must be one JSON object, so nothing ran.",
    }.get(call.problem or "", "The arguments are not valid JSON, so nothing ran.")
    schema = json.dumps(dict(tool.parameters), ensure_ascii=False)
    if len(schema) > _SCHEMA_CHARS:
        schema = schema[:_SCHEMA_CHARS] + " …"
    return f"{what} Call {tool.name} again with arguments that fit this schema: {schema}"

"""Running one tool call: progress while it runs, exactly one result at the end, within the tool's limits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mux.agent import AgentContext
from mux.errors import ConfigError, MuxError
from mux.events import ToolErrorCode, ToolProgress, ToolResult
from mux.telemetry import redact_secrets
from mux.tools.base import Tool, ToolOutput, ToolProblem
from mux.tools.results import as_output, clean_text, cut

__all__ = ["Toolbox", "abandoned_note", "run_tool"]

HEARTBEAT_S = 1.5  # the promise is 2 s; the rest is for a busy loop
STOP_GRACE_S = 5.0  # for a cancelled tool's own clean-up
MAX_PENDING = 64  # progress updates that wait for the channel; then the tool waits
_MAX_CONTENT = 65_536  # characters of streamed content merged into one update
_MAX_ERROR = 4_000
_RETRY_S = 0.25


class Toolbox:
    """Some tools by name.

    Raises:
        ConfigError: ``tool_duplicate``: two tools have one name.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                other = self._tools[tool.name].source
                raise ConfigError(
                    "tool_duplicate", f"There are two tools named {tool.name!r} ({other}, {tool.source})."
                )
            self._tools[tool.name] = tool

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self._tools

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def schemas(self, names: Sequence[str] | None = None) -> list[Tool]:
        """The tools to offer a model, in the order of ``names``; all of them without it."""
        if names is None:
            return list(self._tools.values())
        return [self._tools[n] for n in names if n in self._tools]

    def select(self, names: Iterable[str]) -> tuple[Toolbox, list[str]]:
        """A toolbox of only these, and the names that are not known."""
        wanted = list(dict.fromkeys(names))
        return Toolbox(self.schemas(wanted)), [n for n in wanted if n not in self._tools]


def abandoned_note(tool: Tool) -> str:
    """What a result must add when this tool's call was stopped: empty unless its thread may still run."""
    if tool.meta.get("runs_in") != "thread":
        return ""
    return " Its thread can't be stopped: it was abandoned and may still be working."


async def run_tool(
    tool: Tool, call_id: str, arguments: dict[str, Any], ctx: AgentContext
) -> AsyncIterator[ToolProgress | ToolResult]:
    """Run one call. Yields progress at least every 2 s, and last exactly one result.

    Closing the iterator, or cancelling the task that iterates it, stops the work before it returns; then
    there is no result, and the caller says ``cancelled`` (with `abandoned_note`).

    Args:
        tool: what to run.
        call_id: the call's id.
        arguments: as returned by ``tool.validate``.
        ctx: the channel's context.
    """
    call = _Call(tool, call_id, ctx)
    task = asyncio.create_task(call.work(arguments), name=f"tool {tool.name} {call_id}")
    task.add_done_callback(lambda _: call.wake.set())
    try:
        while not task.done():
            overdue = await call.tick()
            for update in call.take():
                yield update
            if overdue and not task.done():
                await _stop(task, ctx, tool)
                yield call.result(call.timeout_output())
                return
        for update in call.take():
            yield update
        yield call.result(await call.outcome(task))
    finally:
        call.end()
        await _stop(task, ctx, tool)


async def _stop(task: asyncio.Task[ToolOutput], ctx: AgentContext, tool: Tool) -> None:
    """Cancel the work and wait until it has cleaned up, but not for ever."""
    if task.done():
        return
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=STOP_GRACE_S)
    if not done:
        ctx.log.warning("tool_ignores_cancel", tool=tool.name, waited_s=STOP_GRACE_S)
    elif not task.cancelled():
        task.exception()  # it is of no use to anyone any more, but must not be reported as never retrieved


class _Call:
    """One call while it runs; the :class:`~mux.tools.base.ToolContext` that the tool sees."""

    def __init__(self, tool: Tool, call_id: str, agent: AgentContext) -> None:
        self.run, self.channel, self.agent = agent.run, agent.channel, agent
        self.call_id, self.tool = call_id, tool.name
        self.wake = asyncio.Event()
        self._tool = tool
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[str | None, float | None, str | None]] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._started = self._reported = time.monotonic()
        self._waits = 0  # while above 0 the timeout stands still
        self._worked = 0.0
        self._since = self._started
        self._over = False

    # --- what the tool may call ---------------------------------------------------------------------------

    async def progress(
        self, message: str | None = None, fraction: float | None = None, content: str | None = None
    ) -> None:
        if len(self._pending) >= MAX_PENDING:
            with self.waiting():
                while len(self._pending) >= MAX_PENDING and not self._over:
                    self._room.clear()
                    await self._room.wait()
        if self._over:
            return  # a thread that was abandoned still talks
        if fraction is not None:
            fraction = min(1.0, max(0.0, float(fraction)))
        self._pending.append((_clean(message, _MAX_ERROR), fraction, _clean(content, None)))
        self.wake.set()

    def progress_sync(
        self, message: str | None = None, fraction: float | None = None, content: str | None = None
    ) -> None:
        if self._over or self._loop.is_closed():
            raise ToolProblem("The call is over; its progress goes nowhere.")
        update = self.progress(message, fraction, content)
        asyncio.run_coroutine_threadsafe(update, self._loop).result()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        now = time.monotonic()
        if not self._waits:
            self._worked += now - self._since
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._since = time.monotonic()

    # --- what run_tool calls ------------------------------------------------------------------------------

    async def work(self, arguments: dict[str, Any]) -> ToolOutput:
        """All attempts, once there is a slot."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                limiter = _limiter(self._tool)
                if limiter is not None:
                    if limiter.locked():
                        await self.progress("waiting for a free slot")
                    with self.waiting():
                        await stack.enter_async_context(limiter)
                return await self._attempts(arguments)
        except SystemExit:  # it would end the whole server
            raise ToolProblem("The tool tried to end the process.") from None
        finally:
            self.end()

    def end(self) -> None:
        """From now on progress goes nowhere, and nobody waits for room."""
        self._over = True
        self._room.set()

    async def _attempts(self, arguments: dict[str, Any]) -> ToolOutput:
        retries = self._tool.retries if self._tool.idempotent else 0
        attempt = 0
        while True:
            attempt += 1
            try:
                value = await self._tool.handler(dict(arguments), self)
                return as_output(value, self._tool.max_output)
            except Exception as e:
                if attempt > retries or (isinstance(e, ToolProblem) and e.error != "tool_failed"):
                    raise
                await self.progress(f"failed, trying again ({attempt + 1} of {retries + 1})")
            await asyncio.sleep(_RETRY_S * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def tick(self) -> bool:
        """Wait for progress, the end, the next heartbeat or the deadline; true when that has passed."""
        delay = self._reported + HEARTBEAT_S - time.monotonic()
        if not self._waits:
            delay = min(delay, self._left())
        if not self.wake.is_set() and delay > 0:
            try:
                async with asyncio.timeout(delay):
                    await self.wake.wait()
            except TimeoutError:
                pass  # the heartbeat or the deadline is due
        self.wake.clear()
        return not self._waits and self._left() <= 0

    def _left(self) -> float:
        return self._tool.timeout_s - self._worked - (time.monotonic() - self._since)

    def take(self) -> list[ToolProgress]:
        """What was reported since; a bare heartbeat when that was nothing for too long."""
        updates: list[ToolProgress] = []
        while self._pending:
            message, fraction, content = self._pending.popleft()
            while content and message is None and fraction is None and self._pending:
                following = self._pending[0]
                if following[:2] != (None, None) or len(content) + len(following[2] or "") > _MAX_CONTENT:
                    break
                content += self._pending.popleft()[2] or ""
            updates.append(self._update(message=message, fraction=fraction, content=content))
        self._room.set()
        if not updates and time.monotonic() - self._reported >= HEARTBEAT_S:
            updates.append(self._update())
        if updates:
            self._reported = time.monotonic()
        return updates

    def _update(self, **fields: Any) -> ToolProgress:
        return ToolProgress(call_id=self.call_id, elapsed_ms=self._elapsed_ms(), **fields)

    def _elapsed_ms(self) -> int:
        return round((time.monotonic() - self._started) * 1000)

    async def outcome(self, task: asyncio.Task[ToolOutput]) -> ToolOutput:
        """The finished work as a result, whatever it raised: the failure boundary of a tool."""
        if task.cancelled():
            return _failure("The tool was cancelled from inside.", "cancelled")
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, ToolProblem):
            return _failure(error.message, error.error, error.printed, error.data, self._tool.max_output)
        if isinstance(error, MuxError):
            return _failure(error.message)
        await self._log_failure(error)
        return _failure(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    async def _log_failure(self, error: BaseException) -> None:
        """A traceback quotes what the tool touched: the rules on tool output hold for the log as well."""
        log = self.agent.log.bind(tool=self.tool, call_id=self.call_id)
        trace = "".join(traceback.format_exception(error))
        try:
            shown = (await self.agent.guard.tool_output(self.tool, trace)).action == "pass"
        except Exception:  # noqa: BLE001 - a rule that fails blocks
            shown = False
        if shown:
            log.warning("tool_failed", exc_info=error)
        else:
            log.warning("tool_failed", error=type(error).__name__, traceback="hidden by a guardrail")

    def timeout_output(self) -> ToolOutput:
        message = f"The tool was stopped: it did not finish within {self._tool.timeout_s:g} s."
        return _failure(message + abandoned_note(self._tool), "timeout")

    def result(self, output: ToolOutput) -> ToolResult:
        error = output.error or ("tool_failed" if output.is_error else None)
        return ToolResult(
            call_id=self.call_id,
            tool=self.tool,
            output=output.output,
            data=output.data,
            is_error=error is not None,
            error=error,
            elapsed_ms=self._elapsed_ms(),
        )


def _clean(text: str | None, limit: int | None) -> str | None:
    if text is None:
        return None
    text = clean_text(str(text))
    return text if limit is None else cut(text, limit)


def _failure(
    message: str,
    error: ToolErrorCode = "tool_failed",
    printed: str = "",
    data: Any = None,
    max_output: int = 100_000,
) -> ToolOutput:
    message = cut(clean_text(redact_secrets(message)), _MAX_ERROR)
    if printed:
        kept = as_output(printed, max_output).output
        message = f"{kept}{'' if kept.endswith(chr(10)) else chr(10)}{message}"
    data = as_output(ToolOutput("", data), 1).data
    return ToolOutput(message, data, is_error=True, error=error)


# One semaphore per tool and event loop; the loop's end forgets them.
_limiters: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[tuple[str, str, int], asyncio.Semaphore]
] = weakref.WeakKeyDictionary()


def _limiter(tool: Tool) -> asyncio.Semaphore | None:
    if tool.concurrency is None:
        return None
    of_loop = _limiters.setdefault(asyncio.get_running_loop(), {})
    return of_loop.setdefault((tool.source, tool.name, tool.concurrency), asyncio.Semaphore(tool.concurrency))

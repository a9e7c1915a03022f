"""``@tool``: makes a :class:`~mux.tools.base.Tool` of a typed function."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, overload

from mux.tools.base import Approval, Handler, Tool, ToolContext, ToolOutput
from mux.tools.isolated import check_importable, run_in_process
from mux.tools.results import as_output
from mux.tools.schema import Signature, signature_of
from mux.tools.threads import run_in_thread

__all__ = ["tool"]

Isolate: TypeAlias = Literal["thread", "process"]
Function: TypeAlias = Callable[..., Any]
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MESSAGE = 500  # characters: a longer yielded text is output, not a message
_UPDATE = frozenset({"message", "fraction", "content"})


@overload
def tool(function: Function, /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float = 120.0,
    approval: Approval = "never",
    idempotent: bool = False,
    concurrency: int | None = None,
    retries: int = 0,
    isolate: Isolate = "thread",
    max_output: int = 100_000,
) -> Callable[[Function], Tool]: ...
def tool(function: Function | None = None, /, **options: Any) -> Tool | Callable[[Function], Tool]:
    """Make a tool of a function; usable bare or with options.

    The JSON Schema comes from the signature, the descriptions from the docstring. A parameter annotated
    ``ToolContext`` is filled in and not shown to the model. The function may be async, sync (runs in a
    thread), or a generator of either kind: each value it yields is progress (a string is the message, a
    number from 0 to 1 the fraction, a dict of ``message``, ``fraction``, ``content`` all of it); its return
    value, or else the last value it yielded, is the result.

    Args:
        function: the function, when used without parentheses.
        name: what the model calls; default: the function's name.
        description: what the model reads; default: the docstring.
        parameters: a JSON Schema that replaces the signature's: it alone validates, and the function may
            take ``**kwargs``.
        timeout_s: seconds until the call is stopped.
        approval: whether a person must approve a call.
        idempotent: running it twice does no harm: it may be retried, and run again after a crash.
        concurrency: how many calls may run at once in this process.
        retries: how often a failed call of an idempotent tool is tried again.
        isolate: ``process`` runs a sync function in a child process, which a cancel or timeout kills;
            a thread can only be abandoned.
        max_output: characters of output that are kept.

    Raises:
        TypeError: the function or an option can't be used; the message says what to change.
    """

    if function is not None:
        return _make(function)
    return lambda function: _make(function, **options)


def _make(
    function: Function,
    *,
    name: str | None = None,
    description: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float = 120.0,
    approval: Approval = "never",
    idempotent: bool = False,
    concurrency: int | None = None,
    retries: int = 0,
    isolate: Isolate = "thread",
    max_output: int = 100_000,
) -> Tool:
    signature = signature_of(function, parameters)
    tool_name = name or function.__name__
    if not _NAME.fullmatch(tool_name):
        raise TypeError(f"tool name {tool_name!r}: use 1 to 64 of A-Z a-z 0-9 _ -")
    if retries and not idempotent:
        raise TypeError(f"tool {tool_name!r}: retries need idempotent=True")
    if timeout_s <= 0 or max_output < 1 or (concurrency is not None and concurrency < 1):
        raise TypeError(f"tool {tool_name!r}: timeout_s, max_output and concurrency must be positive")
    handler, kind = _handler(function, signature, isolate, max_output)
    module = getattr(function, "__module__", None) or "built-in"
    return Tool(
        name=tool_name,
        description=description or signature.description or tool_name,
        parameters=signature.parameters,
        validate=signature.validate,
        handler=handler,
        timeout_s=timeout_s,
        max_output=max_output,
        approval=approval,
        idempotent=idempotent,
        concurrency=concurrency,
        retries=retries,
        source="built-in" if module.startswith("mux.tools.") else module,
        meta={"runs_in": kind, "function": function, "context": signature.context},
    )


def _handler(
    function: Function, signature: Signature, isolate: Isolate, max_output: int
) -> tuple[Handler, Literal["task", "thread", "process"]]:
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if isolate == "process":
        if is_async:
            raise TypeError(
                "isolate='process' is for sync functions; an async tool is cancelled at once anyway"
            )
        check_importable(function)

        async def in_process(arguments: dict[str, Any], ctx: ToolContext) -> Any:
            return await run_in_process(function, arguments, ctx)

        return in_process, "process"

    context = signature.context

    def call(arguments: dict[str, Any], ctx: ToolContext) -> Any:
        return function(**arguments, **({context: ctx} if context else {}))

    if inspect.isasyncgenfunction(function):

        async def iterated(arguments: dict[str, Any], ctx: ToolContext) -> Any:
            return await drain_async(call(arguments, ctx), ctx)

        return iterated, "task"
    if is_async:

        async def awaited(arguments: dict[str, Any], ctx: ToolContext) -> Any:
            return await call(arguments, ctx)

        return awaited, "task"

    async def threaded(arguments: dict[str, Any], ctx: ToolContext) -> Any:
        def work() -> ToolOutput:
            value = call(arguments, ctx)
            if inspect.isgenerator(value):
                value = drain(value, ctx)
            return as_output(value, max_output)  # here, so that a large result is encoded off the loop

        return await run_in_thread(work, name=f"tool-{ctx.tool}")

    return threaded, "thread"


def as_update(value: Any) -> dict[str, Any] | None:
    """What a yielded value says as progress; ``None`` if it is only a result."""
    if value is None or isinstance(value, ToolOutput):
        return None
    if isinstance(value, str):
        return {"message": value} if len(value) <= _MESSAGE else {"content": value}
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return {"fraction": float(value)}
    if isinstance(value, dict) and value and value.keys() <= _UPDATE:
        return dict(value)
    return {"message": as_output(value, _MESSAGE).output}


def drain(generator: Iterator[Any], ctx: ToolContext) -> Any:
    """Run a sync generator in its thread: yields are progress, the return value or last yield the result."""
    last: Any = None
    try:
        while True:
            try:
                value = next(generator)
            except StopIteration as stop:
                return last if stop.value is None else stop.value
            last = value
            if update := as_update(value):
                ctx.progress_sync(**update)
    finally:
        close = getattr(generator, "close", None)
        if close is not None:
            close()


async def drain_async(generator: AsyncIterator[Any], ctx: ToolContext) -> Any:
    """The same for an async generator, whose last yield is the result."""
    last: Any = None
    try:
        async for value in generator:
            last = value
            if update := as_update(value):
                await ctx.progress(**update)
    finally:
        aclose = getattr(generator, "aclose", None)
        if aclose is not None:
            await aclose()
    return last

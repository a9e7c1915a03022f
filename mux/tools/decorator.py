"""``@tool``: makes a :class:`~mux.tools.base.Tool` of a typed function."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack, get_args, overload

from mux.tools.base import Approval, Handler, Tool, ToolContext, ToolOutput
from mux.tools.isolated import check_importable, run_in_process
from mux.tools.results import as_output
from mux.tools.schema import Signature, signature_of
from mux.tools.threads import run_in_thread

__all__ = ["ToolOptions", "tool"]

Isolate: TypeAlias = Literal["thread", "process"]
Function: TypeAlias = Callable[..., Any]
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MESSAGE = 500  # characters: a longer yielded text is output, not a message
_UPDATE = frozenset({"message", "fraction", "content"})


class ToolOptions(TypedDict, total=False):
    """What ``@tool(…)`` takes; all of it may be left out.

    Attributes:
        name: what the model calls; default: the function's name.
        description: what the model reads; default: the docstring.
        parameters: a JSON Schema that replaces the signature's: it alone validates, and the function may
            take ``**kwargs``.
        timeout_s: seconds until the call is stopped (120).
        approval: whether a person must approve a call (``never``).
        idempotent: running it twice does no harm: it may be retried, and run again after a crash (no).
        concurrency: how many calls may run at once in this process (any number).
        retries: how often a failed call of an idempotent tool is tried again (0).
        isolate: ``process`` runs a sync function in a child process, which a cancel or timeout kills;
            a thread (the default) can only be abandoned.
        max_output: characters of output that are kept (100,000).
    """

    name: str | None
    description: str | None
    parameters: Mapping[str, Any] | None
    timeout_s: float
    approval: Approval
    idempotent: bool
    concurrency: int | None
    retries: int
    isolate: Isolate
    max_output: int


_DEFAULTS: Final = ToolOptions(
    name=None, description=None, parameters=None, timeout_s=120.0, approval="never", idempotent=False,
    concurrency=None, retries=0, isolate="thread", max_output=100_000,
)  # fmt: skip


@overload
def tool(function: Function, /) -> Tool: ...
@overload
def tool(**options: Unpack[ToolOptions]) -> Callable[[Function], Tool]: ...
def tool(
    function: Function | None = None, /, **options: Unpack[ToolOptions]
) -> Tool | Callable[[Function], Tool]:
    """Make a tool of a function; usable bare or with options.

    The JSON Schema comes from the signature, the descriptions from the docstring. A parameter annotated
    ``ToolContext`` is filled in and not shown to the model. The function may be async, sync (runs in a
    thread), or a generator of either kind: each value it yields is progress (a string is the message, a
    number from 0 to 1 the fraction, a dict of ``message``, ``fraction``, ``content`` all of it); its return
    value, or else the last value it yielded, is the result.

    Args:
        function: the function, when used without parentheses.
        options: see `ToolOptions`.

    Raises:
        TypeError: the function or an option can't be used; the message says what to change.
    """
    if unknown := sorted(options.keys() - _DEFAULTS.keys()):
        raise TypeError(f"@tool has no option {unknown[0]!r}; it has {', '.join(_DEFAULTS)}")
    if function is not None:
        return _make(function, {**_DEFAULTS, **options})
    return lambda function: _make(function, {**_DEFAULTS, **options})


def _make(function: Function, given: ToolOptions) -> Tool:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        kind = type(function).__name__
        raise TypeError(f"a tool is made of a function, not of a {kind}: write a def that calls it")
    signature = signature_of(function, given["parameters"])
    name = given["name"] or function.__name__
    _check(name, given)
    handler, place = _handler(function, signature, given["isolate"], given["max_output"])
    module = getattr(function, "__module__", None) or "built-in"
    return Tool(
        name=name,
        description=given["description"] or signature.description or name,
        parameters=signature.parameters,
        validate=signature.validate,
        handler=handler,
        timeout_s=given["timeout_s"],
        max_output=given["max_output"],
        approval=given["approval"],
        idempotent=given["idempotent"],
        concurrency=given["concurrency"],
        retries=given["retries"],
        source="built-in" if module.startswith("mux.tools.") else module,
        meta={"runs_in": place, "function": function, "context": signature.context},
    )


def _check(name: str, given: ToolOptions) -> None:
    """Raise TypeError for an option that can't be meant."""
    if not _NAME.fullmatch(name):
        raise TypeError(f"tool name {name!r}: use 1 to 64 of A-Z a-z 0-9 _ -")
    for option, known in (("approval", get_args(Approval)), ("isolate", get_args(Isolate))):
        if given[option] not in known:  # type: ignore[literal-required]  # both are keys
            raise TypeError(f"tool {name!r}: {option} is one of {', '.join(known)}")
    if given["retries"] and not given["idempotent"]:
        raise TypeError(f"tool {name!r}: retries need idempotent=True")
    least = {
        "timeout_s": given["timeout_s"],
        "max_output": given["max_output"],
        "retries": given["retries"] + 1,
    }
    least |= {} if given["concurrency"] is None else {"concurrency": given["concurrency"]}
    if wrong := [option for option, value in least.items() if not value > 0]:
        raise TypeError(f"tool {name!r}: {wrong[0]} is too small")


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

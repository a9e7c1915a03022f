"""What a tool is: one frozen value, its context, and what it returns. No execution here (see ``runtime``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from mux.agent import AgentContext
from mux.events import ToolErrorCode

__all__ = ["Tool", "ToolContext", "ToolOutput", "ToolProblem"]

Approval: TypeAlias = Literal["never", "once", "always"]


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool may return instead of a plain value.

    Attributes:
        output: what the model gets, text.
        data: JSON for programs and typed cards (tables, sources).
        is_error: the tool failed in a way that the model should see and may recover from.
        error: why, if ``is_error``.
    """

    output: str
    data: Any = None
    is_error: bool = False
    error: ToolErrorCode | None = None


class ToolProblem(Exception):
    """Raised by a tool to answer the model with an error it can act on.

    Args:
        message: what went wrong and what to do instead; the model and the user see it.
        error: the ``tool_result`` error code.
        printed: output up to the failure, shown before the message.
    """

    def __init__(
        self, message: str, error: ToolErrorCode = "tool_failed", *, printed: str = "", data: Any = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.error = error
        self.printed = printed
        self.data = data


class ToolContext(Protocol):
    """What a tool function is given when it asks for a parameter annotated ``ToolContext``."""

    run: str
    channel: str
    call_id: str
    tool: str
    agent: AgentContext  # for tools that open channels or read others' results

    async def progress(
        self, message: str | None = None, fraction: float | None = None, content: str | None = None
    ) -> None:
        """Report progress; callable from threads too through ``progress_sync``.

        Args:
            message: one short sentence.
            fraction: 0 to 1.
            content: a piece of streamed output (what a program printed).
        """

    def progress_sync(
        self, message: str | None = None, fraction: float | None = None, content: str | None = None
    ) -> None:
        """The same from a sync tool in its thread; blocks while the channel is held back."""

    def waiting(self) -> AbstractContextManager[None]:
        """Inside it the call's timeout stands still: for waits that are not the tool's own work, such as
        the one for a free sandbox worker or for another channel's result."""


Handler: TypeAlias = Callable[[dict[str, Any], ToolContext], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    Attributes:
        name: what the model calls, ``[A-Za-z0-9_-]{1,64}``.
        description: what the model reads.
        parameters: JSON Schema (object) that the arguments must fit.
        validate: turns raw arguments into the handler's; raises ``ToolProblem("…", "invalid_arguments")``
            with a message that tells the model what to mend.
        handler: does the work with validated arguments; returns a `ToolOutput`, a string, or a JSON value.
        timeout_s: seconds; waiting for a slot or a sandbox worker does not count.
        max_output: characters of ``output`` that are kept; the cut is visible in the text.
        approval: whether a person must approve a call.
        idempotent: running it twice does no harm: it may be retried, and run again after a crash.
        concurrency: how many calls may run at once in this process; ``None`` = no limit of its own.
        retries: how often a failed call of an idempotent tool is tried again.
        source: ``built-in``, ``mcp:<server>`` or the roster file that it came from.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    validate: Callable[[dict[str, Any]], dict[str, Any]]
    handler: Handler
    timeout_s: float = 120.0
    max_output: int = 100_000
    approval: Approval = "never"
    idempotent: bool = False
    concurrency: int | None = None
    retries: int = 0
    source: str = "built-in"
    meta: Mapping[str, Any] = field(default_factory=dict)

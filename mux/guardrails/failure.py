"""An agent's exception on its way to the log: its words, and what a traceback prints beside them."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable

from mux.errors import AgentError, MuxError

__all__ = ["clean_failure"]


async def clean_failure(failure: Exception, forbids: Callable[[str], Awaitable[bool]]) -> Exception:
    """The exception, or ours in its place where something of it is forbidden: its message, or its causes,
    groups and notes.

    Args:
        forbids: whether the rules forbid a text.
    """
    words = failure.message if isinstance(failure, MuxError) else str(failure)
    if await forbids(words):
        # A new exception without a cause: a traceback in the log would quote the words.
        return AgentError("agent_failed", "The agent failed; a guardrail of this server hides its message.")
    if not await forbids("".join(traceback.format_exception(failure))):
        return failure
    if isinstance(failure, MuxError):  # its own words are clean
        failure.__cause__ = failure.__context__ = None
        return failure
    name = type(failure).__name__
    return AgentError("agent_failed", f"The agent failed ({name}); a guardrail of this server hides where.")

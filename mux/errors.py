"""Every error that Mux reports: a stable code, whose fault it was, and what to do next.

One class per *kind of handling*, not per message. ``code`` is part of the public contract (problem
documents, ``error`` events and exit messages carry it) and never changes; ``message`` is one sentence
that a user can act on and is safe to show: it never carries secrets or an upstream's own words.
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = [
    "AgentError",
    "BadRequest",
    "ConfigError",
    "Conflict",
    "CursorError",
    "Fault",
    "Fenced",
    "MuxError",
    "NotFound",
    "Overloaded",
    "StoreError",
    "Unavailable",
    "UpstreamError",
]

Fault = Literal["client", "server", "upstream", "agent"]


class MuxError(Exception):
    """Base of all errors that Mux raises on purpose.

    Args:
        code: stable identifier, ``[a-z0-9_]+``.
        message: one sentence for the user, with the right call or setting in it.
        status: HTTP status to answer with, where none of the subclass's default fits.
        retryable: whether the same request may succeed later.
        retry_after: seconds to wait before that, if known.
        extra: further members of the problem document (JSON values).
    """

    fault: Fault = "server"
    status: int = 500
    retryable: bool = False

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        if status is not None:
            self.status = status
        if retryable is not None:
            self.retryable = retryable
        self.retry_after = retry_after
        self.extra = extra or {}

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class BadRequest(MuxError):
    """The caller sent something that can't be used; nothing was started."""

    fault: Fault = "client"
    status = 400


class NotFound(MuxError):
    """No such run, channel, agent or call (or it belongs to another owner)."""

    fault: Fault = "client"
    status = 404


class Conflict(MuxError):
    """Valid in itself, but not in the present state."""

    fault: Fault = "client"
    status = 409


class CursorError(MuxError):
    """A cursor that can't be continued from: garbage (400), or foreign, stale or beyond head (409)."""

    fault: Fault = "client"
    status = 400


class Overloaded(MuxError):
    """A limit is reached; ``retry_after`` says when to try again."""

    fault: Fault = "server"
    status = 429
    retryable = True


class Unavailable(MuxError):
    """The server is draining or its store does not answer."""

    fault: Fault = "server"
    status = 503
    retryable = True


class StoreError(MuxError):
    """The store failed (disk full, read-only, locked). What was acknowledged before is safe."""

    fault: Fault = "server"
    status = 503
    retryable = True


class Fenced(StoreError):
    """Another owner took the run over; this one must stop writing to it at once."""


class ConfigError(MuxError):
    """A setting, agent file or command line can't be used."""

    fault: Fault = "client"
    status = 400


class UpstreamError(MuxError):
    """A model endpoint failed. ``code`` is one of the model-stream codes of the ``error`` event."""

    fault: Fault = "upstream"
    status = 502


class AgentError(MuxError):
    """An agent failed; ends its channel with ``error`` and ``done``, and no other channel."""

    fault: Fault = "agent"
    status = 500

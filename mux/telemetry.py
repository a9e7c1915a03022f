"""structlog set-up: one JSON line (or a readable one on a terminal) per thing worth a line, never per token.

Secrets are kept out at the rim: `redact` is the last processor before rendering and masks the values of
every environment variable that holds a key, however they got into a line.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal

import structlog

__all__ = ["configure_logging", "get_logger", "redact_secrets", "register_secret"]

_MASK = "[secret]"
_MIN_SECRET = 8  # shorter values are more likely words than keys, and would mask the text around them
_secrets: set[str] = set()


def register_secret(value: str | None) -> None:
    """Never let this value reach a log line or an error message from now on."""
    if value and len(value) >= _MIN_SECRET:
        _secrets.add(value)


def redact_secrets(text: str) -> str:
    """The text without any registered secret."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, _MASK)
    return text


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact_secrets(value)
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return value


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {k: _clean(v) for k, v in event.items()} if _secrets else event


def configure_logging(
    fmt: Literal["auto", "json", "console"] = "auto",
    level: str = "info",
    *,
    secrets: Iterable[str | None] = (),
) -> None:
    """Set structlog up for this process; logs go to stderr.

    Args:
        fmt: ``auto`` is readable lines on a terminal, JSON lines elsewhere.
        level: lowest level that is written.
        secrets: values that must never appear (API keys).
    """
    for secret in secrets:
        register_secret(secret)
    console = fmt == "console" or (fmt == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ)
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(**bound: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger with these members on every line."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**bound)
    return logger

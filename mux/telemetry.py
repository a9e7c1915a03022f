"""structlog set-up: one JSON line (or a readable one on a terminal) per thing worth a line, never per token.

Libraries that log by the standard library's `logging` write through it too: one line a record, cut, and so
many a minute. Secrets are kept out at the rim: the last processor before rendering masks every registered
value, however it got into a line; what terminals obey is shown instead.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import structlog

__all__ = ["configure_logging", "get_logger", "printable", "redact_secrets", "register_secret", "secrets_in"]

_MASK = "[secret]"
_MIN_SECRET = 8  # shorter values are more likely words than keys, and would mask the text around them
_secrets: set[str] = set()
# names of values that are secret; others ("production", "en") are words that a log may hold
_SECRET_NAME = re.compile(r"key|token|secret|passw|auth|credential", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,30}://[^\s\"'<>]{1,2000}", re.IGNORECASE)
_LONGEST = 2_000  # characters of a library's message: longer ones carry bodies
_A_MINUTE = 30  # lines of one library
# C0 and C1 controls but the line break; a tab is two spaces, so that widths can be told.
_PICTURES = {c: chr(0x2400 + c) for c in range(32)} | dict.fromkeys(range(0x7F, 0xA0), "\ufffd")
_PICTURES |= {ord("\n"): "\n", ord("\t"): "  ", ord("\r"): ""}


def register_secret(value: str | None) -> None:
    """Never let this value reach a log line or an error message from now on."""
    if value and len(value) >= _MIN_SECRET:
        _secrets.add(value)


def secrets_in(name: str, value: str) -> Iterator[str]:
    """What of a value must not be shown: all where its name says so, passwords and keys in addresses."""
    if _SECRET_NAME.search(name):
        yield value
    for address in _ADDRESS.findall(value):
        try:
            parts = urlsplit(address)
            found = [parts.password, *(v for k, v in parse_qsl(parts.query) if _SECRET_NAME.search(k))]
        except ValueError:  # no address after all
            continue
        yield from filter(None, found)


def redact_secrets(text: str) -> str:
    """The text without any registered secret."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, _MASK)
    return text


def printable(text: str) -> str:
    """Text of others without what terminals obey: an escape sequence could rewrite the screen, the title or
    the clipboard. Line breaks stay; other control characters are shown as pictures."""
    return text.translate(_PICTURES)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """The value with its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {k: _each(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_each(v, change) for v in value]
    return value


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {k: _each(v, redact_secrets) for k, v in event.items()} if _secrets else event


def _show(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {k: _each(v, printable) for k, v in event.items()}


class _Library(logging.Handler):
    """Records of libraries, written as ours are: so many lines a minute for each, the rest counted."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._since: dict[str, float] = {}
        self._lines: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        dropped = self._dropped(record.name)
        if dropped is None:
            return
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - whose arguments don't fit must not stop who wrote it
            message = str(record.msg)
        members: dict[str, Any] = {"logger": record.name, **({"dropped": dropped} if dropped else {})}
        if record.exc_info:
            members["exc_info"] = record.exc_info
        structlog.get_logger().log(record.levelno, message[:_LONGEST], **members)

    def _dropped(self, name: str) -> int | None:
        """How many lines were dropped before this one; ``None`` if this one is, too."""
        now = time.monotonic()
        if now - self._since.get(name, -60.0) >= 60.0:
            dropped = max(0, self._lines.get(name, 0) - _A_MINUTE)
            self._since[name], self._lines[name] = now, 1
            return dropped
        self._lines[name] += 1
        return 0 if self._lines[name] <= _A_MINUTE else None


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
            *([_show] if console else []),  # JSON escapes them by itself
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Library)]:
        root.removeHandler(handler)
    root.addHandler(_Library())
    logging.captureWarnings(capture=True)


def get_logger(**bound: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger with these members on every line."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**bound)
    return logger

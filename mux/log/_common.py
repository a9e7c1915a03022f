"""What every backend needs: the checks of an append, waiting for a head, page tokens, search words."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from mux.errors import BadRequest, Conflict, Fenced, NotFound
from mux.events import Record
from mux.log.base import Head, Page, RunRow

__all__ = [
    "FINAL",
    "OPEN",
    "Heads",
    "check_append",
    "check_changes",
    "idempotency_conflict",
    "metadata_text",
    "now_ms",
    "page_of",
    "page_token",
    "parse_page_token",
    "run_exists",
    "run_not_found",
    "search_words",
]

OPEN = ("queued", "running", "waiting")
FINAL = ("completed", "partial", "failed", "cancelled")

_CHANGEABLE = frozenset(f.name for f in fields(RunRow)) - {"run", "updated"}


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def run_not_found(run: str) -> NotFound:
    """The one answer for a run that is not (or no longer) kept."""
    return NotFound("run_not_found", f"There is no run {run!r}: it was deleted, or the id is wrong.")


def run_exists(run: str) -> Conflict:
    """The answer to a second run with the same id."""
    return Conflict("run_exists", f"There is a run {run!r} already.")


def idempotency_conflict(key: str) -> Conflict:
    """The answer to a known key with another body."""
    return Conflict(
        "idempotency_conflict",
        f"The idempotency key {key!r} was used with another body. Use a new key for a new request.",
    )


def check_append(run: str, newest_fence: int, head: int, fence: int, records: Sequence[Record]) -> None:
    """Refuse a batch of a former owner, and one that would leave a gap or overwrite.

    Raises:
        Fenced: the fence is not the newest.
        Conflict: ``seq_conflict``.
    """
    if fence != newest_fence:
        raise Fenced(
            "fenced",
            f"Another owner took run {run!r} over (fence {newest_fence}, not {fence}): stop writing to it.",
            retryable=False,
        )
    expected = head + 1
    for record in records:
        if record.seq != expected:
            raise Conflict(
                "seq_conflict", f"Run {run!r} expects seq {expected} next, and was given {record.seq}."
            )
        expected += 1


def page_of(records: Iterable[Record], at: Head, after: int, limit: int, max_bytes: int) -> Page:
    """What `EventLog.read` answers: as many of the records after ``after`` as its bounds allow, at least one.

    Args:
        records: in the order of the log; read no further than needed. Those up to ``after`` are passed over.
        at: where the log stands; nothing before its first is shown.
    """
    limit, start = max(1, limit), max(after, at.first - 1)
    page: list[Record] = []
    for record in records:
        if record.seq <= start:
            continue
        max_bytes -= len(record.data)
        if len(page) >= limit or (max_bytes < 0 and page):
            break
        page.append(record)
    return Page(page, at)


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuse a field that a row does not have.

    Raises:
        TypeError: it is a mistake of the calling code.
    """
    if unknown := set(changes) - _CHANGEABLE:
        raise TypeError(f"a run's row has no field that can be changed called {sorted(unknown)}")


class Heads:
    """Where the logs stand that somebody reads or writes now, and who waits for them to grow.

    In-process only: a store with writers in other processes must tell it of their appends.
    """

    def __init__(self) -> None:
        self._known: dict[str, Head] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def get(self, run: str) -> Head | None:
        """The head, if the run was appended to in this process and is not final."""
        return self._known.get(run)

    def known(self) -> list[tuple[str, Head]]:
        """All of them."""
        return list(self._known.items())

    def set(self, run: str, head: Head) -> None:
        """Say where the log stands now, and wake whoever waits for it to grow."""
        known = self._known.get(run)
        if known is None or head.head >= known.head:
            self._known[run] = head
        self.wake(run)

    def forget(self, run: str) -> None:
        """The run ended, was deleted or taken over: ask the store from now on."""
        self._known.pop(run, None)
        self.wake(run)

    def wake(self, run: str) -> None:
        """Let everybody who waits for this run look again."""
        for future in self._waiting.pop(run, ()):
            _finish(future)

    def clear(self) -> None:
        """The store is closed: whoever waits asks it, and is told so."""
        self._known.clear()
        for run in list(self._waiting):
            self.wake(run)

    async def wait(self, run: str, after: int, timeout_s: float, look: Callable[[], Awaitable[Head]]) -> Head:
        """Return what ``look`` says as soon as it is beyond ``after``, or when the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            woken = loop.create_future()  # before looking: what comes in between must not be missed
            self._waiting.setdefault(run, set()).add(woken)
            try:
                at = await look()
                left = deadline - loop.time()
                if at.head > after or left <= 0:
                    return at
                timer = loop.call_later(left, _finish, woken)
                try:
                    await woken
                finally:
                    timer.cancel()
            finally:
                self._leave(run, woken)

    def _leave(self, run: str, woken: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(run)
        if waiting is not None:
            waiting.discard(woken)
            if not waiting:
                del self._waiting[run]


def _finish(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


# --- paging -------------------------------------------------------------------------------------------------


def page_token(created: int, number: int) -> str:
    """An opaque position in a list that is ordered by ``(created, number)``, newest first."""
    return base64.urlsafe_b64encode(f"{created}.{number}".encode()).decode().rstrip("=")


def parse_page_token(token: str) -> tuple[int, int]:
    """Read what `page_token` made.

    Raises:
        BadRequest: ``page_invalid``.
    """
    invalid = BadRequest(
        "page_invalid", "This is not a position in the list. Send the `next` of the page before, or none."
    )
    if len(token) > 64:
        raise invalid
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii")
    except ValueError:
        raise invalid from None
    match = re.fullmatch(r"(-?[0-9]{1,18})\.([0-9]{1,18})", text, re.ASCII)
    if match is None:
        raise invalid
    return int(match[1]), int(match[2])


# --- finding ------------------------------------------------------------------------------------------------

_QUERY = re.compile(r'"([^"]*)"|(\S+)')
MAX_WORDS = 32


def search_words(q: str) -> list[str]:
    """A query's phrases and words, all of which must be found; quotes hold a phrase together."""
    clean = q.replace("\x00", " ").encode("utf-8", "replace").decode()  # what sqlite takes for text
    found = ((m[1] if m[1] is not None else m[2]).replace('"', " ").strip() for m in _QUERY.finditer(clean))
    return [word for word in found if any(c.isalnum() for c in word)][:MAX_WORDS]


def metadata_text(value: Any) -> str:
    """How a metadata value is written in a filter: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

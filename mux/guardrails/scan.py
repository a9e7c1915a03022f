"""Scanners: what follows one text as it grows and says how far it is decided.

All positions are absolute: characters since the text began. A scanner is fed pieces and asked, after each,
for a :class:`Finding`. ``limit`` is the promise that the hold-back stands on: no forbidden span begins
before it, apart from the ``spans`` already reported, and no later text can change that.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import regex

from mux.guardrails.compiled import Checker, Rule

__all__ = [
    "ON_LOOP",
    "Allowance",
    "Blocked",
    "Carried",
    "Finding",
    "FunctionScanner",
    "PatternScanner",
    "Scanner",
    "Span",
]

_INLINE_CHARS = 50_000
_DECIDED = 1 << 62  # a position behind any text
_MAX_MATCHES = 10_000  # in one scan; a rule that masks more than that masks everything


class Allowance:
    """The time that slow scans may hold the event loop for: so much in any second, over all channels.

    A pattern may take its limit again for every piece of text (``a{1,5000}b{1,5000}c`` on a flood of ``a``),
    so a limit for each scan bounds nothing. What the allowance does not cover is done in a thread.

    Args:
        seconds: allowed in a burst, and in each second.
        clock: seconds.
    """

    def __init__(self, seconds: float = 0.03, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self._clock = clock
        self._used = 0.0
        self._at = clock()

    def search(self, pattern: regex.Pattern[str], text: str, at: int = 0, *, partial: bool = False) -> Any:
        """Search on the event loop. Raises TimeoutError where that takes longer than is left."""
        began = self._clock()
        left = self.left(began)
        if left < _LEAST_S:
            raise TimeoutError
        try:
            return pattern.search(text, at, partial=partial, timeout=left, concurrent=False)
        finally:
            took = self._clock() - began
            if took > _QUICK_S:
                self._used += took

    def left(self, now: float) -> float:
        """Seconds that may be used now."""
        if self._used:
            self._used = max(0.0, self._used - (now - self._at) * self._seconds)
        self._at = now
        return self._seconds - self._used


_QUICK_S: Final = 0.000_2  # scans that take less are the usual ones, and are not counted
_LEAST_S: Final = 0.001

ON_LOOP: Final = Allowance()
"""The event loop's; there is one in a process."""


@dataclass(frozen=True, slots=True)
class Span:
    """A forbidden part of the text, from ``start`` up to but not including ``end``."""

    start: int
    end: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class Finding:
    """What a scan has decided since the last one (see the module's preface)."""

    limit: int
    spans: tuple[Span, ...] = ()


class Blocked(Exception):
    """Nothing more of this text may be shown.

    Args:
        rule: the rule that says so.
        reason: ``match``, or why it could not be decided: ``timeout``, ``failed``, ``held too long``.
    """

    def __init__(self, rule: Rule, reason: str = "match") -> None:
        super().__init__(f"{rule.name}: {reason}")
        self.rule = rule
        self.reason = reason


class Search(Protocol):
    """Searches with a time limit; raises TimeoutError."""

    def __call__(
        self, pattern: regex.Pattern[str], text: str, at: int = 0, *, partial: bool = False
    ) -> Any: ...


# Threads of their own: slow patterns must not take the default pool's, in which pages and stores work
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="guardrail-scan")
_THREAD_S: Final = 5.0  # for a place among them


class Scanner(Protocol):
    """Follows one text for one rule."""

    def feed(self, text: str) -> None:
        """More of the text."""

    async def scan(self, final: bool) -> Finding:
        """Decide what can be decided; ``final``: the text ends here. Raises :class:`Blocked`."""

    def fork(self) -> Scanner | None:
        """A second scanner at the same place; ``None`` if it can only judge texts whole."""


@dataclass(slots=True)
class PatternScanner:
    """Follows a text for a pattern rule.

    ``text`` holds what is undecided and, before it, as much decided text as the pattern looks back at.
    """

    rule: Rule
    text: str = ""
    start: int = 0  # absolute position of text[0]
    at: int = 0  # index in text of the first undecided character

    def fork(self) -> PatternScanner:
        """A second scanner at the same place, for another view of what follows."""
        return PatternScanner(self.rule, self.text, self.start, self.at)

    def feed(self, text: str) -> None:
        self.text += text

    def glance(self, text: str) -> int | None:
        """How far everything is decided with this text added, if one short search says so and nothing of it
        is forbidden. Changes nothing; :meth:`settle` does.
        """
        rule, whole = self.rule, self.text + text
        if len(whole) - self.at > min(rule.max_hold, _INLINE_CHARS):
            return None  # on the way there it might have been held too long
        try:
            found = ON_LOOP.search(rule.hold, whole, self.at, partial=True)
        except TimeoutError:
            return None
        if found is None:
            return self.start + len(whole)
        return self.start + found.start() if found.partial else None

    def settle(self, text: str, limit: int) -> None:
        """Add text that a glance has decided up to ``limit``."""
        self.text += text
        self._settle(limit - self.start)

    async def scan(self, final: bool) -> Finding:
        if len(self.text) - self.at <= _INLINE_CHARS:
            try:
                return self._decide(final, ON_LOOP.search)
            except TimeoutError:
                pass  # once more, beside the loop and with the rule's own patience
        try:
            return await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(_threads, self._decide, final, self._patient()),
                self.rule.timeout_s + _THREAD_S,
            )
        except TimeoutError:
            raise Blocked(self.rule, "timeout") from None

    def _patient(self) -> Search:
        """A search in a thread, with what the rule allows for all that one decision takes; it lets go of the
        interpreter, which costs it time."""
        until = time.monotonic() + self.rule.timeout_s

        def search(pattern: regex.Pattern[str], text: str, at: int = 0, *, partial: bool = False) -> Any:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            return pattern.search(text, at, partial=partial, timeout=left, concurrent=True)

        return search

    def _decide(self, final: bool, search: Search) -> Finding:
        rule, text, at = self.rule, self.text, self.at
        if final:
            spans = self._rest(search)
            self._settle(len(text))
            return Finding(self.start + self.at, spans)
        # One search answers the usual case: neither a match nor the beginning of one.
        found = search(rule.hold, text, at, partial=True)
        spans = ()
        limit = len(text)
        if found is not None:
            if found.partial:
                limit = found.start()
            else:
                spans, limit = self._several(search)
        if len(text) - limit > rule.max_hold:
            raise Blocked(rule, "held too long")
        self._settle(limit)
        return Finding(self.start + self.at, spans)

    def _several(self, search: Search) -> tuple[tuple[Span, ...], int]:
        """There is a match: which are decided, and where the first undecided text begins."""
        rule, text, at = self.rule, self.text, self.at
        spans: list[Span] = []
        while True:
            match = search(rule.pattern, text, at)
            if match and rule.blocks and rule.refine is None and match.end() + rule.ahead <= len(text):
                raise Blocked(rule)  # at the shortest match: more text can only make it longer
            opened = search(rule.open, text, at, partial=True)
            undecided = opened.start() if opened else len(text)
            if match is None:
                return tuple(spans), undecided
            if undecided <= match.start() or match.end() + rule.ahead > len(text):
                return tuple(spans), min(undecided, match.start())
            at = self._take(match, spans)

    def _rest(self, search: Search) -> tuple[Span, ...]:
        """Every match in what is left of a text that has ended."""
        spans: list[Span] = []
        at = self.at
        while at <= len(self.text):
            match = search(self.rule.pattern, self.text, at)
            if match is None:
                break
            at = self._take(match, spans)
        return tuple(spans)

    def _take(self, match: regex.Match[str], spans: list[Span]) -> int:
        """Note a decided match; returns the index to go on from."""
        rule = self.rule
        if match.end() == match.start() or len(spans) >= _MAX_MATCHES:
            raise Blocked(rule, "failed")  # an empty span, or a flood of them, is not what was meant
        parts = [(0, len(match.group()))] if rule.refine is None else rule.refine(match.group())
        if parts and rule.blocks:
            raise Blocked(rule)
        offset = self.start + match.start()
        spans += [Span(offset + a, offset + b, rule) for a, b in parts]
        return match.end()

    def _settle(self, limit: int) -> None:
        """Everything before index ``limit`` is decided; keep only what the pattern looks back at."""
        self.at = limit
        drop = limit - self.rule.behind
        if drop > 256:  # cutting a string costs its length, so not for every delta
            self.text = self.text[drop:]
            self.start += drop
            self.at -= drop


@dataclass(slots=True)
class FunctionScanner:
    """Follows a text for a Python function, which can only judge what it is shown whole.

    With ``max_hold`` = n the rule promises that what it forbids is at most n characters long: text is
    passed on once the n characters after it were judged with it. Without, it is held to its end.
    """

    rule: Rule
    check: Checker
    text: str = ""
    start: int = 0
    at: int = 0
    judged: int = 0

    def fork(self) -> FunctionScanner | None:
        return None if self.rule.window is None else copy.copy(self)

    def feed(self, text: str) -> None:
        self.text += text

    async def scan(self, final: bool) -> Finding:
        window = self.rule.window
        fresh = len(self.text) - self.judged
        if not final and (window is None or fresh < window):
            return Finding(self.start + self.at)
        if not fresh and not final:
            return Finding(self.start + self.at)
        if not self.text:
            return Finding(self.start)
        try:
            spans = await self.check(self.text)
        except Exception as e:  # noqa: BLE001 - whatever a rule's function does, the text is not passed on
            raise Blocked(self.rule, "timeout" if isinstance(e, TimeoutError) else "failed") from None
        found = [(max(a, self.at), b) for a, b in spans if b > self.at]
        if found and self.rule.blocks:
            raise Blocked(self.rule)
        self.judged = len(self.text)
        limit = len(self.text) if final or window is None else max(self.at, len(self.text) - window)
        done = [(a, b) for a, b in found if b <= limit]
        limit = min([limit, *(a for a, b in found if b > limit)])
        self.at = max([limit, *(b for _, b in done)])
        result = tuple(Span(self.start + a, self.start + b, self.rule) for a, b in done)
        drop = self.at - (window or 0)
        if drop > 0 and window is not None:
            self.text, self.start = self.text[drop:], self.start + drop
            self.at, self.judged = self.at - drop, self.judged - drop
        return Finding(self.start + self.at, result)


@dataclass(slots=True)
class Carried:
    """A scanner that was left undecided at the end of one text and follows the next as if it went on there:
    a channel's steps are texts of their own, but readers join them.

    Attributes:
        inner: the scanner, which counts from the beginning of the text before.
        before: how long that text was.
        open: whether the border between the texts is still undecided.
    """

    inner: Scanner
    before: int
    open: bool = True

    def fork(self) -> Carried | None:
        inner = self.inner.fork() if self.open else None
        return None if inner is None else Carried(inner, self.before)

    def feed(self, text: str) -> None:
        if self.open:
            self.inner.feed(text)

    async def scan(self, final: bool) -> Finding:
        if not self.open:
            return Finding(_DECIDED)
        found = await self.inner.scan(final)
        # what reaches back into the text before was shown then; what begins here is also seen without us
        spans = tuple(
            Span(0, s.end - self.before, s.rule) for s in found.spans if s.start < self.before < s.end
        )
        self.open = found.limit < self.before
        return Finding(max(0, found.limit - self.before) if self.open else _DECIDED, spans)

"""A lane: one text on its way to the log, released as far as every rule has decided it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import cast

from mux.guardrails.compiled import Rule
from mux.guardrails.scan import (
    ON_LOOP,
    Blocked,
    Carried,
    Finding,
    FunctionScanner,
    PatternScanner,
    Scanner,
    Span,
)
from mux.guardrails.views import Decoded, Entities, Escapes, JsonStrings, Normalised

__all__ = ["Lane", "clean_text", "clean_value"]

_SHORT = 2_000  # characters
_BREATH = 256  # values between two pauses for the other channels
_GLANCING = (PatternScanner, Decoded)
_MAX_HELD = 8_000_000  # characters that function rules may hold before the text is given up


def _scanner(rule: Rule) -> Scanner:
    plain: Scanner = FunctionScanner(rule, rule.check) if rule.check else PatternScanner(rule)
    return Normalised(plain, rule.fold) if rule.normalize else plain


class Lane:
    """Holds one text back.

    Args:
        rules: the rules that it is scanned for.
        is_json: it is JSON text: its strings are scanned decoded, as well as the text itself.
        carried: what was undecided at the end of the text before (see :meth:`finish`).
    """

    def __init__(
        self, rules: Sequence[Rule], *, is_json: bool = False, carried: Iterable[Carried] = ()
    ) -> None:
        self._rules = rules
        self._is_json = is_json
        self._scanners: list[Scanner] = [_scanner(r) for r in rules]
        if is_json:
            for rule in rules:
                self._scanners += [
                    JsonStrings(lambda r=rule: _scanner(r)),  # type: ignore[misc]
                    JsonStrings(lambda r=rule: Escapes(_scanner(r))),  # type: ignore[misc] # JSON in JSON
                ]
        self._scanners += [twin for c in carried if (twin := c.fork()) is not None]
        self._text = ""  # not yet released
        self.start = 0  # absolute position of _text[0]
        self.end = 0
        self._limit = 0
        self._limits: list[int] = []  # of each scanner, last
        self._spans: list[Span] = []
        self._escapes = is_json  # whether escapes are looked for already
        self._entities = is_json  # whether character references are; tools' JSON is no page
        self.silenced = False

    async def push(self, text: str, *, final: bool = False) -> None:
        """Add text and decide what can be decided.

        Args:
            final: the text ends here.

        Raises:
            Blocked: a blocking rule matches or can't be decided.
        """
        await self._scan(text, final)

    def advance(self, text: str) -> bool:
        """Add text, however many pieces it came in, if a glance of each rule decides the same of it as
        :meth:`push` would of every piece, and nothing is forbidden. ``False``: nothing has changed.
        """
        if self._spans or self._shows_another_reading(text):
            return False
        glanced: list[PatternScanner | Decoded] = []
        limits: list[int] = []
        for scanner in self._scanners:
            limit = scanner.glance(text) if isinstance(scanner, _GLANCING) else None
            if limit is None:
                return False
            glanced.append(cast("PatternScanner | Decoded", scanner))
            limits.append(limit)
        for scanner, limit in zip(glanced, limits, strict=True):
            scanner.settle(text, limit)
        self._text += text
        self.end += len(text)
        self._limits = limits
        self._limit = min(limits, default=self.end)
        return True

    def _shows_another_reading(self, text: str) -> bool:
        return ("\\" in text and not self._escapes) or ("&" in text and not self._entities)

    def _read_otherwise(self, text: str) -> None:
        """From the first escape or character reference on the text is scanned decoded as well."""
        views: list[type[Decoded]] = []
        if "\\" in text and not self._escapes:
            self._escapes = True
            views.append(Escapes)
        if "&" in text and not self._entities:
            self._entities = True
            views.append(Entities)
        for view in views:
            kinds = (PatternScanner, Normalised) if view is Entities else (PatternScanner,)
            twins = [twin for s in self._scanners if isinstance(s, kinds) and (twin := s.fork()) is not None]
            self._scanners += [view(twin, self.end) for twin in twins]

    async def _scan(self, text: str, final: bool) -> list[Finding]:
        if self._shows_another_reading(text):
            self._read_otherwise(text)
        self._text += text
        self.end += len(text)
        all_found: list[Finding] = []
        for scanner in self._scanners:
            scanner.feed(text)
            all_found.append(await scanner.scan(final))
        limit = self.end
        for found in all_found:
            limit = min(limit, found.limit)
            self._spans += found.spans
        if self.end - limit > _MAX_HELD:
            raise Blocked(self._rules[0], "held too long")
        self._limit = limit
        # a border to the text before that is decided takes no scanner any more
        self._scanners = [s for s in self._scanners if not isinstance(s, Carried) or s.open]
        self._limits = [found.limit for found in all_found if found.limit <= self.end]
        return all_found

    async def finish(self) -> list[Carried]:
        """The text ends here, which decides it. Readers may join the next one to it, though: so what had not
        decided the end, and did not find it forbidden, is given back to follow the next text as well.

        Raises:
            Blocked: see :meth:`push`.
        """
        undecided = [
            s.fork() if limit < self.end else None
            for s, limit in zip(self._scanners, self._limits, strict=False)
        ]
        all_found = await self._scan("", True)
        carried: list[Carried] = []
        for twin, found in zip(undecided, all_found, strict=False):
            if isinstance(twin, Carried):
                carried.append(Carried(twin.inner, twin.before + self.end))
            elif twin is not None and not any(s.end == self.end for s in found.spans):
                carried.append(Carried(twin, self.end))
        return carried

    def take(self, upto: int | None = None) -> tuple[str, list[Rule]]:
        """Release what is decided, masks put in; and the rules that were masked, once per match.

        Args:
            upto: an absolute position to stop at.
        """
        limit = self._limit if upto is None else min(self._limit, upto)
        if not self._spans:
            out = self._text[: max(0, limit - self.start)]
            self._text = self._text[len(out) :]
            self.start += len(out)
            return out, []
        return self._take_masked(limit)

    def _take_masked(self, limit: int) -> tuple[str, list[Rule]]:
        out: list[str] = []
        rules: list[Rule] = []
        origin = self.start
        self._spans.sort(key=lambda s: (s.start, -s.end))
        while self._spans and self._spans[0].start < limit:
            span = self._spans[0]
            if span.end > self._limit:  # another rule has not decided all of it yet
                limit = min(limit, max(span.start, self.start))
                break
            self._spans.pop(0)
            if span.end <= self.start:  # inside a span that is masked already
                if span.rule not in rules:
                    rules.append(span.rule)  # another reading of the same rule has found it before
                continue
            rules.append(span.rule)
            if span.start >= self.start:
                out += (self._text[self.start - origin : span.start - origin], self._mask(span.rule))
            self.start = span.end
        if limit > self.start:
            out.append(self._text[self.start - origin : limit - origin])
            self.start = limit
        self._text = self._text[self.start - origin :]
        return "".join(out), _once(rules, self._is_json)

    def _mask(self, rule: Rule) -> str:
        return json.dumps(rule.mask, ensure_ascii=False)[1:-1] if self._is_json else rule.mask


def _once(rules: list[Rule], is_json: bool) -> list[Rule]:
    """In JSON the raw and the decoded reading report the same match twice."""
    return list(dict.fromkeys(rules)) if is_json else rules


async def clean_text(text: str, rules: Sequence[Rule]) -> tuple[str, list[Rule]]:
    """A whole text, masked where rules mask; and the rules that did.

    Raises:
        Blocked: see :meth:`Lane.push`.
    """
    if not rules or not text or _plainly_clean(text, rules):
        return text, []
    lane = Lane(rules, is_json=_looks_like_json(text))
    await lane.push(text, final=True)
    return lane.take()


def _plainly_clean(text: str, rules: Sequence[Rule]) -> bool:
    """Whether one search per rule already says so: a result's data may hold thousands of short strings."""
    if len(text) > _SHORT or "\\" in text or "&" in text:
        return False
    if any(rule.check or rule.normalize for rule in rules):
        return False
    try:
        return not any(ON_LOOP.search(rule.pattern, text) for rule in rules)
    except TimeoutError:
        return False


def _looks_like_json(text: str) -> bool:
    if "\\" not in text or text.lstrip()[:1] not in ("{", "[", '"'):
        return False  # without escapes the decoded reading says nothing new
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def clean_value(value: object, rules: Sequence[Rule]) -> tuple[object, list[Rule]]:
    """A JSON value with every string in it (keys too) cleaned like :func:`clean_text`.

    Raises:
        Blocked: see :meth:`Lane.push`.
    """
    if isinstance(value, str):
        return await clean_text(value, rules)
    if isinstance(value, dict):
        fired: list[Rule] = []
        pairs: dict[object, object] = {}
        for i, (key, item) in enumerate(value.items(), 1):
            if i % _BREATH == 0:
                await asyncio.sleep(0)
            new_key, by_key = await clean_value(key, rules)
            pairs[new_key], by_item = await clean_value(item, rules)
            fired += (*by_key, *by_item)
        return (pairs if fired else value), fired
    if isinstance(value, list | tuple):
        cleaned = []
        for i, item in enumerate(value, 1):
            if i % _BREATH == 0:
                await asyncio.sleep(0)
            cleaned.append(await clean_value(item, rules))
        fired = [rule for _, by in cleaned for rule in by]
        return ([item for item, _ in cleaned] if fired else value), fired
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = str(value)  # a card number may be written as a JSON number
        new, fired = await clean_text(text, rules)
        return (new if fired else value), fired
    return value, []


def names(rules: Iterable[Rule]) -> tuple[str, ...]:
    """Names of the rules, each once, in order."""
    return tuple(dict.fromkeys(r.name for r in rules))

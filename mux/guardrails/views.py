"""Other readings of a text that a forbidden span can hide in: escapes, entities, Unicode variants, JSON
strings.

Each view decodes what it is fed, hands the decoded text to a scanner, and translates what that scanner
finds back into positions of the text as it was fed. What is not decodable yet (half an escape, a letter
that a combining mark may still follow) counts as undecided.
"""

from __future__ import annotations

import html
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from mux.guardrails.scan import Finding, PatternScanner, Scanner, Span

__all__ = ["Decoded", "Entities", "Escapes", "JsonStrings", "Normalised"]

# JSON's escapes and the ones that programs print: \uXXXX (also as a surrogate pair), \UXXXXXXXX, \xXX
_ESCAPE = re.compile(
    r"""\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})
         |u([0-9a-fA-F]{4}) |U([0-9a-fA-F]{8}) |x([0-9a-fA-F]{2}) |(["\\/bfnrt]))""",
    re.VERBOSE,
)
_UNFINISHED = re.compile(
    r"\\(?:u[0-9a-fA-F]{0,3}|U[0-9a-fA-F]{0,7}|x[0-9a-fA-F]?|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?\Z"
)
# HTML's character references (WHATWG HTML, 13.5), which pages and Markdown decode; the last ; may be missing
_ENTITY = re.compile(r"&(?:#[0-9]{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[A-Za-z][A-Za-z0-9]{1,31};?)")
_UNFINISHED_ENTITY = re.compile(r"&(?:#[0-9]{0,7}|#[xX][0-9a-fA-F]{0,6}|[A-Za-z][A-Za-z0-9]{0,31})?\Z")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# Invisible although not of category Cf: grapheme joiner, Hangul fillers, variation selectors
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_LONGEST_CLUSTER = 64  # characters; more combining marks than this are no writing


class _View:
    """Base: the text fed but not yet decoded, and where each decoded character came from."""

    def __init__(self, inner: Scanner, start: int = 0) -> None:
        self.inner: Scanner | None = inner
        self.raw = ""  # fed, not yet handed to the inner scanner
        self.at = start  # absolute position of raw[0]
        self._origin: list[int] = []
        self._base = start  # the inner position that _origin[0] belongs to

    def feed(self, text: str) -> None:
        self.raw += text

    def fork(self) -> Self | None:
        inner = self.inner.fork() if self.inner is not None else None
        if inner is None:
            return None
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self))  # a third of what `copy.copy` takes
        twin.inner, twin._origin = inner, list(self._origin)
        return twin

    def _give(self, text: str, origin: Iterable[int]) -> None:
        assert self.inner is not None
        self.inner.feed(text)
        self._origin.extend(origin)

    def _position(self, inner: int) -> int:
        i = inner - self._base
        if i < 0:
            return inner  # before the view began, where both count alike
        return self._origin[i] if i < len(self._origin) else self.at

    async def _ask(self, final: bool) -> Finding:
        assert self.inner is not None
        found = await self.inner.scan(final)
        spans = tuple(Span(self._position(s.start), self._position(s.end), s.rule) for s in found.spans)
        return Finding(self._limit(found.limit), spans)

    def _limit(self, inner: int) -> int:
        """Where the inner scanner's limit is in the text as fed; no place before it is asked for again."""
        limit = self._position(inner)
        done = inner - self._base
        if done > 256:
            del self._origin[:done]
            self._base += done
        return limit


class Decoded(_View, ABC):
    """Base of those views that decode a text as it comes, to one that is scanned as a whole."""

    _next: Decoded | None = None  # after the text that was glanced at

    @abstractmethod
    def decode(self, final: bool) -> None:
        """Hand to the inner scanner what can be decoded of `raw`."""

    async def scan(self, final: bool) -> Finding:
        self.decode(final)
        return await self._ask(final)

    def glance(self, text: str) -> int | None:
        """See :meth:`mux.guardrails.scan.PatternScanner.glance`."""
        self._next = None  # or a twin would keep the one before it, and so on
        twin = self.fork()
        if twin is None or not isinstance(twin.inner, PatternScanner):
            return None
        twin.feed(text)
        twin.decode(final=False)
        limit = twin.inner.glance("")  # it was fed already
        if limit is None:
            return None
        twin.inner.settle("", limit)
        self._next = twin
        return twin._limit(limit)

    def settle(self, text: str, limit: int) -> None:
        """Take the text that was glanced at."""
        assert self._next is not None
        twin, self._next = self._next, None
        self.inner, self.raw, self.at = twin.inner, twin.raw, twin.at
        self._origin, self._base = twin._origin, twin._base


def _unescape(text: str, final: bool) -> tuple[list[tuple[str, int]], int]:
    """Characters with their places, escapes decoded; and how much of the text that took."""
    end = len(text)
    if not final and (half := _UNFINISHED.search(text, max(0, end - 12))):
        end = _odd_backslash(text, half.start())
    out: list[tuple[str, int]] = []
    i = 0
    while i < end:
        j = text.find("\\", i, end)
        out += [(text[k], k) for k in range(i, end if j < 0 else j)]
        if j < 0:
            break
        match = _ESCAPE.match(text, j, end)
        out.append((_decode(match) if match else "\\", j))
        i = match.end() if match else j + 1
    return out, end


def _odd_backslash(text: str, half: int) -> int:
    """Where the unfinished escape at ``half`` begins: an escaped backslash before it is complete."""
    run = half
    while run > 0 and text[run - 1] == "\\":
        run -= 1
    return half if (half - run) % 2 == 0 else half - 1


def _decode(match: re.Match[str]) -> str:
    high, low, four, eight, two, short = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    if short:
        return _SHORT.get(short, short)
    code = int(four or eight or two, 16)
    return chr(code) if code <= 0x10FFFF else "\ufffd"


def _references(text: str, final: bool) -> tuple[list[tuple[str, int]], int]:
    """As `_unescape`, of HTML's character references."""
    end = len(text)
    if not final and (half := _UNFINISHED_ENTITY.search(text, max(0, end - 34))):
        end = half.start()
    out: list[tuple[str, int]] = []
    i = 0
    while i < end:
        j = text.find("&", i, end)
        out += [(text[k], k) for k in range(i, end if j < 0 else j)]
        if j < 0:
            break
        match = _ENTITY.match(text, j, end)
        out += [(c, j) for c in (html.unescape(match[0]) if match else "&")]
        i = match.end() if match else j + 1
    return out, end


class Entities(Decoded):
    """The text as a page shows it: its character references decoded, from where it first shows one."""

    def decode(self, final: bool) -> None:
        cells, used = _references(self.raw, final)
        at = self.at
        self._give("".join(c for c, _ in cells), [at + k for _, k in cells])
        self.raw, self.at = self.raw[used:], at + used


class Escapes(Decoded):
    """The text with its escapes decoded, from where it first shows one."""

    def decode(self, final: bool) -> None:
        cells, used = _unescape(self.raw, final)
        at = self.at
        self._give("".join(c for c, _ in cells), [at + k for _, k in cells])
        self.raw, self.at = self.raw[used:], at + used


class Normalised(Decoded):
    """NFKC, without invisible characters (zero-width, soft hyphen, variation selectors), escapes decoded.

    Source: UAX #15; composition never reaches back over a starter, so clusters are normalised one by one.

    Args:
        fold: further replacements, of single characters by single ones.
    """

    def __init__(self, inner: Scanner, fold: Mapping[int, str] | None = None) -> None:
        super().__init__(inner)
        self._fold = fold

    def decode(self, final: bool) -> None:
        raw, at = self.raw, self.at
        if raw.isascii() and "\\" not in raw:
            used = len(raw) if final else max(0, len(raw) - 1)  # a mark may follow the last letter
            self._give(raw[:used], range(at, at + used))
        else:
            used = self._clusters(final)
        self.raw, self.at = raw[used:], at + used

    def _clusters(self, final: bool) -> int:
        cells, used = _unescape(self.raw, final)
        cluster, began = "", 0
        for char, place in cells:
            if unicodedata.category(char) == "Cf" or _INVISIBLE.match(char):
                continue
            if cluster and (_starts_cluster(char) or len(cluster) >= _LONGEST_CLUSTER):
                self._normalise(cluster, began)
                cluster = ""
            if not cluster:
                began = place
            cluster += char
        if cluster and not final:
            return began
        if cluster:
            self._normalise(cluster, began)
        return used

    def _normalise(self, cluster: str, began: int) -> None:
        text = cluster if self._fold is None else cluster.translate(self._fold)  # ϲ would become σ
        text = unicodedata.normalize("NFKC", text)
        if self._fold is not None:
            text = text.translate(self._fold)
        self._give(text, [self.at + began] * len(text))


def _starts_cluster(char: str) -> bool:
    if char.isascii():
        return True
    hangul = "\u1160" <= char <= "\u11ff" or char in "\uff9e\uff9f"  # vowels, tails; half-width voicing marks
    return not hangul and unicodedata.category(char)[0] != "M" and not unicodedata.combining(char)


class JsonStrings(_View):
    """The string values (and keys) of a JSON text, each decoded and scanned as a text of its own.

    Args:
        make: makes a scanner for one string.
    """

    def __init__(self, make: Callable[[], Scanner]) -> None:
        super().__init__(make())
        self._make = make
        self._in_string = False

    async def scan(self, final: bool) -> Finding:
        spans: list[Span] = []
        while True:
            if not self._in_string:
                quote = self.raw.find('"')
                if quote < 0:
                    self._skip(len(self.raw))
                    return Finding(self.at, tuple(spans))
                self._skip(quote + 1)
                self.inner, self._origin, self._base, self._in_string = self._make(), [], 0, True
            closing = _closing_quote(self.raw)
            ends = closing >= 0 or final
            text = self.raw if closing < 0 else self.raw[:closing]
            cells, used = _unescape(text, ends)
            self._give("".join(c for c, _ in cells), [self.at + k for _, k in cells])
            self._skip(used)
            found = await self._ask(ends)
            spans += found.spans
            if closing < 0:
                return Finding(found.limit, tuple(spans))
            self._skip(1)
            self._in_string = False

    def _skip(self, count: int) -> None:
        self.raw = self.raw[count:]
        self.at += count


def _closing_quote(text: str) -> int:
    i = 0
    while True:
        quote = text.find('"', i)
        if quote < 0:
            return -1
        run = quote
        while run > i and text[run - 1] == "\\":
            run -= 1
        if (quote - run) % 2 == 0:
            return quote
        i = quote + 1

"""Arithmetic in words, written in signs: "divide ninety by eight" as ``90 / 8``. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["in_signs"]

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: n for n, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
_NUMERAL = "|".join([*_VALUES, *_SCALES])
_NUMERALS = re.compile(
    rf"\b(?:{_NUMERAL})(?:(?:[\s-]+|(?<=hundred)\s+and\s+|(?<=thousand)\s+and\s+)(?:{_NUMERAL}))*\b",
    re.IGNORECASE,
)


def _number(match: re.Match[str]) -> str:
    total = part = 0
    for word in re.split(r"[\s-]+", match[0].lower()):
        if word in _SCALES:
            part = max(part, 1) * _SCALES[word]
            if _SCALES[word] > 100:
                total, part = total + part, 0
        elif word != "and":
            part += _VALUES[word]
    return str(total + part)


_N = r"(?<![\d.])-?\d{1,20}(?:\.\d{1,20})?"
_LIST = rf"({_N}(?:(?:\s{{0,3}},\s{{0,3}}(?:and\s)?|\s{{1,3}}and\s{{1,3}}){_N}){{1,50}})"
_TO = r"(?:to|and|with|by|plus)"
_Replacement: TypeAlias = str | Callable[[re.Match[str]], str]


def _items(listed: str) -> list[str]:
    return re.findall(_N, listed)


def _mean(match: re.Match[str]) -> str:
    items = _items(match[1])
    return f"({' + '.join(items)}) / {len(items)}"


_PARTS = {"third": 3, "quarter": 4, "tenth": 10}
_BETWEEN = r"(?<=[\d)])\s+(?:{})\s+(?=[\d(])"
_RULES: tuple[tuple[str, _Replacement], ...] = (
    (r"(?<=\d),(?=\d{3}\b)", ""),
    (r"[×·⋅]", "*"),
    (r"(?<=[\d)])\s*x\s*(?=[\d(])", " * "),
    (r"÷", "/"),
    (r"(?<=[\d)])\s*:\s*(?=\d+\s*(?:[=?]|$))", " / "),
    (r"[−–]", "-"),
    (r"\^", "**"),
    (rf"\b(?:the\s+)?(?:sum|total)\s+of\s+{_LIST}", lambda m: " + ".join(_items(m[1]))),
    (rf"\b(?:the\s+)?product\s+of\s+{_LIST}", lambda m: " * ".join(_items(m[1]))),
    (rf"\b(?:the\s+)?(?:average|mean)\s+of\s+{_LIST}", _mean),
    (rf"\b(?:the\s+)?difference\s+(?:between|of)\s+({_N})\s+and\s+({_N})", r"\1 - \2"),
    (rf"\b(?:the\s+)?(?:quotient|ratio)\s+of\s+({_N})\s+(?:and|to)\s+({_N})", r"\1 / \2"),
    (rf"\b(?:add|adding)\s+({_N})\s+{_TO}\s+({_N})", r"\1 + \2"),
    (rf"\badd\s+{_LIST}", lambda m: " + ".join(_items(m[1]))),
    (rf"\b(?:subtract|take)\s+({_N})\s+from\s+({_N})", r"\2 - \1"),
    (rf"\bmultipl(?:y|ying)\s+({_N})\s+{_TO}\s+({_N})", r"\1 * \2"),
    (rf"\bdivid(?:e|ing)\s+({_N})\s+(?:by|through)\s+({_N})", r"\1 / \2"),
    (rf"\b(?:increase|raise)\s+({_N})\s+by\s+({_N})\s*(?:%|percent\b)", r"\1 * (1 + \2 / 100)"),
    (rf"\b(?:decrease|reduce|lower)\s+({_N})\s+by\s+({_N})\s*(?:%|percent\b)", r"\1 * (1 - \2 / 100)"),
    (rf"({_N})\s*(?:%|percent)\s+off\s+({_N})", r"\2 * (1 - \1 / 100)"),
    (rf"\bhalf\s+(?:of\s+)?({_N})", r"\1 / 2"),
    (rf"\b(?:a\s+)?(third|quarter|tenth)\s+of\s+({_N})", lambda m: f"{m[2]} / {_PARTS[m[1].lower()]}"),
    (rf"\b(double|twice|triple)\s+({_N})", lambda m: f"{3 if m[1].lower() == 'triple' else 2} * {m[2]}"),
    (r"\bsquare root of (\d+(?:\.\d+)?)", r"sqrt(\1)"),
    (r"\bcube root of (\d+(?:\.\d+)?)", r"cbrt(\1)"),
    (r"\bfactorial of (\d+)", r"factorial(\1)"),
    (r"\b(\d+) factorial\b", r"factorial(\1)"),
    (r"(?<=\d) squared\b", " ** 2"),
    (r"(?<=\d) cubed\b", " ** 3"),
    # between two numbers also in German, French and Spanish
    (_BETWEEN.format("times|multiplied by|mal|fois|multiplié par|multiplicado por"), " * "),
    (_BETWEEN.format("plus|and add|más"), " + "),
    (_BETWEEN.format("minus|less|moins|menos"), " - "),
    (_BETWEEN.format("divided by|over|geteilt durch|divisé par|dividido (?:por|entre)"), " / "),
    (_BETWEEN.format(r"(?:raised )?to the(?: power(?: of)?)?|to the power of|hoch"), " ** "),
    (_BETWEEN.format("mod|modulo"), " % "),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), sign) for pattern, sign in _RULES)


def in_signs(text: str) -> str:
    """The text with its numbers as digits and its arithmetic as an expression; other words stay."""
    text = _NUMERALS.sub(_number, text)
    for pattern, sign in _COMPILED:
        text = pattern.sub(sign, text)
    return text

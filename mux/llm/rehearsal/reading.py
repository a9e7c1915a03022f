"""Reads plain text by rules: arithmetic, telling words, file names, and the sentence that fits a question."""

from __future__ import annotations

import ast
import re

from mux.llm.rehearsal.spoken import in_signs

__all__ = [
    "asks_for_an_error",
    "asks_for_secrets",
    "clauses",
    "document_names",
    "expressions",
    "first_sentence",
    "keywords",
    "numbers",
    "passages",
    "percentages",
    "programs",
    "quotes",
    "shortened",
    "urls",
]

_STOP_WORDS = """
a about above according across add after again all also am an and any anything are as ask at average be
because been before below between both but by calculate call can cite compare compute could cubed
demonstrate describe did divided do doc docs document documents does doing done each else error errors
every explain few file files find folder for from get give go had has have having he hello her here him
his how i if in into is it its itself just know let list look make many me mean means minus more most much
multiplied my need no not now number numbers of on once one only or other our out over percent please plus
power product quote read really result results root say says search see she should show so some something
sqrt square squared such sum summarise summarize summary tell than thank thanks that the their them then
there these they thing this those through times to together too total try under until up us use used uses
using very want was way we were what when where whether which while who whom whose why will with word
words work works would write written you your
"""
_STOP = frozenset(_STOP_WORDS.split())
_FENCED = re.compile(r"```(python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_WORKS = (
    ast.Call,
    ast.Assign,
    ast.AugAssign,
    ast.FunctionDef,
    ast.For,
    ast.While,
    ast.Import,
    ast.ImportFrom,
)
_WORD = re.compile(r"[^\W_][\w'’-]*", re.UNICODE)
_QUOTED = re.compile(r"[\"“”«»`]([^\"“”«»`\n]{2,80})[\"“”«»`]")
_URL = re.compile(r"https?://[^\s<>()\"']+[^\s<>()\"'.,;:!?]")
_DOCUMENT = re.compile(r"(?<![\w/:.])[\w./-]{0,200}[\w-]\.(?:md|txt|rst|html?|pdf|csv|json)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)")
_PERCENT = re.compile(
    r"(?<![\d.])(\d{1,20}(?:\.\d{1,20})?)\s{0,3}(?:%|percent)\s{0,3}of\s{0,3}(\d{1,20}(?:\.\d{1,20})?)",
    re.IGNORECASE,
)
_FUNCTIONS = "sqrt|cbrt|exp|ln|log10|log2|log|sin|cos|tan|abs|factorial|round|floor|ceil"
_ARITHMETIC_IN = 4_000  # characters of a prompt that are looked through for it
_ARITHMETIC = re.compile(
    rf"(?:(?:{_FUNCTIONS})\s*\(|[\d(\-.]|\b(?:pi|tau)\b)"
    rf"(?:[\d\s.+\-*/()%]|\b(?:{_FUNCTIONS}|pi|tau|e)\b){{0,200}}(?:[\d)]|\b(?:pi|tau|e)\b)"
)
_HIDDEN = r"(?:passwords?|api[ -]?keys?|secret keys?|secrets|credentials|access tokens?|private keys?)"
_SECRETS = re.compile(
    r"\b(?:reveal|leak|steal|dump|extract|exfiltrate|print|show|give|tell|send|read out)\s+"
    r"(?:(?:me|us|out|all|any|the|your|my|our|their|this|of|stored|hidden|server|system|admin|root|user"
    rf"|users|environment|\w+['’]s?)\s+){{0,5}}{_HIDDEN}\b"
    r"|\bwhat(?:'s| is| are) (?:the |your |my )?(?:\w+['’]s? |admin |root |system ){0,2}"
    rf"{_HIDDEN}\s*(?:\?|$)",
    re.IGNORECASE,
)
_ERROR = re.compile(
    r"\b(?:demonstrate|provoke|cause|trigger|simulate|force|show)\b.{0,40}\b(?:errors?|failures?|fail|fails)\b",
    re.IGNORECASE | re.DOTALL,
)
_HEADER = re.compile(r"^\[(\d{1,4})\] (.*?)(?: \(([^()\n]+?)(?:, lines [^()\n]*)?\))?$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n(?=[^\S\n]{0,80}(?:[-*#>|]|\d+\.|\n))")
# Markdown's marks, but no operator: emphasis touches a word on one side, and 17*23 or 2 ** 40 is none
_MARKS = re.compile(r"^[#>\-*|\s]+|[`|]+|(?<![\w*])\*+(?=[^\s*])|(?<=[^\s*])\*+(?![\w*])")


def keywords(text: str, limit: int = 6) -> list[str]:
    """The telling words of a text, quoted ones first, in order, without repeats."""
    quoted = [w for q in _QUOTED.findall(text) for w in _WORD.findall(q)]
    plain = [w for w in _WORD.findall(_URL.sub(" ", text)) if not w.isdigit()]
    seen: dict[str, str] = {}
    for word in [*quoted, *plain]:
        low = word.casefold()
        if low not in _STOP and len(word) > 2:
            seen.setdefault(low, word)
    return list(seen.values())[:limit]


def numbers(text: str) -> list[float]:
    """The numbers of a text, in order."""
    return [float(n) for n in _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))]


def programs(text: str) -> list[str]:
    """Python programs that stand in a text: fenced ones, or the whole text if it is one."""
    fenced = [(label, code.strip("\n")) for label, code in _FENCED.findall(text)]
    if fenced:
        return [code for label, code in fenced if code.strip() and (label or _is_program(code))]
    return [text] if _is_program(text) and expressions(text, 1) != [text.strip()] else []


def _is_program(text: str) -> bool:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, _WORKS) for node in ast.walk(tree))


def urls(text: str) -> list[str]:
    """The web addresses of a text."""
    return list(dict.fromkeys(_URL.findall(text)))


def document_names(text: str) -> list[str]:
    """Names that look like document files."""
    return list(dict.fromkeys(_DOCUMENT.findall(_URL.sub(" ", text))))


def expressions(text: str, limit: int = 3) -> list[str]:
    """Arithmetic that stands in a text, in words or signs."""
    spoken = in_signs(_URL.sub(" ", _PERCENT.sub(" ", text[:_ARITHMETIC_IN])))
    found: dict[str, None] = {}
    for match in _ARITHMETIC.finditer(spoken):
        candidate = match[0].strip()
        if _is_arithmetic(candidate):
            found.setdefault(candidate)
    return list(found)[:limit]


def _is_arithmetic(candidate: str) -> bool:
    if not any(c.isdigit() for c in candidate):
        return False
    try:
        tree = ast.parse(candidate, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return isinstance(tree.body, ast.BinOp | ast.Call)


def percentages(text: str) -> list[tuple[str, str]]:
    """Percentages as they are said, and as arithmetic: ``("15% of 240", "15 / 100 * 240")``."""
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return [(m[0], f"{m[1]} / 100 * {m[2]}") for m in _PERCENT.finditer(plain)]


def asks_for_secrets(text: str) -> bool:
    """Whether a text asks to be shown passwords, keys or the like."""
    return bool(_SECRETS.search(text))


def asks_for_an_error(text: str) -> bool:
    """Whether a text asks to see how a failure looks."""
    return bool(_ERROR.search(text))


def passages(output: str) -> list[tuple[int, str, str, str]]:
    """The numbered passages of a search or read: number, title, path or address, text."""
    heads = list(_HEADER.finditer(output))
    ends = [*(h.start() for h in heads[1:]), len(output)][: len(heads)]
    return [
        (int(h[1]), h[2].strip(), (h[3] or "").strip(), output[h.end() : end].strip())
        for h, end in zip(heads, ends, strict=True)
    ]


def _clean(sentence: str) -> str:
    return re.sub(r"\s+", " ", _MARKS.sub("", sentence)).strip()


def quotes(text: str, words: list[str], limit: int = 2) -> list[str]:
    """The sentences of a text that have most of the words, best first; none if none has any."""
    wanted = [w.casefold() for w in words]
    scored: dict[str, float] = {}
    for raw in _SENTENCE_END.split(text):
        sentence = _clean(raw)
        low = sentence.casefold()
        score = float(sum(w in low for w in wanted))
        if score:
            scored[sentence[:300]] = score + (0.5 if 40 <= len(sentence) <= 260 else 0.0)
    return sorted(scored, key=lambda s: -scored[s])[:limit]


def first_sentence(text: str, limit: int = 280) -> str:
    """The first sentence of a text that says something, cut at ``limit`` characters."""
    for raw in _SENTENCE_END.split(text):
        sentence = _clean(raw)
        if len(sentence) > 1:
            return shortened(sentence, limit)
    return _clean(text)[:limit]


def shortened(text: str, limit: int) -> str:
    """The text, cut visibly at ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def clauses(text: str) -> list[str]:
    """The parts of a task that can be done on their own."""
    parts = re.split(r"(?<=[.?!;])\s+|\n+|,?\s+(?:and|then|and then|while)\s+(?=[a-z]{3,})", text)
    return [p.strip(" ,;") for p in parts if len(p.strip(" ,;")) > 2]

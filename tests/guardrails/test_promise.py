"""Properties: whatever the pattern, the text and its split, the flow tells what the whole text would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import regex
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from mux.agent import Draft, Nested, Outcome
from mux.errors import ConfigError
from mux.events import Body, Phase, Reasoning, Token
from mux.guardrails import Rules
from mux.guardrails.compiled import Rule
from mux.guardrails.lane import Lane
from mux.settings import GuardrailRule
from tests.support.guardrails import compiled, flow

# A small alphabet, so that random texts meet random patterns
ALPHABET = "ab-1 \n"
pytestmark = pytest.mark.timeout(120)  # many examples, each of them a pattern to compile
# Many random patterns are refused when they are loaded, or match nothing at all
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def patterns() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "b", "-", "1", " ", r"\w", r"\d", "[ab]", "[^a]", r"\s", "."])
    asserts = st.sampled_from(
        [r"\b", r"\B", "$", "^", r"\A", r"\Z", "(?!a)", "(?=b)", "(?<!b)", "(?<=a)", "(?!ab)"]
    )
    piece = st.one_of(atoms, atoms, atoms, asserts)

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        repeat = st.sampled_from(["?", "+", "*", "{2}", "{1,3}", "+?", "{0,2}?"])
        return st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
            st.tuples(inner, repeat).map(lambda p: f"(?:{p[0]}){p[1]}"),
        )

    return st.recursive(piece, grow, max_leaves=6)


@st.composite
def split_texts(draw: st.DrawFn, alphabet: str = ALPHABET) -> list[str]:
    text = draw(st.text(alphabet=alphabet, min_size=1, max_size=14))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=6)))
    return [text[a:b] for a, b in pairwise([0, *[c for c in cuts if c < len(text)], len(text)])]


def usable(pattern: str, **rule: Any) -> Rule:
    try:
        return compiled(pattern=pattern, max_hold=1000, **rule)
    except ConfigError:
        assume(False)
        raise


def found_in(pattern: str, text: str) -> list[tuple[int, int]]:
    """All matches in the whole text: the oracle."""
    spans: list[tuple[int, int]] = []
    at = 0
    compiled_pattern = regex.compile(pattern)
    while match := compiled_pattern.search(text, at):
        # A match of nothing is blocked on sight; that is not what is compared here.
        assume(match.end() > match.start())
        spans.append(match.span())
        at = match.end()
    return spans


@MANY
@given(patterns(), split_texts())
@example(r"a\Bb", ["a", "b"])
@example(r"ab(?!1)", ["ab", "1"])
@example(r"ab$", ["ab", "\n", "a"])
@example(r"-\ba", ["-", "a"])
async def test_a_blocked_span_never_shows_and_clean_text_is_unchanged(
    pattern: str, pieces: list[str]
) -> None:
    rule = usable(pattern)
    text = "".join(pieces)
    spans = found_in(pattern, text)
    out, blocked = await flow([rule], pieces)
    shown = "".join(out)
    assert blocked == bool(spans)
    if spans:
        assert text[: spans[0][0]].startswith(shown)
    else:
        assert shown == text


@MANY
@given(patterns(), split_texts())
async def test_masking_the_flow_is_masking_the_whole(pattern: str, pieces: list[str]) -> None:
    rule = usable(pattern, action="mask", mask="#")
    text = "".join(pieces)
    spans = found_in(pattern, text)
    out, blocked = await flow([rule], pieces)
    assert not blocked
    expected, at = "", 0
    for start, end in spans:
        expected += text[at:start] + "#"
        at = end
    assert "".join(out) == expected + text[at:]


@MANY
@given(st.lists(patterns(), min_size=2, max_size=3), split_texts())
async def test_several_rules_release_what_all_of_them_have_decided(
    patterns: list[str], pieces: list[str]
) -> None:
    rules = [usable(p) for p in patterns]
    text = "".join(pieces)
    starts = [span[0] for p in patterns for span in found_in(p, text)]
    out, blocked = await flow(rules, pieces)
    assert blocked == bool(starts)
    if starts:
        assert text[: min(starts)].startswith("".join(out))
    else:
        assert "".join(out) == text


@MANY
@given(patterns(), st.lists(st.tuples(st.integers(0, 3), st.text(ALPHABET, max_size=6)), max_size=40))
async def test_texts_that_are_said_at_once_are_each_decided_alone(
    pattern: str, said: list[tuple[int, str]]
) -> None:
    usable(pattern)
    rule = GuardrailRule(pattern=pattern, max_hold=1000)
    guarded = Rules.compile({"rule": rule}).guard(run="r", channel="c", refusal="")
    kinds: list[Body | Nested] = [Token(content=""), Reasoning(content=""), Nested(("a",), Token(content=""))]

    async def drafts() -> AsyncIterator[Draft]:
        for which, piece in said:
            if which == 3:  # what other drafts are long awaited behind
                for _ in range(12):
                    yield Phase(phase="thinking")
            else:
                yield _with(kinds[which], piece)

    shown = ["", "", ""]
    out = [d async for d in guarded.stream(drafts())]
    for draft in out:
        for i, kind in enumerate(kinds):
            shown[i] += _said(kind, draft)
    blocked = isinstance(out[-1], Outcome) if out else False
    texts = ["".join(piece for which, piece in said if which == i) for i in range(3)]
    spans = [found_in(pattern, text) for text in texts]
    assert blocked == any(spans)
    for text, found, seen in zip(texts, spans, shown, strict=True):
        assert text[: found[0][0] if found else None].startswith(seen)
        assert blocked or seen == text


def _with(kind: Body | Nested, content: str) -> Draft:
    if isinstance(kind, Nested):
        return Nested(kind.path, Token(content=content))
    return type(kind)(content=content)  # type: ignore[call-arg]


def _said(kind: Body | Nested, draft: Draft) -> str:
    if isinstance(kind, Nested):
        return draft.body.content if isinstance(draft, Nested) and isinstance(draft.body, Token) else ""
    return draft.content if isinstance(draft, Token | Reasoning) and type(draft) is type(kind) else ""


def _escape(char: str, how: int) -> str:
    if how == 0 and char not in '"\\\n':
        return char
    if how == 2 and char == "\n":
        return "\\n"
    return f"\\u{ord(char):04x}"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([r"a-1", r"\Aa1", r"b1\Z", r"(?<!a)bb", r"a\nb"]),
    st.lists(
        st.tuples(st.text(alphabet='ab-1\n"\\', max_size=8), st.integers(0, 2**31)), min_size=1, max_size=3
    ),
    st.integers(1, 9),
)
async def test_json_strings_are_scanned_as_they_decode(
    pattern: str, values: list[tuple[str, int]], size: int
) -> None:
    coded = [
        '"' + "".join(_escape(c, seed * (i + 1) // 7 % 3) for i, c in enumerate(value)) + '"'
        for value, seed in values
    ]
    raw = "[" + ", ".join(coded) + "]"
    decoded = json.loads(raw)
    assert decoded == [v for v, _ in values]
    forbidden = any(regex.search(pattern, v) for v in decoded) or regex.search(pattern, raw)
    out, blocked = await flow(
        [compiled(pattern=pattern)], [raw[i : i + size] for i in range(0, len(raw), size)], is_json=True
    )
    assert blocked == bool(forbidden)
    shown = "".join(out)
    if not forbidden:
        assert shown == raw
    else:
        first = next((i for i, v in enumerate(decoded) if regex.search(pattern, v)), len(decoded))
        before = "[" + "".join(c + ", " for c in coded[:first])
        assert regex.search(pattern, raw) or len(shown) <= len(before) + len(
            coded[first] if first < len(coded) else ""
        )


VARIANTS = {
    "s": ["s", "S", "ｓ", "\\u0073", "ſ"],
    "e": ["e", "E", "ｅ", "e\u200b", "\u00ade", "\\u0065", "\\x65"],
    "c": ["c", "C", "ⓒ", "c\u2060", "\U0001d41c"],
    "r": ["r", "ｒ", "r\ufeff"],
    "t": ["t", "T", "t\u200d", "\\U00000074"],
}


@settings(max_examples=150, deadline=None)
@given(st.data(), st.text(alphabet="xyz é\u0301", max_size=5), st.integers(1, 5), st.booleans())
async def test_disguises_do_not_help_where_the_rule_normalises(
    data: st.DataObject, around: str, size: int, spoil: bool
) -> None:
    word = [data.draw(st.sampled_from(VARIANTS[c])) for c in "secret"]
    if spoil:
        word[3] = "x"
    text = around + " " + "".join(word) + around
    rule = compiled(pattern="secret", normalize=True, ignore_case=True)
    out, blocked = await flow([rule], [text[i : i + size] for i in range(0, len(text), size)])
    assert blocked == (not spoil)
    if spoil:
        assert "".join(out) == text
    else:
        assert (around + " \u00ad").startswith("".join(out))


@settings(max_examples=200, deadline=None)
@given(
    st.text("xyz sec", max_size=300),
    st.lists(st.sampled_from(["s", "\\u0073", "\\x73"]), min_size=1, max_size=3),
    st.text("xyz ", max_size=20), st.integers(1, 9), st.booleans(),
)  # fmt: skip
@example("hello world ", ["\\u0073"], " more text", 6, True)
@example("hello world s", ["s", "\\u0073"], "", 1, False)
async def test_escapes_are_read_wherever_in_the_text_they_begin(
    before: str, letters: list[str], after: str, size: int, masks: bool
) -> None:
    text = before + "".join(letters) + "secret"[1:] + after
    rule = compiled(pattern="secret", action="mask" if masks else "block", mask="#")
    out, blocked = await flow([rule], [text[i : i + size] for i in range(0, len(text), size)])
    clean = before + "".join(letters[:-1])
    assert blocked == (not masks)
    if masks:
        assert "".join(out) == clean + "#" + after
    else:
        assert clean.startswith("".join(out))


async def test_clean_prose_is_a_word_late_at_most() -> None:
    prose = (__doc__ or "") + " mail me at the office, call tomorrow; sketch it. " * 20
    words = prose.split(" ")
    presets = ["secrets", "email", "phone", "card", "injection"]
    lane = Lane([compiled(preset=p) for p in presets[:4]])
    pushed = shown = worst = 0
    longest = max(len(w) for w in words)
    for word in words:
        await lane.push(word + " ")
        pushed += len(word) + 1
        shown += len(lane.take()[0])
        worst = max(worst, pushed - shown)
    assert worst <= longest + 1

"""What output guardrails cost a delta: no rule, one pattern, all presets."""

from __future__ import annotations

from collections.abc import AsyncIterator

from mux.agent import Draft, Outcome
from mux.events import Token
from mux.guardrails import Rules
from mux.guardrails.presets import PRESETS
from mux.settings import GuardrailRule
from tests.bench.harness import Report, Side, interleaved

__all__ = ["run"]

WORDS = ("The ", "quick ", "brown ", "fox ", "jumps ", "over ", "12 ", "lazy ", "dogs. ")
COUNT = 3000


TOGETHER = 32  # words that a fast model says between two looks of its guardrails


async def _drafts(together: int) -> AsyncIterator[Draft | list[str]]:
    if together == 1:
        for i in range(COUNT):
            yield WORDS[i % len(WORDS)]
    else:
        for i in range(0, COUNT, together):
            yield [WORDS[j % len(WORDS)] for j in range(i, min(i + together, COUNT))]
    yield Outcome()


def _side(rules: dict[str, GuardrailRule], together: int = 1) -> Side:
    compiled = Rules.compile(rules)

    async def work() -> float:
        guard = compiled.guard(run="r", channel="c", refusal="no")
        size = 0
        async for draft in guard.stream(_drafts(together)):
            if isinstance(draft, str | Token):
                size += len(draft if isinstance(draft, str) else draft.content)
        assert size == sum(len(WORDS[i % len(WORDS)]) for i in range(COUNT))
        return COUNT

    return work


async def run(report: Report, *, quick: bool) -> None:
    """Clean prose, a word at a time and several together."""
    key = GuardrailRule(pattern="sk-[A-Za-z0-9]{20,}")
    every = {name: GuardrailRule(preset=name) for name in PRESETS}
    sides = {
        "one pattern": _side({"no-keys": key}),
        f"one pattern, {TOGETHER} words together": _side({"no-keys": key}, TOGETHER),
        **{f"preset {name}": _side({name: GuardrailRule(preset=name)}) for name in PRESETS},
        "all presets": _side(every),
        f"all presets, {TOGETHER} words together": _side(every, TOGETHER),
        "no rule": _side({}),
    }
    report.add(*await interleaved("guardrails", sides, rounds=3 if quick else 5, against="no rule"))

"""A bare string that an agent says is a `Token` of it, wherever and however it is said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mux.agent import Agent, AgentContext, Draft, Guard, Nested, OpenGuard
from mux.events import Phase, Reasoning, StepFinished, StepStarted, Token, Tokens
from mux.guardrails import Rules
from mux.requests import StartRequest
from mux.settings import GuardrailRule
from tests.support.agents import Scripted, harness, says

pytestmark = pytest.mark.usefixtures("no_leaks")

How: TypeAlias = Literal["yielded", "emitted", "nested"]
RULES = Rules.compile({"key": GuardrailRule(pattern=r"ab+c", action="mask", mask="#")})
TEXT = st.text(st.one_of(st.sampled_from("abc"), st.characters(codec="utf-8")), max_size=4)
PIECE: st.SearchStrategy[tuple[How, str]] = st.tuples(
    st.sampled_from(("yielded", "yielded", "yielded", "emitted", "nested")), TEXT
)
OTHER: st.SearchStrategy[Draft] = st.sampled_from(
    [Phase(phase="thinking"), Reasoning(content="so a"), Reasoning(content="bc")]
)


def open_guard(agent: Agent, run: str, channel: str) -> Guard:
    return OpenGuard()


def rule_guard(agent: Agent, run: str, channel: str) -> Guard:
    return RULES.guard(run=run, channel=channel, refusal="No.")


def speaker(name: str, said: Sequence[Any], *, bare: bool) -> Scripted:
    """Says these things in a step, its texts as they are or each as a token."""

    async def run(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield StepStarted(step=1)
        for thing in said:
            if not isinstance(thing, tuple):
                yield thing
                continue
            how, text = thing
            piece = text if bare else Token(content=text)
            if how == "yielded":
                yield piece
            elif how == "emitted":
                await ctx.emit(piece)
            else:
                yield Nested(("sub",), piece)
        yield StepFinished(step=1, finish_reason="stop")

    return Scripted(name, run)


@pytest.mark.parametrize("guard_for", [open_guard, rule_guard])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(PIECE, PIECE, PIECE, OTHER), max_size=30))
@example([("yielded", "")])
@example([("yielded", "é"), ("yielded", "ab"), ("emitted", "b"), ("yielded", "c"), ("nested", "abc")])
@example([("yielded", str(n)) for n in range(300)])
async def test_a_run_of_bare_texts_is_the_run_of_their_tokens(guard_for: Any, said: list[Any]) -> None:
    shown = []
    for bare in (True, False):
        async with harness(speaker("a", said, bare=bare), guard_for=guard_for) as h:
            run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
            snapshot = (await h.finished(run))["channels"][0]
            assert snapshot["status"] == "completed"
            events = [
                (e.seq, e.channel, e.cseq, e.path, e.body)
                for e in await h.events(run)
                if e.type not in ("run_started", "run_finished", "done")
            ]
            shown.append((events, snapshot["text"], snapshot["output"], snapshot["cseq"]))
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "broken", ["and \ud83d", Token(content="\ud83d"), Nested(("sub",), "\ud83d")], ids=repr
)
@pytest.mark.parametrize("guard_for", [open_guard, rule_guard])
async def test_a_string_that_is_no_text_fails_its_own_channel_only(guard_for: Any, broken: Draft) -> None:
    """Half of a surrogate pair has no bytes: it must not come as far as the log, which is the run's."""

    async def cut(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield "so far "
        yield broken
        yield "never"

    async with harness(Scripted("bad", cut), says("good", "fine"), guard_for=guard_for) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["bad", "good"]))).row.run
        bad, good = (await h.finished(run))["channels"]
        assert (bad["status"], bad["error"]["code"], bad["text"]) == ("failed", "agent_failed", "so far ")
        assert (good["status"], good["text"]) == ("completed", "fine")


async def test_of_a_subclass_of_str_the_text_is_said() -> None:
    class Word(StrEnum):
        HELLO = "hello"

    async def greets(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield Word.HELLO
        await ctx.emit(Word.HELLO)
        yield Nested(("sub",), Word.HELLO)
        yield Token.of(Word.HELLO)

    async with harness(Scripted("a", greets)) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
        assert (await h.finished(run))["channels"][0]["text"] == "hello" * 4
        kept = [r.body.texts for r in h.published[run] if isinstance(r.body, Tokens)]
        assert {type(text) for texts in kept for text in texts} == {str}  # stores encode no others


async def test_bare_texts_count_into_the_reply_s_limit() -> None:
    async def floods(ctx: AgentContext) -> AsyncIterator[Draft]:
        while True:
            yield "é" * 5_000

    async with harness(Scripted("f", floods), max_reply_mb=0.1) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["f"]))).row.run
        channel = (await h.finished(run))["channels"][0]
        assert channel["error"]["code"] == "reply_too_large"
        assert 0 < len(channel["text"].encode()) <= 0.1 * 1_048_576


async def test_what_is_neither_text_nor_event_is_refused() -> None:
    async def wrong(ctx: AgentContext) -> AsyncIterator[Draft]:
        yield b"bytes"  # type: ignore[misc]

    async with harness(Scripted("a", wrong)) as h:
        run = (await h.engine.start_run(StartRequest(message="hi", agents=["a"]))).row.run
        error = (await h.finished(run))["channels"][0]["error"]
        assert (error["code"], "bytes" in error["message"]) == ("agent_failed", True)

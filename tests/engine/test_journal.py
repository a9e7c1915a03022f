"""Writing: tokens that come together make the same log and the same fold as one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mux.agent import Nested
from mux.engine.journal import Journal
from mux.events import (
    Body,
    ChannelInfo,
    ChannelStarted,
    Event,
    Phase,
    Record,
    RunStarted,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolCall,
)
from mux.log.memory import MemoryStore
from mux.log.protocols import Head
from mux.run import IllegalEvent, RunState
from tests.support.stores import row

RUN = "r1"
DRAFTS = st.one_of(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=3).map(lambda t: Token(content=t)), min_size=1),
    st.sampled_from(
        [
            [StepStarted(step=1)], [StepFinished(step=1, finish_reason="stop")], [StepStarted(step=2)],
            [StepReset(step=1, from_cseq=3)], [ToolCall(call_id="c", tool="t")],
            [ChannelStarted(agent="x", attempt=1)], [ChannelStarted(agent="x", attempt=2)],
            [Nested(("sub",), Token(content="inner"))], [Phase(phase="thinking")],
        ]
    ),
)  # fmt: skip


def one_by_one(
    items: Sequence[tuple[str | None, Body | Nested]], clock: Sequence[int]
) -> tuple[list[Record], RunState]:
    """What the rules of the contract say, an `Event` for each."""
    state, records = RunState(RUN), []
    for (channel, draft), now in zip(items, clock, strict=True):
        path, body = (draft.path, draft.body) if isinstance(draft, Nested) else ((), draft)
        before = state if channel is None else state.channels[channel]
        event = Event(RUN, state.seq + 1, channel, before.cseq + 1, max(now, state.last_ts), body, path)
        try:
            state.apply(event)
        except IllegalEvent:
            continue
        records.append(event.record())
    return records, state


@given(
    st.lists(st.tuples(st.sampled_from("ab"), DRAFTS), max_size=12),
    st.lists(st.integers(1, 9), min_size=14, max_size=14),
)
def test_tokens_that_come_together_are_logged_and_folded_as_one_by_one(
    bursts: list[tuple[str, list[Body | Nested]]], times: list[int]
) -> None:
    start = RunStarted(thread="t", channels=[ChannelInfo(id="a", agent="x"), ChannelInfo(id="b", agent="x")])
    published: list[Record] = []

    def publish(run: str, head: Head, records: Sequence[Record]) -> None:
        assert (run, head.head) == (RUN, records[-1].seq)
        published.extend(records)

    async def together() -> tuple[RunState, Sequence[Record]]:
        store, now = MemoryStore(), iter(times)
        await store.create(row(RUN))
        turn = next(now)
        journal = Journal(RUN, store, publish, lambda: turn)
        await journal.open("me")
        await journal.write([(None, start)])
        for channel, drafts in bursts:
            turn = next(now)
            state = journal.state.channels[channel]
            texts = [draft.content for draft in drafts if isinstance(draft, Token)]
            if len(texts) == len(drafts) and state.takes_tokens:
                journal.stage_tokens(state, texts)
            else:
                for draft in drafts:
                    try:
                        journal.stage(channel, draft.content if isinstance(draft, Token) else draft)
                    except IllegalEvent:
                        continue
            telling = await journal.commit()
            assert all(r.type != "token" or b'"path"' in r.data for r in telling)
        return journal.state, (await store.read(RUN, 0)).records

    state, logged = asyncio.run(together())
    items = [(None, start), *((channel, draft) for channel, drafts in bursts for draft in drafts)]
    clock = [times[0], *(times[n] for n, (_, drafts) in enumerate(bursts, 1) for _ in drafts)]
    records, expected = one_by_one(items, clock)
    bare = [[r._replace(body=None) for r in kept] for kept in (logged, published, records)]
    assert bare[0] == bare[1] == bare[2]  # a token's is another where it came in a burst
    assert state.snapshot() == expected.snapshot()
    for channel in "ab":
        ours, theirs = state.channels[channel], expected.channels[channel]
        assert (ours.at, ours.cseq, ours.output()) == (theirs.at, theirs.cseq, theirs.output())
        for fold in ("text", "reasoning"):
            one, other = getattr(ours, fold), getattr(theirs, fold)
            assert (one.parts, one.cseqs, one.foreign) == (other.parts, other.cseqs, other.foreign)

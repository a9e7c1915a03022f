"""No event is lost or doubled, whatever happens in whatever order: a state machine over viewers."""

from __future__ import annotations

import asyncio
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from mux.events import StepReset, Token
from mux.faces.sse import Sse, SseCompact
from mux.log import MemoryStore
from mux.viewers import Encoder, Hub, Selection
from tests.support.checker import Checker, parse_sse
from tests.support.feeds import Feed, MemorySink

SELECTIONS = (
    Selection(),
    Selection.parse(["a"]),
    Selection.parse(["b"], ["token", "tool_*"]),
    Selection.parse([], ["done"]),
)


class Reader:
    """A client: it reads, is cut at any byte, and comes back with its last id."""

    def __init__(self, selection: Selection, encoder: Encoder, after: int) -> None:
        self.checker = Checker("r1", after, selection)
        self.encoder = encoder
        self.sink = MemorySink()
        self.task: asyncio.Task[str] | None = None
        self.compact = isinstance(encoder, SseCompact)

    async def connect(self, hub: Hub) -> None:
        cursor = self.checker.cursor or str(self.checker.after)
        viewer = await hub.open(["r1"], cursor, self.encoder, self.checker.selection)
        if viewer.ended:
            viewer.close()
            return
        self.sink = MemorySink()
        self.task = asyncio.create_task(viewer.serve(self.sink))

    async def cut(self, share: float) -> None:
        """Lose the connection; of what was written, only this share of the bytes arrived."""
        if self.task is None:
            return
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.task = None
        arrived = self.sink.data[: round(len(self.sink.data) * share)]
        self.checker.feed(parse_sse(arrived)[0])


class Handover(RuleBasedStateMachine):
    readers: Bundle[Reader] = Bundle("readers")

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.trimmed = 1
        self.all_readers: list[Reader] = []
        self.finished = False
        self.do(self._start())

    async def _start(self) -> None:
        self.store = MemoryStore()
        self.hub = Hub(self.store, heartbeat_s=0.02)
        self.feed = await Feed(self.store, self.hub).create()
        await self.feed.begin("a", "b")

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    @rule(
        target=readers,
        selection=st.sampled_from(SELECTIONS),
        encoder=st.sampled_from([Sse(), SseCompact()]),
        after=st.integers(0, 3),
    )
    def join(self, selection: Selection, encoder: Encoder, after: int) -> Reader:
        reader = Reader(selection, encoder, after)
        self.do(reader.connect(self.hub))
        self.all_readers.append(reader)
        return reader

    @rule(reader=readers, share=st.floats(0, 1))
    def cut_and_resume(self, reader: Reader, share: float) -> None:
        self.do(reader.cut(share))
        self.do(reader.connect(self.hub))

    @rule(channel=st.sampled_from("ab"), count=st.integers(1, 400), show=st.booleans())
    def append(self, channel: str, count: int, show: bool) -> None:
        if not self.finished:
            bodies = [(_token(n), channel) for n in range(count)]
            self.do(self.feed.append(*bodies, publish=show))

    @rule(channel=st.sampled_from("ab"))
    def reset(self, channel: str) -> None:
        if not self.finished:
            self.do(self.feed.append((StepReset(step=1, from_cseq=2), channel)))

    @rule(share=st.floats(0, 1))
    def trim(self, share: float) -> None:
        self.trimmed = max(self.trimmed, round(len(self.feed.records) * share))
        self.do(self.store.trim("r1", self.trimmed))

    @rule()
    def show(self) -> None:
        self.do(self.feed.publish())

    @rule(turns=st.integers(1, 5))
    def let_run(self, turns: int) -> None:
        async def work() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.do(work())

    @rule()
    def pause(self) -> None:
        self.do(asyncio.sleep(0.03))

    @rule(reader=readers, blocked=st.booleans())
    def block(self, reader: Reader, blocked: bool) -> None:
        if blocked:
            reader.sink.room.clear()
        else:
            reader.sink.room.set()

    @rule()
    def restart(self) -> None:
        """Another process: nothing in memory but the store."""

        async def work() -> None:
            for reader in self.all_readers:
                await reader.cut(1.0)
            await self.hub.close()
            self.hub = self.feed.hub = Hub(self.store, heartbeat_s=0.02)
            self.feed.unpublished = []
            for reader in self.all_readers:
                await reader.connect(self.hub)

        self.do(work())

    @rule()
    def finish(self) -> None:
        if not self.finished:
            self.finished = True
            self.do(self.feed.done("a"))
            self.do(self.feed.done("b"))
            self.do(self.feed.finish("a", "b"))

    @invariant()
    def whole_frames_only(self) -> None:
        for reader in getattr(self, "all_readers", []):
            assert parse_sse(reader.sink.data)[1] == b""

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.do(self._end())
        finally:
            self.runner.close()

    async def _end(self) -> None:
        if not self.finished:
            await self.feed.done("a")
            await self.feed.done("b")
            await self.feed.finish("a", "b")
        await self.feed.publish()
        for reader in self.all_readers:
            reader.sink.room.set()
            if reader.task is not None:
                assert await asyncio.wait_for(reader.task, 5) == "end"
                await reader.cut(1.0)
            await reader.connect(self.hub)
            if reader.task is not None:  # it had been cut before the end
                assert await asyncio.wait_for(reader.task, 5) == "end"
                await reader.cut(1.0)
            if reader.compact:
                _assert_compacted(reader, self.feed)
            else:
                reader.checker.assert_equals(self.feed.records)
        await self.hub.close()


def _token(n: int) -> Token:
    return Token(content=f'{n}\n\r\u2028"\\ ')


def _assert_compacted(reader: Reader, feed: Feed) -> None:
    checker = reader.checker
    if checker.selection.everything and checker.after == 0 and not checker.gaps:
        checker.assert_same_text(feed.records)
    wanted = [r.seq for r in feed.records if r.seq > checker.after and checker.selection.matches(r)]
    assert {e["seq"] for e in checker.events} <= set(wanted)
    assert checker.events[-1]["type"] == "run_finished"


TestHandover = Handover.TestCase
TestHandover.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    print_blob=True,
)

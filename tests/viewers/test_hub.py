"""Viewers over a memory log: replay, live, filters, and every way in which a stream ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from mux.errors import CursorError, NotFound, Overloaded, Unavailable
from mux.events import ChannelAdded, Token
from mux.faces.ndjson import Ndjson
from mux.faces.sse import Sse, SseCompact
from mux.log import Head, MemoryStore, Page
from mux.viewers import Encoder, Hub, Selection
from mux.viewers.hub import MAX_A_TURN
from tests.support.checker import Checker, parse_sse
from tests.support.feeds import Feed, MemorySink

pytestmark = pytest.mark.usefixtures("no_leaks")


@asynccontextmanager
async def hub_and_feed(**options: Any) -> AsyncIterator[tuple[Hub, Feed]]:
    store = MemoryStore()
    hub = Hub(store, **options)
    try:
        yield hub, await Feed(store, hub).create()
    finally:
        hub.drain()
        await asyncio.sleep(0)
        await hub.close()


@asynccontextmanager
async def watching(
    hub: Hub,
    run: str = "r1",
    after: str | None = None,
    encoder: Encoder | None = None,
    selection: Selection | None = None,
) -> AsyncIterator[tuple[MemorySink, asyncio.Task[str]]]:
    viewer = await hub.open([run], after, encoder or Sse(), selection or Selection())
    sink = MemorySink()
    task = asyncio.create_task(viewer.serve(sink))
    try:
        yield sink, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def checked(sink: MemorySink, **options: Any) -> Checker:
    checker = Checker("r1", **options)
    blocks, rest = parse_sse(sink.data)
    assert rest == b""
    checker.feed(blocks)
    return checker


async def test_a_viewer_reads_history_then_live_events_then_the_end() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a", "b")
        await feed.tokens("a", "one", "two")
        async with watching(hub) as (sink, task):
            await sink.until(b"stream_live")
            await feed.tokens("b", "three")
            await feed.done("a")
            await feed.done("b")
            await feed.finish("a", "b")
            assert await task == "end"
        checker = checked(sink)
        checker.assert_equals(feed.records)
        checker.assert_gapless()
        checker.assert_order()
        kinds = [c["type"] for c in checker.control]
        assert kinds == ["stream_open", "stream_live", "stream_end"]
        assert checker.control[-1] == {"type": "stream_end", "status": "completed", "final": True}
        assert sink.data.startswith(b"retry: 1000\n")
        assert sink.data.count(b"retry:") == 1


async def test_the_opening_frame_names_position_head_filter_and_channels() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a", "b")
        async with watching(hub, after="2", selection=Selection.parse(["a,ghost"], ["tool_*"])) as (sink, _):
            await sink.until(b"stream_live")
        frame = checked(sink, after=2).control[0]
        assert frame == {
            "type": "stream_open",
            "cursor": "r1.1.2",
            "run": "r1",
            "head": 3,
            "filter": {"channel": ["a", "ghost"], "type": ["tool_*"], "unknown": ["ghost"]},
            "channels": ["a", "b"],
        }


async def test_equal_viewers_share_one_chunk_and_different_filters_get_their_own() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a", "b")
        async with (
            watching(hub) as (one, _),
            watching(hub) as (two, _),
            watching(hub, selection=Selection.parse(["b"])) as (three, _),
        ):
            for sink in (one, two, three):
                await sink.until(b"stream_live")
            await feed.tokens("a", "x")
            await feed.tokens("b", "y")
            await asyncio.gather(*(s.until(b'"y"') for s in (one, two, three)))
            assert one.chunks[-1] is two.chunks[-1]
            assert b'"x"' not in three.data
            assert three.chunks[-1].startswith(b"id: r1.1.5\n")


async def test_a_batch_is_one_write() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (sink, _):
            await sink.until(b"stream_live")
            before = len(sink.chunks)
            await feed.tokens("a", *("x" * 50))
            await feed.tokens("a", "last")
            await sink.until(b"last")
            assert len(sink.chunks) - before == 1


async def test_a_slow_viewer_is_dropped_after_the_deadline_and_its_cursor_goes_on() -> None:
    async with hub_and_feed(write_timeout_s=0.05) as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (slow, slow_task), watching(hub) as (quick, _):
            await slow.until(b"stream_live")
            await quick.until(b"stream_live")
            slow.room.clear()
            await feed.tokens("a", "one")
            await quick.until(b"one")
            await feed.tokens("a", "two")
            await quick.until(b"two")
            assert await slow_task == "slow"
            assert slow.aborted
            seen = checked(slow)
            async with watching(hub, after=seen.cursor) as (again, _):
                await again.until(b"two")
                seen.feed(parse_sse(again.data)[0])
            seen.assert_equals(feed.records)


class _Stuck(MemorySink):
    """A peer that reads the opening of its stream, and no page of it."""

    def send(self, framed: bytes) -> bool:
        if self.chunks:
            self.room.clear()
        return super().send(framed)


async def test_peers_that_stop_reading_in_the_middle_of_a_replay_hold_nobody_else_up() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        await feed.tokens("a", *("x" for _ in range(600)))
        sinks = [_Stuck() for _ in range(MAX_A_TURN)]
        opened = [await hub.open(["r1"], None, Sse()) for _ in sinks]
        serving = [
            asyncio.create_task(viewer.serve(sink)) for viewer, sink in zip(opened, sinks, strict=True)
        ]
        await asyncio.gather(*(sink.until(b'"token"') for sink in sinks))
        async with asyncio.timeout(1), watching(hub) as (sink, _):
            await sink.until(b"stream_live")
            async with hub.turns:  # as a stream over HTTP is opened
                pass
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def test_a_viewer_that_falls_behind_catches_up_without_loss() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (sink, task):
            await sink.until(b"stream_live")
            sink.room.clear()
            for n in range(40):
                await feed.tokens("a", *(f"{n}.{i} " for i in range(100)))
                await asyncio.sleep(0)
            sink.room.set()
            await feed.done("a")
            await feed.finish("a")
            assert await task == "end"
        checked(sink).assert_equals(feed.records)


async def test_a_peer_that_is_gone_ends_its_viewer() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (sink, task):
            await sink.until(b"stream_live")
            sink.closing = True
            await feed.tokens("a", "x")
            assert await task == "gone"
        assert hub.count == 0


async def test_silence_brings_a_heartbeat_that_moves_a_filtered_viewers_position() -> None:
    async with hub_and_feed(heartbeat_s=0.05) as (hub, feed):
        await feed.begin("a", "b")
        async with watching(hub, selection=Selection.parse(["b"])) as (sink, _):
            await sink.until(b"stream_live")
            await feed.tokens("a", "not for b")
            await sink.until(b'id: r1.1.4\ndata: {"type":"heartbeat"}\n\n')
        assert checked(sink, selection=Selection.parse(["b"])).cursor == "r1.1.4"


async def test_a_compacted_viewer_gets_windows_and_heartbeats() -> None:
    async with hub_and_feed(heartbeat_s=0.05) as (hub, feed):
        await feed.begin("a")
        async with watching(hub, encoder=SseCompact()) as (sink, task):
            await sink.until(b"stream_live")
            await feed.tokens("a", "one ", "two ")
            await feed.tokens("a", "three")
            await sink.until(b"heartbeat")
            await feed.done("a")
            await feed.finish("a")
            assert await task == "end"
        checker = checked(sink)
        checker.assert_same_text(feed.records)
        assert sum(e["type"] == "token" for e in checker.events) < 3


async def test_until_channels_ends_with_the_last_of_them_and_a_resume_there_has_nothing() -> None:
    selection = Selection.parse(["a"], until="channels")
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a", "b")
        async with watching(hub, selection=selection) as (sink, task):
            await sink.until(b"stream_live")
            await feed.tokens("a", "x")
            await feed.done("a")
            assert await task == "end"
        checker = checked(sink, selection=selection)
        assert checker.events[-1]["type"] == "done"
        assert checker.control[-1] == {"type": "stream_end", "status": "running", "final": True}
        await feed.tokens("b", "later")
        assert (await hub.open(["r1"], checker.cursor, Sse(), selection)).ended
        await feed.done("b")
        await feed.finish("a", "b")
        ended = await hub.open(["r1"], checker.cursor, Sse(), selection)
        assert ended.ended
        ended.close()
        fresh = Hub(feed.store)  # another process: it must find out where `done` was
        viewer = await fresh.open(["r1"], checker.cursor, Sse(), selection)
        assert viewer.ended
        viewer.close()
        earlier = await fresh.open(["r1"], "2", Sse(), selection)
        assert not earlier.ended
        earlier.close()
        await fresh.close()


async def test_at_the_end_of_a_finished_run_nothing_is_left() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        await feed.done("a")
        await feed.finish("a")
        viewer = await hub.open(["r1"], f"r1.1.{len(feed.records)}", Sse())
        assert viewer.ended
        viewer.close()
        viewer = await hub.open(["r1"], f"r1.1.{len(feed.records) - 1}", Sse())
        assert not viewer.ended
        viewer.close()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    ("text", "code", "status"),
    [
        ("r1.2.1", "cursor_stale", 409),
        ("r2.1.1", "cursor_foreign", 409),
        ("r1.1.99", "cursor_ahead", 409),
        ("99", "cursor_ahead", 409),
        ("-1", "cursor_invalid", 400),
        ("x" * 8192, "cursor_invalid", 400),
        ("r1.1", "cursor_invalid", 400),
        ("r1.1.1\n", "cursor_invalid", 400),
        ("٣", "cursor_invalid", 400),
    ],
)
async def test_a_cursor_that_cannot_be_continued_is_refused(
    live: bool, text: str, code: str, status: int
) -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        if not live:
            await feed.done("a")
            await feed.finish("a")
        with pytest.raises(CursorError) as e:
            await hub.open(["r1"], text, Sse())
        assert (e.value.code, e.value.status) == (code, status)
        assert hub.count == 0


async def test_trimmed_history_is_one_gap_and_then_what_is_left() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        await feed.tokens("a", *"abcdef")
        await feed.store.trim("r1", 5)
        async with watching(hub, after="2") as (sink, _):
            await sink.until(b"stream_live")
        checker = checked(sink, after=2)
        assert checker.gaps == [(2, 5)]
        checker.assert_equals(feed.records)


async def test_a_run_that_nobody_knows_is_not_found() -> None:
    async with hub_and_feed() as (hub, _):
        with pytest.raises(NotFound):
            await hub.open(["nope"], None, Sse())


async def test_viewers_above_the_limit_are_refused_and_counted_again_after_one_leaves() -> None:
    async with hub_and_feed(max_viewers=1) as (hub, feed):
        await feed.begin("a")
        viewer = await hub.open(["r1"], None, Sse())
        with pytest.raises(Overloaded):
            await hub.open(["r1"], None, Sse())
        viewer.close()
        viewer.close()
        (await hub.open(["r1"], None, Sse())).close()


async def test_drain_tells_streams_to_rotate_and_opens_no_more() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (one, first), watching(hub, encoder=SseCompact()) as (two, second):
            await one.until(b"stream_live")
            await two.until(b"stream_live")
            hub.drain()
            assert await first == await second == "rotated"
        for sink in (one, two):
            assert checked(sink).control[-1] == {"type": "stream_rotate", "reason": "drain"}
        with pytest.raises(Unavailable):
            await hub.open(["r1"], None, Sse())


async def test_old_connections_rotate() -> None:
    async with hub_and_feed(rotate_s=0.02, heartbeat_s=0.04) as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (sink, task):
            assert await task == "rotated"
        assert checked(sink).control[-1]["reason"] == "age"


async def test_a_deleted_run_ends_its_streams() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (sink, task):
            await sink.until(b"stream_live")
            hub.forget("r1")
            assert await task == "rotated"


async def test_a_channel_that_joins_later_passes_a_filter_that_named_it_before() -> None:
    selection = Selection.parse(["late"])
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub, selection=selection) as (sink, _):
            await sink.until(b"stream_live")
            await feed.append((ChannelAdded(id="late", agent="a"), None), (Token(content="hello"), "late"))
            await sink.until(b"hello")


async def test_an_event_that_was_read_before_it_was_published_is_not_doubled() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        await feed.append((Token(content="early"), "a"), publish=False)
        async with watching(hub, after="3") as (sink, _):
            await sink.until(b"stream_live")
            await feed.publish()
            await feed.tokens("a", "next")
            await sink.until(b"next")
        checked(sink, after=3).assert_equals(feed.records)


async def test_a_viewer_that_joins_while_the_others_fall_out_of_the_ring_gets_nothing_twice() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (old, _):
            await old.until(b"stream_live")
            hub._not_before = time.monotonic() + 0.1  # as after a long flush: the next one waits
            await feed.tokens("a", *(f"{n}" + "x" * 40_000 for n in range(20)))  # more than a ring keeps
            async with watching(hub) as (new, _):
                await new.until(b"stream_live")
                await feed.tokens("a", "after")
                await feed.done("a")
                await feed.finish("a")
                for sink in (old, new):
                    await sink.until(b"stream_end")
                    checked(sink).assert_equals(feed.records)


async def test_many_runs_share_a_connection_with_a_vector_cursor() -> None:
    async with hub_and_feed() as (hub, feed):
        other = await Feed(feed.store, hub, "r2").create()
        await feed.begin("a")
        await other.begin("a")
        viewer = await hub.open(["r1", "r2"], "r1.1.1", Sse(), vector=True)
        sink = MemorySink()
        task = asyncio.create_task(viewer.serve(sink))
        await sink.until(b"stream_live")
        await feed.tokens("a", "x")
        await other.tokens("a", "y")
        await sink.until(b'"y"')
        blocks, _ = parse_sse(sink.data)
        ids = [b.id for b in blocks if b.id]
        assert ids[0] == "r1.1.2,r2.1.0"
        assert ids[-1] == "r1.1.3,r2.1.3"
        for f, after in ((feed, 1), (other, 0)):
            checker = Checker(f.run, after)
            checker.feed([b for b in blocks if b.data.get("run") == f.run])
            assert [json.loads(r.data) for r in f.records[after:]] == checker.events
        for f in (feed, other):
            await f.done("a")
            await f.finish("a")
        assert await task == "end"
        again = await hub.open(["r1", "r2"], parse_sse(sink.data)[0][-2].id, Sse(), vector=True)
        assert again.ended
        again.close()
        with pytest.raises(CursorError):
            await hub.open(["r1", "r2"], "r3.1.1", Sse(), vector=True)


async def test_waiting_for_the_end_of_a_run() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        assert not await hub.wait_final("r1", 0.01)
        waiting = asyncio.create_task(hub.wait_final("r1", 5))
        await asyncio.sleep(0)
        await feed.done("a")
        await feed.finish("a")
        assert await waiting
        assert await hub.wait_final("r1", 0.01)


async def test_whoever_waits_for_the_end_of_a_run_is_told_that_it_was_deleted() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        waiting = asyncio.create_task(hub.wait_final("r1", 5))
        await asyncio.sleep(0)
        await feed.store.delete("r1")
        hub.forget("r1")
        with pytest.raises(NotFound):
            await asyncio.wait_for(waiting, 1)


class _Rebuilt(MemoryStore):
    """A store whose logs get another epoch, as Redis' do when it lost the end of them."""

    epoch = 1

    async def head(self, run: str) -> Head:
        return replace(await super().head(run), epoch=self.epoch)

    async def read(self, run: str, after: int, *, limit: int = 1000, max_bytes: int = 1 << 20) -> Page:
        page = await super().read(run, after, limit=limit, max_bytes=max_bytes)
        return replace(page, at=replace(page.at, epoch=self.epoch))


async def test_a_rebuilt_log_that_a_new_viewer_opens_first_ends_the_old_streams() -> None:
    store = _Rebuilt()
    hub = Hub(store)
    feed = await Feed(store, hub).create()
    await feed.begin("a")
    async with watching(hub) as (old, task):
        await old.until(b"stream_live")
        waiting = asyncio.create_task(hub.wait_final("r1", 5))
        await asyncio.sleep(0)
        store.epoch = 2
        async with watching(hub) as (new, _):
            await new.until(b"stream_live")
            assert await asyncio.wait_for(task, 1) == "rotated"
            assert b'"reason":"epoch"' in old.data
            await feed.done("a")
            await feed.finish("a")
            await new.until(b"stream_end")
        assert await asyncio.wait_for(waiting, 1)
    await hub.close()


async def test_statistics_show_each_stream_with_its_lag() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub, encoder=Ndjson()) as (sink, _):
            await sink.until(b"stream_live")
            row = next(hub.rows("local"))
            assert row | {"age_s": 0} == {
                "id": 1, "run": "r1", "format": "ndjson", "filter": {}, "age_s": 0, "lag": 0,
                "live": True, "observe": False,
            }  # fmt: skip


async def test_viewers_of_a_run_that_was_lost_are_sent_away_to_be_told_which() -> None:
    async with hub_and_feed() as (hub, feed):
        await feed.begin("a")
        async with watching(hub) as (sink, task):
            await sink.until(b"stream_live")
            hub.publish("r1", None, ())  # its store was emptied under it
            await task
        assert checked(sink).control[-1] == {"type": "stream_rotate", "reason": "reset"}

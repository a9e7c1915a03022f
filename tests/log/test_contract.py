"""What every backend promises, in one suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mux.errors import BadRequest, Conflict, Fenced, NotFound, StoreError, Unavailable
from mux.events import Record, token_records
from mux.log import Head, Idempotency, MemoryStore, RunQuery, SqliteStore, Store, open_store
from tests.support.redis_server import RedisServer
from tests.support.stores import records, row

pytestmark = pytest.mark.usefixtures("no_leaks")

BACKENDS = ["memory", "sqlite", "sqlite full", "redis", "redis cluster", "valkey"]
FAR = 1 << 52


def make_store(backend: str, folder: Path, redis: RedisServer | None = None) -> Store:
    if backend == "memory":
        return MemoryStore()
    if redis is not None:
        redis.empty()
        return open_store(redis.url)
    return SqliteStore(folder / "mux.db", durability="full" if "full" in backend else "normal")


def server_for(backend: str, request: pytest.FixtureRequest) -> RedisServer | None:
    """The server that a backend needs; started only where one does."""
    if backend == "redis cluster":
        nodes: list[RedisServer] = request.getfixturevalue("cluster_nodes")
        for node in nodes:
            node.empty()
        return nodes[0]
    names = {"redis": "redis_process", "valkey": "valkey_process"}
    return request.getfixturevalue(names[backend]) if backend in names else None


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    server = await asyncio.to_thread(server_for, request.param, request)
    made = await asyncio.to_thread(make_store, request.param, tmp_path, server)
    await made.open(url="http://127.0.0.1:1")
    yield made
    await made.close()


async def started(store: Store, run: str = "r1", events: int = 0, **fields: Any) -> int:
    """Make a run with some events and claim it; returns the fence."""
    await store.create(row(run, **fields))
    fence = await store.claim(run, "me")
    if events:
        await store.append(run, fence, records(run, 1, events))
    return fence


async def read_all(store: Store, run: str = "r1", after: int = 0) -> list[Record]:
    got: list[Record] = []
    while page := (await store.read(run, after, limit=7)).records:
        got += page
        after = page[-1].seq
    return got


# --- the log ------------------------------------------------------------------------------------------------


async def test_what_was_appended_is_read_back_byte_for_byte(store: Store) -> None:
    fence = await started(store)
    batch = records("r1", 1, 20)
    odd = [
        Record(21, "a.b~2", 7, "custom", 5, '{"x":"\u2028 é 😀 \\ud800 \\u0000"}'.encode()),
        Record(22, None, 1, "run_finished", 0, b"{}"),
        Record(23, "x" * 64, 2**40, "token", 2**50, b"\x00\xff not even text"),
    ]
    await store.append("r1", fence, batch)
    await store.append("r1", fence, odd)
    assert await read_all(store) == batch + odd
    assert await store.head("r1") == Head(1, 1, 23)


async def test_tokens_that_came_together_are_read_back_from_any_position_and_trimmed_at_any(
    store: Store,
) -> None:
    fence = await started(store)
    made: list[Record] = []
    for length in (700, 1, 40):  # more than a chunk holds, a lone one, and one of several in its batch
        at = len(made)
        said = token_records("r1", "a", at, at, 5, [f"é{n} " for n in range(length)], keep=True)
        batch = [*said, Record(at + length + 1, None, 1, "x", 6, b"{}")]
        await store.append("r1", fence, batch)
        made += batch
    made = [r._replace(body=None) for r in made]
    for after in (0, 1, 511, 512, 699, 700, 701, 702, 720):
        got = await store.read("r1", after, limit=3)
        assert [r._replace(body=None) for r in got.records] == made[after : after + 3]
    await store.trim("r1", 300)
    assert [r._replace(body=None) for r in await read_all(store, after=299)] == made[299:]


@pytest.mark.parametrize("after", [0, 1, 499, 511, 512, 513, 1499, 1500, FAR])
async def test_reading_begins_after_any_position(store: Store, after: int) -> None:
    await started(store, events=1500)
    page = await store.read("r1", after, limit=3)
    assert [r.seq for r in page.records] == list(range(1, 1501))[after:][:3]
    assert page.at == Head(1, 1, 1500)


async def test_a_page_stops_at_its_bounds_but_has_one_record(store: Store) -> None:
    fence = await started(store)
    big = [Record(seq, "a", seq, "token", 0, b"x" * 1000) for seq in range(1, 11)]
    await store.append("r1", fence, big)
    assert len((await store.read("r1", 0, max_bytes=3500)).records) == 3
    assert len((await store.read("r1", 0, max_bytes=10)).records) == 1
    assert len((await store.read("r1", 0, limit=4)).records) == 4
    assert (await store.read("r1", 10)).records == []


@pytest.mark.parametrize("seqs", [[1], [3], [5], [4, 6], [4, 4], [4, 5, 4]])
async def test_a_batch_with_a_gap_or_an_overlap_is_refused_whole(store: Store, seqs: list[int]) -> None:
    fence = await started(store, events=3)
    bad = [records("r1", 1, 1)[0]._replace(seq=seq) for seq in seqs]
    with pytest.raises(Conflict) as caught:
        await store.append("r1", fence, bad)
    assert caught.value.code == "seq_conflict"
    assert (await store.head("r1")).head == 3
    await store.append("r1", fence, records("r1", 4, 2))
    assert [r.seq for r in await read_all(store)] == [1, 2, 3, 4, 5]


async def test_an_empty_batch_changes_nothing(store: Store) -> None:
    fence = await started(store, events=2)
    await store.append("r1", fence, [])
    assert (await store.head("r1")).head == 2


async def test_appends_of_a_former_owner_are_refused(store: Store) -> None:
    old = await started(store, events=2)
    new = await store.claim("r1", "other")
    assert new > old
    with pytest.raises(Fenced):
        await store.append("r1", old, records("r1", 3, 1))
    with pytest.raises(Fenced):
        await store.append("r1", new + 1, records("r1", 3, 1))
    await store.append("r1", new, records("r1", 3, 1))
    assert [r.seq for r in await read_all(store)] == [1, 2, 3]


async def test_concurrent_appends_to_many_runs_keep_each_in_order(store: Store) -> None:
    async def drive(run: str) -> None:
        fence = await started(store, run)
        for n in range(20):
            await store.append(run, fence, records(run, 1 + 3 * n, 3))

    runs = [f"r{n}" for n in range(12)]
    await asyncio.gather(*map(drive, runs))
    for run in runs:
        assert await read_all(store, run) == records(run, 1, 60)


@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=6), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("backend", ["memory", "sqlite", "redis", "valkey"])
def test_any_sequence_of_batches_reads_and_trims_is_exact(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    backend: str,
    sizes: list[int],
    data: st.DataObject,
) -> None:
    async def check() -> None:
        store = make_store(backend, tmp_path_factory.mktemp("log"), server_for(backend, request))
        await store.open()
        try:
            fence = await started(store)
            kept: list[Record] = []
            first = 1
            for size in sizes:
                head = kept[-1].seq if kept else first - 1
                batch = records("r1", head + 1, size)
                await store.append("r1", fence, batch)
                kept += batch
                before = data.draw(st.integers(0, head + size + 3), label="trim before")
                at = await store.trim("r1", before)
                first = max(first, min(before, head + size + 1))
                assert at == Head(1, first, head + size)
                kept = [r for r in kept if r.seq >= first] or kept[-1:]
                after = data.draw(st.integers(0, head + size + 3), label="after")
                page = await store.read("r1", after, limit=5)
                expected = [r for r in kept if r.seq > after and r.seq >= first]
                assert page.records == expected[:5]
        finally:
            await store.close()

    asyncio.run(check())


async def test_trimming_is_idempotent_and_never_touches_later_records(store: Store) -> None:
    fence = await started(store, events=1000)
    for _ in range(2):
        assert await store.trim("r1", 700) == Head(1, 700, 1000)
    assert await store.trim("r1", 5) == Head(1, 700, 1000)
    assert [r.seq for r in (await store.read("r1", 10, limit=2)).records] == [700, 701]
    assert await store.trim("r1", FAR) == Head(1, 1001, 1000)
    assert (await store.read("r1", 0)).records == []
    assert await store.head("r1") == Head(1, 1001, 1000)
    await store.append("r1", fence, records("r1", 1001, 1))
    assert [r.seq for r in await read_all(store)] == [1001]


async def test_wait_returns_at_once_when_there_is_something(store: Store) -> None:
    await started(store, events=3)
    assert (await store.wait("r1", 2, 60)).head == 3


async def test_wait_returns_as_soon_as_something_is_appended(store: Store) -> None:
    fence = await started(store, events=3)
    waiting = [asyncio.create_task(store.wait("r1", after, 60)) for after in (3, 3, 4)]
    await asyncio.sleep(0)
    await store.append("r1", fence, records("r1", 4, 1))
    assert [at.head for at in await asyncio.gather(*waiting[:2])] == [4, 4]
    assert not waiting[2].done()
    await store.append("r1", fence, records("r1", 5, 1))
    assert (await waiting[2]).head == 5


async def test_wait_gives_up_after_its_time(store: Store) -> None:
    await started(store, events=3)
    assert (await store.wait("r1", 3, 0.01)).head == 3
    assert (await store.wait("r1", 3, 0)).head == 3


async def test_wait_never_misses_an_append_under_any_schedule(store: Store) -> None:
    fence = await started(store)

    async def follow() -> list[int]:
        seen: list[int] = []
        while len(seen) < 60:
            at = await store.wait("r1", len(seen), 60)
            seen += [r.seq for r in (await store.read("r1", len(seen))).records]
            assert at.head <= 60
        return seen

    followers = [asyncio.create_task(follow()) for _ in range(5)]
    for seq in range(1, 61):
        await store.append("r1", fence, records("r1", seq, 1))
        if seq % 7 == 0:
            await asyncio.sleep(0)
    assert await asyncio.gather(*followers) == [list(range(1, 61))] * 5


async def test_a_cancelled_wait_leaves_nothing_behind(store: Store) -> None:
    fence = await started(store, events=1)
    waiting = asyncio.create_task(store.wait("r1", 1, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.append("r1", fence, records("r1", 2, 1))
    assert (await store.wait("r1", 1, 60)).head == 2


async def test_a_cancelled_append_is_whole_or_not_there_and_wakes_readers(store: Store) -> None:
    fence = await started(store, events=1)
    appending = asyncio.create_task(store.append("r1", fence, records("r1", 2, 5)))
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.wait([appending])
    await store.update("r1", title="a write after it, so that it is over")
    at = await store.head("r1")
    assert at.head in (1, 6)
    assert len(await read_all(store)) == at.head


@pytest.mark.parametrize(
    "call", ["append", "read", "head", "wait", "trim", "get", "update", "delete", "claim"]
)
async def test_an_unknown_run_is_not_found(store: Store, call: str) -> None:
    calls: dict[str, Any] = {
        "append": lambda: store.append("nope", 1, records("nope", 1, 1)),
        "read": lambda: store.read("nope", 0),
        "head": lambda: store.head("nope"),
        "wait": lambda: store.wait("nope", 0, 60),
        "trim": lambda: store.trim("nope", 1),
        "get": lambda: store.get("nope"),
        "update": lambda: store.update("nope", title="x"),
        "delete": lambda: store.delete("nope"),
        "claim": lambda: store.claim("nope", "me"),
    }
    with pytest.raises(NotFound) as caught:
        await calls[call]()
    assert caught.value.code == "run_not_found"


# --- runs ---------------------------------------------------------------------------------------------------


async def test_a_row_is_kept_as_it_was_given(store: Store) -> None:
    given = row(
        "r1",
        title="A “title”",
        starred=True,
        metadata={"n": 1, "deep": {"a": [None, True, 1.5]}, "note": "é😀"},
        message="hello\nworld\u0000",
        agents=("a", "b", "a"),
        finished=5,
        summary={"usage": {"input_tokens": 3}},
    )
    assert await store.create(given) == given
    assert await store.get("r1") == given


async def test_a_lone_surrogate_in_any_text_is_no_reason_to_fail(store: Store) -> None:
    await store.create(row("r1", message="bad \ud800 text", title="\udfff", request={"message": "\ud800"}))
    await store.index_text("r1", "a", "more \ud800 text")
    assert [r.run for r in (await store.list(RunQuery(q="text"))).runs] == ["r1"]


async def test_a_run_id_is_used_once(store: Store) -> None:
    await store.create(row("r1"))
    with pytest.raises(Conflict) as caught:
        await store.create(row("r1"))
    assert caught.value.code == "run_exists"


async def test_update_changes_only_what_is_given_and_says_when(store: Store) -> None:
    before = await store.create(row("r1", title="old", updated=1, metadata={"a": 1}))
    after = await store.update("r1", title="new", starred=True, metadata={"b": 2}, agents=("x",))
    assert after.updated > 1
    assert after == replace(
        before, title="new", starred=True, metadata={"b": 2}, agents=("x",), updated=after.updated
    )
    assert await store.get("r1") == after


async def test_an_unknown_field_of_a_row_is_a_mistake_of_the_caller(store: Store) -> None:
    await store.create(row("r1"))
    with pytest.raises(TypeError, match="stared"):
        await store.update("r1", stared=True)


async def test_the_same_idempotency_key_gives_the_first_run(store: Store) -> None:
    key = Idempotency("local", "k", "hash", expires=FAR)
    first = await store.create(row("r1"), key)
    assert await store.create(row("r2"), key) == first
    with pytest.raises(NotFound):
        await store.get("r2")
    other_owner = replace(key, owner="somebody else")
    assert (await store.create(row("r3"), other_owner)).run == "r3"


async def test_an_idempotency_key_with_another_body_is_refused(store: Store) -> None:
    await store.create(row("r1"), Idempotency("local", "k", "hash", expires=FAR))
    with pytest.raises(Conflict) as caught:
        await store.create(row("r2"), Idempotency("local", "k", "another", expires=FAR))
    assert caught.value.code == "idempotency_conflict"
    with pytest.raises(NotFound):
        await store.get("r2")


async def test_an_expired_key_or_one_of_a_deleted_run_is_free_again(store: Store) -> None:
    await store.create(row("r1"), Idempotency("local", "k", "hash", expires=1))
    assert (await store.create(row("r2"), Idempotency("local", "k", "other", expires=FAR))).run == "r2"
    await store.delete("r2")
    assert (await store.create(row("r3"), Idempotency("local", "k", "third", expires=FAR))).run == "r3"


async def test_concurrent_starts_with_one_key_make_one_run(store: Store) -> None:
    key = Idempotency("local", "k", "hash", expires=FAR)
    made = await asyncio.gather(*(store.create(row(f"r{n}"), key) for n in range(20)))
    assert len({r.run for r in made}) == 1
    assert len((await store.list(RunQuery())).runs) == 1


async def test_unfinished_runs_are_listed_oldest_first(store: Store) -> None:
    for n, status in enumerate(["completed", "running", "queued", "failed", "waiting", "cancelled"]):
        await store.create(row(f"r{n}", status=status, created=100 - n))
    assert [r.run for r in await store.unfinished()] == ["r4", "r2", "r1"]
    await store.update("r2", status="partial", finished=1)
    assert [r.run for r in await store.unfinished()] == ["r4", "r1"]


# --- lists --------------------------------------------------------------------------------------------------


async def list_all(store: Store, limit: int = 3, **filters: Any) -> list[str]:
    got: list[str] = []
    after: str | None = None
    while True:
        page = await store.list(RunQuery(limit=limit, after=after, **filters))
        assert len(page.runs) <= limit
        got += [r.run for r in page.runs]
        after = page.next
        if after is None:
            return got


async def test_pages_are_newest_first_and_complete_also_among_equal_times(store: Store) -> None:
    for n in range(10):
        await store.create(row(f"r{n}", created=1000 + n // 4))
    assert await list_all(store) == [f"r{n}" for n in reversed(range(10))]
    assert await list_all(store, limit=10) == [f"r{n}" for n in reversed(range(10))]


async def test_pages_are_stable_while_runs_are_added(store: Store) -> None:
    for n in range(6):
        await store.create(row(f"r{n}", created=n))
    first = await store.list(RunQuery(limit=3))
    await store.create(row("new", created=99))
    second = await store.list(RunQuery(limit=3, after=first.next))
    assert [r.run for r in (*first.runs, *second.runs)] == ["r5", "r4", "r3", "r2", "r1", "r0"]


@pytest.mark.parametrize("token", ["", "x", "!!!", "MTIz", "é", "a" * 5000, "LTEuMg=="])
async def test_a_position_that_is_not_ours_is_refused(store: Store, token: str) -> None:
    if token == "LTEuMg==":  # well-formed: before everything
        assert (await store.list(RunQuery(after=token))).runs == []
        return
    with pytest.raises(BadRequest) as caught:
        await store.list(RunQuery(after=token))
    assert caught.value.code == "page_invalid"


async def test_every_filter_alone_and_all_together(store: Store) -> None:
    await store.create(row("r1", owner="a", status="completed", thread="x", agents=("gpt", "critic")))
    await store.create(row("r2", owner="a", status="failed", thread="y", agents=("gpt.2",), starred=True))
    await store.create(row("r3", owner="b", status="running", thread="x", agents=('q"uote', "a,b")))
    assert await list_all(store, owner="a") == ["r2", "r1"]
    assert await list_all(store, status=("failed", "running")) == ["r3", "r2"]
    assert await list_all(store, thread="x") == ["r3", "r1"]
    assert await list_all(store, agent="gpt") == ["r1"]
    assert await list_all(store, agent='q"uote') == ["r3"]
    assert await list_all(store, agent="a") == []
    assert await list_all(store, starred=True) == ["r2"]
    assert await list_all(store, starred=False) == ["r3", "r1"]
    assert await list_all(store, owner="a", thread="x", status=("completed",), agent="critic") == ["r1"]


async def test_experiments_are_kept_as_runs_are_and_listed_apart(store: Store) -> None:
    await store.create(row("r1"))
    await store.create(row("x1", kind="experiment"))
    fence = await store.claim("x1", "me")
    await store.append("x1", fence, records("x1", 1, 3))
    assert (await store.get("x1")).kind == "experiment"
    assert [r.run for r in (await store.list(RunQuery())).runs] == ["r1"]
    assert [r.run for r in (await store.list(RunQuery(kind="experiment"))).runs] == ["x1"]
    assert [r.run for r in await store.unfinished()] == ["r1"]
    assert len(await read_all(store, "x1")) == 3


async def test_metadata_filters_compare_text_and_json(store: Store) -> None:
    values: list[Any] = ["5", 5, True, None, "true", {"a": [1]}, "é", 1.5]
    for n, value in enumerate(values):
        await store.create(row(f"r{n}", metadata={"k": value, 'odd "key.$[0]': n}))
    await store.create(row("without"))
    assert await list_all(store, metadata={"k": "5"}) == ["r1", "r0"]
    assert await list_all(store, metadata={"k": "true"}) == ["r4", "r2"]
    assert await list_all(store, metadata={"k": "null"}) == ["r3"]
    assert await list_all(store, metadata={"k": '{"a":[1]}'}) == ["r5"]
    assert await list_all(store, metadata={"k": "é"}) == ["r6"]
    assert await list_all(store, metadata={"k": "1.5", 'odd "key.$[0]': "7"}) == ["r7"]
    assert await list_all(store, metadata={"nope": "null"}) == []


# --- search -------------------------------------------------------------------------------------------------


async def test_search_finds_messages_titles_and_texts_with_excerpts(store: Store) -> None:
    await store.create(row("r1", message="Compare the tides of Brest"))
    await store.create(row("r2", title="Tides", message="something else"))
    await store.create(row("r3", message="nothing"))
    await store.index_text("r3", "gpt", "long " * 50 + "about the TIDES of the sea" + " more" * 50)
    await store.index_text("r3", "other", "not a word of it")
    page = await store.list(RunQuery(q="tides"))
    assert [r.run for r in page.runs] == ["r3", "r2", "r1"]
    assert set(page.hits) == {"r1", "r2", "r3"}
    assert set(page.hits["r3"]) == {"gpt"}
    assert "TIDES" in page.hits["r3"]["gpt"]
    assert len(page.hits["r3"]["gpt"]) < 300
    assert "" in page.hits["r1"]


async def test_search_wants_all_words_phrases_whole_and_the_last_as_a_beginning(store: Store) -> None:
    await store.create(row("r1", message="the quick brown fox"))
    await store.create(row("r2", message="the brown and quick dog"))
    assert await list_all(store, q="quick brown") == ["r2", "r1"]
    assert await list_all(store, q='"quick brown"') == ["r1"]
    assert await list_all(store, q="brown qui") == ["r2", "r1"]
    assert await list_all(store, q="qui brown") == []
    assert await list_all(store, q="fox dog") == []


@pytest.mark.parametrize(
    "q",
    ["", " ", "---", '"', '""', "*", "AND", "a OR b", "NEAR(a b)", "text:x", "^a", "(", "a* b*", "'; DROP",
     "{a b}:c", "\x00", "a\x00b", "-a", "a + b", '"a" "', "é😀", "\ud800", "a " * 500],
)  # fmt: skip
async def test_no_query_is_a_syntax_error(store: Store, q: str) -> None:
    await store.create(row("r1", message="plain words"))
    assert await list_all(store, q=q) == []


async def test_indexing_again_replaces_and_a_new_title_is_found(store: Store) -> None:
    await store.create(row("r1", message="first"))
    await store.index_text("r1", "gpt", "draft")
    await store.index_text("r1", "gpt", "final")
    assert await list_all(store, q="draft") == []
    assert await list_all(store, q="final") == ["r1"]
    await store.update("r1", title="renamed")
    assert await list_all(store, q="renamed") == ["r1"]
    assert await list_all(store, q="first") == ["r1"]


async def test_search_pages_and_combines_with_filters(store: Store) -> None:
    for n in range(9):
        await store.create(row(f"r{n}", created=n, message="common word", owner="ab"[n % 2]))
    assert await list_all(store, limit=2, q="common", owner="a") == ["r8", "r6", "r4", "r2", "r0"]


# --- conversations, deleting, retention ---------------------------------------------------------------------


async def test_the_newest_conversation_of_a_channel_is_found(store: Store) -> None:
    for n in range(3):
        await store.create(row(f"r{n}", created=n))
        await store.put_conversation("t1", "gpt", f"r{n}", b"\x00%d" % n)
    await store.put_conversation("t1", "gpt", "r1", b"again")
    assert await store.conversation("t1", "gpt") == b"\x002"
    assert await store.conversation("t1", "gpt", before="r2") == b"again"
    assert await store.conversation("t1", "gpt", before="r0") is None
    assert await store.conversation("t1", "other") is None
    assert await store.conversation("t2", "gpt") is None


async def test_deleting_forgets_log_texts_and_conversations(store: Store) -> None:
    fence = await started(store, events=10, message="needle")
    await store.put_conversation("t1", "gpt", "r1", b"old")
    await store.index_text("r1", "gpt", "needle")
    await started(store, "r2", events=5)
    await store.delete("r1")
    with pytest.raises(NotFound):
        await store.read("r1", 0)
    with pytest.raises(NotFound):
        await store.append("r1", fence, records("r1", 11, 1))
    assert await store.conversation("t1", "gpt") is None
    assert await list_all(store, q="needle") == []
    assert await list_all(store) == ["r2"]
    assert len(await read_all(store, "r2")) == 5
    await started(store, "r1", events=2)  # a new run of the same name has nothing of the old one
    assert [r.seq for r in await read_all(store)] == [1, 2]


async def test_deleting_ends_a_wait(store: Store) -> None:
    await started(store, events=1)
    waiting = asyncio.create_task(store.wait("r1", 1, 60))
    await asyncio.sleep(0)
    await store.delete("r1")
    with pytest.raises(NotFound):
        await waiting


async def test_retention_by_age_count_and_size_spares_starred_and_unfinished(store: Store) -> None:
    big = "x" * 10_000
    for n in range(8):
        run = f"r{n}"
        fence = await started(store, run, created=n)
        await store.append(run, fence, records(run, 1, 3, big))
        if n not in (1, 2):
            await store.update(run, status="completed", finished=FAR if n > 3 else 1)
    await store.update("r0", starred=True)
    nothing: dict[str, Any] = {"older_than_ms": None, "keep_runs": None, "max_bytes": None}
    assert await store.expire(**nothing) == []
    assert await store.expire(**nothing | {"older_than_ms": 1000}) == ["r3"]
    assert await store.expire(**nothing | {"keep_runs": 3}) == ["r4"]
    kept = 3 if isinstance(store, SqliteStore) else 5  # sqlite counts a run's bytes when it ends
    assert await store.expire(**nothing | {"max_bytes": kept * 30_500 + 20_000}) == ["r5"]
    assert await list_all(store) == ["r7", "r6", "r2", "r1", "r0"]
    assert len(await read_all(store, "r6")) == 3


@pytest.mark.parametrize("backend", ["sqlite", "redis"])
async def test_a_closed_store_refuses_instead_of_hanging(
    tmp_path: Path, request: pytest.FixtureRequest, backend: str
) -> None:
    server = await asyncio.to_thread(server_for, backend, request)
    store = await asyncio.to_thread(make_store, backend, tmp_path, server)
    await store.open()
    fence = await started(store, events=1)
    waiting = asyncio.create_task(store.wait("r1", 1, 60))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    for call in (waiting, store.append("r1", fence, records("r1", 2, 1)), store.get("r1")):
        with pytest.raises(StoreError):
            await call


# --- several runs at once -----------------------------------------------------------------------------------


async def test_batches_of_several_runs_are_appended_together_and_one_refused_touches_no_other(
    store: Store,
) -> None:
    fences = [await started(store, run, events=2) for run in ("r1", "r2", "r3")]
    refused = await store.append_many([
        ("r1", fences[0], records("r1", 3, 2)),
        ("r2", fences[1] - 1, records("r2", 3, 2)),
        ("gone", 1, records("gone", 1, 1)),
        ("r3", fences[2], records("r3", 3, 1)),
    ])  # fmt: skip
    assert [type(e) for e in refused] == [type(None), Fenced, NotFound, type(None)]
    assert [(await store.head(run)).head for run in ("r1", "r2", "r3")] == [4, 2, 3]
    assert [r.seq for r in await read_all(store, "r1")] == [1, 2, 3, 4]


# --- the queue ----------------------------------------------------------------------------------------------


async def test_a_run_is_taken_once_and_in_turn_between_owners(store: Store) -> None:
    for number in range(5):
        await store.queue.offer(f"a{number}", "anna")
    await store.queue.offer("b0", "ben")
    await store.queue.offer("b0", "ben")
    assert [await store.queue.position(run) for run in ("a0", "b0", "a1", "a4", "zz")] == [1, 2, 3, 6, None]
    assert await store.queue.waiting() == 6
    assert list(await store.queue.take("w1", 3)) == ["a0", "b0", "a1"]
    assert list(await store.queue.take("w2", 2)) == ["a2", "a3"]
    assert await store.queue.position("a0") is None
    assert await store.queue.waiting() == 1


async def test_a_run_given_back_comes_first_and_one_that_is_finished_never_again(store: Store) -> None:
    await store.queue.offer("a0", "anna")
    await store.queue.offer("a1", "anna")
    assert list(await store.queue.take("w1", 1)) == ["a0"]
    await store.queue.give_back("a0", "w1")
    assert list(await store.queue.take("w2", 9)) == ["a0", "a1"]
    await store.queue.finish("a0", "w2")
    await store.queue.finish("a0", "w2")
    assert list(await store.queue.take("w1", 9)) == []
    await store.queue.offer("a0", "anna")  # a new life, such as a retry of a take-over
    await store.queue.finish("a0", "w1")  # it ended before anybody took it
    assert list(await store.queue.take("w1", 9)) == []


async def test_a_run_that_waits_can_be_withdrawn_by_one_and_given_back(store: Store) -> None:
    for run in ("a0", "a1"):
        await store.queue.offer(run, "anna")
    assert await store.queue.withdraw("a1", "w1")
    assert list(await store.queue.take("w1", 9)) == ["a0"]
    assert not await store.queue.withdraw("unknown", "w1")
    await store.queue.give_back("a1", "w1")
    assert list(await store.queue.take("w1", 9)) == ["a1"]


async def test_who_waits_for_work_is_woken_by_an_offer(store: Store) -> None:
    await store.queue.take("w1", 1)
    offered = asyncio.Event()
    store.queue.on_offered(offered.set)
    await store.queue.offer("a0", "anna")
    await asyncio.wait_for(offered.wait(), 10)
    assert list(await store.queue.take("w1", 1)) == ["a0"]


# --- commands -----------------------------------------------------------------------------------------------


async def test_a_command_is_delivered_to_the_worker_and_its_answer_to_the_sender(store: Store) -> None:
    await started(store)
    got: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    await store.commands.receive("r1", lambda command, payload: got.put_nowait((command, payload)))
    sent = asyncio.create_task(store.commands.send("r1", "c1", b"stop", timeout_s=10))
    assert await asyncio.wait_for(got.get(), 10) == ("c1", b"stop")
    await store.commands.answer("r1", "c1", b"stopped")
    assert await asyncio.wait_for(sent, 10) == b"stopped"


async def test_a_command_that_nobody_answers_says_so_and_waits_for_the_next_worker(store: Store) -> None:
    await started(store)
    with pytest.raises(Unavailable, match="r1") as caught:
        await store.commands.send("r1", "c1", b"stop", timeout_s=0.05)
    assert caught.value.code == "worker_unreachable"
    got: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    await store.commands.receive("r1", lambda command, payload: got.put_nowait((command, payload)))
    assert await asyncio.wait_for(got.get(), 10) == ("c1", b"stop")
    await store.commands.stop_receiving("r1")  # this worker ends without an answer
    await store.commands.receive("r1", lambda command, payload: got.put_nowait((command, payload)))
    assert await asyncio.wait_for(got.get(), 10) == ("c1", b"stop")
    await store.commands.answer("r1", "c1", b"stopped")
    await store.commands.stop_receiving("r1")
    await store.commands.receive("r1", lambda command, payload: got.put_nowait((command, payload)))
    assert got.empty()


# --- keys ---------------------------------------------------------------------------------------------------


async def test_keys_are_kept_by_kind_and_name_and_replaced(store: Store) -> None:
    await store.keys.put("key", "a", b"1")
    await store.keys.put("key", "b", b"2")
    await store.keys.put("session", "a", b"3", expires=FAR)
    await store.keys.put("key", "a", b"4")
    assert await store.keys.get("key", "a") == b"4"
    assert sorted(await store.keys.all("key")) == [b"2", b"4"]
    assert await store.keys.all("session") == [b"3"]
    assert await store.keys.get("session", "b") is None


async def test_a_key_is_taken_by_one_caller_only(store: Store) -> None:
    await store.keys.put("ticket", "t", b"once", expires=FAR)
    got = await asyncio.gather(*(store.keys.pop("ticket", "t") for _ in range(5)))
    assert sorted(got, key=lambda one: one is None) == [b"once", None, None, None, None]
    assert await store.keys.get("ticket", "t") is None


async def test_what_has_expired_is_forgotten_when_more_comes(store: Store) -> None:
    await store.keys.put("ticket", "old name", b"1", expires=1)
    await store.keys.put("ticket", "new", b"2", expires=FAR)
    await store.keys.put("ticket", "newer", b"3", expires=FAR)
    assert await store.keys.get("ticket", "old name") is None
    assert await store.keys.get("ticket", "new") == b"2"

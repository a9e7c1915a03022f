"""The native faces: framing that no input can forge, and compaction that loses nothing."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mux.events import Event, Record, StepReset, StepStarted, Token, ToolArgs, ToolProgress, Unknown
from mux.faces.compact import batch, merged, windows
from mux.faces.ndjson import Ndjson, NdjsonCompact
from mux.faces.sse import Sse, SseCompact
from mux.faces.text import Text
from tests.support.checker import parse_ndjson, parse_sse, texts

NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from('\r\n\0\u2028\u2029\x85"\\{}:,\ud7ff😀 '), st.characters(exclude_categories=["Cs"])
    ),
    max_size=20,
)


def _bodies() -> st.SearchStrategy[Any]:
    call = st.sampled_from(["call_1", "call_2"])
    return st.one_of(
        st.builds(Token, content=NASTY),
        st.builds(ToolArgs, call_id=call, content=NASTY),
        st.builds(ToolProgress, call_id=call, elapsed_ms=st.integers(0, 99), content=st.none() | NASTY),
        st.sampled_from([StepStarted(step=1), StepReset(step=1, from_cseq=0)]),
    )


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """A run's records on two channels, deltas mostly; a step is reset from where it (or an earlier) began."""
    drawn = draw(st.lists(st.tuples(st.sampled_from("ab"), _bodies(), st.integers(0, 400)), max_size=40))
    counts = {"a": 0, "b": 0}
    begun: dict[str, list[int]] = {"a": [], "b": []}
    ts = 0
    out: list[Record] = []
    for channel, body, pause in drawn:
        if isinstance(body, StepReset):
            if not begun[channel]:
                continue
            start = draw(st.sampled_from(begun[channel]))
            begun[channel] = [c for c in begun[channel] if c < start]
        counts[channel] += 1
        if isinstance(body, StepStarted):
            begun[channel].append(counts[channel])
        ts += pause
        made = StepReset(step=1, from_cseq=start) if isinstance(body, StepReset) else body
        out.append(Event("r1", len(out) + 1, channel, counts[channel], ts, made).record())
    return out


@given(logs())
def test_every_event_is_one_block_whatever_its_text(log: list[Record]) -> None:
    blocks, rest = parse_sse(Sse().events(log, b"r1.1."))
    assert rest == b""
    assert [b.data for b in blocks] == [json.loads(r.data) for r in log]
    assert [b.id for b in blocks] == [f"r1.1.{r.seq}" for r in log]
    lines, rest = parse_ndjson(Ndjson().events(log, b"r1.1."))
    assert rest == b""
    assert [b.data for b in lines] == [json.loads(r.data) for r in log]


@pytest.mark.parametrize("space", ["\n", "\r", "\r\n", "\n\n", "\0"])
def test_a_foreign_encoding_cannot_forge_a_frame(space: str) -> None:
    data = (
        '{"run":"r1",' + space + '"seq":1,"channel":"a","cseq":1,"type":"token","ts":1,"content":"x"}'
    ).encode()
    record = Record(1, "a", 1, "token", 1, data)
    for face in (Sse(), SseCompact()):
        blocks, rest = parse_sse(face.events([record], b"r1.1."))
        assert rest == b""
        assert len(blocks) == 1
    assert len(parse_ndjson(Ndjson().events([record], b"r1.1."))[0]) == 1


@given(logs(), st.integers(1, 1000))
def test_windows_cover_the_log_and_keep_to_their_time(log: list[Record], span: int) -> None:
    cut = list(windows(log, span))
    assert [r for w in cut for r in w] == log
    assert all(w and w[-1].ts - w[0].ts <= span for w in cut)


@given(logs(), st.integers(1, 1000))
def test_compacted_text_is_the_same_also_when_cut_after_any_window(log: list[Record], span: int) -> None:
    face = SseCompact(span)
    blocks, rest = parse_sse(face.events(log, b"r1.1."))
    assert rest == b""
    whole = [json.loads(r.data) for r in log]
    for at in range(len(blocks) + 1):
        events = [e for b in blocks[:at] for e in b.data["events"]]
        position = int(blocks[at - 1].id.rsplit(".")[-1]) if at else 0  # type: ignore[union-attr]
        rest_of_log = [r for r in log if r.seq > position]
        later = parse_sse(face.events(rest_of_log, b"r1.1."))[0]
        events += [e for b in later for e in b.data["events"]]
        assert texts(events) == texts(whole)
    if log:
        assert blocks[-1].id == f"r1.1.{log[-1].seq}"


@given(logs())
def test_a_merged_event_names_its_first_and_last_member(log: list[Record]) -> None:
    if any(r.type == "step_reset" for r in log):
        return
    events = [json.loads(e) for e in merged(log)]
    assert [e["seq"] for e in events] == sorted(e["seq"] for e in events)
    covered = sorted(
        (e["channel"], n) for e in events for n in range(e.get("from_cseq", e["cseq"]), e["cseq"] + 1)
    )
    assert covered == sorted((str(r.channel), r.cseq) for r in log)


def _token(seq: int, content: str, channel: str = "a", cseq: int | None = None) -> Record:
    return Event("r1", seq, channel, cseq or seq, seq, Token(content=content)).record()


def test_deltas_merge_over_the_other_channels_events_in_between() -> None:
    log = [
        _token(1, "one ", "a", 1),
        _token(2, "x", "b", 1),
        _token(3, "two", "a", 2),
        _token(4, "y", "b", 2),
    ]
    assert [json.loads(e) for e in merged(log)] == [
        {"run": "r1", "seq": 3, "channel": "a", "cseq": 2, "type": "token", "ts": 3, "content": "one two",
         "from_cseq": 1},
        {"run": "r1", "seq": 4, "channel": "b", "cseq": 2, "type": "token", "ts": 4, "content": "xy",
         "from_cseq": 1},
    ]  # fmt: skip


def test_a_reset_that_lies_in_one_window_is_folded_away_with_what_it_discards() -> None:
    reset = Event("r1", 3, "a", 3, 3, StepReset(step=1, from_cseq=2)).record()
    log = [_token(1, "keep "), _token(2, "wrong"), reset, _token(4, "right")]
    assert [json.loads(e)["content"] for e in merged(log)] == ["keep ", "right"]
    assert [json.loads(e)["type"] for e in merged(log[2:])] == ["step_reset", "token"]


def test_a_foreign_event_with_members_after_its_content_is_merged_as_an_object() -> None:
    line = '{"run":"r1","seq":%d,"channel":"a","cseq":%d,"type":"token","ts":1,"content":"x","k":1}'
    foreign = [Record(n, "a", n, "token", 1, (line % (n, n)).encode()) for n in (1, 2)]
    assert json.loads(merged(foreign)[0])["content"] == "xx"


def test_a_window_as_a_line_carries_its_position() -> None:
    line = NdjsonCompact().events([_token(1, "x"), _token(2, "y")], b"r2.1.5,r1.1.", b",r3.1.7")
    assert json.loads(line)["id"] == "r2.1.5,r1.1.2,r3.1.7"
    assert json.loads(batch([_token(1, "x")])).keys() == {"type", "events"}


def test_unknown_types_pass() -> None:
    body = Unknown.model_validate({"type": "future", "answer": 42})
    record = Event("r1", 1, "a", 1, 1, body).record()
    assert json.loads(merged([record])[0])["answer"] == 42


def test_bare_text_is_what_the_channel_says() -> None:
    log = [_token(1, "héllo \n"), _token(2, "world")]
    assert Text().events(log, b"").decode() == "héllo \nworld"
    assert Text().heartbeat(b"x") == Text().control({"type": "stream_live"}) == b""


def test_control_frames_have_no_id_and_heartbeats_have_one() -> None:
    for face in (Sse(), SseCompact()):
        (block,), _ = parse_sse(face.control({"type": "stream_rotate", "reason": "a\r\nb"}))
        assert (block.id, block.data) == (None, {"type": "stream_rotate", "reason": "a\r\nb"})
        (beat,), _ = parse_sse(face.heartbeat(b"r1.1.7"))
        assert beat.id == "r1.1.7"
        assert face.opening() == b"retry: 1000\n"
    for line in (Ndjson(), NdjsonCompact()):
        assert json.loads(line.heartbeat(b"r1.1.7")) == {"type": "heartbeat", "id": "r1.1.7"}


def test_a_reset_that_another_one_would_hide_is_sent() -> None:
    first = Event("r1", 2, "a", 2, 2, StepReset(step=1, from_cseq=1)).record()
    second = Event("r1", 3, "a", 3, 3, StepReset(step=1, from_cseq=2)).record()
    log = [_token(1, "wrong"), first, second]
    assert texts([json.loads(e) for e in merged(log)]) == {}

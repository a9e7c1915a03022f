"""Compaction: windows of events with runs of deltas merged (DESIGN section 4, Compaction). Pure.

Merging works on the encoded bytes: the ``content`` of our own events is their last member, so two of them are
joined by joining the escaped text, without decoding (100,000 events: 0.1 s instead of 0.6 s). Whatever does
not have that exact shape (imported from elsewhere) is decoded and joined as objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from mux.events import Record
from mux.faces.base import dump, one_line

__all__ = ["batch", "merged", "windows"]

_MERGED = frozenset({"token", "reasoning", "tool_args", "tool_progress"})
_DELTAS = frozenset({"token", "reasoning"})
_CONTENT = b',"content":"'
_COLON = 58  # the digits come right before it in ASCII, letters and brackets after
MAX_WINDOW = 2000  # events; with 1,000 ms of recorded time this bounds a block's size


def windows(records: Sequence[Record], compact_ms: int) -> Iterator[Sequence[Record]]:
    """Cut events into windows that span at most ``compact_ms`` of recorded time."""
    start = 0
    for index, record in enumerate(records):
        if index > start and (record.ts - records[start].ts > compact_ms or index - start >= MAX_WINDOW):
            yield records[start:index]
            start = index
    if start < len(records):
        yield records[start:]


def batch(window: Sequence[Record], position: bytes | None = None) -> bytes:
    """One window as JSON; ``position`` (JSON) is put in as ``id`` where the framing has no place for it."""
    at = b'"id":%b,' % position if position is not None else b""
    return b'{"type":"batch",%b"events":[%b]}' % (at, b",".join(merged(window)))


def merged(window: Sequence[Record]) -> list[bytes]:
    """The window's events, deltas of one channel merged where they follow each other on it.

    A merged event has ``seq``, ``cseq`` and ``ts`` of its last member and stands at its place. A `step_reset`
    whose discarded span lies wholly in the window goes away together with it: the reader never saw it.
    """
    kept = _without_discarded(window)
    runs: list[list[Record]] = []
    growing: dict[str, tuple[list[Record], str, bool]] = {}  # channel → its last run, type, whether plain
    for record in kept:
        channel, kind, plain = record.channel or "", record.type, _plain(record)
        last = growing.get(channel)
        if last is not None and last[1] == kind and last[0][-1].cseq + 1 == record.cseq:
            run = last[0]
            if (plain and last[2]) or (kind in _MERGED and _same_place(run[-1], record)):
                run.append(record)
                continue
        run = [record]
        runs.append(run)
        growing[channel] = (run, kind, plain)
    if len(runs) < len(kept):
        runs.sort(key=lambda members: members[-1].seq)
    return [one_line(run[0]) if len(run) == 1 else _join(run) for run in runs]


def _plain(record: Record) -> bool:
    """Whether it is a delta that needs no look into it: ``content`` comes right after ``ts``, a number."""
    return record.type in _DELTAS and (at := record.data.find(_CONTENT)) > 0 and record.data[at - 1] < _COLON


def _without_discarded(window: Sequence[Record]) -> Sequence[Record]:
    """The window without what its own resets discard; never empty, so that it keeps its position."""
    resets: dict[str | None, list[tuple[int, int]]] = {}  # channel → (from_cseq, own cseq) of its resets
    first: dict[str | None, int] = {}
    for record in window:
        first.setdefault(record.channel, record.cseq)
        if record.type == "step_reset":
            start = int(json.loads(record.data).get("from_cseq", 0))
            resets.setdefault(record.channel, []).append((start, record.cseq))
    gone: set[tuple[str | None, int]] = set()
    for channel, spans in resets.items():
        # A reset inside another's span that reaches back further must be seen: then all of them are sent.
        if any(a < b <= at < end for a, at in spans for b, end in spans):
            continue
        for start, end in spans:
            if first[channel] <= start:
                gone.update((channel, cseq) for cseq in range(start, end + 1))
    if not gone:
        return window
    return [r for r in window if (r.channel, r.cseq) not in gone] or window[-1:]


def _same_place(last: Record, record: Record) -> bool:
    """Whether two events of one type belong to the same call and the same nested agent."""
    if record.type == "tool_progress" or b'"path":' in record.data or b'"path":' in last.data:
        one, other = json.loads(last.data), json.loads(record.data)
        return bool(one.get("call_id") == other.get("call_id") and one.get("path") == other.get("path"))
    return record.type != "tool_args" or _call_id(last.data) == _call_id(record.data)


def _call_id(data: bytes) -> bytes:
    start = data.find(b',"call_id":"')
    return data[start : data.find(_CONTENT, start)]


def _join(run: Sequence[Record]) -> bytes:
    last = run[-1]
    if last.type == "tool_progress":
        return _join_objects(run)
    texts: list[bytes] = []
    for record in run:
        data = record.data
        at = data.find(_CONTENT)
        if at < 0 or data[-2:] != b'"}':
            return _join_objects(run)
        texts.append(data[at + len(_CONTENT) : -2])
    joined = b"".join(texts)
    # A quote or backslash may mean that `content` was not the last member somewhere: look at each.
    if (b'"' in joined or b"\\" in joined) and any(map(_goes_on, texts)):
        return _join_objects(run)
    head = last.data[: last.data.find(_CONTENT)]
    return b'%b,"content":"%b","from_cseq":%d}' % (head, joined, run[0].cseq)


def _goes_on(text: bytes) -> bool:
    """Whether the escaped text holds an unescaped quote: then it is more than one member's value."""
    rest = text.replace(b"\\\\", b"")
    return rest.endswith(b"\\") or b'"' in rest.replace(b'\\"', b"")


def _join_objects(run: Sequence[Record]) -> bytes:
    objects: list[dict[str, Any]] = [json.loads(r.data) for r in run]
    out: dict[str, Any] = {}
    for obj in objects:
        out |= obj
    content = "".join(o["content"] for o in objects if isinstance(o.get("content"), str))
    if any("content" in o for o in objects):
        out["content"] = content
    out["from_cseq"] = run[0].cseq
    return dump(out)

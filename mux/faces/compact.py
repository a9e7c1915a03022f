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
_CONTENT = b',"content":"'
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
    open_runs: dict[str, list[Record]] = {}  # channel → its run that may still grow
    for record in kept:
        channel = record.channel or ""
        run = open_runs.get(channel)
        if run is not None and _joins(run[-1], record):
            run.append(record)
            continue
        open_runs[channel] = run = [record]
        runs.append(run)
    if len(runs) < len(kept):
        runs.sort(key=lambda members: members[-1].seq)
    return [one_line(run[0]) if len(run) == 1 else _join(run) for run in runs]


def _without_discarded(window: Sequence[Record]) -> Sequence[Record]:
    resets = [r for r in window if r.type == "step_reset"]
    if not resets:
        return window
    first_cseq: dict[str | None, int] = {}
    for record in window:
        first_cseq.setdefault(record.channel, record.cseq)
    gone: set[int] = set()
    for reset in resets:
        start = json.loads(reset.data).get("from_cseq", 0)
        if first_cseq[reset.channel] <= start:
            gone.update(r.seq for r in window if r.channel == reset.channel and start <= r.cseq <= reset.cseq)
    return [r for r in window if r.seq not in gone] or resets[-1:]  # a window is never empty


def _joins(last: Record, record: Record) -> bool:
    """Whether a record continues a run: same type on the same channel, directly after, same call and path."""
    if record.type != last.type or record.type not in _MERGED or record.cseq != last.cseq + 1:
        return False
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
        if at < 0 or not data.endswith(b'"}') or _after_content(data, at):
            return _join_objects(run)
        texts.append(data[at + len(_CONTENT) : -2])
    head = last.data[: last.data.find(_CONTENT)]
    return b'%b,"content":"%b","from_cseq":%d}' % (head, b"".join(texts), run[0].cseq)


def _after_content(data: bytes, at: int) -> bool:
    """Whether ``content`` is not the last member: an unescaped quote ends its text before the end."""
    text = data[at + len(_CONTENT) : -2]
    if b'"' not in text:
        return bool(text) and text.endswith(b"\\") and _odd_backslashes(text)
    return b'"' in text.replace(b"\\\\", b"").replace(b'\\"', b"")


def _odd_backslashes(text: bytes) -> bool:
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1


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

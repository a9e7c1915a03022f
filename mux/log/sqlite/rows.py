"""Runs, idempotency, ownership and conversations: the writer's jobs, as functions of its session."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from mux._failpoints import failpoint
from mux.clock import now_ms
from mux.events import Record
from mux.log.protocols import (
    FINAL,
    Head,
    Idempotency,
    RunRow,
    idempotency_conflict,
    run_exists,
    run_not_found,
)
from mux.log.sqlite import search as _search
from mux.log.sqlite.schema import SEQ_BITS, SEQ_MASK
from mux.log.sqlite.session import SWEEP, LogState, Session

__all__ = [
    "claim", "conversation", "create", "delete", "forgettable", "get_row", "index_text", "number_of",
    "put_conversation", "size_of_owner", "sweep_trimmed", "trim", "update",
]  # fmt: skip

_JSON = ("request", "metadata", "summary", "agents")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


def _clean(text: str | None) -> str | None:
    """Text that sqlite takes: a lone surrogate, which JSON may carry, becomes a question mark."""
    return text if text is None else text.encode("utf-8", "replace").decode()


def get_row(db: sqlite3.Connection, run: str) -> RunRow:
    """The run's row. Raises NotFound."""
    values = db.execute(
        f"SELECT {_search.COLUMNS} FROM runs r JOIN requests q USING (id) WHERE r.run = ?",  # noqa: S608
        (run,),
    ).fetchone()
    if values is None:
        raise run_not_found(run)
    return _search.row_of(values)


def number_of(db: sqlite3.Connection, run: str) -> int:
    """The run's number in this file. Raises NotFound."""
    row = db.execute("SELECT id FROM runs WHERE run = ?", (run,)).fetchone()
    if row is None:
        raise run_not_found(run)
    return int(row[0])


def create(
    session: Session, row: RunRow, idempotency: Idempotency | None, records: Sequence[Record] = ()
) -> RunRow:
    """See `RunStore.create`."""
    db = session.db
    if idempotency is not None:
        known = db.execute(
            "SELECT body_hash, r.run FROM idempotency i JOIN runs r ON r.id = i.run "
            "WHERE i.owner = ? AND i.key = ? AND i.expires > ?",
            (idempotency.owner, idempotency.key, now_ms()),
        ).fetchone()
        if known is not None:
            if known[0] != idempotency.body_hash:
                raise idempotency_conflict(idempotency.key)
            return get_row(db, known[1])
    if db.execute("SELECT 1 FROM runs WHERE run = ?", (row.run,)).fetchone():
        raise run_exists(row.run)
    number = db.execute(
        "INSERT INTO runs (run, thread, owner, status, created, updated, finished, starred, agents, title, "
        "metadata, summary, message, kind) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.run, row.thread, row.owner, row.status, row.created, row.updated, row.finished, row.starred,
            _dump(row.agents), _clean(row.title), _dump(dict(row.metadata)), _dump(dict(row.summary)),
            _clean(row.message), row.kind,
        ),
    ).lastrowid  # fmt: skip
    assert number is not None
    db.execute("INSERT INTO requests (id, request) VALUES (?, ?)", (number, _dump(dict(row.request))))
    db.execute("INSERT INTO logs (id, fence, epoch, first, head, bytes) VALUES (?, 0, 1, 1, 0, 0)", (number,))
    if idempotency is not None:
        db.execute("DELETE FROM idempotency WHERE expires <= ?", (now_ms(),))
        db.execute(
            "INSERT OR REPLACE INTO idempotency (owner, key, body_hash, run, expires) VALUES (?, ?, ?, ?, ?)",
            (idempotency.owner, idempotency.key, idempotency.body_hash, number, idempotency.expires),
        )
    session.remember(row.run, LogState(number, fence=0, epoch=1, first=1, head=0, size=0))
    if records:
        session.append(row.run, 0, records)
    _index_row(db, number, row.title, row.message)
    return row


def _index_row(db: sqlite3.Connection, number: int, title: str | None, message: str | None) -> None:
    if text := "\n".join(t for t in (title, message) if t):
        _search.index_text(db, number, None, text)


def update(session: Session, run: str, changes: dict[str, Any]) -> RunRow:
    """See `RunStore.update`."""
    db = session.db
    number = number_of(db, run)
    values = {
        key: _dump(list(value) if key == "agents" else dict(value)) if key in _JSON else value
        for key, value in changes.items()
    }
    values |= {key: _clean(values[key]) for key in ("title", "message") if key in values}
    request = values.pop("request", None)
    values["updated"] = now_ms()
    # The names were checked against the row's fields; the values are parameters.
    db.execute(
        f"UPDATE runs SET {', '.join(f'{key} = ?' for key in values)} WHERE id = ?",  # noqa: S608
        (*values.values(), number),
    )
    if request is not None:
        db.execute("UPDATE requests SET request = ? WHERE id = ?", (request, number))
    row = get_row(db, run)
    if "title" in changes or "message" in changes:
        _index_row(db, number, row.title, row.message)
    if changes.get("status") in FINAL:
        db.execute("UPDATE logs SET bytes = ? WHERE id = ?", (_size(session, run), number))
        session.forget(run)
    return row


def _size(session: Session, run: str) -> int:
    session.flush()
    state = session.state(run)
    if state.size is None:  # the process that wrote the beginning is gone
        base = state.id << SEQ_BITS
        (size,) = session.db.execute(
            "SELECT coalesce(sum(length(data)), 0) FROM chunks WHERE id > ? AND id <= ?",
            (base, base + SEQ_MASK),
        ).fetchone()
        state.size = size
    return int(state.size or 0)


def size_of_owner(db: sqlite3.Connection, owner: str) -> int:
    """See `RunStore.size`."""
    (size,) = db.execute(
        "SELECT coalesce(sum(l.bytes), 0) FROM runs r JOIN logs l USING (id) WHERE r.owner = ?", (owner,)
    ).fetchone()
    return int(size)


def claim(session: Session, run: str, owner: str) -> int:
    """See `RunStore.claim`."""
    state = session.state(run)
    state.fence += 1
    session.db.execute("UPDATE logs SET fence = ?, holder = ? WHERE id = ?", (state.fence, owner, state.id))
    return state.fence


def trim(session: Session, run: str, before: int) -> Head:
    """See `EventLog.trim`."""
    session.flush()
    state = session.state(run)
    before = min(before, state.head + 1)
    if before > state.first:
        state.first = before
        session.db.execute(
            "UPDATE logs SET first = ?, head = ? WHERE id = ?", (state.first, state.head, state.id)
        )
    return state.at()


def sweep_trimmed(session: Session, run: str) -> bool:
    """Delete some of what was trimmed; whether there may be more. Nobody reads it, so it may also wait."""
    state = session.state(run)
    base = state.id << SEQ_BITS
    gone = session.db.execute(
        "DELETE FROM chunks WHERE id IN (SELECT id FROM chunks WHERE id > ? AND id < ? LIMIT ?)",
        (base, base + state.first, SWEEP),
    ).rowcount
    if gone:
        state.size = None
    return bool(gone == SWEEP)


def delete(session: Session, run: str, *, only_if_forgettable: bool = False) -> bool:
    """Forget a run; returns whether it was there (and, for retention, still finished and unstarred)."""
    db = session.db
    row = db.execute("SELECT id, status, starred FROM runs WHERE run = ?", (run,)).fetchone()
    if row is None or (only_if_forgettable and (row[1] not in FINAL or row[2])):
        return False
    number = row[0]
    failpoint("retention.before")
    _search.unindex(db, number)
    for table, column in (
        ("runs", "id"), ("requests", "id"), ("logs", "id"), ("idempotency", "run"), ("conversations", "run")
    ):  # fmt: skip
        db.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))  # noqa: S608 - our own names
    session.throw_away(run, number)
    failpoint("retention.after")
    return True


def index_text(session: Session, run: str, channel: str | None, text: str) -> None:
    """See `RunStore.index_text`."""
    _search.index_text(session.db, number_of(session.db, run), channel, text)


def put_conversation(session: Session, thread: str, channel: str, run: str, data: bytes) -> None:
    """See `RunStore.put_conversation`."""
    session.db.execute(
        "INSERT INTO conversations (thread, channel, run, data) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (thread, channel, run) DO UPDATE SET data = excluded.data",
        (thread, channel, number_of(session.db, run), data),
    )


def conversation(db: sqlite3.Connection, thread: str, channel: str, before: str | None) -> bytes | None:
    """See `RunStore.conversation`."""
    bound = number_of(db, before) if before is not None else SEQ_MASK
    row = db.execute(
        "SELECT data FROM conversations WHERE thread = ? AND channel = ? AND run < ? "
        "ORDER BY run DESC LIMIT 1",
        (thread, channel, bound),
    ).fetchone()
    return bytes(row[0]) if row else None


def forgettable(
    db: sqlite3.Connection, older_than_ms: int | None, keep_runs: int | None, max_bytes: int | None
) -> list[str]:
    """Finished, unstarred runs above a bound of retention, oldest first."""
    kept = db.execute(
        "SELECT r.run, coalesce(r.finished, r.updated), l.bytes FROM runs r JOIN logs l USING (id) "
        "WHERE r.status NOT IN ('queued', 'running', 'waiting') AND NOT r.starred ORDER BY r.created, r.id"
    ).fetchall()
    (total,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM logs").fetchone()
    limit = now_ms() - older_than_ms if older_than_ms is not None else None
    gone = []
    left = len(kept)
    for run, finished, size in kept:
        too_old = limit is not None and finished < limit
        too_many = keep_runs is not None and left > keep_runs
        too_big = max_bytes is not None and total > max_bytes
        left -= 1
        if too_old or too_many or too_big:
            gone.append(run)
            total -= size
    return gone

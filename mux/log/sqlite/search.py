"""Lists of runs: filters, keyset paging and full-text search, as SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from mux.log.paging import page_token, parse_page_token
from mux.log.protocols import RunPage, RunQuery, RunRow
from mux.log.search import search_words
from mux.log.sqlite.schema import SLOT_BITS

__all__ = ["COLUMNS", "find_runs", "index_text", "row_of", "unindex"]

COLUMNS = (
    "r.run, r.thread, r.owner, r.status, r.created, r.updated, q.request, r.title, r.starred, r.metadata, "
    "r.message, r.agents, r.finished, r.summary, r.kind"
)
MAX_TEXT = 1 << 18  # characters of one text that are made findable; more would hold appends up
_MAX_SLOTS = 1 << SLOT_BITS
_MANY = 2000  # hits: as dear, looked up, as to go through 100,000 runs

# How a value of the metadata is written in a filter: strings as they are, everything else as JSON.
# The look at the text alone spares most rows the parsing.
# A damaged one takes no list down.
_METADATA = """instr(r.metadata, ?) AND json_valid(r.metadata)
    AND EXISTS (SELECT 1 FROM json_each(r.metadata) m WHERE m.key = ? AND
    CASE m.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' WHEN 'null' THEN 'null'
    ELSE CAST(m.value AS TEXT) END = ?)"""


def row_of(values: tuple[Any, ...]) -> RunRow:
    """A run's row from the values of `COLUMNS`."""
    (run, thread, owner, status, created, updated, request, title, starred, metadata, message, agents,
     finished, summary, kind) = values  # fmt: skip
    return RunRow.stored(
        run, {"request": request, "metadata": metadata, "agents": agents, "summary": summary},
        thread=thread, owner=owner, status=status, created=created, updated=updated, title=title,
        starred=bool(starred), message=message, finished=finished, kind=kind,
    )  # fmt: skip


def find_runs(db: sqlite3.Connection, query: RunQuery) -> RunPage:
    """See `RunStore.list`."""
    where, values = _filters(query)
    match = None
    if query.q is not None:
        match = _match(query.q)
        if match is None:
            return RunPage([])
        # Few hits are looked up by their number. With many, runs are gone through from the newest on instead
        # (the plus keeps sqlite from the numbers): most are hits, and looking each up to sort them all took
        # 470 ms for a word that 100,000 runs have, not 20.
        plus = "+" if _many(db, match) else ""
        where.append(f"{plus}r.id IN (SELECT rowid >> ? FROM found WHERE found MATCH ?)")  # noqa: S608
        values += (SLOT_BITS, match)
    # Every value is a parameter; only our own text is put together here.
    sql = (
        f"SELECT r.id, {COLUMNS} FROM runs r JOIN requests q USING (id)"  # noqa: S608
        f" WHERE {' AND '.join(where)}"
        " ORDER BY r.created DESC, r.id DESC LIMIT ?"
    )
    found = db.execute(sql, (*values, query.limit + 1)).fetchall()
    more = len(found) > query.limit
    found = found[: query.limit]
    rows = [row_of(values[1:]) for values in found]
    token = page_token(rows[-1].created, found[-1][0]) if more else None
    if match is None:
        return RunPage(rows, token)
    excerpts = _excerpts(db, match, [values[0] for values in found])
    hits = {row.run: excerpts.get(values[0], {}) for row, values in zip(rows, found, strict=True)}
    return RunPage(rows, token, hits)


def _many(db: sqlite3.Connection, match: str) -> bool:
    some = "SELECT count(*) FROM (SELECT 1 FROM found WHERE found MATCH ? LIMIT ?)"
    return bool(db.execute(some, (match, _MANY)).fetchone() == (_MANY,))


def _filters(query: RunQuery) -> tuple[list[str], list[Any]]:
    # Written out, not as a parameter, so that the index of experiments (few among very many runs) is used.
    where = [f"r.kind = '{'experiment' if query.kind == 'experiment' else 'run'}'"]
    values: list[Any] = []
    for column, value in (("owner", query.owner), ("thread", query.thread), ("starred", query.starred)):
        if value is not None:
            where.append(f"r.{column} = ?")
            values.append(value)
    if query.status:
        where.append(f"r.status IN ({', '.join('?' * len(query.status))})")
        values += query.status
    if query.agent is not None:
        # In the list's JSON text a name stands with its quotes exactly so: a quote in a name is escaped.
        where.append("instr(r.agents, ?)")
        values.append(json.dumps(query.agent, ensure_ascii=False))
    for key, wanted in query.metadata.items():
        where.append(_METADATA)
        values += (json.dumps(key, ensure_ascii=False), key, wanted)
    if query.after is not None:
        where.append("(r.created, r.id) < (?, ?)")
        values += parse_page_token(query.after)
    return where, values


# --- texts --------------------------------------------------------------------------------------------------


def _match(q: str) -> str | None:
    """The query in FTS5's language: everything quoted, so that nothing of it is an operator; the last word
    may be the beginning of one, as it is being typed. ``None`` if there is nothing to look for."""
    words = search_words(q)
    return " ".join(f'"{word}"' for word in words) + " *" if words else None


def _excerpts(db: sqlite3.Connection, match: str, runs: Sequence[int]) -> dict[int, dict[str, str]]:
    """Run → channel → excerpt. One search for all: each begins with all that its last word may stand for."""
    found: dict[int, dict[str, str]] = {}
    if not runs:
        return found
    rows = db.execute(
        "SELECT f.rowid >> ?, t.channel, snippet(found, 0, '', '', '…', 16) FROM found f "  # noqa: S608
        "CROSS JOIN texts t ON t.run = f.rowid >> ? AND t.slot = f.rowid & ? "
        "WHERE found MATCH ? AND f.rowid BETWEEN ? AND ? "
        f"AND f.rowid >> ? IN ({', '.join('?' * len(runs))}) ORDER BY f.rowid",
        (
            SLOT_BITS, SLOT_BITS, _MAX_SLOTS - 1, match, min(runs) << SLOT_BITS,
            (max(runs) << SLOT_BITS) + _MAX_SLOTS - 1, SLOT_BITS, *runs,
        ),
    )  # fmt: skip
    for run, channel, excerpt in rows:
        found.setdefault(run, {})[channel] = excerpt
    return found


def index_text(db: sqlite3.Connection, run: int, channel: str | None, text: str) -> None:
    """Make a text of a run findable, in place of what the channel had."""
    name = channel or ""
    row = db.execute("SELECT slot FROM texts WHERE run = ? AND channel = ?", (run, name)).fetchone()
    if row is not None:
        (slot,) = row
        db.execute("DELETE FROM found WHERE rowid = ?", ((run << SLOT_BITS) + slot,))
    else:
        (slot,) = db.execute("SELECT count(*) FROM texts WHERE run = ?", (run,)).fetchone()
        if slot >= _MAX_SLOTS:  # more channels than a run can have
            return
        db.execute("INSERT INTO texts (run, channel, slot) VALUES (?, ?, ?)", (run, name, slot))
    # Lone surrogates, which JSON may carry, are no text for sqlite.
    clean = text[:MAX_TEXT].encode("utf-8", "replace").decode()
    db.execute("INSERT INTO found (rowid, text) VALUES (?, ?)", ((run << SLOT_BITS) + slot, clean))


def unindex(db: sqlite3.Connection, run: int) -> None:
    """Forget all texts of a run."""
    db.execute(
        "DELETE FROM found WHERE rowid IN (SELECT (run << ?) + slot FROM texts WHERE run = ?)",
        (SLOT_BITS, run),
    )
    db.execute("DELETE FROM texts WHERE run = ?", (run,))

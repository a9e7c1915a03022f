"""Rows of runs as fields of a Redis hash, and lists of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mux.log.paging import page_token, parse_page_token
from mux.log.protocols import RunPage, RunQuery, RunRow
from mux.log.redis.lease import KEY
from mux.log.redis.link import Link
from mux.log.redis.scripts import FIELDS
from mux.log.search import find, matches, search_words

__all__ = ["MAX_TEXT", "digest", "dump", "fields_of", "find_runs", "member", "place", "row_of"]

MAX_TEXT = 1 << 18  # characters of one text that are made findable
_BLOCK = 200  # rows looked at in one step of a list that filters or searches


def dump(value: Any) -> str:
    """JSON in ASCII: also lone surrogates, which JSON may carry, come back as they were."""
    return json.dumps(value, separators=(",", ":"))


def digest(*parts: str) -> str:
    """A short name for what a user may have written at any length."""
    return hashlib.sha1(dump(parts).encode(), usedforsecurity=False).hexdigest()


def fields_of(values: Mapping[str, Any]) -> list[str]:
    """Names and JSON of a row's fields, in turn."""
    found: list[str] = []
    for name, value in values.items():
        found += (name, dump(dict(value) if isinstance(value, Mapping) else value))
    return found


def row_of(run: str, values: Sequence[bytes]) -> RunRow:
    """A row from what the scripts give back."""
    # What an older Mux wrote has no kind: then it is a run.
    fields = {name: json.loads(v) for name, v in zip(FIELDS, values, strict=True) if v is not None}
    fields["agents"] = tuple(fields["agents"])
    return RunRow(run, **fields)


def place(kind: str, value: str) -> str:
    """The index of a status (``s``), an owner (``o``) or a thread (``t``)."""
    return f"runs:{kind}:{hashlib.sha1(dump(value).encode(), usedforsecurity=False).hexdigest()}"


def member(number: int) -> str:
    """Where a run with this number stands among those of the same time; all of its own sort after it."""
    return f"{number:016d}"


async def find_runs(link: Link, query: RunQuery) -> RunPage:
    """See `RunStore.list`. Without a search the narrowest index is read; filters and a search
    look through it, newest first, a block at a time."""
    most, before = "+inf", ""
    if query.after is not None:
        created, number = parse_page_token(query.after)
        most, before = str(created), member(number)
    words = search_words(query.q) if query.q is not None else None
    if words is not None and not words:
        return RunPage([])
    plain = words is None and query.agent is None and not query.metadata and query.starred is None
    block = query.limit + 1 if plain else _BLOCK
    rows: list[RunRow] = []
    numbers: list[int] = []
    hits: dict[str, dict[str, str]] = {}
    while True:
        answer = await link.call("page", KEY, most, before, block, int(words is not None), *_places(query))
        _, found, more = answer
        taken = await _sift(query, words, found)
        for number, row, where in taken:
            if len(rows) == query.limit:
                return RunPage(rows, page_token(rows[-1].created, numbers[-1]), hits)
            rows.append(row)
            numbers.append(number)
            if where is not None:
                hits[row.run] = where
        if not more:
            return RunPage(rows, None, hits)
        most = found[-1][1][FIELDS.index("created")].decode()
        before = found[-1][0][:16].decode()


_Sifted = list[tuple[int, RunRow, dict[str, str] | None]]


async def _sift(query: RunQuery, words: Sequence[str] | None, found: Sequence[Any]) -> _Sifted:
    if words is None:
        return _sifted(query, None, found)
    return await asyncio.to_thread(_sifted, query, words, found)  # texts may be long


def _sifted(query: RunQuery, words: Sequence[str] | None, found: Sequence[Any]) -> _Sifted:
    taken: _Sifted = []
    for at, values, stored in found:
        row = row_of(at[17:].decode(), values)
        if not matches(row, query):
            continue
        where = None
        if words is not None:
            names = iter(stored)
            texts = {"": "\n".join(t for t in (row.title, row.message) if t)}
            texts |= {name.decode(): text.decode() for name, text in zip(names, names, strict=True)}
            where = find(texts, words)
            if not where:
                continue
        taken.append((int(at[:16]), row, where))
    return taken


def _places(query: RunQuery) -> list[str]:
    if query.thread is not None:
        return [place("t", query.thread)]
    if query.status:
        return [place("s", status) for status in dict.fromkeys(query.status)]
    if query.owner is not None:
        return [place("o", query.owner)]
    return ["runs"]

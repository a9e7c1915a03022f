"""Rows of runs as fields of a Redis hash, and lists of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mux.clock import now_ms
from mux.log.paging import page_token, parse_page_token
from mux.log.protocols import FINAL, RunPage, RunQuery, RunRow
from mux.log.redis.link import Link
from mux.log.redis.scripts import FIELDS, run_key
from mux.log.search import find, matches, search_words

__all__ = ["INDEX", "MAX_TEXT", "digest", "fields_of", "find_runs", "places_of", "row_of"]

INDEX = "mux:{runs}:meta"  # a key of the indices' slot
MAX_TEXT = 1 << 18  # characters of one text that are made findable
_BLOCK = 200  # rows looked at in one step of a list that filters or searches
_YOUNG_MS = 60_000  # a run whose place was written, and it not yet: it may still come


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
    """A row from what the scripts answer."""
    return RunRow.stored(run, dict(zip(FIELDS, values, strict=True)))


def places_of(row: RunRow) -> set[str]:
    """The indices in which a run stands."""
    if row.kind != "run":
        return {f"k:{row.kind}"}
    places = {"all", f"o:{digest(row.owner)}", f"t:{digest(row.thread)}"}
    if row.status not in FINAL:
        return places | {"open"}
    return places | {f"s:{row.status}"} | (set() if row.starred else {"done"})


async def find_runs(link: Link, query: RunQuery) -> RunPage:
    """See `RunStore.list`. Without a search the narrowest index is read; filters and a search look through
    it, newest first, a block at a time."""
    most, before = "+inf", ""
    if query.after is not None:
        created, number = parse_page_token(query.after)
        most, before = str(created), f"{number:016d}"
    words = search_words(query.q) if query.q is not None else None
    if words is not None and not words:
        return RunPage([])
    plain = words is None and query.agent is None and not query.metadata and query.starred is None
    block = query.limit + 1 if plain else _BLOCK
    rows: list[RunRow] = []
    numbers: list[int] = []
    hits: dict[str, dict[str, str]] = {}
    while True:
        _, found, more = await link.call("page", INDEX, most, before, block, *_places(query))
        for number, row, where in await _sift(link, query, words, found):
            if len(rows) == query.limit:
                return RunPage(rows, page_token(rows[-1].created, numbers[-1]), hits)
            rows.append(row)
            numbers.append(number)
            if where is not None:
                hits[row.run] = where
        if not more:
            return RunPage(rows, None, hits)
        most, before = found[-1][0].decode(), found[-1][1][:16].decode()


_Sifted = list[tuple[int, RunRow, dict[str, str] | None]]


async def _sift(
    link: Link, query: RunQuery, words: Sequence[str] | None, found: Sequence[Sequence[bytes]]
) -> _Sifted:
    runs = [member[17:].decode() for _, member in found]
    texts = int(words is not None)
    answers = await asyncio.gather(*(link.call("get", run_key(run), texts) for run in runs))
    there: list[tuple[int, str, Any]] = []
    places = set(_places(query))
    for (created, member), run, answer in zip(found, runs, answers, strict=True):
        number = int(member[:16])
        if answer[0] == b"ok" and int(answer[3]) == number:
            there.append((number, run, answer))
            right = places_of(row_of(run, answer[1]))
            if places.isdisjoint(right):  # a server was killed between changing it and its places
                link.call("index", INDEX, number, created, run, len(right), *right, *places)
        elif answer[0] == b"ok" or int(created) < now_ms() - _YOUNG_MS:
            # A place is all that is left of it, or was made with a number whose answer was lost.
            link.call("index", INDEX, number, created, run, 0, *places, "all", "open")
    if words is None:
        return _sifted(query, None, there)
    return await asyncio.to_thread(_sifted, query, words, there)  # texts may be long


def _sifted(query: RunQuery, words: Sequence[str] | None, there: list[tuple[int, str, Any]]) -> _Sifted:
    taken: _Sifted = []
    for number, run, (_, values, stored, _) in there:
        row = row_of(run, values)
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
        taken.append((number, row, where))
    return taken


def _places(query: RunQuery) -> list[str]:
    if query.kind != "run":
        return [f"k:{query.kind}"]
    if query.thread is not None:
        return [f"t:{digest(query.thread)}"]
    if query.status:
        return list(dict.fromkeys(f"s:{s}" if s in FINAL else "open" for s in query.status))
    if query.owner is not None:
        return [f"o:{digest(query.owner)}"]
    return ["all"]

"""Which runs a list asks for: filters, and words to be found in their texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mux.log.protocols import RunQuery, RunRow

__all__ = ["find", "matches", "metadata_text", "search_words"]

_EXCERPT = 40  # characters on each side of what was found


def matches(row: RunRow, query: RunQuery) -> bool:
    """Whether the row passes every filter but the search."""
    return (
        row.kind == query.kind
        and (query.owner is None or row.owner == query.owner)
        and (not query.status or row.status in query.status)
        and (query.agent is None or query.agent in row.agents)
        and (query.thread is None or row.thread == query.thread)
        and (query.starred is None or row.starred == query.starred)
        and _has_metadata(row.metadata, query.metadata)
    )


def _has_metadata(metadata: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    return all(key in metadata and metadata_text(metadata[key]) == value for key, value in wanted.items())


def find(texts: Mapping[str, str], words: Sequence[str]) -> dict[str, str]:
    """Channel → excerpt for every text that has all the words; the last word may be the start of one."""
    patterns = [
        re.compile(r"[\W_]+".join(map(re.escape, re.findall(r"[^\W_]+", w))), re.IGNORECASE) for w in words
    ]
    bounded = [re.compile(rf"(?<![^\W_]){p.pattern}(?![^\W_])", re.IGNORECASE) for p in patterns[:-1]]
    bounded += [re.compile(rf"(?<![^\W_]){p.pattern}", re.IGNORECASE) for p in patterns[-1:]]
    found = {}
    for channel, text in texts.items():
        matches = [p.search(text) for p in bounded]
        if matches and all(matches) and (first := matches[0]) is not None:
            start, end = max(0, first.start() - _EXCERPT), first.end() + _EXCERPT
            found[channel] = ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
    return found


_QUERY = re.compile(r'"([^"]*)"|(\S+)')
MAX_WORDS = 32


def search_words(q: str) -> list[str]:
    """A query's phrases and words, all of which must be found; quotes hold a phrase together."""
    clean = q.replace("\x00", " ").encode("utf-8", "replace").decode()  # what sqlite takes for text
    found = ((m[1] if m[1] is not None else m[2]).replace('"', " ").strip() for m in _QUERY.finditer(clean))
    return [word for word in found if any(c.isalnum() for c in word)][:MAX_WORDS]


def metadata_text(value: Any) -> str:
    """How a metadata value is written in a filter: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

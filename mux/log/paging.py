"""Pages: of a log's records, and of the list of runs."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from mux.errors import BadRequest
from mux.events import Record
from mux.log.protocols import Head, Page

__all__ = ["page_of", "page_token", "parse_page_token"]


def page_of(records: Iterable[Record], at: Head, after: int, limit: int, max_bytes: int) -> Page:
    """What `EventLog.read` answers: as many of the records after ``after`` as its bounds allow, at least one.

    Args:
        records: in the order of the log; read no further than needed. Those up to ``after`` are passed over.
        at: where the log stands; nothing before its first is shown.
    """
    limit, start = max(1, limit), max(after, at.first - 1)
    page: list[Record] = []
    for record in records:
        if record.seq <= start:
            continue
        max_bytes -= len(record.data)
        if len(page) >= limit or (max_bytes < 0 and page):
            break
        page.append(record)
    return Page(page, at)


def page_token(created: int, number: int) -> str:
    """An opaque position in a list that is ordered by ``(created, number)``, newest first."""
    return base64.urlsafe_b64encode(f"{created}.{number}".encode()).decode().rstrip("=")


def parse_page_token(token: str) -> tuple[int, int]:
    """Read what `page_token` made.

    Raises:
        BadRequest: ``page_invalid``.
    """
    invalid = BadRequest(
        "page_invalid", "This is not a position in the list. Send the `next` of the page before, or none."
    )
    if len(token) > 64:
        raise invalid
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii")
    except ValueError:
        raise invalid from None
    match = re.fullmatch(r"(-?[0-9]{1,18})\.([0-9]{1,18})", text, re.ASCII)
    if match is None:
        raise invalid
    return int(match[1]), int(match[2])

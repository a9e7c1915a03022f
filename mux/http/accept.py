"""Content negotiation: which of the offered media types a request prefers (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["best_match", "preference"]

_SAME = {"application/ndjson": "application/x-ndjson", "application/jsonl": "application/x-ndjson"}


def best_match(accept: Sequence[str], offered: Sequence[str]) -> str | None:
    """The offered type with the highest quality, the first of equals; ``None`` if none is acceptable."""
    ranges = [r for header in accept for part in header.split(",") if (r := _range(part)) is not None]
    if not ranges:
        return offered[0]
    best, best_quality = None, 0.0
    for media in offered:
        quality = _quality(media, ranges)
        if quality > best_quality:
            best, best_quality = media, quality
    return best


def preference(headers: Sequence[str], name: str) -> str | None:
    """The value of one preference of ``Prefer`` (RFC 7240)."""
    for header in headers:
        for part in header.split(","):
            key, _, value = part.split(";")[0].partition("=")
            if key.strip().lower() == name:
                return value.strip().strip('"')
    return None


def _range(part: str) -> tuple[str, float] | None:
    media, *params = (p.strip().lower() for p in part.split(";"))
    if not media:
        return None
    quality = 1.0
    for param in params:
        if param.startswith("q="):
            try:
                quality = min(1.0, max(0.0, float(param[2:])))
            except ValueError:
                quality = 0.0
    return _SAME.get(media, media), quality


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that the type fits."""
    found = (-1, 0.0)
    for pattern, quality in ranges:
        fits = (
            2 if pattern == media
            else 1 if pattern == media.split("/")[0] + "/*"
            else 0 if pattern in ("*/*", "*")
            else -1
        )  # fmt: skip
        if fits > found[0]:
            found = (fits, quality)
    return found[1] if found[0] >= 0 else 0.0

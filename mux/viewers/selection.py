"""Which events a viewer wants: filters by channel and type (DESIGN section 4, Filters)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from mux.errors import BadRequest
from mux.events import BY_TYPE, Record
from mux.viewers.shared import Shared

__all__ = ["Selection"]

_CHANNEL = re.compile(r"[A-Za-z0-9._~-]{1,64}", re.ASCII)
_TYPE = re.compile(r"[a-z0-9_*]{1,64}", re.ASCII)
_MAX_NAMES = 256  # a filter is part of a cache key and is compared for every event


@lru_cache(maxsize=4096)
def _type_matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(_matches(pattern, name) for pattern in patterns)


def _matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern with ``*`` for any characters; in linear time."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    *inner, last = rest
    if not name.startswith(first):
        return False
    at = len(first)
    for part in inner:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(name) - len(last) >= at and name.endswith(last)


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter. Run events always pass, so that a filtered reader still sees the run end.

    Attributes:
        channels: channel ids, ``None`` = all.
        types: type names, with ``*`` for any characters; ``None`` = all.
        until_channels: the stream ends when every channel of the filter is done.
        shared: what a link to the run shows; ``None``: it is its owner who looks.
    """

    channels: frozenset[str] | None = None
    types: tuple[str, ...] | None = None
    until_channels: bool = False
    shared: Shared | None = None

    @classmethod
    def parse(
        cls, channels: Iterable[str] = (), types: Iterable[str] = (), until: str | None = None
    ) -> Selection:
        """Read the query values ``channel=a,b``, ``type=token,tool_*`` (each repeatable), ``until=channels``.

        Raises:
            BadRequest: ``filter_invalid``: not a channel id, an unknown type, or an unknown ``until``.
        """
        return _parse(tuple(channels), tuple(types), until)

    @property
    def everything(self) -> bool:
        """Whether nothing is filtered out."""
        return self.channels is None and self.types is None

    def seen_by(self, shared: Shared) -> Selection:
        """The same filter for whoever has a link."""
        only = shared.channels
        if only is not None and self.channels is not None:
            only &= self.channels
        return replace(self, channels=self.channels if only is None else only, shared=shared)

    def matches(self, record: Record) -> bool:
        """Whether this event passes."""
        return record.channel is None or (
            (self.channels is None or record.channel in self.channels)
            and (self.types is None or _type_matches(self.types, record.type))
        )

    def select(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records that pass, in order."""
        if self.shared is not None:
            shown = [self.shared.record(r) for r in records if self.matches(r)]
            return [r for r in shown if r is not None]
        if self.everything:
            return records
        return [r for r in records if self.matches(r)]

    def describe(self) -> dict[str, object]:
        """The filter as ``stream_open`` shows it."""
        out: dict[str, object] = {}
        if self.channels is not None:
            out["channel"] = sorted(self.channels)
        if self.types is not None:
            out["type"] = list(self.types)
        if self.until_channels:
            out["until"] = "channels"
        return out


@lru_cache(maxsize=256)  # a thousand viewers with one filter share it
def _parse(channels: tuple[str, ...], types: tuple[str, ...], until: str | None) -> Selection:
    ids, kinds = _split(channels), _split(types)
    for name in ids or ():
        if not _CHANNEL.fullmatch(name):
            raise BadRequest("filter_invalid", f"channel={name[:80]!r} is not a channel id.")
    for name in kinds or ():
        _check_type(name)
    if until not in (None, "channels"):
        raise BadRequest("filter_invalid", "until can only be 'channels'.")
    return Selection(
        None if ids is None else frozenset(ids),
        None if kinds is None else tuple(sorted(set(kinds))),
        until == "channels" and ids is not None,
    )


def _split(values: Iterable[str]) -> list[str] | None:
    """``None`` where the parameter was not given; an empty value selects nothing but run events."""
    given = list(values)
    if not given:
        return None
    names = [n.strip() for v in given for n in v.split(",") if n.strip()]
    if len(names) > _MAX_NAMES:
        raise BadRequest("filter_invalid", f"A filter can name at most {_MAX_NAMES} channels or types.")
    return names


def _check_type(name: str) -> None:
    if not _TYPE.fullmatch(name):
        raise BadRequest("filter_invalid", f"type={name[:80]!r} is not an event type.")
    if "*" not in name and name not in BY_TYPE:
        near = difflib.get_close_matches(name, BY_TYPE, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadRequest("filter_invalid", f"There is no event type {name!r}.{hint}")

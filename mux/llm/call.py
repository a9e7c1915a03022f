"""One tool call while an endpoint writes it: its name, and whether its arguments are whole yet."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["Call"]

_STRUCTURE = re.compile(r'["\\{}\[\]]')
_QUOTED = re.compile(r'["\\]')


class Call:
    """One call while it is written.

    Attributes:
        key: its number in the turn, in the order opened.
        name, provider_id: what is known of them so far.
        closed: the endpoint itself said that the call is complete (Responses API).
        doubtful: nothing but its place tells it from an earlier call of its name: it may be that one, said
            again. It is shown at the turn's end, unless it says the same.
    """

    __slots__ = (
        "_depth", "_escaped", "_in_string", "_scanned", "_seen_close", "begun", "closed", "doubtful",
        "extras", "held", "key", "name", "name_over", "parts", "provider_id", "reopened",
    )  # fmt: skip

    def __init__(self, key: int, provider_id: str | None, name: str) -> None:
        self.key = key
        self.provider_id = provider_id
        self.name = name
        self.name_over = False  # arguments or a fragment without a name came: the name is whole
        self.begun = False
        self.closed = False
        self.doubtful = False
        self.reopened = False  # id-less, and its name came after whole arguments: the next "{" is a new call
        self.parts: list[str] = []
        self.held: list[str] = []  # arguments not shown yet
        self.extras: dict[str, Any] = {}
        self._scanned = 0  # parts looked at by `whole`
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._seen_close = False

    @property
    def raw(self) -> str:
        if len(self.parts) > 1 and self._scanned in (0, len(self.parts)):
            self.parts = ["".join(self.parts)]
            self._scanned = min(self._scanned, 1)
        return "".join(self.parts)

    def empty(self) -> bool:
        return all(not p or p.isspace() for p in self.parts[:8]) and len(self.parts) <= 8

    def whole(self) -> bool:
        """Whether the arguments so far are a closed object. Looks at each character once over all calls."""
        for part in self.parts[self._scanned :]:
            self._scan(part)
        self._scanned = len(self.parts)
        return self._seen_close and self._depth == 0 and not self._in_string

    def grows(self, name: str) -> bool:
        """Whether its arguments have begun and not ended, and its name is this one."""
        return name == self.name and not self.empty() and not self.whole()

    def _scan(self, text: str) -> None:
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_QUOTED if self._in_string else _STRUCTURE).search(text, at)
            if found is None:
                return
            mark = found.group()
            at = found.end()
            if mark == '"':
                self._in_string = not self._in_string
            elif mark == "\\":
                self._escaped = self._in_string
            elif mark in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                self._seen_close = self._seen_close or self._depth == 0

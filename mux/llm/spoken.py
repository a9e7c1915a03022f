"""What a turn of the Responses API has said and asked for, so that nothing is said or run twice.

Servers report each text and each call up to five times (deltas, the ``done`` of its text, part and item, the
final response), and leave any of these out. Some give an item another id in every event, no index, or index 0
for all. So a later report is matched to an earlier one by its place where that fits, else by what it says.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from mux.llm.call import Call
from mux.llm.model import ReasoningDelta, RefusalDelta, TextDelta
from mux.llm.tool_calls import Assembler

__all__ = ["FINAL", "Calls", "Say", "Spoken"]

Say = type[TextDelta] | type[ReasoningDelta] | type[RefusalDelta]
_Key = tuple[str, Say]
FINAL: Final = "response"  # the level of the last report


class Spoken:
    """Texts by place and kind."""

    def __init__(self) -> None:
        self._said: dict[_Key, list[str]] = {}
        self._told: dict[str, set[_Key]] = defaultdict(set)  # level of report → what it has told again

    def __contains__(self, key: _Key) -> bool:
        return key in self._said

    def any(self, kind: Say) -> bool:
        """Whether anything of a kind was said."""
        return any(known is kind for _, known in self._said)

    def add(self, kind: Say, place: str, text: str) -> None:
        """A piece was said."""
        self._said.setdefault((place, kind), []).append(text)

    def rest(self, kind: Say, place: str, text: str, level: str) -> str:
        """What of a text that is told whole was not said yet; it counts as said from now on.

        Args:
            level: which report this is: each tells a text once.
        """
        key = (place, kind)
        known = self._said.get(key)
        if known is None or not text.startswith("".join(known)):
            key = self._twin(kind, text, level) or key
        self._told[level].add(key)
        said = "".join(self._said.get(key, ()))
        rest = text[len(said) :] if text.startswith(said) else ""  # another text than was said: too late
        if rest:
            self.add(kind, key[0], rest)
        return rest

    def _twin(self, kind: Say, text: str, level: str) -> _Key | None:
        """A place where the beginning of this text was said, under another name."""
        told = self._told[level]
        for key, parts in self._said.items():
            if key[1] is kind and key not in told and text.startswith("".join(parts)):
                return key
        return None


class Calls:
    """The calls of one turn by all their names: their own id, their item's id, its index.

    Args:
        assembler: where they are opened.
    """

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._told: dict[str, set[int]] = defaultdict(set)  # level of report → keys of the calls it told
        self._by: dict[str, Call] = {}

    def of_event(self, item_id: str | None, index: int | None) -> Call | None:
        """The call that a piece of arguments belongs to."""
        known = self._get(item_id, index) or self._by.get(f"call {item_id}")
        if known is None and item_id is None and index is None:
            known = next((c for c in reversed(self._assembler.calls) if not c.closed), None)
        return self._learn(known, item_id, index, None)

    def of_item(
        self,
        item_id: str | None,
        index: int | None,
        call_id: str | None,
        *,
        told: tuple[str, str, str] | None,
    ) -> Call | None:
        """The call that an item reports.

        Args:
            told: for an item that is whole: the level of the report, the call's name and its arguments.
        """
        known = self._by.get(f"call {call_id}") if call_id else None
        if known is None:
            known = self._get(item_id, index)
            if known is not None and call_id and known.provider_id not in (None, call_id):
                known = None  # an id or an index that several calls share
        if known is None and told is not None:
            known = self._twin(*told, call_id)
        if known is not None and told is not None:
            self._told[told[0]].add(known.key)
        return self._learn(known, item_id, index, call_id)

    def open(self, item_id: str | None, index: int | None, call_id: str | None, name: str) -> Call:
        """A call that was not known."""
        call = self._assembler.open(call_id, name)
        self._learn(call, item_id, index, call_id)
        return call

    def _get(self, item_id: str | None, index: int | None) -> Call | None:
        by_item = self._by.get(f"item {item_id}") if item_id else None
        return by_item or (self._by.get(f"index {index}") if index is not None else None)

    def _learn(
        self, call: Call | None, item_id: str | None, index: int | None, call_id: str | None
    ) -> Call | None:
        if call is not None:
            if item_id:
                self._by.setdefault(f"item {item_id}", call)
            if index is not None:
                self._by[f"index {index}"] = call  # indexes that are used again name the newest
            if call_id:
                self._by.setdefault(f"call {call_id}", call)
        return call

    def _twin(self, level: str, name: str, arguments: str, call_id: str | None) -> Call | None:
        """A call that wrote the same, under other ids."""
        for call in self._assembler.calls:
            same_id = call_id is None or call.provider_id is None or level == FINAL
            same = same_id and call.name in ("", name) and call.raw == arguments
            if same and call.key not in self._told[level]:
                return call
        return None

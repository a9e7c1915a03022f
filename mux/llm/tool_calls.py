"""Puts partial tool calls together, whatever identity the endpoint gives them.

Which call a fragment belongs to is decided in this order: its index, where indexes tell calls apart; its id;
its position and name. Endpoints send all indexes 0, no index, no id, the id or the name again with every
fragment, or names in pieces; the list of known tools decides what a name is. A call is begun only once its
name is settled, and complete only at the end of the turn: that its arguments parse is no proof, since ``{}``
may be a placeholder.

Where a stream is ambiguous the reading is chosen whose failure is harmless: two calls taken for one give
arguments that don't parse, which the model is told; one call taken for two would run a tool twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from mux.llm.arguments import parse_arguments
from mux.llm.call import Call
from mux.llm.failures import broken
from mux.llm.model import CallArgs, CallBegan, CompleteCall, Delta

__all__ = ["MAX_ARGUMENTS", "Assembler"]

MAX_ARGUMENTS: Final = 16 * 1024 * 1024  # characters of arguments in one turn
MAX_CALLS: Final = 256

UNNAMED: Final = "unnamed_tool"


class Assembler:
    """The calls of one turn.

    Args:
        known: names of the tools that were offered.
    """

    def __init__(self, known: Collection[str]) -> None:
        self._known = frozenset(known)
        self._prefixes = frozenset(n[:i] for n in self._known for i in range(1, len(n)))
        self._calls: list[Call] = []
        self._by_index: dict[int, Call] = {}
        self._by_id: dict[str, Call] = {}
        self._shown = 0  # calls before this one have begun
        self._size = 0

    @property
    def calls(self) -> list[Call]:
        return self._calls

    # --- chat.completions: fragments that have to be recognized -------------------------------------------

    def fragment(
        self,
        out: list[Delta],
        *,
        index: int | None,
        id: str | None,
        name: str | None,
        text: str,
        extras: Mapping[str, Any] | None = None,
        position: int = 0,
        of: int = 1,
    ) -> bool:
        """Take in one fragment; what it settles is added to ``out``.

        Args:
            index, id, name: as sent; an empty string is absence.
            text: the piece of the arguments.
            extras: opaque members to keep for the way back.
            position, of: which of how many fragments of its delta it is.

        Returns:
            Whether the fragment carried anything.
        """
        if not id and not name and index is not None:  # the usual continuation
            call = self._by_index.get(index)
            if call is not None and call.begun and not call.reopened and not extras:
                self.push(out, call, text)
                return bool(text)
        name = name.strip() if name else None
        if not (id or name or text or extras):
            return False
        call = self._find(index, id or None, name, text, position, of)
        if call is not None and extras and name and _differ(call.extras, extras):
            call = None  # two signatures are two calls, whatever else they share
        if call is None:
            taken = id in self._by_id if id else index is None or index in self._by_index
            call = self.open(id or None, name or "")
            signed = extras and any(_differ(c.extras, extras) for c in self._calls[:-1])
            call.doubtful = not signed and taken and any(c.name == call.name for c in self._calls[:-1])
            if index is not None:
                self._by_index[index] = call
        else:
            self._identify(call, index, id or None, name)
        if extras:
            _merge(call.extras, extras)
        if not name:
            call.name_over = call.name_over or bool(call.name)
        self.push(out, call, text)
        return True

    def _find(
        self, index: int | None, id: str | None, name: str | None, text: str, position: int, of: int
    ) -> Call | None:
        """The call that a fragment belongs to, or ``None`` if it opens one."""
        by_index = self._by_index.get(index) if index is not None else None
        by_id = self._by_id.get(id) if id else None
        if by_id is not None and name in self._known and self._joined(by_id, name) is None:
            by_id = None  # one id for calls of different tools
        if by_id is not None:
            if by_index is not None and len(self._by_index) > 1:
                return by_index  # one id for several calls, told apart by their indexes
            if by_index is None and index is not None and name:
                return by_id if by_id.grows(name) and _continues(text) else None
            return by_id
        if by_index is None and (index is None or not name):
            # no index, or a new one with nothing that opens a call
            by_index = self._by_place(name, position, of) if not id or not name else self._last()
        elif by_index is None and name and (last := self._last()) is not None:
            # a new index and a name: a new call, unless the last one is plainly being continued
            same = last.provider_id is None and not id and last.grows(name)
            return last if same and _continues(text) else None
        call = by_index
        if call is None or not name:
            return call
        if id and call.provider_id and id != call.provider_id:
            # one index for several calls; or an endpoint that makes a new id for every fragment
            again = call.name == name and not any(call.parts) and index is not None and of == 1
            return call if again or (call.grows(name) and _continues(text)) else None
        return call if self._same_call(call, name, text) else None

    def _same_call(self, call: Call, name: str, text: str) -> bool:
        """Whether a name that came without an id to tell belongs to the call at the same place."""
        if self._joined(call, name) is None:
            return False  # another tool's name
        if name != call.name or call.empty() or not call.whole():
            return True
        # the same name after whole arguments: named again, a flush that says all again, or the next call
        body = text.strip()
        if not body:
            call.reopened = True
            return True
        return call.raw.strip() in ("{}", body) or not body.startswith("{")

    def _by_place(self, name: str | None, position: int, of: int) -> Call | None:
        if name:
            for call in reversed(self._calls):
                if call.name == name and (call.empty() or not call.whole()):
                    return call
            return self._last()
        last = self._last()
        if of > 1 and len(self._calls) >= of:
            return self._calls[position - of]
        return last

    def _last(self) -> Call | None:
        return self._calls[-1] if self._calls else None

    def _identify(self, call: Call, index: int | None, id: str | None, name: str | None) -> None:
        if index is not None:
            self._by_index.setdefault(index, call)
        if id:
            call.provider_id = call.provider_id or id
            self._by_id.setdefault(id, call)
        if name and not call.begun:
            call.name = self._joined(call, name) or call.name

    def _joined(self, call: Call, name: str) -> str | None:
        """The call's name with a further piece of it; ``None`` if it is another name."""
        old = call.name
        if not old:
            return name
        fits = self._known | self._prefixes
        if name == old and (old in self._known or old + name not in fits):
            return old  # named again
        if call.name_over or call.begun or not call.empty():
            return None
        if name != old and name.startswith(old) and name in fits:
            return name  # the name so far, each time
        if old + name in fits:
            return old + name
        if old in self._known or name in self._known:
            return None
        return old + name

    # --- both APIs ------------------------------------------------------------------------------------------

    def open(self, id: str | None, name: str) -> Call:
        """Open a call; it is shown once its name and those of the calls before it are settled."""
        if len(self._calls) >= MAX_CALLS:
            raise broken(f"More than {MAX_CALLS} tool calls in one turn.", retryable=False)
        call = Call(len(self._calls), id, name)
        self._calls.append(call)
        if id:
            self._by_id[id] = call
        return call

    def push(self, out: list[Delta], call: Call, text: str) -> None:
        """Add a piece of a call's arguments."""
        if text:
            self._size += len(text)
            if self._size > MAX_ARGUMENTS:
                raise broken(
                    f"More than {MAX_ARGUMENTS >> 20} Mi characters of tool arguments.", retryable=False
                )
            if call.reopened and not text.isspace():
                call.reopened = False
                if text.lstrip().startswith("{"):
                    call = self._reopen(call)
            call.parts.append(text)
            call.name_over = call.name_over or bool(call.name)
            if call.begun and not call.held and len(call.parts) > 1:
                out.append(CallArgs(call.key, text))
                return
            call.held.append(text)
        if call.begun:
            self._show_args(out, call)
        else:
            self._show(out)

    def replace(self, out: list[Delta], call: Call, text: str) -> None:
        """Set the whole arguments, as told again at a call's end; shows what was not shown yet."""
        raw = call.raw
        if text != raw:
            more = text[len(raw) :] if text.startswith(raw) else ""
            self.push(out, call, more)
            call.parts = [text]

    def _reopen(self, old: Call) -> Call:
        call = self.open(None, old.name)
        call.doubtful = True
        for index, known in self._by_index.items():
            if known is old:
                self._by_index[index] = call
        return call

    def _name_is_whole(self, call: Call) -> bool:
        if not call.name:
            return False
        longer = call.name in self._prefixes
        if call.name in self._known:
            return not longer or call.name_over
        return call.name_over and not longer

    def _show(self, out: list[Delta], *, at_end: bool = False) -> None:
        for call in self._calls[0 if at_end else self._shown :]:
            if not call.begun:
                if not at_end and (call.doubtful or not self._name_is_whole(call)):
                    return
                call.begun = True
                call.name = call.name or UNNAMED
                self._shown = call.key + 1
                out.append(CallBegan(call.key, call.name))
            self._show_args(out, call, at_end=at_end)

    def _show_args(self, out: list[Delta], call: Call, *, at_end: bool = False) -> None:
        if not call.held:
            return
        text = "".join(call.held)
        # "{}" may be a placeholder before the real arguments: shown only once it is known to be all
        if (
            not at_end
            and (not text.strip() or text.strip() in ("{", "{}"))
            and len(call.held) == len(call.parts)
        ):
            return
        if text.lstrip().startswith("{}") and text.strip() != "{}":
            text = text.lstrip()[2:]
        call.held = []
        if text:
            out.append(CallArgs(call.key, text))

    def finish(self, out: list[Delta], *, cut_short: bool) -> tuple[CompleteCall, ...]:
        """The turn is over: show what is left and say how each call stands.

        Args:
            cut_short: the turn ended by ``length`` or ``content_filter``: what is not plainly whole is not.
        """
        self._calls = [c for c in self._calls if (c.name or not c.empty()) and not self._repeats(c)]
        for key, call in enumerate(self._calls):
            if not call.begun:
                call.key = key
        self._show(out, at_end=True)
        return tuple(_complete(c, cut_short) for c in self._calls)

    def _repeats(self, call: Call) -> bool:
        """Whether a doubtful call says what an earlier one said."""
        if not call.doubtful or call.begun:
            return False
        earlier = (c for c in self._calls[: call.key] if c.name == call.name)
        said = parse_arguments(call.raw)[1]
        return said is not None and any(parse_arguments(c.raw)[1] == said for c in earlier)


def _continues(text: str) -> bool:
    return bool(text) and not text.lstrip().startswith("{")


def _differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two calls' opaque members contradict each other."""
    for name, value in new.items():
        have = old.get(name)
        if isinstance(have, dict) and isinstance(value, dict):
            if _differ(have, value):
                return True
        elif isinstance(have, str) and isinstance(value, str) and have and value and have != value:
            return True
    return False


def _merge(old: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        have = old.get(name)
        if isinstance(have, dict) and isinstance(value, dict):
            _merge(have, value)
        else:
            old[name] = value


def _complete(call: Call, cut_short: bool) -> CompleteCall:
    raw, value, error = parse_arguments(call.raw)
    if cut_short and not call.closed and (error is not None or not value):
        value, error = None, "truncated"
    return CompleteCall(
        call.key, call.name, value, raw, error, provider_id=call.provider_id, extras=call.extras or None
    )

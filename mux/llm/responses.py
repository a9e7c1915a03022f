"""Responses API events → deltas. Format: https://platform.openai.com/docs/api-reference/responses-streaming.

Servers leave events out (arguments or text only in the ``done`` event, or only in the last one), so each
later report fills in what the earlier ones did not say, and nothing is said twice.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

import msgspec

from mux.errors import UpstreamError
from mux.events import Usage
from mux.llm.chat import Halves, settle_finish
from mux.llm.failures import broken, raise_reported, reported, scrub_all
from mux.llm.model import Delta, ReasoningDelta, RefusalDelta, TextDelta, TurnEnd
from mux.llm.tool_calls import Assembler, Call
from mux.llm.usage import merge_usage, read_usage

__all__ = ["ResponsesParser"]


class _Event(msgspec.Struct):
    type: str | None = None
    delta: str | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | dict[str, Any] | None = None
    name: str | None = None
    item: Any = None
    response: Any = None
    error: Any = None
    code: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_FIELDS: Final = frozenset(_Event.__struct_fields__)

_Say = type[TextDelta] | type[ReasoningDelta] | type[RefusalDelta]
_DELTAS: dict[str, _Say] = {
    "response.output_text.delta": TextDelta,
    "response.refusal.delta": RefusalDelta,
    "response.reasoning_summary_text.delta": ReasoningDelta,
    "response.reasoning_text.delta": ReasoningDelta,
    "response.reasoning.delta": ReasoningDelta,
    "response.reasoning_summary.delta": ReasoningDelta,
}
_WHOLES: dict[str, _Say] = {
    "response.output_text.done": TextDelta,
    "response.refusal.done": RefusalDelta,
    "response.reasoning_summary_text.done": ReasoningDelta,
    "response.reasoning_text.done": ReasoningDelta,
}
_QUIET = frozenset({"response.created", "response.in_progress", "response.queued", "keepalive", "ping"})


class ResponsesParser:
    """Reads the events of one turn (a :class:`mux.llm.wire.StreamParser`).

    Args:
        known: names of the tools offered.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        self.out: list[Delta] = []
        self.progress = False
        self.terminal = False
        self.started = False
        self._calls = Assembler(known)
        self._by_item: dict[str, Call] = {}
        self._halves = Halves()
        self._said: dict[tuple[str, str], int] = {}  # (place, kind) → characters said
        self._items: dict[str, dict[str, Any]] = {}
        self._places: dict[str, str] = {}  # item id → the place that its output index gave it
        self._finish: str | None = None
        self._spoke = False
        self._usage: Usage | None = None
        self._model: str | None = None

    def record(self, event: str, data: bytes) -> None:
        """Read one event. Raises ``upstream_error`` and ``upstream_protocol``."""
        self.started = True
        try:
            value = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = _lenient(data, event)
        kind = value.type or event
        say = _DELTAS.get(kind)
        if say is not None:
            if value.delta:
                self._say(say, self._place(kind, value), value.delta)
        elif kind not in _QUIET:
            self._event(kind, value)
        elif isinstance(value.response, dict):
            self._answers(value.response.get("model"))

    def whole(self, value: dict[str, Any]) -> bool:
        if not isinstance(value.get("output"), list):
            return False
        self.started = True
        self._over(value)
        return True

    def _answers(self, model: Any) -> None:
        if isinstance(model, str) and model:
            self._model = scrub_all(model)

    # --- events ---------------------------------------------------------------------------------------------

    def _event(self, kind: str, value: _Event) -> None:
        if kind == "error" or value.error:
            error = value.error if isinstance(value.error, dict) else {"code": value.code}
            raise reported(error)
        if kind == "response.function_call_arguments.delta":
            self._arguments(value)
        elif kind == "response.function_call_arguments.done":
            self.progress = True
            self._whole_call(self._call(value), value.arguments)
        elif kind in _WHOLES:
            self._whole(_WHOLES[kind], self._place(kind, value), value.text or value.refusal)
        elif kind in ("response.output_item.added", "response.output_item.done"):
            if isinstance(value.item, dict):
                self.progress = True
                self._item(scrub_all(value.item), value.output_index, done=kind.endswith("done"))
        elif kind == "response.reasoning_summary_part.added" and value.summary_index:
            before = f"{self._base(value.item_id, value.output_index)}/summary/{value.summary_index - 1}"
            if (before, ReasoningDelta.__name__) in self._said:
                self._say(ReasoningDelta, "break", "\n\n")
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
            response = value.response if isinstance(value.response, dict) else {}
            self._over({"status": kind.rpartition(".")[2], **response})

    def _base(self, id: str | None, index: int | None) -> str:
        """Where an item is: by its index where it has one, since some proxies change the id every time."""
        if id and id in self._places:
            return self._places[id]
        base = str(id) if index is None else f"#{index}"
        if id:
            self._places[id] = base
        return base

    def _place(self, kind: str, value: _Event) -> str:
        base = self._base(value.item_id, value.output_index)
        if "summary" in kind:
            return f"{base}/summary/{value.summary_index or 0}"
        return f"{base}/content/{value.content_index or 0}"

    def _say(self, kind: _Say, place: str, text: str) -> None:
        self.progress = self._spoke = True
        key = (place, kind.__name__)
        self._said[key] = self._said.get(key, 0) + len(text)
        if not text.isascii() or self._halves.pending:
            text = self._halves.mend(f"{place} {kind.__name__}", text)
        if text:
            self.out.append(kind(text))

    def _whole(self, kind: _Say, place: str, text: Any) -> None:
        """A text told again at its end: say what of it was not said."""
        if isinstance(text, str) and text:
            self.progress = True
            said = self._said.get((place, kind.__name__), 0)
            if len(text) > said:
                self._say(kind, place, text[said:])

    def _call(self, value: _Event) -> Call:
        keys = [k for k in (value.item_id, _at(value.output_index)) if k]
        call = next((self._by_item[k] for k in keys if k in self._by_item), None)
        if call is None:
            call = self._calls.open(None, value.name or "")
        elif value.name and not call.name:
            call.name = value.name
        for key in keys:
            self._by_item.setdefault(key, call)
        self._spoke = True
        return call

    def _arguments(self, value: _Event) -> None:
        if not value.delta:
            return
        self.progress = True
        text = value.delta
        if not text.isascii() or self._halves.pending:
            text = self._halves.mend(f"arguments {value.item_id}", text)
        self._calls.push(self.out, self._call(value), text)

    def _whole_call(self, call: Call, arguments: Any) -> None:
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, str) and arguments:
            self._calls.replace(self.out, call, scrub_all(arguments))

    def _item(self, item: dict[str, Any], index: int | None, *, done: bool) -> None:
        kind = item.get("type")
        id = item.get("id") if isinstance(item.get("id"), str) else None
        if kind == "function_call":
            self._function_call(item, id, index, done=done)
        if not done:
            return
        base = self._base(id, index)
        if kind == "message":
            for at, part in enumerate(_list(item.get("content"))):
                if isinstance(part, dict):
                    place = f"{base}/content/{at}"
                    self._whole(TextDelta, place, part.get("text"))
                    self._whole(RefusalDelta, place, part.get("refusal"))
        elif kind == "reasoning":
            for name in ("summary", "content"):
                for at, part in enumerate(_list(item.get(name))):
                    if isinstance(part, dict):
                        self._whole(ReasoningDelta, f"{base}/{name}/{at}", part.get("text"))
        self._items[base] = item

    def _function_call(self, item: dict[str, Any], id: str | None, index: int | None, *, done: bool) -> None:
        name = item.get("name") if isinstance(item.get("name"), str) else None
        call = self._call(_Event(item_id=id, output_index=index, name=name))
        call_id = item.get("call_id")
        if isinstance(call_id, str) and call_id:
            call.provider_id = call_id
        call.name_over = bool(call.name)  # names come whole here
        self._calls.push(self.out, call, "")
        if done:
            self._whole_call(call, item.get("arguments"))
            call.closed = item.get("status") != "incomplete"

    def _over(self, response: dict[str, Any]) -> None:
        """A terminal event: the whole response once more, with usage."""
        self.progress = True
        status = response.get("status")
        error = response.get("error")
        if status in ("failed", "cancelled") or error:
            raise_reported({"error": error or {"type": status}})
        for index, item in enumerate(_list(response.get("output"))):
            if isinstance(item, dict):
                self._item(scrub_all(item), index, done=True)
        self._usage = merge_usage(self._usage, read_usage(response.get("usage")))
        self._answers(response.get("model"))
        details = response.get("incomplete_details")
        if status == "incomplete":
            reason = details.get("reason") if isinstance(details, dict) else None
            self._finish = "content_filter" if reason == "content_filter" else "length"
        else:
            self._finish = "stop"
        self.terminal = True

    # --- the end --------------------------------------------------------------------------------------------

    def end(self, *, done: bool) -> TurnEnd:
        if not self._spoke and self._finish is None:
            raise UpstreamError("upstream_empty", "The stream ended without an answer.", retryable=True)
        calls = self._calls.finish(self.out, cut_short=self._finish in ("length", "content_filter"))
        items = [i for i in self._items.values() if i.get("type") in ("reasoning", "function_call")]
        return TurnEnd(
            finish=settle_finish(self._finish, len(calls)),
            calls=calls,
            usage=self._usage,
            provider_items=items or None,
            model=self._model,
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(index: int | None) -> str | None:
    return None if index is None else f"#{index}"


def _lenient(data: bytes, event: str) -> _Event:
    if event == "error":
        return _Event(type="error")
    try:
        value = json.loads(data.decode("utf-8", "replace").lstrip("\ufeff"), strict=False)
    except (ValueError, RecursionError):
        raise broken("A record of the stream is not JSON.") from None
    if isinstance(value, str):
        raise broken("A record of the stream is not a JSON object.")
    if not isinstance(value, dict):
        return _Event(type="ping")
    fitting: dict[str, Any] = {}
    for name in _FIELDS & value.keys():
        field = value[name]
        if name in ("item", "response", "error", "code") or (name == "arguments" and isinstance(field, dict)):
            fitting[name] = field
        elif name.endswith("_index"):
            fitting[name] = field if isinstance(field, int) and not isinstance(field, bool) else None
        else:
            fitting[name] = field if isinstance(field, str) else None
    return _Event(**fitting)

"""Responses API events → deltas. Format: https://platform.openai.com/docs/api-reference/responses-streaming.

Servers leave events out (arguments or text only in the ``done`` event, or only in the last one), so each
later report fills in what the earlier ones did not say, and nothing is said twice (:mod:`mux.llm.spoken`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final

import msgspec

from mux.errors import UpstreamError
from mux.events import Usage
from mux.llm.call import Call
from mux.llm.chat import Halves
from mux.llm.failures import broken, raise_reported, reported, scrub_all
from mux.llm.finish import settle_finish
from mux.llm.frames import text_of, values_of
from mux.llm.model import Delta, OutputDelta, ReasoningDelta, RefusalDelta, TextDelta, TurnEnd
from mux.llm.spoken import FINAL, Calls, Say, Spoken
from mux.llm.tool_calls import Assembler
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
    input: str | None = None
    part: Any = None
    refusal: str | None = None
    arguments: str | dict[str, Any] | None = None
    name: str | None = None
    item: Any = None
    response: Any = None
    error: Any = None
    code: Any = None
    annotation: Any = None
    logprobs: Any = None
    partial_image_b64: str | None = None


_decode = msgspec.json.Decoder(_Event).decode
_FIELDS: Final = frozenset(_Event.__struct_fields__)

_DELTAS: dict[str, Say] = {
    "response.output_text.delta": TextDelta,
    "response.refusal.delta": RefusalDelta,
    "response.reasoning_summary_text.delta": ReasoningDelta,
    "response.reasoning_text.delta": ReasoningDelta,
    "response.reasoning.delta": ReasoningDelta,
    "response.reasoning_summary.delta": ReasoningDelta,
    "response.audio.transcript.delta": TextDelta,
    "response.output_audio_transcript.delta": TextDelta,
}
_WHOLES: dict[str, Say] = {
    "response.output_text.done": TextDelta,
    "response.refusal.done": RefusalDelta,
    "response.reasoning_summary_text.done": ReasoningDelta,
    "response.reasoning_text.done": ReasoningDelta,
}
_AUDIO = frozenset({"response.audio.delta", "response.output_audio.delta"})
_SPOKEN_PARTS = frozenset({"output_text", "text", "refusal", "reasoning_text", "summary_text"})
_NO_NEWS = ("id", "status")  # of an item: servers make them anew with every report
_QUIET = frozenset({"response.created", "response.in_progress", "response.queued", "keepalive", "ping"})
_CALL_DELTAS = frozenset({"response.function_call_arguments.delta", "response.custom_tool_call_input.delta"})
_CALL_WHOLES = frozenset({"response.function_call_arguments.done", "response.custom_tool_call_input.done"})
# response.done: servers of the realtime API's words
_OVER = frozenset(f"response.{s}" for s in ("completed", "done", "incomplete", "failed", "cancelled"))


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
        self._assembler = Assembler(known)
        self._calls = Calls(self._assembler)
        self._halves = Halves()
        self._said = Spoken()
        self._items: dict[str, dict[str, Any]] = {}
        self._reported: dict[str, set[str]] = defaultdict(set)  # level of report → items that it has told of
        self._given: set[int] = set()  # annotations and the like, by their JSON
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
            for odd in _lenient(data, event):
                self._read(odd, event, data)
            return
        self._read(value, event, data)

    def _read(self, value: _Event, event: str, data: bytes) -> None:
        kind = value.type or event
        say = _DELTAS.get(kind)
        if say is not None:
            if value.delta:
                self._say(say, self._place(kind, value), value.delta)
                if value.logprobs and say is TextDelta:
                    self.out.append(OutputDelta("logprobs", {"content": scrub_all(value.logprobs)}, True))
        elif kind not in _QUIET:
            if kind != "error" and not kind.startswith("response."):  # an error in some gateway's words?
                for other in values_of(data):
                    if isinstance(other, dict):
                        raise_reported(other)
            self._event(kind, value)
        elif isinstance(value.response, dict):
            self._answers(value.response.get("model"))

    def whole(self, value: dict[str, Any]) -> bool:
        if not isinstance(value.get("output"), list):
            return False
        self.started = True
        if value.get("status") not in ("queued", "in_progress"):
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
        if kind in _CALL_DELTAS:
            self._arguments(value)
        elif kind in _CALL_WHOLES:
            self.progress = True
            self._whole_call(self._call(value), value.input if value.arguments is None else value.arguments)
        elif kind in _WHOLES:
            self._whole(_WHOLES[kind], self._place(kind, value), value.text or value.refusal, "text")
        elif kind == "response.content_part.done":
            self._part(self._place(kind, value), value.part, "part")
        elif kind in ("response.output_item.added", "response.output_item.done"):
            if isinstance(value.item, dict):
                self.progress = True
                self._item(
                    scrub_all(value.item), value.output_index, "item" if kind.endswith("done") else None
                )
        elif kind == "response.reasoning_summary_part.added" and value.summary_index:
            before = f"{self._base(value.item_id, value.output_index)}/summary/{value.summary_index - 1}"
            if (before, ReasoningDelta) in self._said:
                self.out.append(ReasoningDelta("\n\n"))
        elif kind in _OVER:
            response = value.response if isinstance(value.response, dict) else {}
            self._over({"status": kind.rpartition(".")[2], **response})
        else:
            self._no_text(kind, value)

    def _no_text(self, kind: str, value: _Event) -> None:
        """Citations, speech, pictures, and built-in tools at work."""
        if kind == "response.output_text.annotation.added":
            self._annotations([value.annotation])
        elif kind in _AUDIO and value.delta:
            self.progress = self._spoke = True
            self.out.append(OutputDelta("audio", {"data": value.delta}))
        elif value.partial_image_b64:
            self._once("partial_image", {"item": value.item_id, "b64_json": value.partial_image_b64}, True)
        elif "_call" in kind:  # its item says in the end what came of it
            self.progress = True

    def _annotations(self, found: Any) -> None:
        for annotation in _list(found):
            self._once("annotation", annotation, True)

    def _once(self, name: str, value: Any, silent: bool = False) -> None:
        """Give out what is no text, unless it was given before."""
        key = hash(f"{name} {json.dumps(value, sort_keys=True, default=str)}")
        if value and key not in self._given:
            self._given.add(key)
            self.progress = True
            self._spoke = self._spoke or not silent
            self.out.append(OutputDelta(name, scrub_all(value), silent))

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

    def _say(self, kind: Say, place: str, text: str) -> None:
        self._said.add(kind, place, text)
        self._pass_on(kind, place, text)

    def _pass_on(self, kind: Say, place: str, text: str) -> None:
        self.progress = self._spoke = True
        if not text.isascii() or self._halves.pending:
            text = self._halves.mend(f"{place} {kind.__name__}", text)
        if text:
            self.out.append(kind(text))

    def _whole(self, kind: Say, place: str, text: Any, level: str) -> None:
        """A text told again: say what of it was not said."""
        if isinstance(text, str) and text:
            self.progress = True
            if rest := self._said.rest(kind, place, text, level):
                self._pass_on(kind, place, rest)

    def _part(self, place: str, part: Any, level: str) -> None:
        if isinstance(part, dict):
            thought = part.get("type") in ("reasoning_text", "summary_text")
            self._whole(ReasoningDelta if thought else TextDelta, place, part.get("text"), level)
            self._whole(RefusalDelta, place, part.get("refusal"), level)
            self._annotations(part.get("annotations"))
            if isinstance(part.get("type"), str) and part["type"] not in _SPOKEN_PARTS:
                self._once("content_part", part)

    # --- calls ----------------------------------------------------------------------------------------------

    def _call(self, value: _Event) -> Call:
        self._spoke = True
        call = self._calls.of_event(value.item_id, value.output_index)
        if call is None:
            return self._calls.open(value.item_id, value.output_index, None, value.name or "")
        if value.name and not call.name:
            call.name = value.name
        return call

    def _arguments(self, value: _Event) -> None:
        if not value.delta:
            return
        self.progress = True
        text = value.delta
        if not text.isascii() or self._halves.pending:
            text = self._halves.mend(f"arguments {value.item_id}", text)
        self._assembler.push(self.out, self._call(value), text)

    def _whole_call(self, call: Call, arguments: Any) -> None:
        if text := _argument_text(arguments):
            self._assembler.replace(self.out, call, text)

    def _item(self, item: dict[str, Any], index: int | None, level: str | None) -> None:
        """An item: begun, or whole where it has a ``level`` of report."""
        kind = item.get("type")
        id = item.get("id") if isinstance(item.get("id"), str) else None
        if kind in ("function_call", "custom_tool_call"):
            # the last list counts on its own: its positions are no output indexes
            self._function_call(item, id, None if level == FINAL else index, level)
        if level is None:
            return
        base = self._base(id, index)
        if kind == "message":
            for at, part in enumerate(_list(item.get("content"))):
                self._part(f"{base}/content/{at}", part, level)
        elif kind == "reasoning":
            for name in ("summary", "content"):
                for at, part in enumerate(_list(item.get(name))):
                    if isinstance(part, dict):
                        self._whole(ReasoningDelta, f"{base}/{name}/{at}", part.get("text"), level)
            self._keep(item, id or base, level)
        elif kind in ("function_call", "custom_tool_call") or not isinstance(kind, str):
            return
        elif self._keep(item, id or base, level):
            self._spoke = True
            self.out.append(OutputDelta("output_item", item))

    def _keep(self, item: dict[str, Any], key: str, level: str) -> bool:
        """Keep a whole item for the way back; whether it was not known. Later reports of one replace it."""
        told = self._reported[level]
        placed = (
            self._items.get(key) if key not in told and (level != FINAL or item.get("id") == key) else None
        )
        same = placed is not None and placed.get("type") == item.get("type")
        known = key if same else self._twin(item, told, level)
        if (
            known is None and key in self._items
        ):  # another item's place: positions are not the same everywhere
            key = f"{key} {len(self._items)}"
        told.add(known or key)
        self._items[known or key] = item
        return known is None

    def _twin(self, item: dict[str, Any], told: set[str], level: str) -> str | None:
        """The same item under another id or place, told by what it says; in the last report by its order,
        where it says nothing."""
        alike = [k for k, i in self._items.items() if k not in told and i.get("type") == item.get("type")]
        content = _content(item)
        same = next((k for k in alike if _content(self._items[k]) == content), None)
        if same is None and level == FINAL and not any(content):
            return next((k for k in alike if not any(_content(self._items[k]))), None)
        return same

    def _function_call(
        self, item: dict[str, Any], id: str | None, index: int | None, level: str | None
    ) -> None:
        self._spoke = True
        name = item.get("name") if isinstance(item.get("name"), str) else ""
        call_id = item.get("call_id") if isinstance(item.get("call_id"), str) else None
        arguments = _argument_text(item.get("arguments", item.get("input")))
        told = (level, name or "", arguments) if level else None
        call = self._calls.of_item(id, index, call_id or None, told=told)
        if call is None:
            call = self._calls.open(id, index, call_id or None, name or "")
        call.name = call.name or name or ""
        call.provider_id = call_id or call.provider_id
        call.name_over = bool(call.name)  # names come whole here
        self._assembler.push(self.out, call, "")
        if level:
            self._whole_call(call, arguments)
            call.closed = item.get("status") != "incomplete"
            self._items[f"call {call.key}"] = item

    def _over(self, response: dict[str, Any]) -> None:
        """A terminal event: the whole response once more, with usage."""
        self.progress = True
        status = response.get("status")
        error = response.get("error")
        if status in ("failed", "cancelled") or error:
            raise_reported({"error": error or {"type": status}})
        for index, item in enumerate(_list(response.get("output"))):
            if isinstance(item, dict):
                self._item(scrub_all(item), index, FINAL)
        if not self._said.any(TextDelta):  # some put all text there and leave the list empty
            self._whole(TextDelta, "", response.get("output_text"), FINAL)
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
        calls = self._assembler.finish(self.out, cut_short=self._finish in ("length", "content_filter"))
        items = [i for i in self._items.values() if i.get("type") != "custom_tool_call"]
        return TurnEnd(
            finish=settle_finish(self._finish, len(calls)),
            calls=calls,
            usage=self._usage,
            provider_items=items or None,
            model=self._model,
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _content(item: dict[str, Any]) -> tuple[Any, ...]:
    """What an item says, without what is made anew with every report of it."""
    if item.get("type") == "reasoning":
        parts = [*_list(item.get("summary")), *_list(item.get("content"))]
        return tuple(p["text"] for p in parts if isinstance(p, dict) and p.get("text"))
    return tuple((k, json.dumps(v, sort_keys=True)) for k, v in sorted(item.items()) if k not in _NO_NEWS)


def _argument_text(arguments: Any) -> str:
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return scrub_all(arguments) if isinstance(arguments, str) else ""


def _lenient(data: bytes, event: str) -> list[_Event]:
    if event == "error":
        return [_Event(type="error")]
    events: list[_Event] = []
    for value in values_of(data):
        if isinstance(value, str):
            raise broken("A record of the stream is not a JSON object.")
        objects = value if isinstance(value, list) else [value]
        events += [_Event(**_fitting(v)) if isinstance(v, dict) else _Event(type="ping") for v in objects]
    return events


def _fitting(value: dict[str, Any]) -> dict[str, Any]:
    fitting: dict[str, Any] = {}
    for name in _FIELDS & value.keys():
        field = value[name]
        if name in _ANY or (name == "arguments" and isinstance(field, dict)):
            fitting[name] = field
        elif name.endswith("_index"):
            fitting[name] = field if isinstance(field, int) and not isinstance(field, bool) else None
        else:
            fitting[name] = text_of(field)
    return fitting


_ANY: Final = frozenset({"item", "response", "error", "code", "part", "annotation", "logprobs"})

"""chat.completions chunks → deltas.

Format: https://platform.openai.com/docs/api-reference/chat-streaming; deviations name who sends them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

import msgspec

from mux.errors import UpstreamError
from mux.events import Usage
from mux.llm.failures import broken, raise_reported, scrub, scrub_all
from mux.llm.finish import FAILED, NATURAL, NOT_FINISHED, STOPS, plain, said_word, settle_finish
from mux.llm.frames import (
    CALL_EXTRAS,
    UNFIT,
    Choice,
    Chunk,
    DeltaFrame,
    Function,
    ToolCall,
    decode,
    lenient,
    lenient_chunk,
    text_of,
    values_of,
)
from mux.llm.model import Delta, OtherChoice, OutputDelta, ReasoningDelta, RefusalDelta, TextDelta, TurnEnd
from mux.llm.tool_calls import Assembler
from mux.llm.usage import merge_usage, read_usage

__all__ = ["ChatParser", "Halves"]


_EMPTY = DeltaFrame()
MAX_CHOICES: Final = 128

_Say = type[TextDelta] | type[ReasoningDelta] | type[RefusalDelta]
_SAYS: dict[str, _Say] = {"text": TextDelta, "reasoning": ReasoningDelta, "refusal": RefusalDelta}
_NAMES = {kind: name for name, kind in _SAYS.items()}
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_text", "thinking")
# members of a delta that carry no answer, whoever sends them
_NOISE: Final = frozenset(
    {"role", "name", "type", "object", "id", "index", "status", "provider", "model", "token_ids", "metadata"}
    | {"obfuscation", "tool_call_id", "prefix", "finish_reason", "stop_reason", "logprobs"}
)
_WHOLE_PARTS: Final = frozenset({"text", "output_text", "thinking", "reasoning", "refusal"})


class Halves:
    """Joins surrogate pairs that were cut between deltas; what stays alone becomes U+FFFD."""

    def __init__(self) -> None:
        self.pending: dict[str, str] = {}

    def mend(self, kind: str, text: str) -> str:
        text = self.pending.pop(kind, "") + text
        if text and "\ud800" <= text[-1] <= "\udbff":
            self.pending[kind] = text[-1]
            text = text[:-1]
        return text if text.isascii() else scrub(text)


class ChatParser:
    """Reads the chunks of one turn (a :class:`mux.llm.wire.StreamParser`).

    Args:
        known: names of the tools offered.
        n: how many choices were asked for.
    """

    def __init__(self, known: Collection[str] = (), n: int = 1) -> None:
        self.out: list[Delta] = []
        self.progress = False
        self.terminal = False
        self.started = False
        self._n = n
        self._known = known
        self._calls = Assembler(known)
        self._halves = Halves()
        self._primary: int | None = (
            0 if n > 1 else None
        )  # the first choice seen, where only one was asked for
        self._others: dict[int, ChatParser] = {}
        self._unfinished: set[int] = set()
        self._said: str | None = None
        self._spoke = False  # anything of the answer was received
        self._kinds: set[_Say] = set()
        self._usage: Usage | None = None
        self._model: str | None = None
        self._details: list[dict[str, Any]] = []
        self._blocks: list[dict[str, Any]] = []
        self._extras: dict[str, Any] = {}
        self._media: dict[str, list[Any]] = {}  # pictures and files: they go back with the message
        self._audio: str | None = None  # the id by which spoken words go back
        self._given: set[int] = set()  # what is no text and came already, by its JSON
        self._reasoning_field: str | None = None

    # --- records --------------------------------------------------------------------------------------------

    def record(self, event: str, data: bytes) -> None:
        """Read one chunk. Raises ``upstream_error`` and ``upstream_protocol``."""
        self.started = True
        try:
            chunk = decode(data)
        except UNFIT:
            for chunk in lenient(data, event):
                self._chunk(chunk, event)
                self._odd(chunk, data)
            return
        self._chunk(chunk, event)
        if chunk.choices is None:
            self._odd(chunk, data)
        elif chunk.choices and chunk.choices[0].delta == _EMPTY:
            self._unknown(data)

    def _odd(self, chunk: Chunk, data: bytes) -> None:
        """A record without choices: usage, a keep-alive, or an error in the words of some gateway."""
        if chunk.choices is None:
            for value in values_of(data):
                if isinstance(value, dict):
                    raise_reported(value)

    def _unknown(self, data: bytes) -> None:
        """A delta in which nothing is known: it may be an answer in a form that nobody here has heard of."""
        for value in values_of(data):
            choices = value.get("choices") if isinstance(value, dict) else None
            first = choices[0] if isinstance(choices, list) and choices else None
            delta = first.get("delta") if isinstance(first, dict) else None
            if not isinstance(delta, dict):
                continue
            for name, content in delta.items():
                known = name in _NOISE or name in DeltaFrame.__struct_fields__
                if not known and content and isinstance(content, str | list | dict):
                    self._output("delta", {scrub_all(name): scrub_all(content)})

    def whole(self, value: dict[str, Any]) -> bool:
        chunk = lenient_chunk(value)
        if not any(c.message is not None or c.text for c in chunk.choices or ()):
            return False
        self.started = True
        self._chunk(chunk, "")
        self.terminal = True
        return True

    def _chunk(self, chunk: Chunk, event: str) -> None:
        if chunk.error or event == "error" or chunk.type == "error" or chunk.object == "error":
            error = chunk.error if isinstance(chunk.error, dict) else {"type": chunk.type}
            raise_reported({"error": error or {"type": "error"}})
        if chunk.model:
            self._model = chunk.model
        if chunk.citations or chunk.search_results:
            for name in ("citations", "search_results"):
                self._once(name, getattr(chunk, name), silent=True)
        usage = chunk.usage or (chunk.x_groq.get("usage") if isinstance(chunk.x_groq, dict) else None)
        if usage:
            self._count(usage)
        for choice in chunk.choices or ():
            self._choice(choice)

    def _count(self, raw: Any) -> None:
        usage = merge_usage(self._usage, read_usage(raw))
        if usage != self._usage:
            self._usage = usage
            self.progress = True

    def _choice(self, choice: Choice) -> None:
        index = choice.index or 0
        delta = choice.delta or _EMPTY
        if choice.text and delta == _EMPTY:
            delta = DeltaFrame(content=choice.text)
        if self._primary is None and (_says(delta) or choice.message is not None):
            self._primary = index  # some number the only choice anew, or name its role under another number
        first = index == self._primary or (self._n == 1 and not self._others and not _says(delta))
        if choice.message is not None and delta == _EMPTY:
            delta = self._unsaid(choice.message, index)
        if choice.error:
            raise_reported({"error": choice.error})
        if first:
            self._delta(delta)
        else:
            self._other(index, delta)
        if choice.usage:
            self._count(choice.usage)
        if choice.logprobs and first and isinstance(choice.logprobs, dict):
            held = {k: scrub_all(v) for k, v in choice.logprobs.items() if v}
            if held:
                self.out.append(OutputDelta("logprobs", held, silent=True))
        said = choice.finish_reason
        if said and (word := plain(said)) not in NOT_FINISHED:
            self._finished(index, word, first)

    def _unsaid(self, message: DeltaFrame, index: int) -> DeltaFrame:
        """A whole message: the answer of an endpoint that does not stream, or a gateway's last chunk, which
        says all of it again."""
        if index != (self._primary or 0):
            return _EMPTY if index in self._others else message
        said = self._kinds  # what was said before is not said twice
        return msgspec.structs.replace(
            message,
            content=None if TextDelta in said else message.content,
            reasoning_content=None if ReasoningDelta in said else message.reasoning_content,
            reasoning=None if ReasoningDelta in said else message.reasoning,
            reasoning_text=None if ReasoningDelta in said else message.reasoning_text,
            thinking=None if ReasoningDelta in said else message.thinking,
            reasoning_details=None if self._details else message.reasoning_details,
            refusal=None if RefusalDelta in said else message.refusal,
            audio=None if self._audio else message.audio,
            tool_calls=None if self._calls.calls else message.tool_calls,
            function_call=None if self._calls.calls else message.function_call,
        )

    def _finished(self, index: int, word: str, first: bool) -> None:
        self.progress = True
        self._unfinished.discard(index)
        if first:
            if word in FAILED:
                raise UpstreamError("upstream_error", "The endpoint broke the turn off.", retryable=True)
            if word not in STOPS and word not in NATURAL:
                self._once("finish_reason", {"word": said_word(word)}, silent=True)
            if self._said is None or STOPS.get(word) in ("length", "content_filter"):
                self._said = word
        self.terminal = self._said is not None and not self._unfinished

    def _other(self, index: int, delta: DeltaFrame) -> None:
        other = self._others.get(index)
        if other is None:
            if len(self._others) >= MAX_CHOICES:
                raise broken("More choices than anybody asked for.", retryable=False)
            other = self._others[index] = ChatParser(self._known)
            if self._n > 1:
                self._unfinished.add(index)
                self.terminal = False
        other._delta(delta)
        self.progress = self.progress or other.progress
        other.progress = False

    def _delta(self, delta: DeltaFrame) -> None:
        thought = delta.reasoning_content or delta.reasoning or delta.reasoning_text or delta.thinking
        if thought:
            self._reasoning_field = next(f for f in _THOUGHTS if getattr(delta, f))
            self._say(ReasoningDelta, "reasoning", thought)
        if delta.reasoning_details:
            self._think(self._details, delta.reasoning_details, shown=bool(thought))
        if delta.thinking_blocks:
            told = self._reasoning_field is not None  # LiteLLM says it all again beside the signature
            self._think(self._blocks, delta.thinking_blocks, shown=told)
        if isinstance(delta.content, str):
            if delta.content:
                self._say(TextDelta, "text", delta.content)
        elif delta.content:
            self._content_parts(delta.content)
        if delta.refusal:
            self._say(RefusalDelta, "refusal", delta.refusal)
        if delta.images or delta.audio or delta.annotations or delta.citations or delta.extra_content:
            self._no_text(delta)
        if delta.tool_calls:
            self._tool_calls(delta.tool_calls)
        if delta.function_call is not None:
            self._tool_calls([ToolCall(index=0, function=delta.function_call)])

    def _content_parts(self, content: list[Any]) -> None:
        for kind, text in _parts(content):
            self._say(kind, _NAMES[kind], text)
        for part in content:
            if isinstance(part, dict) and not (_WHOLE_PARTS & {str(part.get("type")), *part}):
                self._once("content_part", part)

    def _no_text(self, delta: DeltaFrame) -> None:
        """Pictures, speech, citations, signatures."""
        if delta.extra_content and isinstance(delta.extra_content, dict):
            self._extras["extra_content"] = scrub_all(delta.extra_content)
        for image in _listed(delta.images):
            if self._once("image", image):
                self._media.setdefault("images", []).append(scrub_all(image))
        for note in _listed(delta.annotations):
            silent = isinstance(note, dict) and note.get("type") != "file"
            if self._once("annotation", note, silent=silent) and not silent:
                self._media.setdefault("annotations", []).append(scrub_all(note))
        for citation in _listed(delta.citations):
            self._once("annotation", citation, silent=True)
        if isinstance(audio := delta.audio, dict) and any(audio.values()):
            if isinstance(id := audio.get("id"), str) and id:
                self._audio = scrub_all(id)
            self._output("audio", {k: scrub_all(v) for k, v in audio.items() if v})
            if isinstance(spoken := audio.get("transcript"), str) and spoken:
                self._say(TextDelta, "text", spoken)

    def _once(self, name: str, value: Any, *, silent: bool = False) -> bool:
        """Give out what is no text, unless it was given before; whether it was new."""
        if not value:
            return False
        key = hash(f"{name} {json.dumps(value, sort_keys=True, default=str)}")
        if key in self._given:
            return False
        self._given.add(key)
        self._output(name, scrub_all(value), silent=silent)
        return True

    def _output(self, name: str, value: Any, *, silent: bool = False) -> None:
        self.progress = True
        self._spoke = self._spoke or not silent
        self.out.append(OutputDelta(name, value, silent))

    def _say(self, kind: _Say, name: str, text: str) -> None:
        self.progress = self._spoke = True
        self._kinds.add(kind)
        if text := self._mend(name, text):
            self.out.append(kind(text))

    def _mend(self, kind: str, text: str) -> str:
        if text.isascii() and not self._halves.pending:
            return text
        return self._halves.mend(kind, text)

    def _think(self, kept: list[dict[str, Any]], entries: list[Any], *, shown: bool) -> None:
        """Keep thoughts that must go back as they came; say their text where nothing else said it."""
        for raw in entries:
            if not isinstance(raw, dict):
                continue
            item = scrub_all(raw)
            text = item.get("text") or item.get("summary") or item.get("thinking")
            if isinstance(text, str) and not shown:
                self._say(ReasoningDelta, "reasoning", text)
            _grow(kept, item)
            self._spoke = True

    def _tool_calls(self, fragments: list[ToolCall]) -> None:
        of = len(fragments)
        for position, f in enumerate(fragments):
            function = f.function or Function(f.name, f.arguments)
            if f.custom is not None:
                function = Function(f.custom.name, f.custom.input)
            text = function.arguments
            if text is None:
                text = ""
            elif not isinstance(text, str):
                text = json.dumps(scrub_all(text), ensure_ascii=False)
            elif not text.isascii() or self._halves.pending:
                text = self._mend(f"arguments {f.index if f.index is not None else f.id or position}", text)
            extras = None
            if f.extra_content or f.thought_signature or f.provider_specific_fields:
                extras = {k: scrub_all(v) for k in CALL_EXTRAS if (v := getattr(f, k))}
            carried = self._calls.fragment(
                self.out,
                index=f.index,
                id=f.id,
                name=function.name,
                text=text,
                extras=extras,
                position=position,
                of=of,
            )
            if carried:
                self.progress = self._spoke = True

    # --- the end --------------------------------------------------------------------------------------------

    def end(self, *, done: bool) -> TurnEnd:
        self._flush()
        if not self._spoke and self._said is None:
            raise UpstreamError("upstream_empty", "The stream ended without an answer.", retryable=True)
        cut_short = settle_finish(self._said, 0) != "stop"
        calls = self._calls.finish(self.out, cut_short=cut_short)
        items: list[Any] = []
        for at, call in enumerate(calls):
            if call.provider_id or call.extras:
                items.append({"kind": "call", "at": at, "id": call.provider_id, **(call.extras or {})})
        if self._details:
            items.append({"kind": "message", "reasoning_details": self._details})
        if self._blocks:
            items.append({"kind": "message", "thinking_blocks": self._blocks})
        if self._extras:
            items.append({"kind": "message", **self._extras})
        if self._media:
            items.append({"kind": "message", **self._media})
        if self._audio:
            items.append({"kind": "message", "audio": {"id": self._audio}})
        if self._reasoning_field and calls:
            items.append({"kind": "reasoning", "field": self._reasoning_field})
        return TurnEnd(
            finish=settle_finish(self._said, len(calls)),
            calls=calls,
            usage=self._usage,
            provider_items=items or None,
            model=self._model,
            choices=tuple(self._others[i]._whole_choice() for i in sorted(self._others)),
        )

    def _whole_choice(self) -> OtherChoice:
        self._flush()
        calls = self._calls.finish(self.out, cut_short=False)
        said = {kind: "".join(d.text for d in self.out if isinstance(d, kind)) for kind in _SAYS.values()}
        return OtherChoice(said[TextDelta], said[RefusalDelta], tuple((c.name, c.raw) for c in calls))

    def _flush(self) -> None:
        for kind in self._halves.pending:
            if say := _SAYS.get(kind):
                self.out.append(say("\ufffd"))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _says(delta: DeltaFrame) -> bool:
    return any(getattr(delta, field) for field in DeltaFrame.__struct_fields__)


def _parts(content: list[Any] | None) -> list[tuple[_Say, str]]:
    """What a list of content parts says, each with its kind (Mistral has ``thinking`` parts)."""
    found: list[tuple[_Say, str]] = []
    for part in content or ():
        kind: _Say = TextDelta
        if not isinstance(part, dict):
            text = part if isinstance(part, str) else None
        elif thought := text_of(part.get("thinking")):
            kind, text = ReasoningDelta, thought
        elif refusal := text_of(part.get("refusal")):
            kind, text = RefusalDelta, refusal
        else:
            kind = ReasoningDelta if part.get("type") in ("thinking", "reasoning") else TextDelta
            text = text_of(part)
        if text:
            found.append((kind, text))
    return found


def _grow(kept: list[dict[str, Any]], item: dict[str, Any]) -> None:
    """Add a piece: pieces of one index are one entry (OpenRouter's ``reasoning_details``), and so are pieces
    of a thought up to its signature (LiteLLM's ``thinking_blocks``). What is signed, sealed or another call's
    is never joined: the provider would refuse it."""
    last = kept[-1] if kept else None
    if (item.get("data") or item.get("signature")) and item in kept:
        return  # told again
    if last is None or not _goes_on(last, item):
        kept.append(dict(item))
        return
    for name, value in item.items():
        if name in _PIECES and isinstance(value, str) and isinstance(last.get(name), str):
            whole = item.get("signature") and value.startswith(last[name])
            last[name] = value if whole else last[name] + value
        elif value is not None:
            last[name] = value


def _goes_on(last: dict[str, Any], item: dict[str, Any]) -> bool:
    if (last.get("type"), last.get("index")) != (item.get("type"), item.get("index")):
        return False
    if "data" in last and "data" in item:
        return False  # encrypted: each comes whole
    if last.get("id") and item.get("id") and last["id"] != item["id"]:
        return False
    if last.get("signature"):
        return not any(item.get(name) for name in _PIECES) and item.get("signature") in (
            None,
            last["signature"],
        )
    return item.get("index") is not None or item.get("type") == "thinking"


_PIECES = frozenset({"text", "summary", "thinking"})

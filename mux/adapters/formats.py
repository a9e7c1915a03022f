"""What programs print, as drafts: plain lines, our own events, and two coding assistants' JSON lines.

The formats of others change, so they are read leniently: what is not known is kept as a ``custom`` event with
the format's name. Read after Claude Code 2.1 (``claude -p --output-format stream-json --verbose
--include-partial-messages``) and Codex CLI 0.130 (``codex exec --json``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from pydantic import ValidationError

from mux.adapters.turns import Turns
from mux.agent import Draft
from mux.errors import AgentError
from mux.events import BY_TYPE, Custom, ToolErrorCode, Usage

__all__ = ["FORMATS", "Format", "FormatName"]

FormatName: TypeAlias = Literal["lines", "jsonl", "claude-stream-json", "codex-json"]


class Format(Protocol):
    """Reads the lines of one program, in order."""

    output: str | None  # the final answer, where the program tells it apart

    def line(self, line: str) -> list[Draft]:
        """The drafts of one line. Raises AgentError where the program says that it failed."""


@dataclass(slots=True)
class _Lines:
    turns: Turns
    output: str | None = None

    def line(self, line: str) -> list[Draft]:
        return self.turns.text(line)


@dataclass(slots=True)
class _Json:
    """Lines that are JSON objects with a ``type``; anything else is kept as it stands."""

    turns: Turns
    output: str | None = None
    name: str = "jsonl"

    def line(self, line: str) -> list[Draft]:
        if not line.strip():
            return []
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return [Custom(name=self.name, value={"line": line.rstrip("\n")[:2000]})]
        if not isinstance(value, dict):
            return [Custom(name=self.name, value=value)]
        found = self.event(value)
        return [Custom(name=self.name, value=value)] if found is None else found

    def event(self, value: dict[str, Any]) -> list[Draft] | None:  # noqa: C901 -- one case per type
        """The drafts of one object; ``None``: it is not known."""
        turns, kind, call = self.turns, value.get("type"), str(value.get("call_id", ""))
        match kind:
            case "token":
                return turns.text(_text(value.get("content")))
            case "reasoning":
                return turns.reasoning(_text(value.get("content")))
            case "tool_call":
                return turns.call(call, _text(value.get("tool")))
            case "tool_args":
                return turns.args(call, _text(value.get("content")))
            case "tool_start":
                return turns.start(call, _text(value.get("tool")), _object(value.get("arguments")))
            case "tool_progress":
                return turns.progress(call, _text(value.get("message") or value.get("content")) or None)
            case "tool_result":
                error: ToolErrorCode | None = "tool_failed" if value.get("is_error") else None
                output, tool = _text(value.get("output")), _text(value.get("tool")) or "tool"
                return turns.result(call, output, tool=tool, data=value.get("data"), error=error)
            case "usage":
                known = {k: v for k, v in value.items() if k in Usage.model_fields}
                try:
                    return turns.used(Usage.model_validate(known))
                except ValidationError:
                    return None
            case "output":
                self.output = _text(value.get("content"))
                return []
            case "error":
                raise AgentError("agent_failed", _text(value.get("message")) or "The program failed.")
            case "custom" | "phase" | "refusal":
                try:
                    return [BY_TYPE[kind].model_validate(value)]
                except ValidationError:
                    return None
        return None


@dataclass(slots=True)
class _Claude(_Json):
    name: str = "claude-stream-json"
    _streamed: set[str] = field(default_factory=set)  # messages that came piece by piece
    _blocks: dict[int, tuple[str, str]] = field(default_factory=dict)
    _message: str = ""

    def event(self, value: dict[str, Any]) -> list[Draft] | None:
        parent = value.get("parent_tool_use_id")
        path = (str(parent),) if parent else ()
        match value.get("type"):
            case "stream_event":
                return self._piece(_object(value.get("event")), path)
            case "assistant":
                return self._whole(_object(value.get("message")), path)
            case "user":
                return self._results(_object(value.get("message")))
            case "result":
                return self._end(value)
            case "system" if value.get("subtype") == "init":
                self.turns.model = _text(value.get("model")) or self.turns.model
                return [Custom(name="session", value={"id": value.get("session_id")})]
        return None

    def _piece(self, event: dict[str, Any], path: tuple[str, ...]) -> list[Draft]:
        turns, index, delta = self.turns, int(event.get("index") or 0), _object(event.get("delta"))
        match event.get("type"), delta.get("type"):
            case "message_start", _:
                message = _object(event.get("message"))
                self._message = _text(message.get("id"))
                self._streamed.add(self._message)
                self._blocks.clear()
                turns.model = _text(message.get("model")) or turns.model
            case "content_block_start", _:
                block = _object(event.get("content_block"))
                self._blocks[index] = (_text(block.get("type")), _text(block.get("id")))
                if block.get("type") == "tool_use":
                    return turns.call(_text(block.get("id")), _text(block.get("name")), path)
            case "content_block_delta", "text_delta":
                return turns.text(_text(delta.get("text")), path)
            case "content_block_delta", "thinking_delta":
                return turns.reasoning(_text(delta.get("thinking")), path)
            case "content_block_delta", "input_json_delta":
                return turns.args(self._blocks.get(index, ("", ""))[1], _text(delta.get("partial_json")))
        return []

    def _whole(self, message: dict[str, Any], path: tuple[str, ...]) -> list[Draft]:
        found: list[Draft] = []
        streamed = _text(message.get("id")) in self._streamed
        for block in _objects(message.get("content")):
            match block.get("type"):
                case "text" if not streamed:
                    found += self.turns.text(_text(block.get("text")), path)
                case "thinking" if not streamed:
                    found += self.turns.reasoning(_text(block.get("thinking")), path)
                case "tool_use":
                    tool, arguments = _text(block.get("name")), _object(block.get("input"))
                    found += self.turns.start(_text(block.get("id")), tool, arguments, path)
        return found

    def _results(self, message: dict[str, Any]) -> list[Draft]:
        found: list[Draft] = []
        for block in _objects(message.get("content")):
            if block.get("type") == "tool_result":
                content = block.get("content")
                parts = [_text(p.get("text")) for p in _objects(content)]
                error: ToolErrorCode | None = "tool_failed" if block.get("is_error") else None
                output = content if isinstance(content, str) else "\n".join(parts)
                found += self.turns.result(_text(block.get("tool_use_id")), output, error=error)
        return found

    def _end(self, value: dict[str, Any]) -> list[Draft]:
        used = _object(value.get("usage"))
        usage = Usage(
            input_tokens=_count(used.get("input_tokens")),
            output_tokens=_count(used.get("output_tokens")),
            cached_tokens=_count(used.get("cache_read_input_tokens")),
            cost=_number(value.get("total_cost_usd")),
        )
        if value.get("is_error"):
            why = _text(value.get("result")) or _text(value.get("subtype")) or "it failed"
            raise AgentError("agent_failed", f"Claude Code: {why[:500]}")
        if isinstance(value.get("result"), str):
            self.output = value["result"]
        return self.turns.finish("stop", usage) or self.turns.used(usage)


@dataclass(slots=True)
class _Codex(_Json):
    name: str = "codex-json"

    def event(self, value: dict[str, Any]) -> list[Draft] | None:
        match value.get("type"):
            case "thread.started":
                return [Custom(name="session", value={"id": value.get("thread_id")})]
            case "turn.started":
                return self.turns.begin()
            case "item.started" | "item.updated" | "item.completed" as kind:
                return self._item(_object(value.get("item")), kind == "item.completed")
            case "turn.completed":
                used = _object(value.get("usage"))
                usage = Usage(
                    input_tokens=_count(used.get("input_tokens")),
                    output_tokens=_count(used.get("output_tokens")),
                    cached_tokens=_count(used.get("cached_input_tokens")),
                    reasoning_tokens=_count(used.get("reasoning_output_tokens")),
                )
                return self.turns.finish("stop", usage) or self.turns.used(usage)
            case "turn.failed":
                why = _text(_object(value.get("error")).get("message")) or "its turn failed"
                raise AgentError("agent_failed", f"Codex: {why[:500]}")
        return None

    def _item(self, item: dict[str, Any], done: bool) -> list[Draft] | None:
        turns, foreign = self.turns, _text(item.get("id"))
        match item.get("type"):
            case "agent_message":
                self.output = _text(item.get("text")) if done else self.output
                return turns.text(_text(item.get("text"))) if done else []
            case "reasoning":
                return turns.reasoning(_text(item.get("text"))) if done else []
            case "command_execution":
                tool, arguments = "command", {"command": item.get("command")}
                output = _text(item.get("aggregated_output"))
            case "mcp_tool_call":
                tool = f"{_text(item.get('server'))}_{_text(item.get('tool'))}"
                arguments, output = _object(item.get("arguments")), _json(item.get("result"))
            case "file_change":
                tool, arguments = "file_change", {"changes": item.get("changes")}
                output = _json(item.get("changes"))
            case "web_search":
                tool, arguments, output = "web_search", {"query": item.get("query")}, ""
            case "todo_list":
                return [Custom(name="plan", value=item.get("items"))]
            case _:
                return None
        found = turns.start(foreign, tool, arguments)
        if not done:
            return found
        failed = item.get("status") in ("failed", "declined") or item.get("exit_code") not in (0, None)
        data = {k: item[k] for k in ("exit_code", "changes", "status") if k in item}
        error: ToolErrorCode | None = "tool_failed" if failed else None
        return [*found, *turns.result(foreign, output, tool=tool, data=data or None, error=error)]


FORMATS: Mapping[FormatName, Callable[[Turns], Format]] = {
    "lines": _Lines,
    "jsonl": _Json,
    "claude-stream-json": _Claude,
    "codex-json": _Codex,
}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

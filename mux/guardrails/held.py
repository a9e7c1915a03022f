"""What the guarded stream keeps of an agent's drafts while they wait: places of text, and calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from mux.agent import Draft, Nested
from mux.events import Body, Reasoning, Refusal, Token, ToolProgress, ToolResult
from mux.guardrails.lane import Lane

__all__ = ["Call", "Path", "Segment", "TextBody", "at", "blocked_result", "cut", "is_of"]

TextBody: TypeAlias = Token | Reasoning | Refusal
Path: TypeAlias = tuple[str, ...]


@dataclass(slots=True)
class Segment:
    """A place in the queue that one lane's text goes to, up to position ``end`` of the lane."""

    kind: type[TextBody]
    path: Path
    lane: Lane
    end: int


@dataclass(slots=True)
class Call:
    """The lanes of one tool call."""

    path: Path
    arguments: Lane
    progress: Lane
    last_progress: ToolProgress | None = None


def is_of(waiting: Draft | Segment, lane: Lane) -> bool:
    """Whether this is a place of the lane's text."""
    return isinstance(waiting, Segment) and waiting.lane is lane


def cut(text: str, held: int, pieces: list[str]) -> Iterator[str]:
    """Text cut where it was cut when it came in pieces, after as much as was held back before."""
    begin, end = 0, held
    for piece in pieces:
        end += len(piece)
        yield text[begin:end]
        begin = end


def at(path: Path, body: Body) -> Body | Nested:
    """The body as the sub-agent of this path says it."""
    return Nested(path, body) if path else body


def blocked_result(call_id: str, tool: str, elapsed_ms: int = 0) -> ToolResult:
    """What the model and the viewers see instead of a result that is forbidden, or was never given."""
    return ToolResult(
        call_id=call_id, tool=tool, output="Blocked by a guardrail of this server.",
        is_error=True, error="blocked", elapsed_ms=elapsed_ms,
    )  # fmt: skip

"""The parts that a channel's fold is made of: text that can be cut, model turns, tool calls."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mux.events import ApprovalRequested, ApprovalResolved, StepFinished, ToolProgress, ToolResult
from mux.run.table import CallAt

__all__ = ["TextFold", "ToolState", "Turn"]


class TextFold:
    """Deltas and the cseq of each, so that a `step_reset` can cut them off again.

    Sub-agents' deltas are part of the text, but not of the channel's own, which its output is made of.
    """

    __slots__ = ("cseqs", "foreign", "parts")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.cseqs = array("Q")
        self.foreign: set[int] = set()  # cseqs of sub-agents' deltas: few channels have any

    def add(self, text: str, cseq: int, *, own: bool = True) -> None:
        """Append one delta."""
        self.parts.append(text)
        self.cseqs.append(cseq)
        if not own:
            self.foreign.add(cseq)

    def extend(self, texts: Sequence[str], cseq: int) -> None:
        """Append deltas of the channel's own that follow each other, the first with that cseq."""
        self.parts.extend(texts)
        self.cseqs.extend(range(cseq, cseq + len(texts)))

    def cut(self, from_cseq: int) -> None:
        """Forget what was added at or after that cseq."""
        at = bisect_left(self.cseqs, from_cseq)
        if self.foreign:
            self.foreign.difference_update(self.cseqs[at:])
        del self.parts[at:], self.cseqs[at:]

    def since(self, cseq: int, until: int | None = None) -> str:
        """The text that was added at or after that cseq (and before ``until``)."""
        return "".join(self.parts[self._span(cseq, until)])

    def own_since(self, cseq: int, until: int | None = None) -> str:
        """`since` without the text of sub-agents."""
        span = self._span(cseq, until)
        if not self.foreign:
            return "".join(self.parts[span])
        pairs = zip(self.parts[span], self.cseqs[span], strict=True)
        return "".join([text for text, at in pairs if at not in self.foreign])

    def _span(self, cseq: int, until: int | None) -> slice:
        end = None if until is None else bisect_left(self.cseqs, until)
        return slice(bisect_left(self.cseqs, cseq), end)

    def __str__(self) -> str:
        return "".join(self.parts)


@dataclass(slots=True)
class Turn:
    """One own model turn: its number, the cseq of its `step_started`, and how it ended, if it did."""

    step: int
    cseq: int
    model: str | None = None
    finished: StepFinished | None = None


@dataclass(slots=True)
class ToolState:
    """One tool call as it stands.

    Attributes:
        cseq, last_cseq: of its `tool_call`, and of the newest event about it.
        after_parts: how many text deltas came before it, which gives its place in the text.
        waiting: an approval is open; ``decision`` is the last one made.
        started_ts: when it began to run, ms since the epoch.
    """

    call_id: str
    tool: str
    cseq: int
    last_cseq: int
    step: int
    after_parts: int
    path: tuple[str, ...] = ()
    at: CallAt = "written"
    raw: list[str] = field(default_factory=list)
    arguments: dict[str, Any] | None = None
    result: ToolResult | None = None
    progress: ToolProgress | None = None
    waiting: ApprovalRequested | None = None
    decision: ApprovalResolved | None = None
    started_ts: int | None = None

    @property
    def status(self) -> str:
        if self.at == "answered":
            return "done"
        if self.waiting is not None:
            return "waiting"
        return "running" if self.at == "running" else "writing"

    def snapshot(self, offset: int) -> dict[str, Any]:
        """The call as JSON; ``offset`` is where it stands in the channel's text, in characters."""
        out: dict[str, Any] = {
            "call_id": self.call_id,
            "tool": self.tool,
            "status": self.status,
            "at": offset,
        }
        out["step"] = self.step
        out["arguments"] = self.arguments
        if self.arguments is None and self.raw:
            out["arguments_text"] = "".join(self.raw)
        if self.path:
            out["path"] = list(self.path)
        if self.waiting is not None:
            out["arguments"] = self.waiting.arguments
            out["expires_at"] = self.waiting.expires_at
        if self.decision is not None:
            out["decision"] = {"decision": self.decision.decision, "by": self.decision.by}
        if self.progress is not None and self.result is None:
            out["progress"] = self.progress.model_dump(exclude_none=True, exclude={"type", "call_id"})
        if self.result is not None:
            out |= self.result.model_dump(exclude_none=True, exclude={"type", "call_id", "tool"})
        return out

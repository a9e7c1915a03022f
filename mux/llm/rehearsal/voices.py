"""What other channels said: handed over in the task, asked for, or delegated."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from xml.sax.saxutils import unescape

from mux.llm.rehearsal import reading

__all__ = ["Voice", "agreements", "blocks", "claims", "essence", "handed_over"]

_HANDED = re.compile(r"<output channel=(\S{1,200}) agent=(\S{1,200}) status=(\S{1,40})>")
_END = "</output>"
_BLOCK = re.compile(
    r"^## (\S+) \((\S+), (completed|refused|failed|cancelled|timed_out|budget_exceeded|running|waiting|"
    r"queued|pending)\)$",
    re.MULTILINE,
)
_CLAIM = re.compile(r"`([^`\n]{3,80})` = \**(-?\d+(?:\.\d+)?)\**")
_SAID_CLAIM = re.compile(
    r"(?<![\d(])([\d(][\d\s.+\-*/×÷()^]{0,100}[\d)])\s{0,3}(?:is|equals|makes|=)\s{0,3}\**(-?\d{1,30}(?:\.\d{1,30})?)",
    re.IGNORECASE,
)
_FIGURE = re.compile(r"\*\*(-?\d+(?:\.\d+)?)\*\*")  # the results that answers set in bold
_BOLD = re.compile(r"\*\*(\S(?:[^*]*\S)?)\*\*")  # not the power of `2 ** 40`
_LIST_MARK = re.compile(r"^(?:[-*>]\s+)+")


@dataclass(frozen=True, slots=True)
class Voice:
    """One other channel, as it stands."""

    channel: str
    agent: str
    status: str
    text: str


def handed_over(task: str) -> tuple[str, list[Voice]]:
    """The task without the outputs handed over with it, and those."""
    found: list[Voice] = []
    own: list[str] = []
    at = 0
    for head in _HANDED.finditer(task):
        end = task.find(_END, head.end())
        if end < 0:
            break
        if head.start() >= at:  # not inside another's output
            channel, agent, status = (unescape(head[i].strip("\"'"), {"&quot;": '"'}) for i in (1, 2, 3))
            found.append(Voice(channel, agent, status, task[head.end() : end].strip()))
            own.append(task[at : head.start()])
            at = end + len(_END)
    return "".join([*own, task[at:]]).strip(), found


def blocks(output: str) -> list[Voice]:
    """The channels that a result of ``ask_channels`` or ``delegate`` tells of."""
    heads = list(_BLOCK.finditer(output))
    ends = [*(h.start() for h in heads[1:]), len(output)][: len(heads)]
    return [
        Voice(h[1], h[2], h[3], output[h.end() : end].strip()) for h, end in zip(heads, ends, strict=True)
    ]


def essence(text: str, limit: int = 2) -> str:
    """The first things that a text says, without headings, lists of sources and asides in italics."""
    said: list[str] = []
    body = re.split(r"^Sources:$", text, flags=re.MULTILINE)[0]
    for raw in body.splitlines():
        line = raw.strip()
        if not line or line.startswith(("_", "#", "```")) or line.endswith(":") or " failed: " in line:
            continue
        said.append(_BOLD.sub(r"\1", _LIST_MARK.sub("", line)))
        if len(said) == limit:
            break
    return reading.shortened(" · ".join(said), 280)


def agreements(heard: list[Voice]) -> list[tuple[str, list[str]]]:
    """Figures that more than one channel names, with the channels."""
    counted = Counter(f for v in heard for f in set(_FIGURE.findall(v.text)))
    shared = [f for f, n in counted.most_common(3) if n > 1]
    return [(f, [v.channel for v in heard if f in _FIGURE.findall(v.text)]) for f in shared]


def claims(text: str) -> dict[str, str]:
    """Arithmetic that a text states the result of: expression → the result that it claims."""
    found = {m[1].strip(): m[2] for m in _CLAIM.finditer(text)}
    for match in _SAID_CLAIM.finditer(text):
        for expression in reading.expressions(match[1], 1):
            found.setdefault(expression, match[2])
    return {e: value for e, value in found.items() if reading.expressions(e, 1)}

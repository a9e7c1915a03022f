"""Writes the answer out of what the tools said. Every number and quotation comes from a result."""

from __future__ import annotations

import re
from collections.abc import Callable

from mux.llm.rehearsal import reading
from mux.llm.rehearsal.situation import Result, Situation
from mux.llm.rehearsal.voices import agreements, claims, essence

__all__ = ["answer"]

_DISCLOSURE = (
    "_I am Mux's rehearsal model, not a language model: fixed rules chose the tools, and every figure and"
    " quotation above comes from their real results._"
)
_PLAIN = (
    "_I am Mux's rehearsal model, not a language model, and this agent has no tools: set a model in"
    " `mux.toml`, or ask `researcher` or `analyst` to see tools at work._"
)
_MAX_LINES = 12
_MAX_QUOTES = 3


def answer(s: Situation) -> str:
    """The final answer in Markdown."""
    if not s.results and s.handed:
        return f"{_channels(s)}\n\n{_DISCLOSURE}"
    if not s.results:
        return f"{_plain(s)}\n\n{_PLAIN}"
    parts = [part for write in _WRITERS if (part := write(s))]
    return "\n\n".join([*parts, _DISCLOSURE])


def _plain(s: Situation) -> str:
    words = s.task.split()
    told = reading.keywords(s.task, 4)
    about = f", mostly about **{', '.join(told)}**" if told else ""
    kind = "question" if "?" in s.task else "message"
    before = f" We have talked {s.turns} time{'s' if s.turns > 1 else ''} before." if s.turns else ""
    return f"I read your {kind} of {len(words)} word{'s' * (len(words) != 1)}{about}.{before}"


def _calculations(s: Situation) -> str:
    lines: list[str] = []
    for result in s.of_tool("calculator"):
        said = result.argument("expression") or result.first_argument
        if result.is_error:
            lines.append(f"- `{said}` failed: {reading.first_sentence(result.output, 140)}")
        else:
            lines.append(f"- `{said}` = **{result.output.strip()}**{_against_claims(s, said, result.output)}")
    return "\n".join(lines)


def _against_claims(s: Situation, expression: str, value: str) -> str:
    """Who claimed what about a figure that was calculated."""
    stated = [("the task", claims(s.task)), *((v.channel, claims(v.text)) for v in s.voices)]
    right = [who for who, said in stated if said.get(expression) == value.strip()]
    wrong = [
        (who, said[expression])
        for who, said in stated
        if said.get(expression, value.strip()) != value.strip()
    ]
    notes = [f"{who} says {claimed}, which is wrong" for who, claimed in wrong]
    if right:
        notes.append(f"as {_listed(right)} {'say' if len(right) > 1 else 'says'}")
    return f" ({'; '.join(notes)})" if notes else ""


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _channels(s: Situation) -> str:
    """What the other channels said, each named, and the figures that they agree on."""
    heard = s.voices
    if not heard:
        return "There is no other channel in this run to read." if s.of_tool("ask_channels") else ""
    lines = [f"- **{v.channel}** ({v.status}): {essence(v.text) or 'nothing yet'}" for v in heard]
    for figure, who in agreements(heard):
        lines.append(f"- {_listed(who)} agree on **{figure}**.")
    return "The other channels say:\n\n" + "\n".join(lines)


def _programs(s: Situation) -> str:
    parts: list[str] = []
    for result in s.of_tool("run_python"):
        shown = [line for line in result.output.strip().splitlines() if line.strip()]
        if len(shown) > _MAX_LINES:
            shown = [*shown[: _MAX_LINES // 2], "…", *shown[-_MAX_LINES // 2 :]]
        head = "The program failed:" if result.is_error else "The program printed:"
        parts.append(f"{head}\n\n```text\n" + "\n".join(shown).replace("```", "'''") + "\n```")
    return "\n\n".join(parts)


def _documents(s: Situation) -> str:
    words = reading.keywords(s.task)
    searches = [r for r in s.of_tool("search_docs", "web_search", "fetch_url") if not r.is_error]
    most = 1 if s.voices else _MAX_QUOTES
    quotes: dict[str, int] = {}
    sources: dict[int, str] = {}
    for result in [*s.of_tool("read_doc"), *searches]:
        found = [] if result.is_error else reading.passages(result.output)
        for number, title, where, text in found:
            for sentence in reading.quotes(text, words):
                if sentence not in quotes and len(quotes) < most:
                    quotes[sentence] = number
                    sources[number] = f"{title} ({where})" if where else title
    if quotes:
        # escaped, or two operators would make what stands between them italic
        escaped = {sentence.replace("*", "\\*"): number for sentence, number in quotes.items()}
        said = "\n\n".join(f"> {sentence} [{number}]" for sentence, number in escaped.items())
        listed = "\n".join(f"- [{n}] {name}" for n, name in sorted(sources.items()))
        return f"The documents say:\n\n{said}\n\nSources:\n{listed}"
    if opened := _opened(s):
        return opened
    if searches:
        tried = ", ".join(f"“{r.argument('query') or r.first_argument}”" for r in searches)
        return f"I searched for {tried} and found nothing that fits."
    return ""


def _opened(s: Situation) -> str:
    """How the documents begin that were opened for their own sake: nothing was asked about them."""
    parts: list[str] = []
    for result in [r for r in s.of_tool("read_doc", "fetch_url") if not r.is_error]:
        for number, title, where, text in reading.passages(result.output)[:1]:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            shown = "\n".join(f"> {reading.shortened(line, 240)}" for line in lines[:_MAX_LINES])
            more = f"\n>\n> … and {len(lines) - _MAX_LINES} lines more" if len(lines) > _MAX_LINES else ""
            name = f"{title} ({where})" if where and where != title else title
            parts.append(f"**{name}** [{number}] says:\n\n{shown or '> (nothing)'}{more}")
    return "\n\n".join(parts)


def _failures(s: Situation) -> str:
    lines = [
        f"- `{r.tool}` failed ({reading.first_sentence(r.output, 160)})"
        for r in s.results
        if r.is_error and r.tool not in ("calculator", "run_python")
    ]
    if not lines:
        return ""
    later = "; I went on with what else I could find." if any(not r.is_error for r in s.results) else "."
    return "\n".join(lines) + later


def _others(s: Situation) -> str:
    known = {
        "calculator", "run_python", "search_docs", "web_search", "fetch_url", "read_doc", "ask_channels",
        "delegate",
    }  # fmt: skip
    parts = [_quoted_output(r) for r in s.results if r.tool not in known and not r.is_error]
    return "\n\n".join(parts)


def _quoted_output(result: Result) -> str:
    """What a tool that no rule knows has said, quoted in short."""
    lines = [line.strip() for line in result.output.strip().splitlines() if line.strip()]
    shown = "\n".join(f"> {line[:240]}" for line in lines[:_MAX_LINES])
    more = f"\n> … and {len(lines) - _MAX_LINES} lines more" if len(lines) > _MAX_LINES else ""
    title = re.sub(r"_+", " ", result.tool)
    return f"**{title}** says:\n\n{shown or '> (nothing)'}{more}"


_WRITERS: tuple[Callable[[Situation], str], ...] = (
    _channels,
    _calculations,
    _programs,
    _documents,
    _others,
    _failures,
)

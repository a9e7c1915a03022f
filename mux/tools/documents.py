"""``search_docs``, ``list_docs`` and ``read_doc``: the document folders, as numbered sources."""

from __future__ import annotations

import asyncio
import contextlib
import re
import unicodedata
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field

from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.decorator import tool
from mux.tools.index import DocumentIndex, Hit, Report
from mux.tools.reader import Reader
from mux.tools.roots import Found, Roots
from mux.tools.sources import Sources
from mux.tools.text import Extracted, UnreadableError, kind_of

__all__ = ["document_tools"]

T = TypeVar("T")

MAX_LISTED = 500
MAX_READ = 40_000  # characters of one read_doc; more is read by line range
_REPORT_S = 0.3
_SOURCE = re.compile(r"\[?(\d{1,4})\]?")


def document_tools(roots: Roots, index: DocumentIndex, reader: Reader, sources: Sources) -> list[Tool]:
    """The three tools over these roots."""
    return [_search_tool(index, sources), _list_tool(index), _read_tool(roots, reader, sources)]


def _search_tool(index: DocumentIndex, sources: Sources) -> Tool:
    @tool(idempotent=True, timeout_s=300)
    async def search_docs(
        query: str, ctx: ToolContext, limit: Annotated[int, Field(ge=1, le=20)] = 6
    ) -> ToolOutput:
        """Search the document folders for words. Returns the best passages, numbered by source: cite as [n].

        Args:
            query: A few telling words, as they would stand in the text.
            limit: How many passages to return at most.
        """
        await ctx.progress(f"searching the documents for {query[:80]!r}", fraction=0.0)
        hits, covered = await _watched(ctx, lambda report: index.search(query, limit, report))
        await ctx.progress(f"{len(hits)} passages in {covered.count} documents", fraction=1.0)
        limits = covered.limits()
        if not hits:
            text = (
                f"Nothing in the {covered.count} documents fits {query!r}. Try fewer or other words, or"
                f" list_docs. {limits}".rstrip()
            )
            return ToolOutput(text, {"sources": [], "passages": []})
        return _found(hits, limits, ctx, sources)

    return search_docs


def _list_tool(index: DocumentIndex) -> Tool:
    @tool(idempotent=True, timeout_s=300)
    async def list_docs(ctx: ToolContext, contains: str = "") -> ToolOutput:
        """List the documents that can be read, with titles.

        Args:
            contains: Only those with this in their name or title.
        """
        await ctx.progress("listing the documents")
        needle = _folded(contains)
        documents, covered = await _watched(ctx, index.documents)
        rows = [d for d in documents if needle in _folded(d.name) or needle in _folded(d.title)]
        lines = [f"{len(rows)} documents" + (f" with {contains!r}" if contains else "")]
        for row in rows[:MAX_LISTED]:
            state = f"can't be read: {row.problem}" if row.problem else f"{row.lines} lines"
            lines.append(f"- {row.name}: {row.title} ({state})")
        if len(rows) > MAX_LISTED:
            lines.append(f"… and {len(rows) - MAX_LISTED} more; narrow it with contains.")
        if limits := covered.limits():
            lines.append(limits)
        listed = [{"path": r.name, "title": r.title, "size": r.size} for r in rows[:MAX_LISTED]]
        return ToolOutput("\n".join(lines), {"documents": listed, "total": len(rows)})

    return list_docs


def _read_tool(roots: Roots, reader: Reader, sources: Sources) -> Tool:
    @tool(idempotent=True, timeout_s=120)
    async def read_doc(
        path: str,
        ctx: ToolContext,
        first_line: Annotated[int, Field(ge=1)] = 1,
        last_line: Annotated[int | None, Field(ge=1)] = None,
        offset: Annotated[int, Field(ge=0)] = 0,
    ) -> ToolOutput:
        """Read a document, or some of its lines.

        Args:
            path: The document's name as search_docs and list_docs give it, or its source number, e.g. "[2]".
            first_line: The first line to read, from 1.
            last_line: The last line to read; left out, as much as fits.
            offset: Where in the first line to begin, in characters; to read on in a very long one.
        """
        names = _names(path.strip(), ctx, sources)
        await ctx.progress(f"reading {names[-1]}")
        name, document = await _load(roots, reader, names)
        part = _part(name, document.text.split("\n"), first_line, last_line, offset)
        sources.resume(ctx.agent)
        entry = sources.entry(ctx.run, ctx.channel, "path", name, document.title or name.rpartition("/")[2])
        head = f"[{entry['n']}] {entry['title']} ({name}, lines {first_line}-{part.last} of {part.of})"
        data = {"sources": [entry], "lines": [first_line, part.last], "total_lines": part.of}
        return ToolOutput(f"{head}\n{part.text}{part.more}", data)

    return read_doc


async def _watched(ctx: ToolContext, work: Callable[[Report], Coroutine[Any, Any, T]]) -> T:
    """Do the work and report how many changed files it has taken in.

    The index's thread only notes its state and never waits for this channel: it serves the others too.
    """
    state: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        state[:] = [(done, total)]

    task = asyncio.create_task(work(report))
    shown: tuple[int, int] | None = None
    try:
        while not (await asyncio.wait({task}, timeout=_REPORT_S))[0]:
            if state and state[0] != shown:
                shown = done, total = state[0]
                await ctx.progress(f"reading document {done + 1} of {total}", fraction=done / total)
        return task.result()
    finally:
        task.cancel()


def _found(hits: list[Hit], limits: str, ctx: ToolContext, sources: Sources) -> ToolOutput:
    sources.resume(ctx.agent)
    entries: dict[int, dict[str, Any]] = {}
    passages: list[dict[str, Any]] = []
    blocks: list[str] = []
    for hit in hits:
        entry = sources.entry(ctx.run, ctx.channel, "path", hit.name, hit.title)
        entries[entry["n"]] = entry
        passages.append({"source": entry["n"], "lines": [hit.first, hit.last], "text": hit.text})
        blocks.append(f"[{entry['n']}] {hit.title} ({hit.name}, lines {hit.first}-{hit.last})\n{hit.text}")
    data = {"sources": [entries[n] for n in sorted(entries)], "passages": passages}
    return ToolOutput("\n\n".join([*blocks, *([limits] if limits else [])]), data)


def _folded(text: str) -> str:
    """For comparing names: a file's may be in NFD."""
    return unicodedata.normalize("NFC", text).casefold()


def _names(path: str, ctx: ToolContext, sources: Sources) -> list[str]:
    """What the document may be called: ``2`` is the document of that name, or else the source."""
    match = _SOURCE.fullmatch(path)
    if match is None:
        return [path]
    sources.resume(ctx.agent)
    source = sources.find(ctx.run, ctx.channel, int(match.group(1)))
    if source is None:
        return [path]
    kind, where = source
    if kind != "path":
        raise ToolProblem(f"Source {path} is the page {where}. Read it with fetch_url.")
    return [path, where]


async def _load(roots: Roots, reader: Reader, names: list[str]) -> tuple[str, Extracted]:
    """The document's own name, however it was called, and what it says."""

    def locate() -> Found:
        for name in names[:-1]:
            with contextlib.suppress(ToolProblem):
                return roots.locate(name)
        try:
            return roots.locate(names[-1])
        except ToolProblem:
            if _SOURCE.fullmatch(names[-1]) is None:
                raise
            raise ToolProblem(
                f"There is no source {names[-1]} yet. Search first, or give the document's name."
            ) from None

    def find() -> tuple[str, bytes]:
        found = locate()
        try:
            return found.name, roots.read(found)
        except OSError as e:
            why = e.strerror or "it changed meanwhile"
            raise ToolProblem(f"{found.name} can't be read ({why}).") from None

    own, data = await asyncio.to_thread(find)
    kind = kind_of(own, data[:8192])
    if kind is None:
        raise ToolProblem(f"{own} is not a text document.")
    try:
        return own, await reader.read(data, kind)
    except UnreadableError as e:
        raise ToolProblem(f"{own} can't be read: {e}.") from None


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    last: int
    of: int
    more: str


def _part(name: str, lines: list[str], first: int, last: int | None, offset: int) -> _Part:
    """The lines as far as they fit, and how to read on."""
    if first > len(lines):
        raise ToolProblem(f"{name} has only {len(lines)} lines.")
    end = min(last or len(lines), len(lines))
    if end < first:
        raise ToolProblem("last_line must not be before first_line.", "invalid_arguments")
    if offset and offset >= len(lines[first - 1]):
        raise ToolProblem(f"Line {first} of {name} has only {len(lines[first - 1])} characters.")
    taken: list[str] = []
    size = 0
    for line in lines[first - 1 : end]:
        rest = line[offset:] if not taken else line
        if taken and size + len(rest) > MAX_READ:
            break
        taken.append(rest[:MAX_READ])
        size += len(rest) + 1
    shown = first + len(taken) - 1
    more = ""
    if len(taken) == 1 and offset + MAX_READ < len(lines[first - 1]):
        more = f"first_line={first} and offset={offset + MAX_READ}"
    elif shown < end:
        more = f"first_line={shown + 1}"
    more = f"\n[… cut here; go on with {more}]" if more else ""
    return _Part("\n".join(taken), shown, len(lines), more)

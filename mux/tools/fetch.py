"""``fetch_url``: the readable text of a public page, as a numbered source."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mux.net import Net, Page
from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.decorator import tool
from mux.tools.reader import Reader
from mux.tools.sources import Sources
from mux.tools.text import Extracted, UnreadableError, kind_of

__all__ = ["fetch_tool"]

MAX_SHOWN = 30_000  # characters of one call; more is read from an offset
_TYPES = frozenset({"application/pdf", "application/json", "application/xml", "application/xhtml+xml"})
_REPORT_BYTES = 262_144


def _readable(media_type: str) -> bool:
    return (
        not media_type
        or media_type.startswith("text/")
        or media_type in _TYPES
        or media_type.endswith(("+xml", "+json"))
    )


def fetch_tool(net: Net, reader: Reader, sources: Sources) -> Tool:
    """The tool over this door."""

    @tool(idempotent=True, timeout_s=90)
    async def fetch_url(url: str, ctx: ToolContext, offset: Annotated[int, Field(ge=0)] = 0) -> ToolOutput:
        """Fetch a public web page (HTML, text, JSON, PDF) and return its readable text as a numbered source.

        Args:
            url: The address, http or https.
            offset: Where in the text to begin, in characters; to read on after a cut.
        """
        shown = 0

        async def arrived(size: int, total: int | None) -> None:
            nonlocal shown
            if size - shown >= _REPORT_BYTES:
                shown = size
                await ctx.progress(f"{size // 1000:,} kB", fraction=size / total if total else None)

        await ctx.progress(f"fetching {url[:200]}")
        accepted = "text/html,text/plain,application/json,application/pdf;q=0.9,text/*;q=0.8"
        page = await net.get(url, accept=_readable, accept_header=accepted, progress=arrived)
        document = await _text(page, reader)
        return _output(page, document, offset, ctx, sources)

    return fetch_url


async def _text(page: Page, reader: Reader) -> Extracted:
    kind = "html" if "html" in page.media_type else kind_of("", page.body[:8192])
    if not page.media_type and page.body[:512].lstrip()[:1] == b"<":
        kind = "html"
    if kind is None:
        raise ToolProblem(f"{page.url} is not text.")
    try:
        return await reader.read(page.body, kind, page.charset)
    except UnreadableError as e:
        raise ToolProblem(f"{page.url} can't be read: {e}.") from None


def _output(page: Page, document: Extracted, offset: int, ctx: ToolContext, sources: Sources) -> ToolOutput:
    text = document.text.strip()
    if offset and offset >= len(text):
        raise ToolProblem(f"The page has only {len(text)} characters.", "invalid_arguments")
    sources.resume(ctx.agent)
    entry = sources.entry(ctx.run, ctx.channel, "url", page.url, document.title)
    part = text[offset : offset + MAX_SHOWN]
    end = offset + len(part)
    more = f"\n[… cut here; go on with offset={end} of {len(text)}]" if end < len(text) else ""
    head = f"[{entry['n']}] {entry['title']} ({page.url})"
    data = {"sources": [entry], "characters": len(text), "offset": offset}
    return ToolOutput(f"{head}\n\n{part or '(the page has no text)'}{more}", data)

"""``web_search``: over a SearXNG-style JSON URL or a tool of an MCP server; offered only where configured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yarl import URL

from mux.net import Net, NetError
from mux.settings import WebSearch
from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.decorator import tool
from mux.tools.results import as_output
from mux.tools.sources import Sources

__all__ = ["web_search_tool"]

FindTool = Callable[[str], Tool | None]
_ADDRESS = re.compile(r"https?://\S+")
_SNIPPET = 500  # characters
_MAX_OUTPUT = 50_000
# what search tools of MCP servers call their one argument
_QUERY_NAMES = ("query", "q", "search_query", "search", "text", "input")


class _Result(BaseModel):
    model_config = ConfigDict(extra="ignore")

    url: str
    title: str = ""
    content: str | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    results: list[_Result] = []


def web_search_tool(settings: WebSearch, net: Net, sources: Sources, find: FindTool) -> Tool | None:
    """The tool, if a backend is configured.

    Args:
        settings: ``[web_search]``; ``url`` has the query in place of ``{query}``, or gets ``q`` and
            ``format=json`` appended; ``mcp`` is the full name of an MCP tool.
        net: the door to go through.
        sources: numbers of what is found.
        find: a tool by name, asked at the time of the call: MCP servers connect later.
    """
    if settings.url is None and settings.mcp is None:
        return None

    @tool(idempotent=True, timeout_s=60)
    async def web_search(
        query: str, ctx: ToolContext, limit: Annotated[int, Field(ge=1, le=20)] = 8
    ) -> ToolOutput:
        """Search the web. Returns titles, URLs and snippets as numbered sources; read one with fetch_url.

        Args:
            query: What to look for.
            limit: How many results to return at most.
        """
        await ctx.progress(f"searching the web for {query[:80]!r}")
        if settings.url is not None:
            return _found(await _ask(net, settings.url, query), query, limit, ctx, sources)
        return await _ask_tool(find(settings.mcp or ""), settings.mcp or "", query, ctx)

    return web_search


def search_url(template: str, query: str) -> str:
    """The backend's URL for a query."""
    if "{query}" in template:
        return template.replace("{query}", quote(query, safe=""))
    return str(URL(template).update_query(q=query, format="json"))


async def _ask(net: Net, template: str, query: str) -> list[_Result]:
    try:
        page = await net.get(
            search_url(template, query),
            accept=lambda media_type: "json" in media_type or media_type in ("", "text/plain"),
            accept_header="application/json",
            configured=True,
        )
    except NetError as e:
        # the address is the operator's, and may hold a key
        why = _ADDRESS.sub("it", e.message)
        raise ToolProblem(
            f"The search backend ({URL(template).host}) failed: {why} Go on without a search."
        ) from None
    try:
        return _Answer.model_validate_json(page.body).results
    except ValidationError:
        message = (
            "The search backend did not answer with search results as JSON; is format=json enabled there?"
        )
        raise ToolProblem(message) from None


def _found(results: list[_Result], query: str, limit: int, ctx: ToolContext, sources: Sources) -> ToolOutput:
    usable = [r for r in results if r.url.startswith(("http://", "https://"))][:limit]
    if not usable:
        return ToolOutput(f"The web search found nothing for {query!r}.", {"sources": [], "results": []})
    sources.resume(ctx.agent)
    entries: list[dict[str, Any]] = []
    blocks: list[str] = []
    for result in usable:
        entry = sources.entry(ctx.run, ctx.channel, "url", result.url, result.title.strip())
        snippet = " ".join((result.content or "").split())[:_SNIPPET]
        entries.append(entry)
        blocks.append(f"[{entry['n']}] {entry['title']}\n{result.url}\n{snippet}".strip())
    return ToolOutput("\n\n".join(blocks), {"sources": entries})


async def _ask_tool(backend: Tool | None, name: str, query: str, ctx: ToolContext) -> ToolOutput:
    if backend is None:
        raise ToolProblem(f"The search backend, the MCP tool {name!r}, is not connected now.")
    properties = backend.parameters.get("properties", {})
    argument = next((n for n in _QUERY_NAMES if n in properties), None)
    if argument is None:
        raise ToolProblem(
            f"The MCP tool {name!r} takes none of {', '.join(_QUERY_NAMES)}: not a search tool."
        )
    arguments = backend.validate(json.loads(json.dumps({argument: query})))
    return as_output(await backend.handler(arguments, ctx), _MAX_OUTPUT)

"""Names and results of MCP tools as ours. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mux.tools.base import ToolOutput

if TYPE_CHECKING:
    import mcp_types

__all__ = ["mcp_tool_names", "to_output"]

_MAX_NAME = 64  # what model providers allow
_MAX_MEDIA = 1_000_000  # base64 characters of one image that are kept in ``data``


def mcp_tool_names(server: str, tools: Sequence[str]) -> dict[str, str]:
    """Names that model providers accept, ``<server>_<tool>``, unique within the server.

    Args:
        server: the server's name in the configuration.
        tools: the server's own names.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for tool in tools:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}_{tool}")[:_MAX_NAME]
        name, n = plain, 2
        while name in taken:
            suffix = f"_{n}"
            name, n = plain[: _MAX_NAME - len(suffix)] + suffix, n + 1
        taken.add(name)
        names[tool] = name
    return names


def to_output(result: mcp_types.CallToolResult) -> ToolOutput:
    """A call's result: text parts as the output, structured content as data, other parts described.

    ``isError`` becomes an error that the model sees and may recover from.
    """
    parts: list[str] = []
    media: list[dict[str, Any]] = []
    for block in result.content:
        text, item = _block(block)
        parts.append(text)
        if item is not None:
            media.append(item)
    data: Any = result.structured_content
    if data is None and media:
        data = {"content": media}
    output = "\n".join(parts)
    if not output and result.structured_content is not None:
        output = json.dumps(result.structured_content, ensure_ascii=False)
    output = output or "(no output)"  # some providers refuse an empty result
    failed = bool(result.is_error)
    return ToolOutput(output, data, is_error=failed, error="tool_failed" if failed else None)


def _block(block: Any) -> tuple[str, dict[str, Any] | None]:
    """One content block as text for the model, and as data where it is no text."""
    kind = block.type
    if kind == "text":
        return block.text, None
    if kind in ("image", "audio"):
        kept = len(block.data) <= _MAX_MEDIA
        item = {"type": kind, "mime_type": block.mime_type, **({"data": block.data} if kept else {})}
        return f"[{kind}, {block.mime_type}, {len(block.data) * 3 // 4} bytes]", item
    if kind == "resource_link":
        return f"[{block.name}: {block.uri}]", {"type": kind, "name": block.name, "uri": str(block.uri)}
    resource: Any = getattr(block, "resource", None)
    text = getattr(resource, "text", None)
    if text is not None:
        return str(text), {"type": "resource", "uri": str(resource.uri)}
    return f"[{kind} {getattr(resource, 'uri', '')}]".replace(" ]", "]"), None

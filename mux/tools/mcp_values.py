"""Names and results of MCP tools as ours; what is odd in a server's answers, made usable. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mux.tools.base import ToolOutput

if TYPE_CHECKING:
    import mcp_types

__all__ = ["mcp_tool_names", "mended", "to_output"]

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


def mended(result: dict[str, Any], note: Callable[..., None]) -> dict[str, Any]:
    """An answer's result whose members the SDK will accept: it refuses a whole list for one of them.

    Args:
        result: of ``tools/list`` or ``tools/call``; of others it is left as it is.
        note: told what was changed or left out, by name.
    """
    if isinstance(tools := result.get("tools"), list):
        return {**result, "tools": [t for tool in tools if (t := _tool(tool, note)) is not None]}
    if "content" in result or "structuredContent" in result or result.keys() <= {"isError", "_meta"}:
        return _call_result(result, note)
    return result


def _tool(tool: Any, note: Callable[..., None]) -> dict[str, Any] | None:
    """A tool of a listing. Its output's schema goes: a result that does not fit it is still a result."""
    import mcp_types

    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"]:
        note("mcp tool left out", tool=str(tool)[:100], reason="it has no name")
        return None
    tool = {k: v for k, v in tool.items() if v is not None and k != "outputSchema"}
    if not isinstance(tool.get("inputSchema"), dict):
        note("mcp tool mended", tool=tool["name"], reason="it has no schema: any arguments are sent")
        tool["inputSchema"] = {"type": "object"}
    if isinstance(_valid(mcp_types.Tool, tool), str):
        known = {k: tool[k] for k in ("name", "inputSchema") if k in tool}
        if isinstance(tool.get("description"), str):
            known["description"] = tool["description"]
        if isinstance(reason := _valid(mcp_types.Tool, known), str):
            note("mcp tool left out", tool=tool["name"], reason=reason)
            return None
        rest = {k: v for k, v in tool.items() if k not in known}
        odd = [k for k in rest if isinstance(_valid(mcp_types.Tool, {**known, k: rest[k]}), str)]
        note("mcp tool mended", tool=tool["name"], reason=f"odd and left out: {', '.join(odd)}")
        return known | {k: v for k, v in rest.items() if k not in odd}
    return dict(tool)


def _call_result(result: dict[str, Any], note: Callable[..., None]) -> dict[str, Any]:
    """A call's result; a block that does not fit is shown as it came."""
    import mcp_types

    content = result.get("content")
    if not isinstance(content, list):
        content = [] if content is None else [content]
    blocks: list[Any] = []
    for block in content:
        if isinstance(_valid(mcp_types.CallToolResult, {"content": [block]}), str):
            text = block if isinstance(block, str) else json.dumps(block, ensure_ascii=False)
            note("mcp tool's result has an odd part", part=text[:100])
            blocks.append({"type": "text", "text": text})
        else:
            blocks.append(block)
    out = {**result, "content": blocks}
    structured = result.get("structuredContent")
    if structured is not None and not isinstance(structured, dict):
        del out["structuredContent"]  # an object, by the versions in use
        if not blocks:
            blocks.append({"type": "text", "text": json.dumps(structured, ensure_ascii=False)})
    elif structured is None:
        out.pop("structuredContent", None)
    if "isError" in out and not isinstance(out["isError"], bool):
        out["isError"] = bool(out["isError"])
    if not isinstance(out.get("_meta", {}), dict):
        del out["_meta"]
    return out


def _valid(model: Any, value: dict[str, Any]) -> Any:
    """The value as the SDK reads it, or why it does not."""
    try:
        return model.model_validate(value, by_name=False)
    except ValidationError as e:
        first = e.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


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

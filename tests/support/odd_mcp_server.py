"""An MCP server that no SDK would write: JSON-RPC by hand over stdio, with everything slightly wrong."""

from __future__ import annotations

import json
import sys
from typing import Any

TEXT = {"type": "string"}
TOOLS: list[dict[str, Any]] = [
    {"name": "good", "inputSchema": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    {"name": "no schema", "inputSchema": {"type": "object", "properties": {"x": {"type": "whatever"}}}},
    {"name": "abroad", "inputSchema": {"type": "object", "properties": {"x": {"$ref": "http://[::1]/x"}}}},
    {
        "name": "slow-pattern",
        "inputSchema": {"type": "object", "properties": {"x": {**TEXT, "pattern": "^(a|a?a)+$"}}},
    },
    {"name": "ünïcode/name", "inputSchema": {"type": "object"}},
    {"name": "error", "inputSchema": {"type": "object"}},
    {"name": "nonsense", "inputSchema": {"type": "object"}},
    {"name": "huge", "inputSchema": {"type": "object"}},
    {"name": "more", "inputSchema": {"type": "object"}},
]


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(value: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}]}


def call(name: str) -> dict[str, Any]:
    """The members of the answer beside its id."""
    if name == "error":
        return {
            "error": {"code": -32000, "message": "no paper"}
        }  # also the SDK's code of a closed connection
    if name == "nonsense":
        return {"result": {"content": "what"}}
    if name == "huge":
        return {"result": text("x" * 1_000_000)}
    if name == "more":
        TOOLS.append({"name": "added", "inputSchema": {"type": "object"}})
        send({"method": "notifications/tools/list_changed"})
        return {"result": {"content": []}}
    return {"result": text("fine")}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    match request["method"]:
        case "initialize":
            return {
                "result": {
                    "protocolVersion": request["params"]["protocolVersion"],
                    "capabilities": {"tools": {"listChanged": True}},
                    "serverInfo": {"name": "odd", "version": "1"},
                }
            }
        case "tools/list":
            return {"result": {"tools": TOOLS}}
        case "tools/call":
            return call(request["params"]["name"])
        case _:
            return {"error": {"code": -32601, "message": "no such method"}}


def main() -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            send({"id": request["id"], **answer(request)})


if __name__ == "__main__":
    main()

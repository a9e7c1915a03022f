"""An MCP server that no SDK would write: JSON-RPC by hand over stdio, with everything slightly wrong."""

from __future__ import annotations

import json
import sys
from typing import Any

TEXT = {"type": "string"}
TOOLS: list[Any] = [
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
    {"name": "good", "inputSchema": {"type": "object"}, "description": "the same again"},
    {"name": "without schema"},
    {"name": "null schema", "inputSchema": None, "annotations": None, "outputSchema": None},
    {"name": "odd hint", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": "yes please"}},
    {
        "name": "strict",
        "inputSchema": {"type": "object"},
        "outputSchema": {"type": "object", "required": ["n"]},
    },
    {"name": "list", "inputSchema": {"type": "object"}},
    {"name": "parts", "inputSchema": {"type": "object"}},
    {"name": "half", "inputSchema": {"type": "object"}},
    {"name": "bytes", "inputSchema": {"type": "object"}},
    {"name": "torn", "inputSchema": {"type": "object"}},
    {"name": "noise", "inputSchema": {"type": "object"}},
    {"description": "no name"},
    "no tool",
]


ANSWER = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"'
RAW = {
    "half": ANSWER + b"half \\ud83d pair" + b'"}]}}',
    "bytes": ANSWER + b"M\xfcller" + b'"}]}}',
    "torn": ANSWER + b"and then",
}


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
    if name == "strict":
        return {"result": {**text("n is one"), "structuredContent": {"m": 1}}}
    if name == "list":
        return {"result": {"content": [], "structuredContent": [1, 2]}}
    if name == "parts":
        parts = [
            {"type": "video", "url": "u"},
            None,
            {"type": "image", "data": "AA=="},
            {"type": "text", "text": "t"},
        ]
        return {"result": {"content": parts, "isError": "no", "_meta": 5}}
    if name == "noise":
        for n in range(500):
            sys.stdout.write(f"[info] \x1b[31mcrate {n} scanned\n")
        return {"result": text("scanned")}
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
        name = (request.get("params") or {}).get("name")
        if request.get("method") == "tools/call" and name in RAW:
            sys.stdout.buffer.write(RAW[name] % request["id"] + b"\n")
            sys.stdout.buffer.flush()
        elif "id" in request:
            send({"id": request["id"], **answer(request)})


if __name__ == "__main__":
    main()

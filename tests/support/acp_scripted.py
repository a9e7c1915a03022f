"""An ACP agent that does as its prompt says, without the SDK: so it can break every rule."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

number = 1000
session = "s1"


def send(message: Any) -> None:
    sys.stdout.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
    sys.stdout.flush()


def update(kind: str, /, **fields: Any) -> None:
    body = {"sessionUpdate": kind, **fields}
    send({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": session, "update": body}})


def say(text: str) -> None:
    update("agent_message_chunk", content={"type": "text", "text": text})


def read() -> Any:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


def ask(method: str, wait: bool = True, **params: Any) -> Any:
    """Ask the client; other messages that come meanwhile are dropped, but for a cancel."""
    global number
    number += 1
    send({"jsonrpc": "2.0", "id": number, "method": method, "params": {"sessionId": session, **params}})
    while wait:
        message = read()
        if message.get("id") == number:
            return message.get("result") or message.get("error")
        if message.get("method") == "session/cancel":
            return "cancelled"
    return None


OPTIONS = [
    {"optionId": "always", "name": "Always", "kind": "allow_always"},
    {"optionId": "once", "name": "Once", "kind": "allow_once"},
    {"optionId": "no", "name": "No", "kind": "reject_once"},
]


def permission(call: str, wait: bool = True) -> Any:
    return ask("session/request_permission", wait, toolCall={"toolCallId": call}, options=OPTIONS)


def act(script: str) -> dict[str, Any]:
    """Run the prompt as a program; what it leaves in ``answer`` is the turn's answer."""
    space: dict[str, Any] = {**globals(), "answer": {"stopReason": "end_turn"}}
    exec(script, space)
    answer: dict[str, Any] = space["answer"]
    return answer


def main() -> None:
    able = json.loads(os.environ.get("ACP_ABLE", "{}"))
    while True:
        message = read()
        method, params = message.get("method"), message.get("params") or {}
        result: Any = {}
        if method == "initialize":
            result = {"protocolVersion": able.get("version", 1), "agentCapabilities": able.get("can", {})}
        elif method == "session/new":
            if "login" in able:
                error = {"code": -32000, "message": "Authentication required"}
                send({"jsonrpc": "2.0", "id": message["id"], "error": error})
                continue
            result = {"sessionId": session, **able.get("session", {})}
        elif method == "session/load":
            for n in range(1000):
                say(f"old {n} ")
        elif method == "session/prompt":
            texts = [b["text"] for b in params["prompt"] if b["type"] == "text"]
            if "ECHO" in able:
                say(json.dumps({"prompt": params["prompt"], "cwd": os.getcwd()}))
                result = {"stopReason": "end_turn"}
            else:
                result = act(texts[0])
        elif method in ("session/set_mode", "session/set_config_option"):
            result = {"configOptions": able["session"]["configOptions"]} if "config" in method else {}
        if "id" in message:
            send({"jsonrpc": "2.0", "id": message["id"], "result": result})


if __name__ == "__main__":
    _ = time
    main()

"""``mux run --file prompts.jsonl``: one run per line, results as a table and as NDJSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mux.client import MuxClient, Run
from mux.errors import BadRequest, MuxError
from mux.files import json_lines
from mux.telemetry import printable

__all__ = ["read_prompts", "run_batch"]


def read_prompts(path: Path, agents: list[str]) -> list[dict[str, Any]]:
    """The start requests of a file: each line a JSON string (the message) or a JSON object (a request).

    Raises:
        BadRequest: ``batch_invalid``, naming the line; nothing was started.
    """
    requests: list[dict[str, Any]] = []
    try:
        lines = list(json_lines(path))
    except ValueError as e:
        raise BadRequest("batch_invalid", str(e)) from None
    for number, item in lines:
        request = {"message": item} if isinstance(item, str) else item
        if not isinstance(request, dict):
            raise BadRequest("batch_invalid", f"{path}, line {number}: give a string or an object.")
        if not isinstance(request.get("metadata") or {}, dict):
            raise BadRequest("batch_invalid", f"{path}, line {number}: metadata must be an object.")
        if agents and not (request.get("agents") or request.get("channels")):
            request["agents"] = list(agents)
        requests.append(request)
    if not requests:
        raise BadRequest("batch_invalid", f"{path} has no lines.")
    return requests


async def run_batch(client: MuxClient, args: argparse.Namespace) -> int:
    """Run all lines, ``--parallel`` at a time; exit 0 if every run completed."""
    requests = read_prompts(args.file, args.agent)
    tag = args.tag or args.file.stem
    slots = asyncio.Semaphore(max(1, args.parallel))
    results: list[dict[str, Any]] = [{} for _ in requests]

    async def one(index: int, request: dict[str, Any]) -> None:
        metadata = {**(request.get("metadata") or {}), "batch": tag, "line": index + 1}
        async with slots:
            try:
                run = await client.start(**{**request, "metadata": metadata})
                snapshot = await _waited(run)
            except MuxError as e:
                results[index] = {
                    "line": index + 1,
                    "status": "failed",
                    "error": e.code,
                    "message": e.message,
                }
            else:
                results[index] = _result(index + 1, snapshot)
        if args.json:
            print(json.dumps(results[index], ensure_ascii=False), flush=True)

    async with asyncio.TaskGroup() as group:
        for index, request in enumerate(requests):
            group.create_task(one(index, request))
    _table(results, Console(file=sys.stderr if args.json else sys.stdout))
    return 0 if all(r["status"] == "completed" for r in results) else 1


async def _waited(run: Run) -> dict[str, Any]:
    """The finished run's snapshot; Ctrl-C cancels the run, as it does that of `mux run`."""
    try:
        return await run.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(MuxError):
            await run.cancel()
        raise


def _result(line: int, snapshot: dict[str, Any]) -> dict[str, Any]:
    return {
        "line": line,
        "run": snapshot["run"],
        "status": snapshot["status"],
        "channels": {
            c["id"]: {
                "status": c["status"], "text": c["text"], "usage": c.get("usage"),
                "ttft_ms": c.get("ttft_ms"),
            }
            for c in snapshot["channels"]
        },
    }  # fmt: skip


def _table(results: list[dict[str, Any]], console: Console) -> None:
    table = Table("line", "run", "status", "answers", box=None, pad_edge=False)
    for result in results:
        answers = "; ".join(
            f"{name}: {' '.join(channel['text'].split())[:60]}"
            for name, channel in result.get("channels", {}).items()
        )
        said = answers or result.get("message", "")
        # as a Text: brackets in an answer are no markup, and nothing in it is for the terminal
        table.add_row(str(result["line"]), result.get("run", ""), result["status"], Text(printable(said)))
    console.print(table)

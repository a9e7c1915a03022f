"""``mux agents``: the roster, and what could not be loaded."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mux.cli.parser import settings_from
from mux.http.service import load_roster
from mux.telemetry import configure_logging, printable

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """List the agents; exit 1 if a file could not be loaded."""
    configure_logging("console", "warning")  # the list is what this prints
    roster = load_roster(settings_from(args))
    agents = roster.describe()
    if args.json:
        print(json.dumps({"agents": agents}, indent=2))
    else:
        table = Table("agent", "what it does", "model", "tools", "from", box=None, pad_edge=False)
        for agent in agents:
            tools = ", ".join(agent.get("tools") or [])
            cells = (
                agent["name"], agent.get("description", ""), agent.get("model") or "", tools, agent["source"]
            )  # fmt: skip
            table.add_row(*(Text(printable(cell)) for cell in cells))  # brackets are no markup
        Console().print(table)
    for problem in roster.problems:
        print(printable(f"not loaded: {problem.path}: {problem.reason}"), file=sys.stderr)
    for warning in roster.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    return 1 if roster.problems else 0

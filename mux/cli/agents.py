"""``mux agents``: the roster, and what could not be loaded."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mux.cli.parser import settings_from
from mux.http.service import load_roster
from mux.roster.known import KNOWN, snippet
from mux.telemetry import configure_logging, printable

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """List the agents; exit 1 if a file could not be loaded."""
    if args.known:
        return _known(as_json=args.json)
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


def _known(*, as_json: bool) -> int:
    """Coding agents that can be lanes: their commands, and the settings for those on PATH."""
    if as_json:
        found = [
            {"name": a.name, "title": a.title, "command": a.command, "env": a.env, "install": a.install,
             "path": a.path, "tried": a.tried} for a in KNOWN
        ]  # fmt: skip
        print(json.dumps({"agents": found}, indent=2))
        return 0
    names = ("agent", "command", "on PATH", "install", "tried")
    columns = (Column(name, overflow="fold") for name in names)  # a command that is cut can't be pasted
    table = Table(*columns, box=None, pad_edge=False)
    for agent in KNOWN:
        where = agent.path or "no"
        table.add_row(agent.title, " ".join(agent.command), where, agent.install, agent.tried or "no")
    Console().print(table)
    if here := [agent for agent in KNOWN if agent.path]:
        print("\nFor mux.toml:\n\n" + "\n\n".join(snippet(agent) for agent in here))
    return 0

"""``mux doctor``: checks the installation, the store and the models, and says what to do."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import mux
from mux.cli.parser import missing_folders, settings_from
from mux.errors import ConfigError, MuxError
from mux.guardrails import Rules
from mux.http.service import load_roster
from mux.llm.providers import Providers, probe_local_servers
from mux.llm.rehearsal import RehearsalModel
from mux.log import open_store, store_holder
from mux.settings import Settings
from mux.telemetry import configure_logging, printable
from mux.tools.mcp_link import mcp_problem

__all__ = ["command"]

Line = tuple[Literal["ok", "warn", "bad"], str]
_MARK = {"ok": "✓", "warn": "!", "bad": "✗"}


def command(args: argparse.Namespace) -> int:
    """Print one line per check; exit 1 if something is broken."""
    settings = settings_from(args)
    configure_logging(settings.log_format, "error")  # its lines are the checks; tracebacks could quote keys
    lines = [*_installation(), *_roster(settings), *_rules(settings), *_tools(settings)]
    lines += asyncio.run(_services(settings))
    for state, text in lines:
        print(f"{_MARK[state]} {printable(text)}")  # endpoints name their models as they like
    return 1 if any(state == "bad" for state, _ in lines) else 0


def _installation() -> Iterator[Line]:
    yield (
        "ok",
        f"mux {mux.__version__} on Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
    )
    try:
        other = importlib.metadata.distribution("mux")
        yield (
            "bad",
            (
                f"the package 'mux' {other.version} is another project and shares our import name: "
                "pip uninstall mux, then pip install --force-reinstall mux-agents"
            ),
        )
    except importlib.metadata.PackageNotFoundError:
        pass
    command = shutil.which("mux")
    if command and Path(command).parent != Path(sys.executable).parent:
        yield "warn", f"the command 'mux' on the PATH is {command}, not this environment's"
    for extra, module, what in (
        ("openai-agents", "agents", "agents written with the OpenAI Agents SDK"),
        ("mcp", "mcp", "tools of MCP servers"),
        ("uvloop", "uvloop", "a faster event loop"),
    ):
        if importlib.util.find_spec(module) is None:
            yield "warn", f"without {what}: pip install 'mux-agents[{extra}]'"


def _roster(settings: Settings) -> Iterator[Line]:
    roster = load_roster(settings)
    yield "ok", f"{len(roster.agents)} agents: {', '.join(sorted(roster.agents))}"
    for problem in roster.problems:
        yield "bad", f"agent file {problem.path}: {problem.reason}"
    for warning in roster.warnings:
        yield "warn", str(warning)
    if unknown := [name for name in settings.default_agents if name not in roster.agents]:
        yield "bad", f"default_agents names {', '.join(map(repr, unknown))}, which the roster does not have"


def _rules(settings: Settings) -> Iterator[Line]:
    base = settings.config_path.parent if settings.config_path else Path()
    for name, rule in settings.guardrails.items():
        try:
            rules = Rules.compile({name: rule}, base=base)
        except ConfigError as e:
            yield "bad", e.message
            continue
        yield from (("warn", warning) for warning in rules.warnings)


def _tools(settings: Settings) -> Iterator[Line]:
    """What tools and prices stand on, as far as that can be known without starting anything."""
    yield from (("warn", text) for text in missing_folders(settings))
    for spec in settings.prices:
        if spec.partition(":")[0] not in settings.providers:
            yield "warn", f"prices names {spec!r}, of a provider that is not configured"
    for name, server in settings.mcp.items():
        if problem := mcp_problem(server):
            yield "bad", f"MCP server {name!r}: {problem}"
    search = settings.web_search.mcp
    if search is not None and not any(search.startswith(f"{name}_") for name in settings.mcp):
        yield "bad", f"web_search.mcp names {search!r}, which no [mcp.NAME] offers: it is called NAME_TOOL"


async def _services(settings: Settings) -> list[Line]:
    lines: list[Line] = [await _store(settings)]
    providers = Providers(settings)
    providers.register("rehearsal", RehearsalModel())
    try:
        for offer in await providers.offers():
            name = offer["id"]
            if offer["provider"] not in settings.providers:
                continue  # the rehearsal model is always there
            lines.append(
                ("ok", f"model {name}")
                if offer.get("available", True)
                else ("bad", f"model {name}: {offer.get('error')}")
            )
        default = _default_model(settings, providers)
    finally:
        await providers.aclose()
    lines += [("ok", _local(found)) for found in await probe_local_servers()]
    return [*lines, default]


def _default_model(settings: Settings, providers: Providers) -> Line:
    """The model of agents that name none, and whether it is there."""
    spec = settings.default_model()
    try:
        model = providers.model(spec)[1]
        provider = providers.provider(spec)
    except ConfigError as e:
        return "bad", f"agents without a model of their own can't run: {e.message}"
    listed = providers.listed(spec.partition(":")[0])
    # Azure lists models, and is asked for deployments
    if listed and model not in listed and provider is not None and provider.azure_api_version is None:
        setting = "model in mux.toml, or MUX_MODEL," if settings.model else "OPENAI_MODEL"
        return "warn", (
            f"agents without a model of their own use {spec}, which its endpoint does not list:"
            f" set {setting} to one that it has"
        )
    return "ok", f"agents without a model of their own use: {spec}"


def _local(found: dict[str, Any]) -> str:
    models = found["models"]
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return (
        f"a local model server ({found['name']}) answers at {found['base_url']}:"
        f" {', '.join(models[:5]) or 'no models'}{more}"
    )


async def _store(settings: Settings) -> Line:
    try:
        store = open_store(settings.store, durability=settings.durability)
        holder = await asyncio.to_thread(store_holder, settings.store)
    except MuxError as e:
        return "bad", f"store: {e.message}"
    if holder is not None and holder.url:
        return "ok", f"store {store.info.url}: in use by the server at {holder.url}"
    try:
        await store.open()
    except MuxError as e:
        return "bad", f"store: {e.message}"
    await store.close()
    note = f"; {store.info.note}" if store.info.note else ""
    survives = {
        "no": "nothing survives the process",
        "process": "survives a crash",
        "power": "survives power loss",
    }
    return "ok", f"store {store.info.url}: {survives[store.info.durable]}{note}"

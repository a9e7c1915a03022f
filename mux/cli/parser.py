"""The arguments of every command. Nothing heavy is imported here: help and usage errors come at once."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mux
from mux.settings import Settings, load_settings

__all__ = ["missing_folders", "parse", "settings_from"]


def _loader(module: str) -> Callable[[], Callable[[argparse.Namespace], int | None]]:
    def load() -> Callable[[argparse.Namespace], int | None]:
        command: Callable[[argparse.Namespace], int | None] = importlib.import_module(module).command
        return command

    return load


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; ``args.load()`` gives the command's function."""
    parser = argparse.ArgumentParser(
        prog="mux",
        description="Runs several AI agents at once and streams what they do, labelled and in order.",
    )
    parser.add_argument("--version", action="version", version=f"mux {mux.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _serve(commands)
    _run(commands)
    _replay(commands)
    _judge(commands)
    _deploy(commands)
    _backup(commands)
    _keys(commands)
    _share(commands)
    agents = commands.add_parser("agents", help="list the agents of the roster")
    agents.add_argument("--json", action="store_true", help="as JSON")
    agents.add_argument("--known", action="store_true", help="well-known coding agents, and which are here")
    doctor = commands.add_parser("doctor", help="check this installation and say what to mend")
    config = commands.add_parser("config", help="show the settings in force and where they come from")
    for sub, module in ((agents, "agents"), (doctor, "doctor"), (config, "config")):
        _common(sub)
        sub.set_defaults(load=_loader(f"mux.cli.{module}"))
    return parser.parse_args(argv)


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (default ./mux.toml)")
    parser.add_argument(
        "--store",
        metavar="URL",
        help="memory: | sqlite:PATH | redis://HOST:PORT/DB (default: sqlite in the data directory)",
    )


def _common(parser: argparse.ArgumentParser) -> None:
    _where(parser)
    parser.add_argument(
        "--agents", type=Path, action="append", metavar="DIR", help="a folder of agents; may be repeated"
    )
    parser.add_argument(
        "--docs", type=Path, action="append", metavar="DIR", help="a folder that document tools may read"
    )
    parser.add_argument("--model", help="model of agents that name none, as provider:model")


def _serve(commands: Any) -> None:
    parser = commands.add_parser("serve", help="start the server with the dashboard")
    _common(parser)
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8765; 0 = any free one)")
    parser.add_argument("--base-path", metavar="/PATH", help="in front of every path, behind a proxy")
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="ask nobody for a key, whatever the address"
    )
    parser.add_argument(
        "--role", choices=("all", "api", "worker"),
        help="api: accepts runs and serves streams; worker: drives runs; all (default): both",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=_at_least_one, metavar="N", help="processes behind the port (a Redis store)"
    )
    parser.add_argument("--durability", choices=("normal", "full"), help="full: survive power loss too")
    parser.add_argument("--log-format", choices=("auto", "json", "console"))
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.set_defaults(load=_loader("mux.cli.serve"))


def _run(commands: Any) -> None:
    parser = commands.add_parser(
        "run", help="run agents on a task, here in the terminal",
        description="Uses the server that runs on the same store, or --url, else runs in this process.",
    )  # fmt: skip
    _common(parser)
    parser.add_argument("message", nargs="?", help="the task; - reads it from standard input")
    parser.add_argument(
        "-a", "--agent", action="append", metavar="NAME[=TASK]", default=[],
        help="an agent, with a task of its own if given; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the events as NDJSON")
    parser.add_argument("--plain", action="store_true", help="lines instead of live panes")
    parser.add_argument("--url", help="a running server")
    parser.add_argument("--thread", help="continue this thread")
    parser.add_argument("--file", type=Path, metavar="JSONL", help="a batch: one run per line")
    parser.add_argument(
        "--parallel", type=_at_least_one, default=4, help="runs of a batch at once (default 4)"
    )
    parser.add_argument("--tag", help="batch: metadata.batch of its runs (default: the file's name)")
    parser.set_defaults(load=_loader("mux.cli.run"))


def _judge(commands: Any) -> None:
    parser = commands.add_parser(
        "judge", help="run an experiment and judge its answers",
        description="Exit status: 0 good enough; 1 below --fail-under; 3 regressed against --baseline; "
        "4 stopped at --max-cost; 130 interrupted.",
    )  # fmt: skip
    _common(parser)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="prompts, lanes and tests")
    parser.add_argument("--url", help="a running server")
    parser.add_argument("--repeat", type=_at_least_one, help="how often each cell runs (default: the file's)")
    parser.add_argument("--parallel", type=_at_least_one, default=4, help="runs at once (default 4)")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--fail-under", type=float, default=1.0, help="pass rate below which it fails (default 1)"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="an earlier --json: report what got worse"
    )
    parser.add_argument("--max-cost", type=float, help="start no more runs at this cost")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the last pass: what is finished runs no second time"
    )
    parser.set_defaults(load=_loader("mux.cli.judge"))


def _keys(commands: Any) -> None:
    parser = commands.add_parser(
        "keys", help="make, list and revoke keys of a server",
        description="Works on the store itself, also while a server has it open.",
    )  # fmt: skip
    does = parser.add_subparsers(metavar="what", dest="what", required=True)
    add = does.add_parser("add", help="make a key; it is printed once")
    add.add_argument("owner", metavar="OWNER", help="whose runs it starts and sees")
    add.add_argument("--scope", default="read,run", metavar="A,B", help="read, run, admin (default read,run)")
    add.add_argument("--agents", dest="of_agents", metavar="A,B", help="only these agents")
    add.add_argument("--expires", type=_duration, metavar="90d", help="how long it lasts: s, m, h, d or w")
    add.add_argument("--title", help="a word for people, such as where it is used")
    add.add_argument(
        "--limit", action="append", default=[], metavar="NAME=N",
        help="runs, channels, viewers, tokens_a_day, cost_a_day, stored_mb; may be repeated",
    )  # fmt: skip
    listed = does.add_parser("list", help="list them, without their secrets")
    listed.add_argument("--json", action="store_true", help="as JSON")
    revoke = does.add_parser("revoke", help="end one, and all that was opened with it")
    revoke.add_argument("id", metavar="ID")
    for sub in (add, listed, revoke):
        _where(sub)
        sub.set_defaults(load=_loader("mux.cli.keys"))


def _share(commands: Any) -> None:
    parser = commands.add_parser("share", help="make a read-only link to a run of a running server")
    _where(parser)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--channels", metavar="A,B", help="only these lanes")
    parser.add_argument("--plan", action="store_true", help="show instructions and params, too")
    parser.add_argument("--expires", type=_duration, metavar="7d", help="how long it lasts (default 7d)")
    parser.add_argument("--list", action="store_true", help="list the run's links instead")
    parser.add_argument("--revoke", metavar="ID", help="end this link instead")
    parser.add_argument("--url", help="a running server")
    parser.set_defaults(load=_loader("mux.cli.share"))


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is no duration: write 90d, 12h or 30m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]


def _deploy(commands: Any) -> None:
    parser = commands.add_parser(
        "deploy", help="print a template for running it elsewhere",
        description="Prints a template; redirect it into a file and read its head.",
    )  # fmt: skip
    parser.add_argument(
        "what", choices=("compose", "systemd", "nginx", "caddy", "kubernetes", "grafana", "alerts")
    )
    parser.add_argument(
        "--domain", type=_domain, default="mux.example.com", metavar="NAME",
        help="the host that browsers use (default mux.example.com)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=8765, help="where the server listens (default 8765)")
    parser.set_defaults(load=_loader("mux.cli.deploy"))


def _backup(commands: Any) -> None:
    for what, about in (
        ("backup", "write the store to one file, also while a server uses it"),
        ("restore", "make a file that mux backup wrote the store; no server may use it"),
    ):
        parser = commands.add_parser(what, help=about)
        _where(parser)
        parser.add_argument("file", type=Path, metavar="FILE")
        parser.set_defaults(load=_loader("mux.cli.backup"), what=what)


def _domain(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9.-]{1,253}", text, re.ASCII) is None:
        raise argparse.ArgumentTypeError(f"{text} is no host name")
    return text


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _speed(text: str) -> float:
    speed = float(text)
    if not speed >= 0:  # nan is neither
        raise argparse.ArgumentTypeError(f"{text} is no speed: 1 is as it was, 0 at once")
    return speed


def _replay(commands: Any) -> None:
    parser = commands.add_parser("replay", help="play a run again, from a file or the store")
    _common(parser)
    parser.add_argument("source", metavar="FILE|RUN", help="an exported NDJSON file, or a run's id")
    parser.add_argument("--speed", type=_speed, default=1.0, help="1 = as it was; 0 = at once (default 1)")
    parser.add_argument("--json", action="store_true", help="print the events as NDJSON")
    parser.add_argument("--plain", action="store_true", help="lines instead of live panes")
    parser.add_argument("--url", help="a running server")
    parser.set_defaults(load=_loader("mux.cli.replay"))


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings with the command's flags on top.

    Raises:
        ConfigError: as `load_settings`.
    """
    names = (
        "host",
        "port",
        "base_path",
        "insecure",
        "store",
        "agents",
        "docs",
        "model",
        "role",
        "processes",
        "durability",
        "log_format",
        "log_level",
    )
    return load_settings({n: getattr(args, n, None) for n in names}, config=args.config)


def missing_folders(settings: Settings) -> list[str]:
    """A sentence for each document folder that is not there; the tools look for it again on each use."""
    return [
        f"there is no document folder {root}" for root in settings.documents.roots if not os.path.isdir(root)
    ]

"""``mux deploy``: templates for running it elsewhere, printed with what they need to know filled in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import mux

__all__ = ["TEMPLATES", "command"]

FOLDER: Final = Path(mux.__file__).parent / "deploy"
TEMPLATES: Final = {
    "compose": "compose.yaml",
    "systemd": "mux.service",
    "nginx": "nginx.conf",
    "caddy": "Caddyfile",
    "kubernetes": "kubernetes.yaml",
    "grafana": "grafana.json",
    "alerts": "alerts.yaml",
}


def command(args: argparse.Namespace) -> int:
    """Print one."""
    text = (FOLDER / TEMPLATES[args.what]).read_text(encoding="utf-8")
    known = {"DOMAIN": args.domain, "PORT": str(args.port), "VERSION": mux.__version__}
    for name, value in known.items():
        text = text.replace(f"@{name}@", value)
    print(text, end="")
    return 0

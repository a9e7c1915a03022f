"""``mux config``: the settings in force. Keys never appear, only the names of their variables."""

from __future__ import annotations

import argparse

from mux.cli.parser import settings_from

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Print the merged settings as JSON, with the file that they were read from."""
    settings = settings_from(args)
    print(settings.model_dump_json(indent=2, exclude_none=True))
    return 0

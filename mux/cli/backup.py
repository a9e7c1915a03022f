"""``mux backup`` and ``mux restore``: the store as one file, and back."""

from __future__ import annotations

import argparse

from mux.cli.parser import settings_from
from mux.log import back_up_store, restore_store

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Do it, and say how much it was."""
    settings = settings_from(args)
    work = back_up_store if args.what == "backup" else restore_store
    path, size = work(settings.store, args.file)
    print(f"{path}: {size:,} bytes")
    return 0

"""Where files are: those that ship with the package, and those that Mux keeps for its user.

The former are beside the code in a wheel, and at its root in a checkout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["bundled", "data_folder"]

_PACKAGE = Path(__file__).resolve().parent
_IN_A_WHEEL = (_PACKAGE / "_static").is_dir()  # looked up once, and not on the event loop


def bundled(name: str) -> Path:
    """The folder ``agents`` or ``static``: ``mux/_<name>`` in a wheel, ``<name>`` in a checkout."""
    return _PACKAGE / f"_{name}" if _IN_A_WHEEL else _PACKAGE.parent / name


def data_folder() -> Path:
    """``mux`` in the user's data directory, by the platform's convention."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        # The XDG base directory specification: a relative path there is to be ignored.
        named = Path(os.environ.get("XDG_DATA_HOME", ""))
        base = named if named.is_absolute() else Path.home() / ".local" / "share"
    return base / "mux"

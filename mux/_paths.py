"""Where the files that ship with the package are: in a wheel beside the code, in a checkout at its root."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bundled"]

_PACKAGE = Path(__file__).resolve().parent


def bundled(name: str) -> Path:
    """The folder ``agents`` or ``static`` as shipped: ``mux/_<name>`` in a wheel, ``<name>`` in a checkout."""
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name

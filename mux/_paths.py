"""Where the files that ship with the package are: in a wheel beside the code, in a checkout at its root."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bundled"]

_PACKAGE = Path(__file__).resolve().parent
_IN_A_WHEEL = (_PACKAGE / "_static").is_dir()  # looked up once, and not on the event loop


def bundled(name: str) -> Path:
    """The folder ``agents`` or ``static``: ``mux/_<name>`` in a wheel, ``<name>`` in a checkout."""
    return _PACKAGE / f"_{name}" if _IN_A_WHEEL else _PACKAGE.parent / name

"""Published npm packages for tests, pinned, installed once into the user's cache."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

__all__ = ["installed"]


def installed(package: str, file: str) -> Path:
    """The path of a file of the package (``name@version``), which is installed if it is not there yet.

    From whatever registry npm is configured with; no script of a package is run.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mux-tests"
    prefix = cache / package.replace("/", "-").lstrip("@")
    path = prefix / "node_modules" / package.rpartition("@")[0] / file
    if not path.is_file():
        prefix.mkdir(parents=True, exist_ok=True)
        options = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(prefix))
        subprocess.run(["npm", "install", *options, package], check=True, capture_output=True, timeout=110)
    return path

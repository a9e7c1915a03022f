"""Compile tests/requirements.txt: every version that runs in tests and under ``make run``, pinned.

Run by ``make lock``. No index host is written into the result, so that it works behind any mirror.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = "# Compiled by `make lock` from pyproject.toml (all extras) and tests/requirements.in. Don't edit.\n"


def main() -> None:
    """Write the file, or fail with pip-compile's own words."""
    out = HERE / "requirements.txt"
    command = [
        sys.executable, "-m", "piptools", "compile", "--quiet", "--upgrade", "--all-extras", "--allow-unsafe",
        "--strip-extras", "--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links",
        "--no-header", "--annotation-style=line", "--output-file", str(out),
        "pyproject.toml", "tests/requirements.in",
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=HERE.parent)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(HEADER + "".join(line for line in lines if not line.startswith("-")))


if __name__ == "__main__":
    main()

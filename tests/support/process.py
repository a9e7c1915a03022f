"""A real server in a process of its own, for tests of what users do from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

__all__ = ["MUX", "ROOT", "clean_env", "serving"]

ROOT = Path(__file__).resolve().parents[2]
MUX = (sys.executable, "-m", "mux.cli")


def clean_env(home: Path, **extra: str) -> dict[str, str]:
    """The environment without what a developer's shell adds, and with data and caches below ``home``."""
    drop = ("PYTHONPATH", "VIRTUAL_ENV", "OPENAI_API_KEY", "OPENAI_BASE_URL")
    kept = {k: v for k, v in os.environ.items() if k not in drop and not k.startswith("MUX_")}
    return kept | {"XDG_DATA_HOME": str(home), "XDG_CACHE_HOME": str(home), "MUX_REHEARSAL_PACE": "0"} | extra


@contextlib.contextmanager
def serving(
    cwd: Path,
    *args: str,
    command: Sequence[str] = MUX,
    env: Mapping[str, str] | None = None,
    stop_s: float = 30,
) -> Iterator[str]:
    """``mux serve --port 0`` in ``cwd``; gives its URL, and asserts that SIGTERM ends it with exit code 0."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads fills, and stops the server
    process = subprocess.Popen(
        [*command, "serve", "--port", "0", *args],
        cwd=cwd, env=dict(env or clean_env(cwd / "home")), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Mux is ready: "):
                yield line.split(": ", 1)[1].strip().rstrip("/")
                break
        else:
            errors.seek(0)
            pytest.fail(f"the server did not start: {''.join(lines)} {errors.read()}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(stop_s) == 0
    finally:
        process.kill()
        process.communicate()
        errors.close()

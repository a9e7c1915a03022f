"""A real language model for tests, as long as they need it (see `tests.support.llama_server`)."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.llama_server import MODEL

__all__ = ["MODEL", "real_model"]

_READY_S = 600.0  # on first use the model is installed


@contextlib.contextmanager
def real_model() -> Iterator[str]:
    """The server's base URL, ``http://127.0.0.1:PORT/v1``. Where the model can't be had, the test is skipped
    and says so."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_ready(server, port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()
        assert server.stdin is not None
        server.stdin.close()


def _wait_ready(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        if server.poll() is not None:
            pytest.skip(f"NO REAL MODEL: python tests/support/llama_server.py {port} says why")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):  # not listening, or still loading
            time.sleep(0.25)
        else:
            return
    pytest.fail("the model server was not ready in time")

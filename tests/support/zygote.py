"""Starts many real servers quickly: a process that has imported everything forks one per start.

``python -m tests.support.zygote`` reads one JSON line per order and answers with one: ``spawn`` forks a child
that runs the command line ``mux …`` in a session of its own, ``wait`` gives a child's exit code. The child is
as new as one that was exec'd, except for the second of imports that it is spared: no loop, thread, file or
random state of the parent is shared.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any

__all__: list[str] = []

PR_SET_PDEATHSIG = 1  # Linux
PRELOADED = (
    "mux.cli.serve", "mux.cli.run", "mux.cli.replay", "openai.resources.chat.completions",
    "openai.resources.responses", "pydantic_monty",
)  # fmt: skip


def spawn(order: dict[str, Any]) -> dict[str, Any]:
    """Fork a child that runs ``order["argv"]``; gives its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            _become(order)
        finally:
            os._exit(70)  # not reached: never fall back into the parent's loop
    return {"pid": pid}


def _become(order: dict[str, Any]) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a test run that is killed leaves no server
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for fd, name in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
        file = os.open(name, os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, fd)
        os.close(file)
    _set_failpoint()
    sys.argv = ["mux", *order["argv"]]
    code = 70
    try:
        code = importlib.import_module("mux.cli").main() or 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set_failpoint() -> None:
    """What the modules would have done when they were imported with this environment."""
    failpoints = importlib.import_module("mux._failpoints")
    before, now = failpoints.failpoint, failpoints.make_failpoint(os.environ.get("MUX_FAILPOINT"))
    for module in tuple(sys.modules.values()):
        if vars(module).get("failpoint") is before:
            vars(module)["failpoint"] = now


def wait(order: dict[str, Any]) -> dict[str, Any]:
    """The exit code of a child (negative = by that signal), or ``None`` if it still runs."""
    deadline = time.monotonic() + order["seconds"]
    while True:
        pid, status = os.waitpid(order["pid"], os.WNOHANG)
        if pid:
            return {"code": os.waitstatus_to_exitcode(status)}
        if time.monotonic() >= deadline:
            return {"code": None}
        time.sleep(0.005)


def main() -> None:
    """Serve orders until standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would lose these threads"
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = spawn(order) if order["do"] == "spawn" else wait(order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

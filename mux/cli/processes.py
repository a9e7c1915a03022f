"""``mux serve --processes N``: several servers behind one port.

The kernel spreads connections over them (SO_REUSEPORT); they meet only in the store. One that dies is started
again, later and later if it keeps dying. The first signal is passed on, so that all drain; the second as
well. None outlives the one that watches over them, however that ended: it would keep the port, unwatched.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Final

from mux.settings import Settings

__all__ = ["PORT_SHARED", "end_with_supervisor", "supervise"]

PORT_SHARED: Final = "MUX_PORT_SHARED"  # set for the processes: they listen beside each other
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # before one that died is started again
_STEADY_S: Final = 30.0  # one that lived for so long begins anew with the shortest


class _Child:
    """One server, started as often as it dies."""

    def __init__(self, number: int, argv: list[str], env: dict[str, str], stopping: threading.Event) -> None:
        self.number = number
        self.ready = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self.status: int | None = None
        self._argv = argv
        self._env = env
        self._stopping = stopping
        self.thread = threading.Thread(target=self._run, name=f"mux-server-{number}", daemon=True)

    def _run(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            self.process = subprocess.Popen(  # noqa: S603 - this very program
                self._argv, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )  # nothing is written to its input: it ends when we do
            if self._stopping.is_set():  # the signal came while it was being started
                self.pass_on(signal.SIGTERM)
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.lines.append(line)
                if line.startswith("Mux is ready: "):
                    self.ready.set()
            self.status = self.process.wait()
            if self._stopping.is_set():
                return
            if not self.ready.is_set() and self.number == 0:  # it never could: say why, once
                return
            deaths = 1 if time.monotonic() - began > _STEADY_S else deaths + 1
            pause = _PAUSES_S[min(deaths, len(_PAUSES_S)) - 1]
            print(
                f"mux: server {self.number + 1} ended with status {self.status}; again in {pause:g} s",
                file=sys.stderr,
            )
            self._stopping.wait(pause)

    def pass_on(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def supervise(settings: Settings) -> int:
    """Run that many servers until a signal; returns the exit status."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as reserved:  # bound and never listening: the port is ours, and no connection
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((settings.host, settings.port))
        port = reserved.getsockname()[1]
        env = {**os.environ, PORT_SHARED: "1", "MUX_PORT": str(port)}
        argv = [sys.executable, "-m", "mux.cli", *_without_port(sys.argv[1:])]
        stopping = threading.Event()
        children = [_Child(n, argv, env, stopping) for n in range(settings.processes)]

        def on_signal(number: int, _: FrameType | None) -> None:
            stopping.set()
            for child in children:
                child.pass_on(signal.SIGTERM)

        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, on_signal)
        for child in children:
            child.thread.start()
        while not all(c.ready.wait(0.05) for c in children):
            if stopping.is_set() or (children[0].status is not None and not children[0].ready.is_set()):
                break
        else:
            print("".join(children[0].lines[:-1]), end="")
            print(f"processes: {settings.processes}, restarted when one dies")
            print(children[0].lines[-1], end="", flush=True)
            stopping.wait()
        if not stopping.is_set():  # the first could not start: the others neither
            on_signal(signal.SIGTERM, None)
        for child in children:
            child.thread.join()
    return next((c.status for c in children if c.status not in (None, 0, -signal.SIGTERM)), 0)


def end_with_supervisor() -> None:
    """In one of the servers: drain, as after a signal, when the supervisor is gone."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="mux-supervisor", daemon=True).start()


def _without_port(argv: list[str]) -> list[str]:
    """The command line without its port: each server gets the one that was reserved."""
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--port":
            next(words, None)
        elif not word.startswith("--port="):
            rest.append(word)
    return rest

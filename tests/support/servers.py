"""Servers in processes of their own that tests start, kill and start again on the same files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.process import ROOT, clean_env

__all__ = ["Server", "Zygote", "zygote"]

START_S = 20.0  # these machines are shared; how long a start may take is what other tests say


class Zygote:
    """The process of `tests.support.zygote`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote died"
        return json.loads(line)

    def order(self, do: str, **fields: Any) -> Any:
        """Send one order; its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)


@contextlib.contextmanager
def zygote() -> Iterator[Zygote]:
    """A zygote, ended with the block."""
    made = Zygote()
    try:
        yield made
    finally:
        made.close()


class Server:
    """``mux serve`` on a free port, started as often as wanted.

    Args:
        zygote: what starts it.
        home: working directory, logs and data; ``mux.toml`` in it is read.
        args: more of the command line.
        env: more of the environment.

    Attributes:
        url: its address; another one after each start unless ``port`` is given.
        starts: seconds from each start until it was ready.
    """

    def __init__(
        self, zygote: Zygote, home: Path, *args: str, port: int = 0, env: dict[str, str] | None = None
    ) -> None:
        self.zygote = zygote
        self.home = home
        self.args = args
        self.port = port
        self.env = env or {}
        self.url = ""
        self.pid = 0
        self.starts: list[float] = []
        self.code: int | None = None
        self._stdout = home / "stdout"
        self.stderr = home / "stderr"

    def spawn(self, *argv: str, name: str = "", **env: str) -> int:
        """Run any ``mux`` command in this server's place; gives the pid."""
        order = {
            "argv": argv, "cwd": str(self.home), "env": clean_env(self.home, **self.env, **env),
            "stdout": str(self.home / f"stdout{name}"), "stderr": str(self.home / f"stderr{name}"),
        }  # fmt: skip
        return int(self.zygote.order("spawn", **order)["pid"])

    async def command(self, *argv: str, name: str = "-command", seconds: float = 20) -> tuple[int, str, str]:
        """Run any ``mux`` command to its end: exit code, standard output, standard error."""
        pid = self.spawn(*argv, name=name)
        code = await self.wait(seconds, pid=pid)
        return code, (self.home / f"stdout{name}").read_text(), (self.home / f"stderr{name}").read_text()

    async def start(self, **env: str) -> None:
        """Start it, and wait until it says where it serves."""
        began = time.monotonic()
        self.launch(**env)
        while (url := self._ready()) is None:
            if self._gone(0) is not None or time.monotonic() > began + START_S:
                raise AssertionError(f"no start (exit code {self.code}): {self.stderr.read_text()[-4000:]}")
            await asyncio.sleep(0.005)
        self.url = url
        self.starts.append(time.monotonic() - began)

    def launch(self, **env: str) -> None:
        """Start it, and don't wait: it may be meant to die."""
        self._stdout.unlink(missing_ok=True)
        self.code = None
        self.pid = self.spawn("serve", "--port", str(self.port), *self.args, **env)

    def _ready(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            for line in self._stdout.read_text().splitlines(keepends=True):
                if line.startswith("Mux is ready: ") and line.endswith("\n"):
                    return line.split(": ", 1)[1].strip().rstrip("/")
        return None

    def _gone(self, seconds: float) -> int | None:
        if self.code is None and self.pid:
            self.code = self.zygote.order("wait", pid=self.pid, seconds=seconds)["code"]
        return self.code

    async def wait(self, seconds: float, *, pid: int | None = None) -> int:
        """The exit code, when it has ended by itself."""
        deadline = time.monotonic() + seconds
        while True:
            code = self._gone(0) if pid is None else self.zygote.order("wait", pid=pid, seconds=0)["code"]
            if code is not None:
                return int(code)
            assert time.monotonic() < deadline, f"still running after {seconds} s"
            await asyncio.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """``kill -9``."""
        if self.pid and self.code is None:
            self.signal(signal.SIGKILL)
            await self.wait(10)

    async def stop(self) -> None:
        """SIGTERM twice: stop now; asserts that it ends well."""
        if self.pid and self.code is None:
            self.signal(signal.SIGTERM)
            await asyncio.sleep(0.02)
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGTERM)
            assert await self.wait(10) == 0, self.stderr.read_text()[-4000:]

    @asynccontextmanager
    async def running(self, **env: str) -> AsyncIterator[Server]:
        """Started, and stopped at the end; killed if the test failed."""
        try:
            await self.start(**env)
            yield self
            await self.stop()
        finally:
            await self.kill()

    def logged(self) -> Sequence[dict[str, Any]]:
        """The log lines of the last start."""
        lines = self.stderr.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    # --- what it uses (Linux's /proc) ---------------------------------------------------------------------

    def rss(self) -> int:
        """Resident memory in bytes."""
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
        )
        return int(fields["VmRSS"].split()[0]) * 1024

    def open_files(self) -> int:
        """Number of file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        """Number of threads."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def session(self) -> list[int]:
        """The living processes of its session (itself and its children), also after its death."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

"""A program of its own process group, read line by line, that ends with its user and with the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mux.errors import AgentError

__all__ = ["Program", "environment", "running"]

_WATCH = Path(__file__).with_name("_watch.py")
_ALWAYS = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TERM", "SHELL", "TZ")
_CHUNK = 65_536
_STDERR = 4_000  # characters of stderr that are kept, the last ones
_GRACE_S = 2.0  # between the request to end and the end


def environment(names: Sequence[str]) -> dict[str, str]:
    """What a program sees of our environment: what every program needs, and the variables named for it."""
    return {name: os.environ[name] for name in (*_ALWAYS, *names) if name in os.environ}


class Program:
    """A running program.

    Attributes:
        max_line: bytes of a line; a longer one is an error.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        max_line: int,
        watch: int,
        on_error: Callable[[bytes], None] | None,
    ) -> None:
        self._watch: int | None = watch
        self.max_line = max_line
        self._on_error = on_error
        self._process = process
        self._tail = b""
        self._errors = asyncio.create_task(self._read_errors())
        self._input: asyncio.Task[None] | None = None

    def send(self, text: str) -> None:
        """Write all of its input and close it, while its output is read: it may print before it reads."""
        self._input = asyncio.create_task(self._write(text))

    async def _write(self, text: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(text.encode("utf-8", "replace"))
            await stdin.drain()
        stdin.close()

    async def write(self, data: bytes) -> None:
        """Write some of its input, as fast as it reads. Raises OSError: it does not read any more."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(data)
        await stdin.drain()

    async def lines(self) -> AsyncGenerator[str, None]:
        """Its lines with their ends, split at LF alone.

        Raises:
            AgentError: ``agent_failed``: a line is longer than ``max_line``.
        """
        stdout = self._process.stdout
        assert stdout is not None
        parts: list[bytes] = []
        size = 0
        while chunk := await stdout.read(_CHUNK):
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                yield (b"".join([*parts, line]) + b"\n").decode("utf-8", "replace")
                parts, size = [], 0
            if rest:
                parts.append(rest)
                size += len(rest)
            if size > self.max_line:
                raise AgentError("agent_failed", f"The program wrote a line of over {self.max_line:,} bytes.")
        if parts:
            yield b"".join(parts).decode("utf-8", "replace")

    async def ended(self) -> int:
        """Its exit status, when it has ended; 128 and the signal's number where one ended it."""
        status = await self._process.wait()
        await asyncio.wait({self._errors}, timeout=1.0)  # a grandchild may hold stderr open
        return status

    def errors(self) -> str:
        """The last of what it wrote to stderr."""
        return self._tail.decode("utf-8", "replace").strip()

    async def _read_errors(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while chunk := await stderr.read(_CHUNK):
            self._tail = (self._tail + chunk)[-_STDERR:]
            if self._on_error is not None:
                self._on_error(chunk)

    def kill(self) -> None:
        """End the whole group now."""
        self._release()

    async def stop(self) -> None:
        """End the whole group: its input is closed, then it is asked, then killed."""
        stdin = self._process.stdin
        if stdin is not None and self._input is None and not stdin.is_closing():
            stdin.close()
            await self._exit(_GRACE_S)
        if self._process.returncode is None and self._watch is not None:
            self._process.terminate()
            await self._exit(_GRACE_S)
        self._release()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        stdout = self._process.stdout
        while stdout is not None and await stdout.read(_CHUNK):
            pass  # an unread rest would keep its pipe open
        tasks = [task for task in (self._errors, self._input) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _exit(self, seconds: float) -> None:
        await asyncio.wait({asyncio.ensure_future(self._process.wait())}, timeout=seconds)

    def _release(self) -> None:
        """Let go of the pipe whose end makes the watcher kill the group."""
        if self._watch is not None:
            os.close(self._watch)
            self._watch = None


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    max_line: int = 64 << 20,
    on_error: Callable[[bytes], None] | None = None,
) -> AsyncIterator[Program]:
    """A program for the time of the block; its process group is gone after it.

    Args:
        command: the program and its arguments.
        cwd: its working directory.
        env: its whole environment.
        max_line: bytes that a line of its output may have.
        on_error: told what it writes to stderr, as it comes.

    Raises:
        AgentError: ``agent_failed``: the working directory is not there.
    """
    read, write = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(_WATCH), str(read), env.get("LC_CTYPE", ""), *command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=cwd, env=dict(env), pass_fds=(read,), start_new_session=True,
        )  # fmt: skip
    except BaseException as e:
        os.close(write)
        if isinstance(e, OSError):
            raise AgentError("agent_failed", f"{command[0]} can't be started in {cwd}: {e.strerror}.") from e
        raise
    finally:
        os.close(read)
    program = Program(process, max_line, write, on_error)
    try:
        yield program
    finally:
        stopping = asyncio.ensure_future(program.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await stopping  # a second cancel must not leave the group behind
            raise

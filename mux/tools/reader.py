"""Foreign documents, read in processes of their own: a parser that hangs or eats the memory is killed.

Text is decoded here; whatever a real parser must read (PDF, HTML, office files) goes to one of a few
processes, which are started when they are needed and end after a while without work. What took too long once
is not tried again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mux.errors import AgentError
from mux.process import Program, running
from mux.tools.text import Extracted, UnreadableError, extract

__all__ = ["Reader"]

SECONDS: Final = 10.0  # for one document
_MEMORY: Final = 1 << 30
_IDLE_S: Final = 60.0
_MOST_GIVEN_UP: Final = 1000
_MAX_ANSWER: Final = 200 << 20  # bytes of a line: a text of twenty million characters, escaped


@dataclass(frozen=True, slots=True)
class _Process:
    program: Program
    answers: AsyncGenerator[str, None]
    stack: AsyncExitStack

    async def end(self) -> None:
        self.program.kill()
        await self.answers.aclose()
        await self.stack.aclose()


class Reader:
    """Reads documents; belongs to one event loop.

    Args:
        processes: how many pages (HTML), and how many other documents, are parsed at once: a page is read in
            milliseconds, and must not wait for files that take their ten seconds.
        seconds: that one document may take.
        memory: bytes that a process may use.
    """

    def __init__(self, *, processes: int = 2, seconds: float = SECONDS, memory: int = _MEMORY) -> None:
        self._page_slots = asyncio.Semaphore(processes)
        self._slots = asyncio.Semaphore(processes)
        self._seconds = seconds
        self._memory = memory
        self._idle: list[tuple[_Process, asyncio.TimerHandle]] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._given_up: OrderedDict[bytes, str] = OrderedDict()  # digests of what took too long, and how long
        self._closed = False

    async def read(self, data: bytes, kind: str, charset: str | None = None) -> Extracted:
        """Title and text. A cancelled caller's document is not read any further.

        Args:
            kind: as `mux.tools.text.kind_of` says.
            charset: as it was announced.

        Raises:
            UnreadableError: why it can't be read.
        """
        if kind == "text":
            return await asyncio.to_thread(extract, data, kind, charset=charset)
        digest = await asyncio.to_thread(lambda: hashlib.blake2b(data, digest_size=16).digest())
        async with self._page_slots if kind == "html" else self._slots:
            if self._closed:
                raise UnreadableError("the server is shutting down")
            if (problem := self._given_up.get(digest)) is not None:
                raise UnreadableError(problem)
            process = await self._process()
            try:
                async with asyncio.timeout(self._seconds):
                    order = {"kind": kind, "charset": charset, "size": len(data)}
                    await process.program.write(json.dumps(order).encode() + b"\n" + data)
                    line = await anext(process.answers, "")
                answer = json.loads(line) if line else {"problem": self._ended(process)}
            except BaseException as e:
                await asyncio.shield(self._end(process))
                if isinstance(e, TimeoutError):
                    problem = self._given_up[digest] = f"it takes longer than {self._seconds:g} s to read"
                    if len(self._given_up) > _MOST_GIVEN_UP:
                        self._given_up.popitem(last=False)
                    raise UnreadableError(problem) from None
                if isinstance(e, OSError | AgentError | ValueError):
                    raise UnreadableError("its reader ended") from None
                raise
            if line and not self._closed:
                timer = asyncio.get_running_loop().call_later(_IDLE_S, self._expire, process)
                self._idle.append((process, timer))
            else:
                await self._end(process)
        if "problem" in answer:
            raise UnreadableError(answer["problem"])
        return Extracted(answer["title"], answer["text"])

    async def _process(self) -> _Process:
        if self._idle:
            process, timer = self._idle.pop()
            timer.cancel()
            return process
        stack = AsyncExitStack()
        here = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-m", "mux.tools._reader", str(self._memory), str(round(self._seconds))]
        env = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": here, "LC_CTYPE": "C.UTF-8"}
        program = await stack.enter_async_context(
            running(command, cwd=Path("/"), env=env, max_line=_MAX_ANSWER)
        )
        return _Process(program, program.lines(), stack)

    def _ended(self, process: _Process) -> str:
        """Why it said nothing: its limits are the likely reason."""
        killed = process.program.errors().rpartition("\n")[2]
        return (
            "it needs too much memory" if "Memory" in killed else "reading it needs too much time or memory"
        )

    def _expire(self, process: _Process) -> None:
        self._idle = [(p, t) for p, t in self._idle if p is not process]
        self._end(process)

    def _end(self, process: _Process) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(process.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def aclose(self) -> None:
        """End all processes; nothing is read any more."""
        self._closed = True
        for process, timer in self._idle:
            timer.cancel()
            self._end(process)
        self._idle = []
        await asyncio.gather(*self._ending, return_exceptions=True)

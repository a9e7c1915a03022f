"""``run_python``: programs of models in ``pydantic-monty`` worker processes.

Monty is an interpreter of its own that knows no files, sockets, processes or environment but what the host
hands in: here the document folders, read-only, and nothing else. Its time, memory, recursion and host-call
limits hold inside the worker; the output limit and cancellation are ours, by dropping the session, which
kills the worker's process.
"""

from __future__ import annotations

import ast
import asyncio
import math
import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal, NoReturn

import pydantic_monty
from pydantic_monty import AsyncMonty, AsyncMontySession, ResourceLimits

from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
from mux.tools.decorator import tool
from mux.tools.results import clean_text
from mux.tools.roots import Roots
from mux.tools.sandbox_files import MAX_BYTES, PLACE, DocumentFiles

__all__ = ["MAX_PRINTED", "Sandbox", "sandbox_tool"]

MAX_CODE = 100_000  # characters
MAX_PRINTED = 100_000  # bytes that are kept; more stops the program
MAX_VALUE = 20_000  # characters of the last expression's value
MAX_PARSED = 20_000  # characters; looking for the last expression holds the interpreter, 1 ms for each 1,000
RUN_S = 20.0
MEMORY_BYTES = 64 << 20
RECURSION = 400
HOST_CALLS = 2_000  # reads of files, sleeps
SLEEP_S = 10.0
_SETTLE_S = 0.05
_MAX_LINE = 300  # characters of one line of an error: it quotes the program
_NICE = 10  # of workers
_FLUSH_S = 0.1  # prints are gathered this long before they become one progress event
_MODULES = (
    "asyncio, base64, bisect, collections, copy, csv, dataclasses, datetime, decimal, functools, hashlib, "
    "itertools, json, math, os (paths only), pathlib, random, re, sys, time, tomllib, typing, unicodedata"
)
_DESCRIPTION = f"""Run a Python program and get what it prints, and the value of its last expression.

It is a sandboxed subset of Python 3. It has: functions, lambdas, comprehensions, classes without bases, \
dataclasses, f-strings, match, try, async/await, and the modules {_MODULES}.
It lacks: class inheritance, yield (write a function that returns a list), del, decorators such as \
staticmethod, async with, input(), other modules (no numpy, requests, statistics), network, environment, \
processes. Files: {{files}}.
Limits: {RUN_S:g} s, {SLEEP_S:g} s of sleep, {MEMORY_BYTES >> 20} MB memory, {MAX_PRINTED // 1000} kB \
printed, {HOST_CALLS:,} file calls, {MAX_BYTES // 1_000_000} MB read. Nothing is kept between calls. Print \
what you want to see."""
_HINTS = (
    ("class inheritance", "Write classes without bases, or use functions and dicts."),
    ("yield", "Build a list and return it."),
    ("'del' statement", "Use .pop(), or assign None."),
    ("No module named", f"These modules exist: {_MODULES}."),
    ("Permission denied", "Only the document folders can be read; see the tool's description."),
    ("Read-only", "Files can't be written; print the result."),
    ("memory limit exceeded", "Work on smaller pieces."),
    ("maximum recursion depth", "Use a loop."),
    ("is not supported in this environment", "The sandbox has no environment, no processes and no network."),
    ("suspension limit", f"Files may be asked for {HOST_CALLS:,} times in all: read each of them once."),
    ("codec can't decode", "It is no UTF-8 text: open it with mode 'rb', or use read_doc."),
    ("does not yet support", "Write it without that."),
    ("not yet supported", "Leave that out."),
)

_TIME_LIMIT = re.compile(r"TimeoutError: (feed time|turn time|sleep) limit exceeded: [^\n]*\Z")


class Sandbox:
    """A bounded pool of workers, opened on first use.

    Args:
        roots: folders that programs can read under ``/docs``.
        workers: how many programs may run at once.
        run_s: seconds that one program may compute.
        memory_bytes: heap of one program.
        sleep_s: seconds that one program may sleep, in all.
    """

    def __init__(
        self,
        roots: Roots,
        *,
        workers: int | None = None,
        run_s: float = RUN_S,
        memory_bytes: int = MEMORY_BYTES,
        sleep_s: float = SLEEP_S,
    ) -> None:
        self._roots = roots
        self._workers = workers or max(2, min(8, os.cpu_count() or 2))
        self._limits: ResourceLimits = {
            "max_feed_duration_secs": run_s,
            "max_memory": memory_bytes,
            "max_recursion_depth": RECURSION,
            "max_suspensions": HOST_CALLS,
            "max_total_sleep_secs": sleep_s,
        }
        self._slots = asyncio.Semaphore(self._workers)
        self._opening = asyncio.Lock()
        self._pool: AsyncMonty | None = None
        self._closed = False

    def files(self) -> str:
        """Where programs find the documents, in words."""
        places = [f"{PLACE}/{p}".rstrip("/") for p in map(self._roots.prefix, self._roots.names)]
        return f"{', '.join(places)} can be read, nothing can be written" if places else "none"

    async def run(self, code: str, ctx: ToolContext) -> ToolOutput:
        """Run a program; what it prints is progress.

        Raises:
            ToolProblem: the program failed (``tool_failed``) or reached a limit of time (``timeout``).
        """
        if len(code) > MAX_CODE:
            raise ToolProblem(
                f"The program is too long: at most {MAX_CODE:,} characters.", "invalid_arguments"
            )
        program, has_value = await asyncio.to_thread(_with_value, clean_text(_newlines(code)))
        if self._slots.locked():
            await ctx.progress("waiting for a free sandbox")
        with ctx.waiting():
            await self._slots.acquire()
        try:
            with ctx.waiting():
                pool = await self._open()
            return await self._run(pool, program, has_value, ctx)
        finally:
            self._slots.release()

    async def _run(self, pool: AsyncMonty, program: str, has_value: bool, ctx: ToolContext) -> ToolOutput:
        printed, files = _Printed(), DocumentFiles(self._roots)
        async with _streamed(printed, ctx):
            try:
                async with pool.checkout(
                    limits=self._limits,
                    print_flush_interval=_FLUSH_S / 4,
                    os_policy={"sleep_system_max": math.inf},  # a sleep is whole or an error, never cut
                ) as session:
                    _yield_to_us(session.worker_pid)
                    await self._feed(session, program, printed, files)
                    if has_value:
                        await self._feed(session, _SHOW_VALUE, printed, files)
            except pydantic_monty.MontyError as e:
                self._explain(e, printed.text)
        return ToolOutput(printed.text or "(no output)")

    async def _feed(
        self, session: AsyncMontySession, program: str, printed: _Printed, files: DocumentFiles
    ) -> None:
        """Feed one program, and stop it when it prints too much: an exception in Monty's print callback would
        only surface at the program's end, so the feed is cancelled, which kills the worker."""
        feed = asyncio.ensure_future(session.feed_run(program, print_callback=printed.add, os=files))
        flood = asyncio.ensure_future(printed.overflow.wait())
        try:
            await asyncio.wait({feed, flood}, return_when=asyncio.FIRST_COMPLETED)
            if printed.overflow.is_set():
                raise ToolProblem(
                    f"The program was stopped: it printed more than {MAX_PRINTED // 1000} kB. Print less.",
                    printed=printed.text,
                )
            await feed
        finally:
            for waiter in (feed, flood):
                waiter.cancel()
            await asyncio.wait({feed, flood})
            if not feed.cancelled():
                feed.exception()  # it was raised above, or is of no interest after a flood

    def _explain(self, error: pydantic_monty.MontyError, printed: str) -> NoReturn:
        if isinstance(error, pydantic_monty.MontyCrashedError):
            if error.timed_out:
                raise self._overdue(printed) from None
            message = "The program broke the sandbox's worker, most likely by using too much memory."
            raise ToolProblem(message, printed=printed) from None
        display = getattr(error, "display", None)
        text = clean_text(display() if display is not None else str(error))
        if limit := _TIME_LIMIT.search(text):
            raise self._overdue(printed, of_sleep=limit.group(1) == "sleep") from None
        hint = next((h for sign, h in _HINTS if sign in text), "")
        lines = (line if len(line) <= _MAX_LINE else line[:_MAX_LINE] + "…" for line in text.split("\n"))
        raise ToolProblem(f"{chr(10).join(lines)[-3_000:]}\n{hint}".strip(), printed=printed) from None

    def _overdue(self, printed: str, *, of_sleep: bool = False) -> ToolProblem:
        message = f"it ran longer than {self._limits['max_feed_duration_secs']:g} s"
        if of_sleep:
            message = f"it may sleep {self._limits['max_total_sleep_secs']:g} s in all"
        return ToolProblem(f"The program was stopped: {message}.", "timeout", printed=printed)

    async def _open(self) -> AsyncMonty:
        async with self._opening:
            if self._closed:
                raise ToolProblem("The server is shutting down.")
            if self._pool is None:
                # looks at the disk for the worker's binary
                pool = await asyncio.to_thread(
                    AsyncMonty, min_processes=1, max_processes=self._workers, max_checkouts_per_worker=200
                )
                self._pool = await pool.__aenter__()
            return self._pool

    async def aclose(self) -> None:
        """End all workers."""
        async with self._opening:
            self._closed = True
            pool, self._pool = self._pool, None
            if pool is not None:
                await pool.__aexit__(None, None, None)
                # Monty's native thread still returns from waking us up. If the process ends before it has,
                # the interpreter ends that thread inside foreign frames and the process aborts (seen with
                # 1.4.0 in one of four exits). Idle for a moment, so that it gets the interpreter.
                await asyncio.sleep(_SETTLE_S)


class _Printed:
    """What a program has printed, filled from Monty's thread, read on the event loop."""

    def __init__(self) -> None:
        self.overflow = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._parts: list[str] = []
        self._size = 0
        self._fresh: list[str] = []

    def add(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        data = clean_text(text).encode()
        with self._lock:
            room = max(0, MAX_PRINTED - self._size)
            kept = data[:room].decode(errors="ignore")  # a character that the cut would split is left out
            self._parts.append(kept)
            self._fresh.append(kept)
            self._size += len(data)
            if self._size <= MAX_PRINTED:
                return
        self._loop.call_soon_threadsafe(self.overflow.set)

    @property
    def text(self) -> str:
        with self._lock:
            return "".join(self._parts)

    def take(self) -> str:
        """What came since the last time."""
        with self._lock:
            fresh, self._fresh = "".join(self._fresh), []
        return fresh


def _yield_to_us(worker: int | None) -> None:
    """Give a worker less of the processor than the server: programs compute, the event loop must not wait."""
    if worker is not None and hasattr(os, "setpriority"):
        with suppress(ProcessLookupError, PermissionError):  # it died: the run says so itself
            os.setpriority(os.PRIO_PROCESS, worker, _NICE)


@asynccontextmanager
async def _streamed(printed: _Printed, ctx: ToolContext) -> AsyncIterator[None]:
    """Report prints as progress while the body runs, and what is left of them at its end."""
    done = asyncio.Event()

    async def pump() -> None:
        while not done.is_set():
            try:
                async with asyncio.timeout(_FLUSH_S):
                    await done.wait()
            except TimeoutError:
                pass
            if fresh := printed.take():
                await ctx.progress(content=fresh)

    await ctx.progress("running the program")
    task = asyncio.create_task(pump())
    try:
        yield
    finally:
        done.set()
        try:
            await task
        finally:
            task.cancel()


# In a feed of its own; the value becomes text inside the sandbox, so that a large one costs nothing here.
_SHOW_VALUE = f"if _ is not None:\n    print(repr(_)[:{MAX_VALUE}])\nNone"


def _newlines(code: str) -> str:
    return code.replace("\r\n", "\n").replace("\r", "\n").replace("\f", " ")


def _with_value(code: str) -> tuple[str, bool]:
    """The program with its last expression assigned to ``_``; whether there is one.

    The program's own last value is never converted to host objects: a list that just fits the sandbox's
    memory would hold the event loop while it is built again on this side.
    """
    if len(code) > MAX_PARSED:
        return f"{code}\nNone", False
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"{code}\nNone", False  # Monty says what is wrong with it, in its own words
    if not body or not isinstance(body[-1], ast.Expr):
        return f"{code}\nNone", False
    last = body[-1]
    if isinstance(last.value, ast.Call) and ast.unparse(last.value.func) == "print":
        return f"{code}\nNone", False
    lines = code.split("\n")
    start = lines[last.lineno - 1].encode()  # the parser counts columns in UTF-8
    before, first = start[: last.col_offset].decode(), start[last.col_offset :].decode()
    return "\n".join([*lines[: last.lineno - 1], f"{before}_ = {first}", *lines[last.lineno :], "None"]), True


def sandbox_tool(sandbox: Sandbox) -> Tool:
    """``run_python`` over this sandbox."""

    @tool(
        name="run_python",
        description=_DESCRIPTION.format(files=sandbox.files()),
        timeout_s=RUN_S * 2 + SLEEP_S,  # the sandbox's own limits come first and explain themselves better
        idempotent=True,
        max_output=MAX_PRINTED + 10_000,
    )
    async def run_python(code: str, ctx: ToolContext) -> ToolOutput:
        """Run a Python program.

        Args:
            code: The whole program.
        """
        return await sandbox.run(code, ctx)

    return run_python

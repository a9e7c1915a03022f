"""What passes between us and a program that speaks the Agent Client Protocol: one message a line.

Notifications are read here and not by the SDK, which would start a task for each, log a traceback for one
that it does not know, and has no bound for a flood. Requests and answers go through the SDK's connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from typing import Any

import acp
from acp import schema
from pydantic import ValidationError

from mux.agent import AgentContext
from mux.errors import MuxError
from mux.process import Program

__all__ = ["Pipe"]

_AHEAD = 256  # messages that wait to be read before the program's output is left in its pipe


class Pipe:
    """The program's lines as the SDK's transport: requests and answers pass, the rest is read by us.

    Attributes:
        lines: what the program prints.
        news: what waits to be read, oldest first: notifications, and what is `put` here.
        arrived: set when there are news, or the program has ended.
        taken: set when some of them were taken.
        problem: what the program was lost by.
        prompted: the agent has a prompt, so it can be asked to cancel that.
        deaf: notifications are dropped: an old session is told again, and all of it is in the log.
    """

    def __init__(self, program: Program, ctx: AgentContext) -> None:
        self._program = program
        self.lines = program.lines()
        self._ctx = ctx
        self._noted: set[str] = set()
        self.news: deque[Any] = deque()
        self.arrived = asyncio.Event()
        self.taken = asyncio.Event()
        self.problem: MuxError | None = None
        self.prompted = False
        self.deaf = False

    def put(self, item: Any) -> None:
        self.news.append(item)
        self.arrived.set()

    def take(self) -> Any:
        self.taken.set()
        return self.news.popleft()

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to read, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.arrived.wait()

    async def send(self, message: dict[str, Any]) -> None:
        try:
            await self._program.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except ConnectionError:
            if "method" in message:
                raise  # of an answer that it does not wait for, nothing more is to be said
        self.prompted = self.prompted or message.get("method") == acp.AGENT_METHODS["session_prompt"]

    async def receive(self) -> dict[str, Any] | None:
        await asyncio.sleep(0)  # a request before this reaches us first: what follows it must not overtake it
        while True:
            while len(self.news) >= _AHEAD:
                self.taken.clear()
                await self.taken.wait()
            try:
                line = await anext(self.lines, None)
            except MuxError as e:
                self.problem, line = e, None
            if line is None:
                self.arrived.set()
                return None
            message = self._message(line)
            if message is not None:
                return message

    async def close(self) -> None:
        """Nothing: the lines are closed once nobody reads them any more."""

    def _message(self, line: str) -> dict[str, Any] | None:
        """A request or an answer; a notification is put among the news, and what is neither is noted."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return self._note("no JSON") if line.strip() else None
        if not isinstance(found, dict):
            return self._note("no object")
        method, number = found.get("method"), found.get("id")
        if method is None:
            if not isinstance(number, int) or isinstance(number, bool):
                return self._note("an answer without our id")
            if "error" in found and not isinstance(found["error"], dict):
                found["error"] = {"code": -32603, "message": str(found["error"])[:500]}
            return found
        if not isinstance(method, str):
            return self._note("a method that is no text")
        if "id" in found:
            return found if isinstance(number, int | str) else self._note("a request without an id")
        if method != "session/update":
            return self._note(f"the notification {method[:64]}")
        if self.deaf:
            return None
        try:
            self.put(schema.SessionNotification.model_validate(found.get("params")))
        except (ValidationError, RecursionError):
            params = found.get("params")
            update = params.get("update") if isinstance(params, dict) else None
            kind = update.get("sessionUpdate") if isinstance(update, dict) else None
            return self._note(f"the update {str(kind)[:64]}")
        return None

    def _note(self, what: str) -> dict[str, Any] | None:
        """Debug-log what is passed over, once; nothing comes of it."""
        if what not in self._noted and len(self._noted) < 100:
            self._noted.add(what)
            self._ctx.log.debug("acp message passed over", what=what)
        return None

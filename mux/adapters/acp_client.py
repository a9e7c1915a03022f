"""What an ACP agent may ask of us: files and terminals in its lane's workspace, and permissions."""

from __future__ import annotations

import asyncio
import contextlib
import io
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from acp import RequestError, schema

from mux.errors import AgentError
from mux.events import GuardrailHit
from mux.process import Program, running
from mux.workspaces import Workspace

__all__ = ["Ask", "Files"]

_MAX_FILE = 8 << 20  # bytes of a file that is read or written for an agent
_MAX_OUTPUT = 1 << 20  # characters of a terminal's output that are kept, the last ones
_MAX_TERMINALS = 16
_ORDER = {"allow": ("allow_once", "allow_always"), "reject": ("reject_once", "reject_always")}


@dataclass(eq=False, slots=True)
class Ask:
    """A permission that the agent asks for."""

    call: schema.ToolCallUpdate
    options: list[schema.PermissionOption]
    outcome: asyncio.Future[schema.RequestPermissionResponse]

    def answer(self, choice: Literal["allow", "reject"] | None) -> None:
        """Pick the option that means this, for once rather than for ever; ``None``, or no such option:
        cancelled."""
        for kind in _ORDER[choice] if choice else ():
            for option in self.options:
                if option.kind == kind:
                    self._set(schema.AllowedOutcome(option_id=option.option_id, outcome="selected"))
                    return
        self._set(schema.DeniedOutcome(outcome="cancelled"))

    def answer_as(self, first: asyncio.Task[Any]) -> None:
        """Answer as an earlier question for the same call was answered."""
        found = None if first.cancelled() or first.exception() else first.result()
        self.answer(found)

    def _set(self, outcome: schema.AllowedOutcome | schema.DeniedOutcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(schema.RequestPermissionResponse(outcome=outcome))


@dataclass(eq=False, slots=True)
class _Terminal:
    program: Program
    stack: AsyncExitStack
    limit: int
    text: str = ""
    cut: bool = False
    status: int | None = None
    reading: asyncio.Task[None] | None = field(default=None)

    async def read(self) -> None:
        try:
            async for line in self.program.lines():
                self.text += line
                if len(self.text) > 2 * self.limit + 1_000:  # seldom: each time copies all of it
                    self.text, self.cut = self.text[-self.limit :], True
        except AgentError as e:
            self.text += f"\n{e.message}\n"
        self.status = await self.program.ended()

    def exit(self) -> dict[str, Any]:
        if self.status is None:
            return {}
        return {"signal": str(self.status - 128)} if self.status > 128 else {"exit_code": self.status}


class Files:
    """The client's half of the protocol, for one channel.

    Args:
        space: the lane's workspace; what lies outside does not exist for the agent.
        env: the environment of its terminals, besides what it sets itself.
        tell: takes what belongs into the channel's stream.
    """

    def __init__(self, space: Workspace, env: Mapping[str, str], tell: Callable[[Any], None]) -> None:
        self._space = space
        self._env = dict(env)
        self._tell = tell
        self._terminals: dict[str, _Terminal] = {}

    async def request_permission(
        self, session_id: str, tool_call: schema.ToolCallUpdate, options: list[schema.PermissionOption],
        **_: Any,
    ) -> schema.RequestPermissionResponse:  # fmt: skip
        ask = Ask(tool_call, options, asyncio.get_running_loop().create_future())
        self._tell(ask)
        return await ask.outcome

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        """Never called: notifications are read before the SDK sees them."""

    # --- files -------------------------------------------------------------------------------------------

    async def _inside(self, path: str) -> Path:
        found = await asyncio.to_thread(self._space.inside, path)
        if found is None:
            self._tell(GuardrailHit(rule="workspace", stage="tool_input", action="blocked"))
            raise RequestError.invalid_params({"details": "This path is outside of the workspace."})
        return found

    async def read_text_file(
        self, session_id: str, path: str, line: int | None = None, limit: int | None = None, **_: Any
    ) -> schema.ReadTextFileResponse:
        real = await self._inside(path)
        try:
            text = await asyncio.to_thread(_read, real)
        except FileNotFoundError:
            raise RequestError.resource_not_found(path) from None
        except OSError as e:
            raise RequestError.invalid_params({"details": e.strerror or str(e)}) from None
        if line is not None or limit is not None:
            first = max((line or 1) - 1, 0)
            lines = list(io.StringIO(text))  # at line feeds only, as editors count
            text = "".join(lines[first : None if limit is None else first + max(limit, 0)])
        return schema.ReadTextFileResponse(content=text)

    async def write_text_file(self, session_id: str, path: str, content: str, **_: Any) -> None:
        real = await self._inside(path)
        try:
            await asyncio.to_thread(_write, real, content)
        except OSError as e:
            raise RequestError.invalid_params({"details": e.strerror or str(e)}) from None

    # --- terminals -----------------------------------------------------------------------------------------

    async def create_terminal(
        self, session_id: str, command: str, args: list[str] | None = None,
        env: list[schema.EnvVariable] | None = None, cwd: str | None = None,
        output_byte_limit: int | None = None, **_: Any,
    ) -> schema.CreateTerminalResponse:  # fmt: skip
        if len(self._terminals) >= _MAX_TERMINALS:
            raise RequestError.invalid_params(
                {"details": f"{_MAX_TERMINALS} terminals are open: release some."}
            )
        where = await self._inside(cwd) if cwd else self._space.cwd
        # agents send either a program with arguments, or one line for a shell
        words = [command, *args] if args else ["/bin/sh", "-c", command]
        stack = AsyncExitStack()
        variables = {**self._env, **{v.name: v.value for v in env or ()}}
        try:
            program = await stack.enter_async_context(running(_joined(words), cwd=where, env=variables))
        except (AgentError, ValueError) as e:
            raise RequestError.invalid_params({"details": str(e)}) from None
        program.send("")
        limit = _MAX_OUTPUT if output_byte_limit is None else max(0, min(output_byte_limit, _MAX_OUTPUT))
        terminal = _Terminal(program, stack, limit)
        terminal.reading = asyncio.create_task(terminal.read())
        name = f"term_{secrets.token_hex(6)}"
        self._terminals[name] = terminal
        return schema.CreateTerminalResponse(terminal_id=name)

    def _terminal(self, name: str) -> _Terminal:
        if name not in self._terminals:
            raise RequestError.invalid_params({"details": "There is no such terminal."})
        return self._terminals[name]

    async def terminal_output(
        self, session_id: str, terminal_id: str, **_: Any
    ) -> schema.TerminalOutputResponse:
        found = self._terminal(terminal_id)
        ended = schema.TerminalExitStatus(**found.exit()) if found.status is not None else None
        cut = found.cut or len(found.text) > found.limit
        text = found.text[-found.limit :] if found.limit else ""
        return schema.TerminalOutputResponse(output=text, truncated=cut, exit_status=ended)

    async def wait_for_terminal_exit(
        self, session_id: str, terminal_id: str, **_: Any
    ) -> schema.WaitForTerminalExitResponse:
        found = self._terminal(terminal_id)
        assert found.reading is not None
        await asyncio.wait({found.reading})
        return schema.WaitForTerminalExitResponse(**found.exit())

    async def kill_terminal(self, session_id: str, terminal_id: str, **_: Any) -> None:
        await self._end(self._terminal(terminal_id))

    async def release_terminal(self, session_id: str, terminal_id: str, **_: Any) -> None:
        await self._end(self._terminal(terminal_id))
        self._terminals.pop(terminal_id, None)

    async def close(self) -> None:
        """End every terminal's process group."""
        for name in list(self._terminals):
            with contextlib.suppress(Exception):
                await self._end(self._terminals.pop(name))

    async def _end(self, terminal: _Terminal) -> None:
        if terminal.reading is not None and not terminal.reading.done():
            terminal.reading.cancel()
            await asyncio.wait({terminal.reading})
        await terminal.stack.aclose()
        if terminal.status is None:
            terminal.status = await terminal.program.ended()

    # --- what we do not offer ------------------------------------------------------------------------------

    async def create_elicitation(self, message: str, mode: Any, **_: Any) -> Any:
        raise RequestError.method_not_found("elicitation/create")

    async def complete_elicitation(self, elicitation_id: str, **_: Any) -> None:
        """Nothing: we never began one."""

    async def ext_method(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        raise RequestError.method_not_found(method)

    async def ext_notification(self, method: str, params: dict[str, Any]) -> None:
        """Nothing: notifications are read before the SDK sees them."""

    def on_connect(self, conn: Any) -> None:
        """Nothing: the session holds the connection."""


def _joined(words: list[str]) -> list[str]:
    """The words as a command whose errors go where its output goes, as in a terminal."""
    return ["/bin/sh", "-c", 'exec "$@" 2>&1', "sh", *words]


def _read(path: Path) -> str:
    if path.stat().st_size > _MAX_FILE:
        raise OSError(0, f"The file is larger than {_MAX_FILE >> 20} MiB.")
    return path.read_bytes().decode("utf-8", "replace")


def _write(path: Path, content: str) -> None:
    data = content.encode("utf-8", "replace")
    if len(data) > _MAX_FILE:
        raise OSError(0, f"More than {_MAX_FILE >> 20} MiB can't be written at once.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

"""Agents of other programs over the Agent Client Protocol (version 1), as channels beside ours.

Optional: ``pip install "mux-agents[acp]"``. We are the protocol's client: the program is started for
each channel, is given a session in the lane's workspace and a prompt, and tells what it does by
notifications. What it asks of us (files, terminals, permissions) is served in `mux.adapters.acp_client`.
What passes between the two is in `mux.adapters.acp_pipe`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from pydantic import ConfigDict, Field, ValidationError

from mux.adapters.command import ProgramAgent, refuse
from mux.adapters.turns import Turns
from mux.agent import AgentContext, Draft, Outcome
from mux.errors import AgentError, ConfigError, MuxError
from mux.events import Custom, DoneStatus, Refusal, Usage
from mux.process import Program, environment, running
from mux.workspaces import Workspace, Workspaces

try:
    import acp
    from acp import schema
    from acp.client.connection import ClientSideConnection
except ImportError as e:
    raise ConfigError("extra_missing", 'ACP is not installed: pip install "mux-agents[acp]".') from e

from mux.adapters.acp_client import Ask, Files
from mux.adapters.acp_pipe import Pipe

__all__ = ["AcpAgent"]

_HEARTBEAT_S = 1.5  # the promise is progress every 2 s while a call runs
_SETUP_S = 60.0  # to initialise and to open a session: some programs fetch themselves first
_CANCEL_S = 5.0  # for the agent's own end after a cancel
_TICK_S = 0.25  # between two looks at whether the channel is to stop
_SIZE_EVERY_S = 10.0  # between two looks at the workspace's size
_MAX_HELD = 256  # updates of a call that wait until the human has decided about it
_MAX_LINE = 32 << 20
_NOT_LOGGED_IN = -32000
_STATUS: dict[str, tuple[DoneStatus, str | None]] = {
    "end_turn": ("completed", None),
    "max_tokens": ("completed", "length"),
    "max_turn_requests": ("completed", "max_turn_requests"),
    "refusal": ("refused", None),
    "cancelled": ("cancelled", None),
}


_Choice: TypeAlias = Literal["allow", "reject"]


class AcpAgent(ProgramAgent):
    """A program that speaks ACP, started anew for every channel.

    Attributes:
        workspace: the folder that each lane gets a copy of; ``None`` = each begins with an empty one.
        workspaces: where those are; given by the roster.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    workspace: Path | None = None
    workspaces: Workspaces | None = Field(default=None, exclude=True)

    def in_workspaces(self, workspaces: Workspaces) -> AcpAgent:
        """The agent with a place for its lanes' copies."""
        return self.model_copy(update={"workspaces": workspaces})

    async def run(self, ctx: AgentContext) -> AsyncIterator[Draft]:
        """Do the task.

        Raises:
            AgentError: ``not_supported``: the channel asks for what the agent does not offer;
                ``agent_failed``: it can't be started, died, or broke the protocol; ``login_required``;
                ``workspace_…``.
        """
        refuse(ctx, self.name, "a program that speaks ACP", model=True, params=("mode",))
        assert self.workspaces is not None, "the roster gives it"
        async with self.workspaces.opened(self.workspace, ctx.thread, ctx.channel) as space:
            failure: MuxError | None = None
            outcome = Outcome()
            try:
                async with (
                    running(
                        self.command, cwd=space.cwd, env=environment(self.env), max_line=_MAX_LINE
                    ) as program,
                    _Session(self, ctx, space, program) as session,
                    aclosing(session.drafts()) as drafts,
                ):
                    async for draft in drafts:
                        if isinstance(draft, Outcome):
                            outcome = draft
                        else:
                            yield draft
            except MuxError as e:
                failure = e
            finally:
                keeping = asyncio.ensure_future(_keep(space, ctx))
                try:
                    kept = await asyncio.shield(keeping)
                except asyncio.CancelledError:
                    await keeping  # the lane is still ours, and its diff is wanted of a stopped one, too
                    raise
            yield Custom(name="workspace", value=kept)
            if failure is not None:
                raise failure
            yield outcome


async def _keep(space: Workspace, ctx: AgentContext) -> dict[str, Any]:
    """What the lane changed, kept; an error is told and is not the channel's."""
    try:
        return (await space.keep(ctx.run, ctx.channel)).summary()
    except MuxError as e:
        return {"error": {"code": e.code, "message": e.message}}


class _Session:
    """One channel's session with its program."""

    def __init__(self, agent: AcpAgent, ctx: AgentContext, space: Workspace, program: Program) -> None:
        self._agent = agent
        self._ctx = ctx
        self._space = space
        self._program = program
        self._pipe = Pipe(program, ctx)
        self._turns = Turns(ctx.new_call_id, model=ctx.model)
        self._files = Files(space, environment(agent.env), self._pipe.put)
        self._link = ClientSideConnection(self._files, self._pipe, use_unstable_protocol=True)
        self._id = ""
        self._listening = False
        self._resumed = False  # the agent knows the conversation before the task
        self._asked: dict[str, asyncio.Task[_Choice]] = {}
        self._held: dict[str, list[Any]] = {}
        self._calls: dict[str, dict[str, Any]] = {}
        self._cost: float | None = None
        self._starting: list[tuple[str, Coroutine[Any, Any, _Choice]]] = []

    async def __aenter__(self) -> _Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._id and self._listening:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(0.5):
                    await self._link.cancel(self._id)
        for pair in self._starting:
            pair[1].close()
        await self._files.close()
        await self._link.close()
        await self._pipe.lines.aclose()

    # --- the course of a channel -------------------------------------------------------------------------

    async def drafts(self) -> AsyncGenerator[Draft, None]:
        """Everything, the outcome last."""
        try:
            async with asyncio.timeout(_SETUP_S):
                capable = await self._answered(
                    self._link.initialize(
                        acp.PROTOCOL_VERSION,
                        schema.ClientCapabilities(
                            fs=schema.FileSystemCapabilities(read_text_file=True, write_text_file=True),
                            terminal=True,
                        ),
                        schema.Implementation(name="mux", version="1"),
                    )
                )
                if capable.protocol_version != acp.PROTOCOL_VERSION:
                    raise AgentError(
                        "agent_failed", f"The agent speaks version {capable.protocol_version} of ACP, not 1."
                    )
                offers = await self._open(capable)
        except TimeoutError:
            raise AgentError("agent_failed", f"The agent opened no session within {_SETUP_S:g} s.") from None
        yield Custom(name="session", value=offers)
        self._listening = True
        prompt = self._prompt(capable)
        while True:
            answer: list[Any] = []
            async with aclosing(self._turn(prompt, answer)) as turn:
                async for draft in turn:
                    yield draft
            late = self._ctx.host.take_messages(at_end=True) if not self._ctx.stopping else ()
            if not late or self._ctx.host.budget_exceeded() is not None:
                break
            prompt = [acp.text_block("\n\n".join(m.content for m in late))]
        status, reason = _STATUS[answer[0]]
        if status == "refused":
            yield Refusal(content="The agent refused to go on.")
        if self._ctx.host.budget_exceeded() is not None and not self._ctx.stopping:
            status = "budget_exceeded"
        yield Outcome(
            "cancelled" if self._ctx.stopping else status, usage=self._turns.usage, finish_reason=reason
        )

    async def _open(self, capable: Any) -> dict[str, Any]:
        """A session: the lane's last one where the agent can, else a new one. Returns what it offers."""
        can = capable.agent_capabilities or schema.AgentCapabilities()
        cwd, notes = str(self._space.cwd), self._space.folder / "session.json"
        last = await asyncio.to_thread(_last_session, notes, self._agent.command)
        opened: Any = None
        if last is not None and self._ctx.history and self._space.continued:
            self._pipe.deaf = True
            resumes = can.session_capabilities and can.session_capabilities.resume is not None
            try:
                if resumes:
                    opened = await self._answered(self._link.resume_session(last, cwd, mcp_servers=[]))
                elif can.load_session:
                    opened = await self._answered(self._link.load_session(cwd, last, mcp_servers=[]))
            except AgentError as e:
                self._ctx.log.info("acp session not resumed", reason=e.message)
            finally:
                self._pipe.deaf = False
        self._resumed = opened is not None
        if opened is None:
            opened = await self._answered(self._link.new_session(cwd, mcp_servers=[]), login=capable)
            last = opened.session_id
        self._id = last or ""
        await asyncio.to_thread(
            notes.write_text, json.dumps({"session": self._id, "command": list(self._agent.command)})
        )
        return await self._choose(opened, capable)

    async def _choose(self, opened: Any, capable: Any) -> dict[str, Any]:
        """Set the mode and the model that the channel asks for, and say what there is to choose from."""
        modes = opened.modes
        options = {str(o.category or o.id): o for o in opened.config_options or ()}
        mode, model = self._ctx.params.get("mode"), self._ctx.model
        if mode is not None:
            known = [m.id for m in modes.available_modes] if modes else []
            if mode not in known:
                raise _not_offered("mode", mode, known)
            await self._answered(self._link.set_session_mode(mode, self._id))
        if model is not None:
            option = options.get("model")
            known = _choices(option)
            if option is None or model not in known:
                raise _not_offered("model", model, known)
            await self._answered(self._link.set_config_option(option.id, self._id, model))
        elif "model" in options:
            self._turns.model = str(options["model"].current_value)
        info = capable.agent_info
        offers = {
            "agent": f"{info.name} {info.version}" if info else None,
            "resumed": self._resumed or None,
            "mode": mode or (modes.current_mode_id if modes else None),
            "modes": [m.id for m in modes.available_modes] if modes else None,
            "model": self._turns.model,
            "models": _choices(options.get("model")) or None,
        }
        return {name: value for name, value in offers.items() if value is not None}

    def _prompt(self, capable: Any) -> list[Any]:
        """The task's blocks; the conversation before it is told where the agent does not know it."""
        ctx = self._ctx
        instructions = self._agent.instructions if ctx.instructions is None else ctx.instructions
        before = [f"{m.role}: {m.text}" for m in ctx.history if m.role in ("user", "assistant") and m.text]
        talk = "The conversation so far:\n\n" + "\n\n".join(before) if before else ""
        parts = [ctx.task] if self._resumed else [instructions, talk, ctx.task]
        blocks: list[Any] = [acp.text_block("\n\n".join(part for part in parts if part))]
        content = ctx.messages[-1].content if ctx.messages else ""
        for part in content if isinstance(content, list) else ():
            if part.get("type") != "image_url":
                continue
            can = capable.agent_capabilities and capable.agent_capabilities.prompt_capabilities
            if not (can and can.image):
                raise AgentError("not_supported", f"Agent {ctx.agent!r} takes no images. Leave them out.")
            url = str((part.get("image_url") or {}).get("url", ""))
            kind, comma, data = url.removeprefix("data:").partition(";base64,")
            if not url.startswith("data:") or not comma:
                raise AgentError("not_supported", "This agent takes images as data: URLs alone.")
            blocks.append(acp.image_block(data, kind))
        return blocks

    async def _turn(  # noqa: C901 -- one loop: what is read, what is due, what ends it
        self, prompt: list[Any], answer: list[Any]
    ) -> AsyncGenerator[Draft, None]:
        """One prompt: everything until its answer, which is put into ``answer``."""
        turns, pipe = self._turns, self._pipe
        pipe.prompted = False
        asking = asyncio.ensure_future(self._answered(self._link.prompt(self._id, prompt)))
        asking.add_done_callback(lambda _: pipe.arrived.set())
        look = asyncio.get_running_loop().time() + _SIZE_EVERY_S
        beat = look - _SIZE_EVERY_S + _HEARTBEAT_S
        deadline: float | None = None
        try:
            for draft in turns.begin():
                yield draft
            while pipe.news or not asking.done():
                while pipe.news:
                    for draft in self._read(pipe.take()):
                        yield draft
                    self._ask()
                now = asyncio.get_running_loop().time()
                if deadline is None and pipe.prompted and self._must_stop():
                    deadline = now + _CANCEL_S
                    await self._cancel()
                if deadline is not None and now > deadline:
                    answer.append("cancelled")
                    break
                if now > look:
                    await asyncio.to_thread(self._space.check_size)
                    look = asyncio.get_running_loop().time() + _SIZE_EVERY_S
                pipe.arrived.clear()
                if pipe.news or asking.done():
                    continue
                await pipe.wait(_TICK_S)
                if now > beat:
                    beat = now + _HEARTBEAT_S
                    for draft in turns.progress():
                        yield draft
            for draft in await self._ended(asking, answer):
                yield draft
        except MuxError:
            for draft in self._closed("interrupted", "The agent failed before this call was done."):
                yield draft
            raise
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            if not asking.cancelled():
                asking.exception()  # told already, or of no interest any more

    async def _cancel(self) -> None:
        self._dismiss()
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_TICK_S):
                await self._link.cancel(self._id)

    async def _ended(self, asking: asyncio.Future[Any], answer: list[Any]) -> Sequence[Draft]:
        """The end of a turn; the decisions that are still open are dropped with it."""
        if answer:
            self._dismiss()
            if not self._ctx.stopping and self._ctx.host.budget_exceeded() is None:
                raise AgentError(
                    "agent_failed", "The agent did not stop its turn for the message sent to it."
                )
            return self._closed("cancelled", "The call was stopped.")
        response = asking.result()
        answer.append(response.stop_reason)
        self._dismiss()
        usage: Usage | None = None
        if response.usage is not None:
            used = response.usage
            usage = Usage(
                input_tokens=used.input_tokens, output_tokens=used.output_tokens,
                reasoning_tokens=used.thought_tokens, cached_tokens=used.cached_read_tokens,
            )  # fmt: skip
        stopped = response.stop_reason == "cancelled"
        reason = {"max_tokens": "length", "end_turn": "stop"}.get(response.stop_reason, response.stop_reason)
        drafts = self._turns.finish(reason, usage) or self._turns.used(usage)
        why = "The turn ended before this call did."
        return [*drafts, *self._closed("cancelled" if stopped else "interrupted", why)]

    def _must_stop(self) -> bool:
        host = self._ctx.host
        return self._ctx.stopping or host.interrupted() or host.budget_exceeded() is not None

    def _dismiss(self) -> None:
        """Answer every open question with "cancelled"; the engine closes its approval."""
        for task in self._asked.values():
            task.cancel()

    def _closed(self, error: Literal["cancelled", "interrupted"], why: str) -> list[Draft]:
        for foreign in self._asked:
            self._turns.leave(foreign)  # its approval is open: the engine closes both, in their order
        return self._turns.close(error, why)

    async def _answered(self, asking: Any, *, login: Any = None) -> Any:
        """The agent's answer to one of our requests.

        Raises:
            AgentError: ``agent_failed``: it refused, died, or answered with what the protocol does not have;
                ``login_required``.
        """
        try:
            return await asking
        except acp.RequestError as e:
            if e.code == _NOT_LOGGED_IN:
                raise _login(self._agent, login) from e
            detail = e.data.get("details") if isinstance(e.data, dict) else None
            said = f"{e}: {detail}" if isinstance(detail, str) else str(e)
            raise AgentError("agent_failed", f"The agent refused: {' '.join(said.split())[:300]}") from e
        except (ConnectionError, BrokenPipeError) as e:
            if self._pipe.problem is not None:
                raise self._pipe.problem from e
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    status = await self._program.ended()
                    last = self._program.errors().rpartition("\n")[2][-300:]
                    raise AgentError(
                        "agent_failed", f"{self._agent.command[0]} ended with status {status}. {last}".strip()
                    ) from e
            raise AgentError("agent_failed", "The agent closed its output.") from e
        except ValidationError as e:
            raise AgentError("agent_failed", "The agent's answer is not as ACP has it.") from e

    # --- what the agent tells ----------------------------------------------------------------------------

    def _read(self, item: Any) -> list[Draft]:
        """The drafts of one notification, or of one question."""
        if isinstance(item, Ask):
            return self._question(item)
        if isinstance(item, partial):
            return cast("list[Draft]", item())
        if not isinstance(item, schema.SessionNotification):
            return [item]
        if item.session_id != self._id:
            return []
        update = item.update
        match update:
            case schema.AgentMessageChunk() | schema.AgentThoughtChunk():
                content = update.content
                if not isinstance(content, schema.TextContentBlock):
                    return [*self._turns.begin(), Custom(name="content", value=_plain(content))]
                thought = isinstance(update, schema.AgentThoughtChunk)
                return (self._turns.reasoning if thought else self._turns.text)(content.text)
            case schema.ToolCallStart() | schema.ToolCallProgress():
                return self._call(update)
            case schema.UserMessageChunk():
                return []  # our own prompt, said again
            case schema.UsageUpdate():
                return [*self._spent(update), Custom(name="context", value=_plain(update))]
        return [Custom(name=update.session_update, value=_plain(update))]

    def _spent(self, update: schema.UsageUpdate) -> list[Draft]:
        """What the session cost since the last report: the agent tells its sum."""
        if update.cost is None:
            return []
        new = update.cost.amount - (self._cost or 0.0)
        self._cost = update.cost.amount
        return self._turns.used(Usage(cost=new, currency=update.cost.currency)) if new > 0 else []

    def _call(self, update: Any) -> list[Draft]:
        """A call's beginning or how it goes on; one that waits for a decision goes on when that is made."""
        foreign = update.tool_call_id
        if foreign in self._asked:
            held = self._held.setdefault(foreign, [])
            if len(held) < _MAX_HELD:
                held.append(update)
            return []
        known = self._calls.setdefault(foreign, {})
        said = _plain(update)
        known.update({k: v for k, v in said.items() if k not in ("sessionUpdate", "toolCallId")})
        tool = str(known.get("kind") or "other")
        turns = self._turns
        found = turns.call(foreign, tool)
        if update.status in ("in_progress", "completed", "failed"):
            found += turns.start(foreign, tool, _arguments(known))
        text = _text_of(update.content or ())
        if update.status in ("completed", "failed"):
            data = {k: v for k, v in known.items() if k not in ("status", "rawInput") and v is not None}
            output = text or _text_of_raw(update.raw_output) or str(known.get("title") or "")
            failed = update.status == "failed"
            found += turns.result(
                foreign, output, tool=tool, data=data, error="tool_failed" if failed else None
            )
            self._calls.pop(foreign, None)
        elif text:
            found += turns.progress(foreign, text)
        return found

    # --- questions -----------------------------------------------------------------------------------------

    def _question(self, ask: Ask) -> list[Draft]:
        """Open the call that a permission is asked for, and ask a person beside the stream."""
        foreign = ask.call.tool_call_id
        if foreign in self._asked:  # asked twice: the first decision answers both
            self._asked[foreign].add_done_callback(ask.answer_as)
            return []
        known = self._calls.setdefault(foreign, {})
        known.update({k: v for k, v in _plain(ask.call).items() if k != "toolCallId"})
        tool = str(known.get("kind") or "other")
        found: list[Draft] = []
        if self._turns.runs(foreign):
            foreign = f"permission {len(self._asked)} {foreign}"  # a running call can't be asked for
        arguments = {**_arguments(known), "options": [_plain(o) for o in ask.options]}
        found += self._turns.call(foreign, tool)
        call_id = self._turns.call_id(foreign)
        if call_id is None:  # it has had its result
            ask.answer(None)
            return found
        found += self._turns.finish("tool_calls")
        self._starting.append((foreign, self._decide(ask, foreign, call_id, tool, arguments)))
        return found

    def _ask(self) -> None:
        """Ask what was found to be asked, now that the call's own drafts are on the channel."""
        for foreign, asking in self._starting:
            self._asked[foreign] = asyncio.create_task(asking)
        self._starting.clear()

    async def _decide(
        self, ask: Ask, foreign: str, call_id: str, tool: str, arguments: dict[str, Any]
    ) -> _Choice:
        try:
            decision = await self._ctx.host.approve(call_id, tool, arguments)
        except BaseException as e:
            ask.answer(None)
            if isinstance(e, Exception):
                self._pipe.put(partial(_fail, e))
            raise
        self._asked.pop(foreign, None)
        approved = decision.decision == "approve"  # edited arguments can't be given to the agent: a no
        choice: _Choice = "allow" if approved else "reject"
        ask.answer(choice)
        if not approved or foreign != ask.call.tool_call_id:
            why = "It was approved." if approved else decision.reason or "It was denied."
            # a call, not its drafts: their order is made when they are read
            self._pipe.put(
                partial(self._turns.result, foreign, why, tool=tool, error=None if approved else "denied")
            )
        for held in self._held.pop(foreign, ()):
            self._pipe.put(schema.SessionNotification(session_id=self._id, update=held))
        return choice


# --- values ------------------------------------------------------------------------------------------------


def _fail(error: Exception) -> list[Draft]:
    raise error


def _plain(value: Any) -> dict[str, Any]:
    """A value of the protocol as JSON has it there."""
    found: dict[str, Any] = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    found.pop("_meta", None)
    return found


def _arguments(known: dict[str, Any]) -> dict[str, Any]:
    """What a call is shown with: its raw input, and its title and places."""
    raw = known.get("rawInput")
    given = raw if isinstance(raw, dict) else {} if raw is None else {"input": raw}
    shown = {k: known[k] for k in ("title", "locations") if known.get(k)}
    return {**shown, **given}


def _text_of(content: Sequence[Any]) -> str:
    texts = (
        item.content.text
        for item in content
        if isinstance(item, schema.ContentToolCallContent)
        and isinstance(item.content, schema.TextContentBlock)
    )
    return "\n".join(texts)


def _text_of_raw(raw: Any) -> str:
    if raw is None:
        return ""
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)


def _choices(option: Any) -> list[str]:
    found: list[str] = []
    for choice in getattr(option, "options", None) or ():
        inner = getattr(choice, "options", None)
        found += [c.value for c in inner] if inner is not None else [choice.value]
    return found


def _not_offered(member: str, value: object, known: list[str]) -> AgentError:
    offers = f"It offers: {', '.join(known[:20])}." if known else f"It offers no {member}."
    return AgentError("not_supported", f"The agent has no {member} {str(value)[:64]!r}. {offers}")


def _login(agent: AcpAgent, capable: Any) -> AgentError:
    offered = capable.auth_methods or () if capable is not None else ()
    methods = [m.name + (f" ({m.description})" if m.description else "") for m in offered]
    ways = f" It offers: {'; '.join(methods[:5])[:300]}." if methods else ""
    return AgentError(
        "login_required",
        f"The agent wants a login: start {agent.command[0]!r} in a terminal and log in.{ways}",
    )


def _last_session(notes: Path, command: Sequence[str]) -> str | None:
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("command") != list(command):
        return None
    session = found.get("session")
    return session if isinstance(session, str) else None

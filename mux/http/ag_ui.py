"""The AG-UI face over HTTP: ``POST /api/agents/{name}/ag-ui``, and the same stream of a run that is there
already.

Only transport: the encoder is `mux.faces.ag_ui`. A request is a run of its own with the conversation that the
client sends (its thread is the client's); ``resume`` answers what a run waits for, and goes on with it.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mux.errors import BadRequest
from mux.events import Cursor
from mux.faces.ag_ui import AgUi
from mux.http.bodies import problem_of_validation
from mux.http.faces import channels_of, decide, decision, one_run, stream
from mux.http.openai_models import FunctionDefinition
from mux.http.routes import BODY, Answer, Param, Route
from mux.http.runs import start_watched
from mux.http.state import API, Api
from mux.http.streams import SSE, cursor_text
from mux.log.protocols import RunRow
from mux.requests import ApprovalAnswer, ChannelSpec, ChatMessage, StartRequest

__all__ = ["ROUTES"]

_ABOUT = "ag_ui"  # the run's metadata that holds the client's own ids


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AgUiTool(_Loose):
    """A tool that the client runs."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class AgUiContext(_Loose):
    """Something that the agents should know."""

    description: str
    value: str


class AgUiResume(_Loose):
    """The answer to an interrupt; ``payload`` is ``{"approved": bool, "arguments"?, "reason"?}``."""

    interruptId: str  # noqa: N815 - the protocol's own name
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class RunAgentInput(_Loose):
    """``POST /api/agents/{name}/ag-ui``: what AG-UI calls by this name."""

    threadId: str = Field(min_length=1, max_length=200)  # noqa: N815 - the protocol's own name
    runId: str = Field(min_length=1, max_length=200)  # noqa: N815 - likewise
    messages: list[dict[str, Any]]
    state: Any = None
    tools: list[AgUiTool] = Field(default=[], max_length=128)
    context: list[AgUiContext] = []
    resume: list[AgUiResume] = []


async def run_agent(request: web.Request) -> web.StreamResponse:
    """``POST /api/agents/{name}/ag-ui``."""
    api = request[API]
    asked: RunAgentInput = request[BODY]
    await api.refresh()
    if asked.resume:
        run, resumed_at = await _resumed(api, asked.resume)
    else:
        start = _start(asked, channels_of(api, request.match_info["name"]))
        key = f"ag-ui:{asked.threadId}:{asked.runId}"  # a request that is repeated starts no second run
        run = (await start_watched(api, start, key)).row.run
        resumed_at = 0
    face = AgUi(thread_id=asked.threadId, run_id=asked.runId, resumed_at=resumed_at)
    return await stream(request, run, face, headers={"Location": f"/api/runs/{run}"}, ids=True)


async def follow_run(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs/{run}/ag-ui``."""
    api, run = request[API], request.match_info["run"]
    row = await api.engine.row(run)
    cursor = cursor_text(request)
    after = 0
    if cursor:
        after = int(cursor) if cursor.isascii() and cursor.isdigit() else Cursor.parse(cursor).seq
    ids = _ids(row)
    face = AgUi(thread_id=ids["threadId"], run_id=ids["runId"], after=after)
    return await stream(request, run, face, ids=True)


def _ids(row: RunRow) -> dict[str, str]:
    """The client's ids of a run; ours, where it was started over another face."""
    about = row.metadata.get(_ABOUT)
    return about if isinstance(about, dict) else {"threadId": row.thread, "runId": row.run}


async def _resumed(api: Api, resume: list[AgUiResume]) -> tuple[str, int]:
    run, answers = one_run({answer.interruptId: _answer(answer) for answer in resume})
    snapshot = await api.engine.snapshot(run)
    waiting = {t["call_id"] for c in snapshot["channels"] for t in c["tools"] if t["status"] == "waiting"}
    if missing := waiting - answers.keys():
        raise BadRequest(
            "request_invalid",
            f"resume: the run waits for {len(missing)} more: answer all of its interrupts at once.",
        )
    return run, await decide(api, run, answers)


def _answer(resume: AgUiResume) -> ApprovalAnswer:
    payload = resume.payload if isinstance(resume.payload, dict) else {"approved": resume.payload}
    reason = payload.get("reason")
    if resume.status == "cancelled":
        return decision(approved=False, reason=reason)
    approved = payload.get("approved")
    if not isinstance(approved, bool):
        raise BadRequest(
            "request_invalid", 'resume: say {"approved": true} or {"approved": false} in payload.'
        )
    return decision(approved=approved, reason=reason, arguments=payload.get("arguments"))


def _start(asked: RunAgentInput, channels: list[ChannelSpec]) -> StartRequest:
    try:
        tools = [FunctionDefinition(**t.model_dump(exclude_none=True)).tool() for t in asked.tools]
        messages = [m for message in asked.messages if (m := _message(message)) is not None]
        if about := _context(asked):
            messages.insert(0, ChatMessage(role="developer", content=about))
        return StartRequest(
            messages=messages,
            channels=[spec.model_copy(update={"client_tools": tools or None}) for spec in channels],
            metadata={_ABOUT: {"threadId": asked.threadId, "runId": asked.runId}},
            on_disconnect=None,  # the grace of requests that stream
        )
    except ValidationError as e:
        raise problem_of_validation(e, StartRequest) from None


def _context(asked: RunAgentInput) -> str:
    """What the client's application wants the agents to know."""
    lines = [f"{c.description}: {c.value}" for c in asked.context]
    if asked.state:
        lines.append(f"The application's state: {json.dumps(asked.state, ensure_ascii=False)}")
    return "\n".join(lines)


def _message(message: dict[str, Any]) -> ChatMessage | None:
    """A message in the chat format; ``None`` for what is not part of the conversation."""
    role, content = message.get("role"), message.get("content")
    if role in ("reasoning", "activity"):
        return None
    if isinstance(content, list):
        content = [_part(p) for p in content if isinstance(p, dict)]
    chat: dict[str, Any] = {"role": role, "content": content}
    if role == "assistant" and isinstance(calls := message.get("toolCalls"), list):
        chat["tool_calls"] = calls
    if role == "tool":
        chat["tool_call_id"] = message.get("toolCallId")
        chat["content"] = content if content is not None else message.get("error") or ""
    return ChatMessage.model_validate(chat)


def _part(part: dict[str, Any]) -> dict[str, Any]:
    source = part.get("source")
    if not isinstance(source, dict):
        return part
    value, mime = source.get("value", ""), source.get("mimeType") or "application/octet-stream"
    url = f"data:{mime};base64,{value}" if source.get("type") == "data" else value
    if part.get("type") == "image":
        return {"type": "image_url", "image_url": {"url": url}}
    if part.get("type") == "audio" and source.get("type") == "data":
        return {"type": "input_audio", "input_audio": {"data": value, "format": mime.partition("/")[2]}}
    return {"type": "file", "file": {"file_data": url}}


class AgUiFrame(BaseModel):
    """One event of the AG-UI protocol, 1.0."""

    model_config = ConfigDict(extra="allow")

    type: str


_STREAM = Answer("The run as AG-UI events.", media=(SSE,), item=AgUiFrame)

ROUTES = (
    Route(
        "POST",
        "/api/agents/{name}/ag-ui",
        run_agent,
        "Run an agent over the AG-UI protocol, 1.0.",
        "faces",
        params=(
            Param(
                "name", "an agent, a configured model, or several joined by `+`", place="path", required=True
            ),
        ),
        body=RunAgentInput,
        answers={200: _STREAM},
        errors=(404, 409, 429, 503),
        stream=True,
    ),
    Route(
        "GET",
        "/api/runs/{run}/ag-ui",
        follow_run,
        "A run as AG-UI events, or the rest of them after a cursor.",
        "faces",
        params=(
            Param("run", "the run's id", place="path", required=True),
            Param(
                "after",
                "cursor to continue after (Last-Event-ID wins): the id of the last frame that had one",
            ),
            Param("Last-Event-ID", "cursor to continue after", place="header"),
        ),
        answers={200: _STREAM},
        errors=(404, 409, 429, 503),
        stream=True,
    ),
)

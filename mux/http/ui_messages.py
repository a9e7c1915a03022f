"""The AI SDK's UI message stream over HTTP: ``POST /api/agents/{name}/ui`` for ``useChat``, the same stream
of any channel, and both ways in which its transports come back after a cut.

Only transport: the encoder is `mux.faces.ui_messages`. ``DefaultChatTransport`` comes back to
``{api}/{chatId}/stream`` and wants a whole replay, ``WorkflowChatTransport`` to ``{api}/{runId}/stream``
with the number of chunks that it has seen. The chat's id is metadata of its runs, so both are found without
any state.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mux.errors import NotFound
from mux.faces.ui_messages import HEADERS, UiMessages
from mux.http.bodies import problem_of_validation
from mux.http.faces import channel_ids, channels_of, decide, decision, events_of, one_run, stream
from mux.http.routes import BODY, Answer, Param, Route, query
from mux.http.runs import start_watched
from mux.http.state import API, Api
from mux.http.streams import SSE
from mux.log.protocols import RunQuery, RunRow
from mux.requests import ApprovalAnswer, ChannelSpec, ChatMessage, StartRequest

__all__ = ["ROUTES"]

_CHAT = "chat"  # the run's metadata that names the client's chat


class UiMessage(BaseModel):
    """A message as ``useChat`` holds it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    role: str
    parts: list[dict[str, Any]]


class UiRequest(BaseModel):
    """``POST /api/agents/{name}/ui``: what ``DefaultChatTransport`` sends."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(min_length=1, max_length=200)
    messages: list[UiMessage] = Field(min_length=1)
    trigger: str = "submit-message"
    messageId: str | None = None  # noqa: N815 - the protocol's own name


async def chat(request: web.Request) -> web.StreamResponse:
    """``POST /api/agents/{name}/ui``."""
    api = request[API]
    asked: UiRequest = request[BODY]
    await api.refresh()
    if answers := _answers(asked):
        run, decisions = answers
        resumed_at = await decide(api, run, decisions)
        row, message_id = await api.engine.row(run), asked.messages[-1].id
    else:
        channels = channels_of(api, request.match_info["name"], most=1)
        row = (await start_watched(api, _start(asked, channels), None)).row
        resumed_at, message_id = 0, None
    channel = channel_ids(row)[0]
    face = UiMessages(run=row.run, channel=channel, message_id=message_id, resumed_at=resumed_at)
    return await _stream(request, row, face)


async def come_back(request: web.Request) -> web.StreamResponse:
    """``GET /api/agents/{name}/ui/{id}/stream``: ``id`` is the chat's or the run's."""
    api, name = request[API], request.match_info["id"]
    page = await api.engine.list_runs(RunQuery(metadata={_CHAT: name}, limit=1))
    if page.runs:
        row = page.runs[0]
        if row.finished is not None and query(request, "startIndex") is None:
            return web.Response(status=204, headers={"Cache-Control": "no-store"})  # nothing is going on
    else:
        try:
            row = await api.engine.row(name)
        except NotFound:
            return web.Response(status=204, headers={"Cache-Control": "no-store"})
    return await _replay(request, api, row, channel_ids(row)[0])


async def channel_stream(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs/{run}/channels/{channel}/ui``."""
    api, channel = request[API], request.match_info["channel"]
    snapshot = await api.engine.snapshot(request.match_info["run"])
    if channel not in [c["id"] for c in snapshot["channels"]]:
        raise NotFound("channel_not_found", f"Run {snapshot['run']} has no channel {channel[:64]!r}.")
    return await _replay(request, api, await api.engine.row(snapshot["run"]), channel)


async def _replay(request: web.Request, api: Api, row: RunRow, channel: str) -> web.StreamResponse:
    start = query(request, "startIndex", 0)
    headers = {}
    if start < 0:  # so many from the end; the client is told where that is
        face = UiMessages(run=row.run, channel=channel)
        async for event in events_of(api, row.run):
            face.feed(event)
        headers["x-workflow-stream-tail-index"] = str(face.chunks - 1)
        start = max(0, face.chunks + start)
    return await _stream(request, row, UiMessages(run=row.run, channel=channel, start_index=start), headers)


async def _stream(
    request: web.Request, row: RunRow, face: UiMessages, more: dict[str, str] | None = None
) -> web.StreamResponse:
    headers = {
        **HEADERS,
        "Location": f"/api/runs/{row.run}",
        "x-workflow-run-id": row.run,
        "Mux-Cancel": f"/api/runs/{row.run}/cancel",  # `stop()` only closes the connection
        **(more or {}),
    }
    return await stream(request, row.run, face, headers=headers)


# --- requests -----------------------------------------------------------------------------------------------


def _answers(asked: UiRequest) -> tuple[str, dict[str, ApprovalAnswer]] | None:
    """The run and the decisions, where the last message was answered by a person; else ``None``."""
    last = asked.messages[-1]
    if last.role != "assistant":
        return None
    answers = {
        str(approval.get("id")): decision(approved=approval.get("approved"), reason=approval.get("reason"))
        for part in last.parts
        if part.get("state") == "approval-responded" and isinstance(approval := part.get("approval"), dict)
    }
    return one_run(answers) if answers else None


def _start(asked: UiRequest, channels: list[ChannelSpec]) -> StartRequest:
    try:
        messages = [ChatMessage.model_validate(m) for message in asked.messages for m in _chat(message)]
        return StartRequest(messages=messages, channels=channels, metadata={_CHAT: asked.id})
    except ValidationError as e:
        raise problem_of_validation(e, StartRequest) from None


def _chat(message: UiMessage) -> list[dict[str, Any]]:
    """One message of theirs in the chat format: an assistant's also as its calls and their results."""
    if message.role != "assistant":
        content = [p for part in message.parts if (p := _content(part)) is not None]
        texts = [p["text"] for p in content if p["type"] == "text"]
        whole: Any = "".join(texts) if len(texts) == len(content) else content
        return [{"role": message.role, "content": whole}]
    out: list[dict[str, Any]] = []
    for part in message.parts:
        kind = str(part.get("type"))
        if kind == "step-start" or not out or out[-1]["role"] != "assistant":
            out.append({"role": "assistant", "content": ""})
        if kind == "text":
            out[-1]["content"] += str(part.get("text", ""))
        elif kind == "steering-message":
            out += _chat(UiMessage(id="", role="user", parts=list(part.get("parts") or ())))
        elif kind == "dynamic-tool" or kind.startswith("tool-"):
            out += _call(part, kind, out)
    return [m for m in out if m["role"] != "assistant" or m["content"] or m.get("tool_calls")]


def _call(part: dict[str, Any], kind: str, out: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts the call into the assistant's message; gives its result, where it has one."""
    state = part.get("state")
    if state not in ("output-available", "output-error", "output-denied"):
        return []  # it never ran
    name = part.get("toolName") or kind.removeprefix("tool-")
    function = {"name": name, "arguments": json.dumps(part.get("input") or {}, ensure_ascii=False)}
    spoken = next(m for m in reversed(out) if m["role"] == "assistant")
    spoken.setdefault("tool_calls", []).append(
        {"id": part.get("toolCallId"), "type": "function", "function": function}
    )
    output = part.get("output") if state == "output-available" else part.get("errorText") or "It was denied."
    if isinstance(output, dict) and isinstance(output.get("text"), str):
        output = output["text"]
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    return [{"role": "tool", "tool_call_id": part.get("toolCallId"), "content": text}]


def _content(part: dict[str, Any]) -> dict[str, Any] | None:
    if part.get("type") == "text":
        return {"type": "text", "text": str(part.get("text", ""))}
    if part.get("type") == "file":
        url, media = str(part.get("url", "")), str(part.get("mediaType", ""))
        if media.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": url}}
        return {"type": "file", "file": {"file_data": url, "filename": part.get("filename") or "file"}}
    return None


class UiChunk(BaseModel):
    """One chunk of the UI message stream; the last frame is ``[DONE]``."""

    model_config = ConfigDict(extra="allow")

    type: str


_STREAM = Answer("The channel as a UI message stream, version 1.", media=(SSE,), item=UiChunk)
_NOTHING = Answer("Nothing is going on there.")
_NAME = Param("name", "an agent, or a configured model", place="path", required=True)
_START = Param("startIndex", "chunks that the client has seen; below zero: so many from the end", "integer")

ROUTES = (
    Route(
        "POST",
        "/api/agents/{name}/ui",
        chat,
        "Run an agent for the AI SDK's `useChat`.",
        "faces",
        params=(_NAME,),
        body=UiRequest,
        answers={200: _STREAM},
        errors=(404, 409, 429, 503),
        stream=True,
    ),
    Route(
        "GET",
        "/api/agents/{name}/ui/{id}/stream",
        come_back,
        "Come back to a chat's stream after a cut.",
        "faces",
        params=(_NAME, Param("id", "the chat's id, or the run's", place="path", required=True), _START),
        answers={200: _STREAM, 204: _NOTHING},
        errors=(404, 429, 503),
        stream=True,
    ),
    Route(
        "GET",
        "/api/runs/{run}/channels/{channel}/ui",
        channel_stream,
        "A channel as a UI message stream.",
        "faces",
        params=(
            Param("run", "the run's id", place="path", required=True),
            Param("channel", "the channel's id", place="path", required=True),
            _START,
        ),
        answers={200: _STREAM},
        errors=(404, 429, 503),
        stream=True,
    ),
)

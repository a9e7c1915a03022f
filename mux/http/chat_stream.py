"""``GET /api/chat/stream``: start and stream in one GET, for EventSource and ``curl``."""

from __future__ import annotations

from aiohttp import web
from pydantic import ValidationError

from mux.errors import BadRequest
from mux.http.bodies import problem_of_validation
from mux.http.routes import Answer, Param, Route, query
from mux.http.runs import start_watched
from mux.http.state import API
from mux.http.streams import (
    STREAM_MEDIA,
    STREAM_PARAMS,
    cursor_text,
    encoder_for,
    follow,
    resume,
    selection_of,
)
from mux.requests import StartRequest

__all__ = ["ROUTES"]


async def chat_stream(request: web.Request) -> web.StreamResponse:
    """Start a run and stream it; with a cursor, go on with the run that the cursor names.

    EventSource reconnects by itself to the same URL. After the first event it sends ``Last-Event-ID``, which
    names the run; before that, ``connection_id`` finds the run that the first try started.
    """
    cursor = cursor_text(request)
    if cursor:
        return await resume(request, cursor)
    encoder_for(request, selection_of(request))  # what can't be streamed must not be started
    start = _start_request(request)
    connection = query(request, "connection_id")
    key = f"chat:{connection}" if connection else None
    api = request[API]
    await api.refresh()
    started = await start_watched(api, start, key)
    run = started.row.run
    return await follow(request, [run], headers={"Location": f"/api/runs/{run}"})


def _start_request(request: web.Request) -> StartRequest:
    message = query(request, "message")
    if not message:
        raise BadRequest("request_invalid", "message is missing: say what the agents should do.")
    values: dict[str, object] = {"message": message}
    names = [n.strip() for text in query(request, "agents", []) for n in text.split(",") if n.strip()]
    if names:
        values["agents"] = names
    if (thread := query(request, "thread")) is not None:
        values["thread"] = thread
    if (grace := query(request, "grace_s")) is not None:
        values["on_disconnect"] = {"grace_s": grace}
    try:
        return StartRequest.model_validate(values)
    except ValidationError as e:
        raise problem_of_validation(e, StartRequest) from None


ROUTES = (
    Route(
        "GET",
        "/api/chat/stream",
        chat_stream,
        "Start a run and stream it, in one GET. A reconnect resumes its run and never starts a second one.",
        "streams",
        params=(
            Param("message", "what the agents should do"),
            Param("agents", "names of agents, joined by commas", many=True),
            Param(
                "connection_id",
                "makes a reconnect before the first event find its run",
                schema={"maxLength": 200},
            ),
            Param(
                "grace_s",
                "seconds without a viewer after which the run is cancelled",
                "number",
                schema={"minimum": 0, "maximum": 86_400},
            ),
            Param("thread", "the conversation that this run continues"),
            *STREAM_PARAMS,
        ),
        answers={
            200: Answer("The run's stream.", media=STREAM_MEDIA),
            204: Answer("The cursor is at the end of a finished run."),
        },
        errors=(404, 406, 409, 429, 503),
        starts=True,
        stream=True,
    ),
)

"""Runs: start, look at, change, control, forget."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any, TypeVar, get_args

from aiohttp import web

from mux.engine.engine import Started
from mux.errors import BadRequest
from mux.http import models
from mux.http.accept import preference
from mux.http.bodies import read_lines
from mux.http.replies import reply
from mux.http.routes import BODY, Answer, Param, Route, query
from mux.http.state import API, Api
from mux.http.streams import (
    NDJSON,
    SSE,
    STREAM_PARAMS,
    cursor_text,
    encoder_for,
    follow,
    resume,
    selection_of,
    wants,
)
from mux.log.protocols import RowStatus, RunQuery
from mux.requests import (
    AddChannel,
    ApprovalAnswer,
    CancelRequest,
    PatchRun,
    RetryRequest,
    StartRequest,
    SteerRequest,
)

__all__ = ["ROUTES", "idempotency_key", "start_watched"]

T = TypeVar("T")
MAX_WAIT_S = 600.0
MAX_LIST = 200
MAX_LINE = 64 * 1024 * 1024  # one event of an imported run
_STATUSES: tuple[str, ...] = get_args(RowStatus)
_working: set[asyncio.Task[Any]] = set()


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Finish a change even if its client hangs up in the middle of it: nothing is left half-started."""
    return await asyncio.shield(_task(work))


def _task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.get_running_loop().create_task(work)
    _working.add(task)
    task.add_done_callback(_working.discard)
    task.add_done_callback(lambda t: t.cancelled() or t.exception())  # seen, also when nobody waits any more
    return task


async def start_watched(api: Api, asked: StartRequest, key: str | None) -> Started:
    """Start a run for a client that will watch it. One that hangs up before it could has come and gone all
    the same: else nobody would ever leave that run, and it would go on for nobody."""
    task = _task(api.engine.start_run(asked, key=key, streaming=True))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(functools.partial(_come_and_gone, api))
        raise


def _come_and_gone(api: Api, task: asyncio.Task[Started]) -> None:
    if not task.cancelled() and task.exception() is None:
        run = task.result().row.run
        api.engine.viewer_joined(run)
        api.engine.viewer_left(run)


def idempotency_key(request: web.Request) -> str | None:
    """The ``Idempotency-Key`` header, checked."""
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > 255 or any(ord(c) < 32 or ord(c) > 126 for c in key):
        raise BadRequest("idempotency_key_invalid", "Idempotency-Key takes up to 255 printable characters.")
    return key or None


def _run(request: web.Request) -> str:
    return request.match_info["run"]


def _channel(request: web.Request) -> str:
    return request.match_info["channel"]


async def start(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs``."""
    api = request[API]
    media = wants(request, ("application/json", SSE, NDJSON))
    wait_s = _wait_s(request)
    if media != "application/json":
        if cursor := cursor_text(request):  # fetch-based readers come back with the same POST
            return await resume(request, cursor)
        encoder_for(request, selection_of(request))  # what can't be streamed must not be started
    await api.refresh()
    key = idempotency_key(request)
    if media != "application/json":
        started = await start_watched(api, request[BODY], key)
    else:
        started = await to_the_end(api.engine.start_run(request[BODY], key=key))
    run = started.row.run
    headers = {"Location": f"/api/runs/{run}"}
    if not started.created:
        headers["Idempotency-Replayed"] = "true"
    status = 201 if started.created else 200
    if media != "application/json":
        return await follow(request, [run], status=status, headers=headers)
    if wait_s is not None and await api.hub.wait_final(run, wait_s):
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    return reply(await api.engine.snapshot(run), status, headers)


def _wait_s(request: web.Request) -> float | None:
    text = preference(request.headers.getall("Prefer", []), "wait")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return None  # RFC 7240: a preference that can't be honoured is ignored
    return min(seconds, MAX_WAIT_S) if seconds >= 0 else None


async def listing(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs``."""
    statuses = [s.strip() for text in query(request, "status", []) for s in text.split(",") if s.strip()]
    if unknown := [s for s in statuses if s not in _STATUSES]:
        raise BadRequest(
            "query_invalid", f"{unknown[0][:40]!r} is no status of a run; those are {', '.join(_STATUSES)}."
        )
    api = request[API]
    page = await api.engine.list_runs(
        RunQuery(
            status=tuple(statuses),
            agent=query(request, "agent"),
            thread=query(request, "thread"),
            q=query(request, "q"),
            metadata=query(request, "metadata.", {}),
            starred=query(request, "starred"),
            limit=query(request, "limit", 50),
            after=query(request, "after"),
        )
    )
    runs = []
    for row in page.runs:
        item, hits = api.engine.summary(row), page.hits.get(row.run)
        runs.append(item | {"hits": dict(hits)} if hits else item)
    return reply({"runs": runs} | ({"next": page.next} if page.next is not None else {}))


async def show(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs/{run}``."""
    return reply(await request[API].engine.snapshot(_run(request)))


async def change(request: web.Request) -> web.StreamResponse:
    """``PATCH /api/runs/{run}``."""
    return reply(await to_the_end(request[API].engine.patch(_run(request), request[BODY])))


async def forget(request: web.Request) -> web.StreamResponse:
    """``DELETE /api/runs/{run}``."""
    api = request[API]
    await to_the_end(api.engine.delete(_run(request)))
    api.hub.forget(_run(request))
    return web.Response(status=204)


async def cancel(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/cancel``."""
    api, body = request[API], request[BODY]
    await to_the_end(api.engine.cancel(_run(request), body.mode))
    return reply({"run": _run(request), "mode": body.mode}, 202)


async def cancel_channel(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/channels/{channel}/cancel``."""
    api, body = request[API], request[BODY]
    await to_the_end(api.engine.cancel_channel(_run(request), _channel(request), body.mode))
    return reply({"run": _run(request), "channel": _channel(request), "mode": body.mode}, 202)


async def add_channel(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/channels``."""
    channel = await to_the_end(request[API].engine.add_channel(_run(request), request[BODY]))
    return reply({"run": _run(request), "channel": channel}, 201)


async def retry(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/channels/{channel}/retry``."""
    run, channel = await to_the_end(
        request[API].engine.retry(_run(request), _channel(request), request[BODY].model)
    )
    return reply({"run": run, "channel": channel}, 201, {"Location": f"/api/runs/{run}"})


async def steer(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/channels/{channel}/messages``."""
    message_id = await to_the_end(request[API].engine.steer(_run(request), _channel(request), request[BODY]))
    return reply({"message_id": message_id}, 202)


async def approve(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/approvals/{call_id}``."""
    answer = request[API].engine.answer(_run(request), request.match_info["call_id"], request[BODY])
    return reply(await to_the_end(answer))


async def export(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs/{run}/export``."""
    run = _run(request)
    lines = request[API].engine.export(run)
    first = await anext(lines, b"")  # an unknown run is refused before the headers are out
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/x-ndjson",
            "Content-Disposition": f'attachment; filename="{run}.ndjson"',
            "Cache-Control": "no-store",
        }
    )
    await response.prepare(request)
    await response.write(first)
    async for line in lines:
        await response.write(line)
    await response.write_eof()
    return response


async def import_run(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/import``."""
    api = request[API]
    run = await api.engine.import_run(read_lines(request, longest=MAX_LINE))
    return reply(await api.engine.snapshot(run), 201, {"Location": f"/api/runs/{run}"})


RUN = Param("run", "the run's id", place="path", required=True)
CHANNEL = Param("channel", "the channel's id", place="path", required=True)
_SNAPSHOT = Answer("The run as it stands.", models.Run, headers={"Location": "where the run is"})

ROUTES = (
    Route(
        "POST", "/api/runs", start, "Start a run. With a streaming Accept the answer is its stream.", "runs",
        params=(
            *(p for p in STREAM_PARAMS if p.name != "after"),
            Param("Idempotency-Key", "the same key and body answer with the run made first", place="header"),
            Param("Prefer", "`wait=N`: answer when the run is finished, or after N seconds", place="header"),
        ),
        body=StartRequest,
        answers={
            201: Answer("Started; survives a crash.", models.Run, (SSE, NDJSON), _SNAPSHOT.headers),
            200: Answer(
                "The run that this key made first, or that a streaming reader's Last-Event-ID names.",
                models.Run, (SSE, NDJSON),
            ),
            204: Answer("The reader's Last-Event-ID is at the end of a finished run."),
        },
        errors=(404, 406, 409, 429, 503),
    ),
    Route(
        "GET", "/api/runs", listing, "Runs, newest first.", "runs",
        params=(
            Param("status", "only these states, joined by commas", many=True),
            Param("agent", "only runs with a channel of this agent"),
            Param("thread", "only runs of this thread"),
            Param("q", "full-text search in messages and outputs"),
            Param("metadata.", "metadata.<key>=<value>: only runs with this metadata", prefix=True),
            Param("starred", "only starred runs (1) or the others (0)", "boolean"),
            Param("limit", "runs a page", "integer", schema={"minimum": 1, "maximum": MAX_LIST}),
            Param("after", "`next` of the page before"),
        ),
        answers={200: Answer("A page of runs.", models.RunList)},
        errors=(503,),
    ),
    Route(
        "POST", "/api/runs/import", import_run, "Keep a run that was exported.", "runs",
        raw_body="application/x-ndjson", answers={201: _SNAPSHOT}, errors=(408, 409, 413, 503),
    ),
    Route(
        "GET", "/api/runs/{run}", show, "A run's snapshot, and the cursor to continue from.", "runs",
        params=(RUN,), answers={200: Answer("The run as it stands.", models.Run)}, errors=(404, 503),
        shared=True,
    ),
    Route(
        "PATCH", "/api/runs/{run}", change, "Change title, star and metadata.", "runs",
        params=(RUN,), body=PatchRun, answers={200: Answer("The run as it stands.", models.Run)},
        errors=(404, 503),
    ),
    Route(
        "DELETE", "/api/runs/{run}", forget, "Forget a run.", "runs",
        params=(RUN,), answers={204: Answer("It is forgotten.")}, errors=(404, 409, 503),
    ),
    Route(
        "GET", "/api/runs/{run}/export", export, "The run as one NDJSON file.", "runs",
        params=(RUN,), answers={200: Answer("The file.", media=(NDJSON,))}, errors=(404, 503), stream=True,
    ),
    Route(
        "POST", "/api/runs/{run}/cancel", cancel, "Stop all channels of a run.", "control",
        params=(RUN,), body=CancelRequest, empty_body=True,
        answers={202: Answer("It is being stopped.", models.Accepted)}, errors=(404, 409, 503),
    ),
    Route(
        "POST", "/api/runs/{run}/channels/{channel}/cancel", cancel_channel, "Stop one channel.", "control",
        params=(RUN, CHANNEL), body=CancelRequest, empty_body=True,
        answers={202: Answer("It is being stopped.", models.Accepted)}, errors=(404, 409, 503),
    ),
    Route(
        "POST", "/api/runs/{run}/channels", add_channel, "Add a channel to a running run.", "control",
        params=(RUN,), body=AddChannel, answers={201: Answer("It was added.", models.ChannelMade)},
        errors=(404, 409, 429, 503),
    ),
    Route(
        "POST", "/api/runs/{run}/channels/{channel}/retry", retry, "Do a channel again, beside the old one.",
        "control", params=(RUN, CHANNEL), body=RetryRequest, empty_body=True,
        answers={201: Answer("The new channel; on a finished run, of a new run.", models.ChannelMade)},
        errors=(404, 409, 429, 503),
    ),
    Route(
        "POST", "/api/runs/{run}/channels/{channel}/messages", steer, "Steer a running channel.", "control",
        params=(RUN, CHANNEL), body=SteerRequest,
        answers={202: Answer("It was accepted.", models.MessageAccepted)},
        errors=(404, 409, 503),
    ),
    Route(
        "POST", "/api/runs/{run}/approvals/{call_id}", approve, "Decide about a call; the first answer wins.",
        "control", params=(RUN, Param("call_id", "the call's id", place="path", required=True)),
        body=ApprovalAnswer, answers={200: Answer("How it was decided.", models.ApprovalState)},
        errors=(404, 409, 503),
    ),
)  # fmt: skip

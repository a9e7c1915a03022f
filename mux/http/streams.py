"""Streams over HTTP: the events of one run, or of several over one connection."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from functools import lru_cache

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from mux.errors import BadRequest, CursorError, MuxError
from mux.events import Cursor
from mux.faces.base import dump
from mux.faces.ndjson import Ndjson, NdjsonCompact
from mux.faces.sse import Sse, SseCompact
from mux.faces.text import Text
from mux.http.accept import best_match
from mux.http.models import ViewerList
from mux.http.replies import reply
from mux.http.routes import Answer, Param, Route, query
from mux.http.state import API, Api
from mux.telemetry import get_logger
from mux.viewers import Encoder, Selection, Viewer

__all__ = [
    "ROUTES",
    "STREAM_MEDIA",
    "STREAM_PARAMS",
    "TransportSink",
    "cursor_text",
    "follow",
    "resume",
    "wants",
]

SSE, NDJSON, TEXT = "text/event-stream", "application/x-ndjson", "text/plain"
STREAM_MEDIA = (SSE, NDJSON, TEXT)
BUFFER = 64 * 1024  # bytes that may wait in a transport before its viewer has to wait for its peer
MAX_RUNS = 64  # runs of one vector stream: their cursors are in every id

STREAM_PARAMS = (
    Param("after", "cursor to continue after (Last-Event-ID wins); a bare integer is a seq of the run"),
    Param("channel", "only these channels, joined by commas; run events always pass", many=True),
    Param("type", "only these event types, joined by commas; `*` stands for anything", many=True),
    Param("until", "`channels`: end when every channel of the filter is done", schema={"enum": ["channels"]}),
    Param("compact", "send windows with merged deltas instead of single events", "boolean"),
    Param(
        "compact_ms",
        "recorded time that a window of a replay may span, in ms",
        "integer",
        schema={"minimum": 1, "maximum": 60_000},
    ),
    Param("observe", "do not count as a viewer whose leaving may cancel the run", "boolean"),
    Param("Last-Event-ID", "cursor to continue after", place="header"),
)


class TransportSink:
    """A viewer's way to its peer: straight to the transport, so that equal bytes are framed only once."""

    __slots__ = ("_transport", "_writer", "framing")

    def __init__(self, request: web.Request, writer: AbstractStreamWriter, *, user_timeout_s: float) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        self._transport = transport
        self._writer = writer
        # HTTP/1.0 (nginx by default) has no chunks: there the end of the connection ends the stream.
        self.framing = "chunked" if request.version >= (1, 1) else "plain"
        transport.set_write_buffer_limits(high=BUFFER, low=BUFFER // 4)
        _notice_dead_peers(transport.get_extra_info("socket"), user_timeout_s)

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def full(self) -> bool:
        return self._transport.get_write_buffer_size() > BUFFER

    def frame(self, chunk: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.framing == "chunked" else chunk

    def send(self, framed: bytes) -> bool:
        transport = self._transport
        if transport.is_closing():
            return False
        transport.write(framed)
        return not self.full

    async def drain(self) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError
        await self._writer.drain()

    def abort(self) -> None:
        self._transport.abort()


def _notice_dead_peers(sock: socket.socket | None, seconds: float) -> None:
    """A peer that vanished without a word (no FIN) is noticed when sent bytes stay unacknowledged."""
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # a kernel without it notices later, by its own retransmissions
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def cursor_text(request: web.Request) -> str | None:
    """The cursor as sent: the header wins, because EventSource keeps the URL that it was made with."""
    return request.headers.get("Last-Event-ID", "").strip() or query(request, "after")


def wants(request: web.Request, offered: Sequence[str]) -> str:
    """The media type to answer with.

    Raises:
        BadRequest: ``not_acceptable`` (406), naming what there is.
    """
    best = best_match(request.headers.getall("Accept", []), offered)
    if best is None:
        raise BadRequest("not_acceptable", f"This can be sent as {', '.join(offered)}.", status=406)
    return best


def encoder_for(request: web.Request, selection: Selection, offered: Sequence[str] = STREAM_MEDIA) -> Encoder:
    """The face that the request asks for."""
    media = wants(request, offered)
    if media == TEXT and (selection.channels is None or len(selection.channels) != 1):
        raise BadRequest(
            "not_acceptable", "Bare text is the text of one channel: add ?channel=ID.", status=406
        )
    return _encoder(media, query(request, "compact", False), query(request, "compact_ms", 1000))


@lru_cache(maxsize=64)  # they are values without state: a thousand viewers share one
def _encoder(media: str, compact: bool, span: int) -> Encoder:
    if media == NDJSON:
        return NdjsonCompact(span) if compact else Ndjson()
    if media == TEXT:
        return Text()
    return SseCompact(span) if compact else Sse()


def selection_of(request: web.Request) -> Selection:
    """The filter that the request asks for."""
    return Selection.parse(query(request, "channel", ()), query(request, "type", ()), query(request, "until"))


async def follow(
    request: web.Request,
    runs: Sequence[str],
    *,
    vector: bool = False,
    status: int = 200,
    after: str | None = None,
    headers: dict[str, str] | None = None,
    encoder: Encoder | None = None,
) -> web.StreamResponse:
    """Answer with the stream of these runs from the request's cursor on; 204 if nothing will ever come.

    Args:
        encoder: a face of another protocol; it gets everything from the beginning, unfiltered.
        after: the cursor, where it is not the request's own.
        status: of the response, where it is not 200 (a run that was made by this request).
    """
    api = request[API]
    selection = selection_of(request)
    cursor = after or cursor_text(request) if encoder is None else None
    if encoder is None:
        encoder = encoder_for(request, selection, STREAM_MEDIA[:2] if vector else STREAM_MEDIA)
    observe = query(request, "observe", False)
    await api.engine.own(*runs)  # before it counts as a viewer, whose leaving may cancel a run
    for run in runs:
        api.engine.viewer_joined(run, observe=observe)
    viewer: Viewer | None = None
    try:
        viewer = await api.open(runs, cursor, encoder, selection, vector=vector, observe=observe)
        try:
            if viewer.ended:
                return web.Response(status=204, headers={"Cache-Control": "no-store"})
            return await _send(request, api, viewer, status, headers or {})
        finally:
            viewer.close()
    finally:
        sent_away = viewer is not None and viewer.sent_away
        for run in runs:
            api.engine.viewer_left(run, observe=observe, sent_away=sent_away)


async def resume(request: web.Request, cursor: str) -> web.StreamResponse:
    """Go on with the run that the cursor names, where the path names none: a reconnect starts no second run.

    Raises:
        CursorError: ``cursor_invalid``: it names no run.
    """
    if cursor.isascii() and cursor.isdigit():
        raise CursorError("cursor_invalid", "A bare seq does not say of which run; send the whole cursor.")
    return await follow(request, [Cursor.parse(cursor).run], after=cursor)


async def _send(
    request: web.Request, api: Api, viewer: Viewer, status: int, headers: dict[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    response.headers["Content-Type"] = viewer.encoder.media_type
    response.headers["Cache-Control"] = "no-cache, no-transform"
    response.headers["X-Accel-Buffering"] = "no"
    if request.version >= (1, 1):
        response.headers["Connection"] = "keep-alive"
    async with api.hub.turns:
        writer = await response.prepare(request)
    if writer is None:
        raise ConnectionResetError
    response.headers.clear()  # they are sent; a stream would keep 1 KiB of them for as long as it lives
    sink = TransportSink(request, writer, user_timeout_s=2 * api.hub.write_timeout_s)
    try:
        reason = await viewer.serve(sink)
    except MuxError as e:  # headers are out: the stream ends here, and the cursor stays valid
        get_logger().warning("stream_failed", runs=[leg.ring.run for leg in viewer.legs], code=e.code)
        sink.abort()
        return response
    if reason == "slow":
        api.metrics.viewer_dropped()
        get_logger().warning(
            "viewer_dropped", reason="slow", cursor=viewer.cursor, timeout_s=api.hub.write_timeout_s
        )
    if reason not in ("slow", "gone"):
        await response.write_eof()
    return response


async def run_events(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs/{run}/events``."""
    return await follow(request, [request.match_info["run"]])


async def many_events(request: web.Request) -> web.StreamResponse:
    """``GET /api/events?run=a,b``."""
    names = [n.strip() for text in query(request, "run", []) for n in text.split(",") if n.strip()]
    runs = list(dict.fromkeys(names))
    if not runs or len(runs) > MAX_RUNS:
        raise BadRequest("query_invalid", f"Name between 1 and {MAX_RUNS} runs: ?run=a,b.")
    return await follow(request, runs, vector=True)


async def viewers(request: web.Request) -> web.StreamResponse:
    """``GET /api/viewers``."""
    api = request[API]
    rows = [dump(row) for row in api.hub.rows(api.grant.owner)]  # bytes: as objects they would be megabytes
    answer = b'{"viewers":[%b],"count":%d,"limit":%d}'
    return reply(answer % (b",".join(rows), len(rows), api.hub.max_viewers))


_STREAM = Answer(
    "The events, until the end of the run. Frames of SSE carry the cursor as id.", media=STREAM_MEDIA
)
_END = Answer("The cursor is at the end of a finished run: nothing will ever come.")

ROUTES = (
    Route(
        "GET",
        "/api/runs/{run}/events",
        run_events,
        "The stream of one run: from the cursor on, then live.",
        "streams",
        params=(Param("run", "the run's id", place="path", required=True), *STREAM_PARAMS),
        answers={200: _STREAM, 204: _END},
        errors=(404, 406, 409, 429, 503),
        stream=True,
        shared=True,
    ),
    Route(
        "GET",
        "/api/events",
        many_events,
        "The streams of many runs over one connection, with a vector cursor.",
        "streams",
        params=(Param("run", "ids of the runs, joined by commas", many=True, required=True), *STREAM_PARAMS),
        answers={200: Answer(_STREAM.about, media=STREAM_MEDIA[:2]), 204: _END},
        errors=(404, 406, 409, 429, 503),
        stream=True,
    ),
    Route(
        "GET",
        "/api/viewers",
        viewers,
        "Your open streams on this server.",
        "streams",
        answers={200: Answer("The open streams, their number and the limit.", ViewerList)},
    ),
)

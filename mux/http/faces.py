"""What the faces of other protocols share over HTTP: how a face becomes a viewer's encoder, how a run is
answered with a face's stream or with its one answer, and what a model's name stands for.

A run that was started over a face is watched by its request. A face that ends its stream because the run
waits for a person (`Face.settle`) leaves the run alone for as long as that person may take.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from aiohttp import web
from pydantic import ValidationError

from mux.errors import BadRequest, MuxError, NotFound
from mux.events import ApprovalResolved, Event, Record, Token, Tokens
from mux.faces.base import approval_of
from mux.http.bodies import problem_of_validation
from mux.http.runs import to_the_end
from mux.http.state import API, Api
from mux.http.streams import SSE, TransportSink
from mux.log.protocols import RunRow
from mux.requests import ApprovalAnswer, ChannelSpec
from mux.roster import PLAIN
from mux.telemetry import get_logger

__all__ = [
    "Answering",
    "Face",
    "answer_once",
    "channel_ids",
    "channels_of",
    "decide",
    "decision",
    "events_of",
    "models_of",
    "one_run",
    "stream",
]

KEEP_ALIVE = b": keep-alive\n\n"
CUT = "The server ended this stream before the answer was complete; ask again."
ANSWER_GRACE_S = 30.0  # after an approval has expired, for a client that comes back late


class Face(Protocol):
    """A protocol's fold of one run: pure, belongs to one viewer."""

    @property
    def ended(self) -> bool:
        """Whether the terminal frame is out."""

    def feed(self, event: Event) -> list[bytes]:
        """The frames for one event, in order."""

    def settle(self) -> list[bytes]:
        """The terminal frames where nothing will happen before a person decides; else none."""

    def cut(self, message: str, code: str = ...) -> list[bytes]:
        """The terminal frames when the stream ends before the run does."""


class _FaceEncoder:
    """A `Face` as an encoder for viewers; belongs to one viewer.

    Args:
        face: the fold.
        ids: give the last frame of each event the cursor as its SSE id, for clients of ours that resume
        there.

    Attributes:
        waits: the face ended because the run waits for a person.
    """

    name = "face"
    media_type = SSE
    shared = False
    window_s = 0.0

    def __init__(self, face: Face, *, ids: bool = False) -> None:
        self.face = face
        self._ids = ids
        self._live = False
        self.waits = False

    @property
    def ended(self) -> bool:
        return self.face.ended

    def opening(self) -> bytes:
        return b""

    def events(self, records: Sequence[Record], prefix: bytes, suffix: bytes = b"") -> bytes:
        out: list[bytes] = []
        run = prefix.partition(b".")[0].decode()
        for record in records:
            frames = self.face.feed(_event(run, record))
            if frames and self._ids:
                frames[-1] = b"id: %b%d%b\n%b" % (prefix, record.seq, suffix, frames[-1])
            out += frames
        if self._live:
            out += self._settled()
        return b"".join(out)

    def control(self, frame: Mapping[str, object]) -> bytes:
        kind = frame.get("type")
        if kind == "stream_live":
            self._live = True
            return b"".join(self._settled())
        if kind in ("stream_rotate", "stream_end", "stream_gap"):
            return b"".join(self.face.cut(CUT))
        return b""

    def heartbeat(self, cursor: bytes) -> bytes:
        return KEEP_ALIVE

    def _settled(self) -> list[bytes]:
        frames = self.face.settle()
        self.waits = self.waits or bool(frames)
        return frames


def _event(run: str, record: Record) -> Event:
    """The record's event. Text that came from this process is not parsed again: it is most of a stream."""
    body = record.body
    if isinstance(body, Tokens):
        text = body.texts[record.seq - body.seq]
        return Event(run, record.seq, record.channel, record.cseq, record.ts, Token.of(text))
    return record.event()


# --- answers ------------------------------------------------------------------------------------------------


class Answering(Face, Protocol):
    """A face whose answer can also be one document, or a status where the run came to nothing."""

    @property
    def spoke(self) -> bool:
        """Whether a client has seen anything of the answer."""

    @property
    def refused(self) -> bool:
        """Whether the run is over, failed, and nothing was shown."""


class _Refused(Exception):
    """The run failed before it had anything to show: the request is answered with a status instead."""


class _LateSink:
    """A viewer's way to its peer whose response begins with the first thing to show (or after the first
    silence), so that what fails before that can still be answered with a status of its own."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, face: Answering, timeout_s: float
    ) -> None:
        self._request = request
        self._response = response
        self._face = face
        self._timeout_s = timeout_s
        self._sink: TransportSink | None = None
        self._waiting: list[bytes] = []
        self._must = False
        self.framing = "chunked" if request.version >= (1, 1) else "plain"

    @property
    def begun(self) -> bool:
        """Whether the headers are out."""
        return self._sink is not None

    @property
    def closing(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    @property
    def full(self) -> bool:
        if self._sink is not None:
            return self._sink.full
        return self._must or self._face.refused or self._face.spoke or self._face.ended

    def frame(self, chunk: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.framing == "chunked" else chunk

    def send(self, framed: bytes) -> bool:
        if self._sink is not None:
            return self._sink.send(framed)
        self._waiting.append(framed)
        self._must = self._must or KEEP_ALIVE in framed
        return not self.full

    async def drain(self) -> None:
        if self._sink is None:
            if self._face.refused:
                raise _Refused
            writer = await self._response.prepare(self._request)
            if writer is None:
                raise ConnectionResetError
            self._sink = TransportSink(self._request, writer, user_timeout_s=self._timeout_s)
            self._sink.send(b"".join(self._waiting))
            self._waiting.clear()
        if self._sink.full:
            await self._sink.drain()

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


async def stream(
    request: web.Request, run: str, face: Face, *, headers: Mapping[str, str] | None = None, ids: bool = False
) -> web.StreamResponse:
    """Answer with a face's stream of the run, from the beginning on.

    Args:
        ids: give the last frame of each event the cursor as its SSE id, for clients that resume there.
    """
    encoder = _FaceEncoder(face, ids=ids)
    async with _watched(request[API], run, encoder):
        return await _serve(request, run, encoder, headers, None)


async def answer_once(
    request: web.Request, run: str, face: Answering, *, streamed: bool, headers: Mapping[str, str]
) -> web.StreamResponse | None:
    """Stream the run, or wait for its end.

    Returns:
        The response that was streamed. ``None``: nothing was sent, because it was not to be streamed or
        because the run failed before it had anything to show; the face holds the whole answer.
    """
    api, encoder = request[API], _FaceEncoder(face)
    async with _watched(api, run, encoder):
        if streamed:
            try:
                return await _serve(request, run, encoder, headers, face)
            except _Refused:
                return None
        viewer = await api.open([run], None, encoder)
        await viewer.serve(_Nowhere())
    return None


async def _serve(
    request: web.Request,
    run: str,
    encoder: _FaceEncoder,
    headers: Mapping[str, str] | None,
    late: Answering | None,
) -> web.StreamResponse:
    """Be the run's viewer; ``late`` holds the response's beginning back until it has something to show."""
    api = request[API]
    viewer = await api.open([run], None, encoder)
    try:
        response = web.StreamResponse(headers=headers)
        response.headers["Content-Type"] = SSE
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        if request.version >= (1, 1):
            response.headers["Connection"] = "keep-alive"
        timeout_s = 2 * api.hub.write_timeout_s
        sink: TransportSink | _LateSink
        if late is not None:
            sink = _LateSink(request, response, late, timeout_s)
        else:
            writer = await response.prepare(request)
            if writer is None:
                raise ConnectionResetError
            sink = TransportSink(request, writer, user_timeout_s=timeout_s)
        try:
            reason = await viewer.serve(sink)
        except MuxError as e:  # headers are out: the stream ends here
            if isinstance(sink, _LateSink) and not sink.begun:
                raise
            get_logger().warning("stream_failed", run=run, code=e.code)
            sink.abort()
            return response
        if reason not in ("slow", "gone"):
            if isinstance(sink, _LateSink) and not sink.begun:
                await sink.drain()
            await response.write_eof()
        return response
    finally:
        viewer.close()


class _Nowhere:
    """A sink for a viewer that only folds."""

    framing = "none"
    closing = False
    full = False

    def frame(self, chunk: bytes) -> bytes:
        return b""

    def send(self, framed: bytes) -> bool:
        return True

    async def drain(self) -> None:
        return None

    def abort(self) -> None:
        return None


class _watched:  # noqa: N801 - used as a word
    """While a request answers for a run, it is the run's viewer: when it goes, the run's policy applies.

    One that ended because a person has to decide stays for as long as that may take: whoever decides comes
    back with another request.
    """

    def __init__(self, api: Api, run: str, encoder: _FaceEncoder) -> None:
        self._api = api
        self._run = run
        self._encoder = encoder

    async def __aenter__(self) -> None:
        self._api.engine.viewer_joined(self._run)

    async def __aexit__(self, *exc: object) -> None:
        leave = self._api.engine.viewer_left
        if self._encoder.waits:
            delay = self._api.settings.limits.approval_s + ANSWER_GRACE_S
            self._api.hub.loop.call_later(delay, leave, self._run)
        else:
            leave(self._run)


async def events_of(api: Api, run: str) -> AsyncIterator[Event]:
    """The run's events so far. Raises NotFound."""
    async for line in api.engine.export(run):
        if b'"seq":' in line:
            yield Event.parse(line)


def one_run(approvals: Mapping[str, ApprovalAnswer]) -> tuple[str, dict[str, ApprovalAnswer]]:
    """The run that the approvals are of, and the answers by call id. Raises BadRequest."""
    calls = {approval_of(approval): answer for approval, answer in approvals.items()}
    runs = {call[0] for call in calls if call is not None}
    if None in calls or len(runs) != 1:
        raise BadRequest("request_invalid", "These are not the approvals of one run of this server.")
    return runs.pop(), {call[1]: answer for call, answer in calls.items() if call is not None}


def decision(*, approved: object, reason: object = None, arguments: object = None) -> ApprovalAnswer:
    """What a person decided, as another protocol says it. Raises BadRequest."""
    word = "edit" if approved is True and arguments is not None else "approve" if approved is True else "deny"
    try:
        return ApprovalAnswer.model_validate({"decision": word, "reason": reason, "arguments": arguments})
    except ValidationError as e:
        raise problem_of_validation(e, ApprovalAnswer) from None


async def decide(api: Api, run: str, answers: Mapping[str, ApprovalAnswer]) -> int:
    """Answer the approvals that a face's stream ended for; the same answers again change nothing.

    Args:
        answers: by call id.

    Returns:
        The seq up to which whoever answers knows the run: what comes after it is to be sent.

    Raises:
        NotFound: there is no such run or call.
        Conflict: the call does not wait for anybody (any more).
    """
    before, head, known = None, 0, set()
    async for event in events_of(api, run):
        head = event.seq
        if isinstance(event.body, ApprovalResolved) and event.body.call_id in answers:
            known.add(event.body.call_id)
            before = event.seq - 1 if before is None else before
    for call_id, answer in answers.items():
        if call_id not in known:
            await to_the_end(api.engine.answer(run, call_id, answer))
    return head if before is None else before


# --- what a model's name stands for -------------------------------------------------------------------------


def channels_of(api: Api, model: str, *, copies: int = 1, most: int = 32) -> list[ChannelSpec]:
    """The channels that a ``model`` asks for: an agent, a configured ``provider:model``, an alias of one of
    these, or several joined by ``+``.

    Args:
        copies: each of them so many times.

    Raises:
        BadRequest: it names nothing, or more than ``most``.
        NotFound: ``agent_unknown``, with near names.
    """
    model = api.settings.aliases.get(model, model)
    names = [name.strip() for name in model.split("+")] * copies
    if not all(names) or len(names) > most:
        raise BadRequest("request_invalid", f"model names an agent, or up to {most} of them joined by +.")
    taken: set[str] = set()
    return [_channel_of(api, api.settings.aliases.get(name, name), taken) for name in names]


def _channel_of(api: Api, name: str, taken: set[str]) -> ChannelSpec:
    if name in api.roster.agents:
        return ChannelSpec(agent=name)
    provider, colon, model = name.partition(":")
    if name == "rehearsal" or (colon and model and provider in api.settings.providers):
        base = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in model or name)[:58]
        channel = next(i for n in range(1, 99) if (i := base if n == 1 else f"{base}.{n}") not in taken)
        taken.add(channel)
        return ChannelSpec(id=channel, agent=PLAIN, model=name)
    known = [*api.roster.agents, *api.settings.aliases]
    near = ", ".join(difflib.get_close_matches(name, known, n=3) or sorted(known))
    raise NotFound(
        "agent_unknown",
        f"There is no agent, configured model or alias {name[:80]!r}. Near: {near}."
        " GET /v1/models lists them.",
    )


async def models_of(api: Api) -> dict[str, str]:
    """Everything that a ``model`` may name → what it is owned by: agents, aliases, and the models that the
    configured endpoints offer."""
    await api.refresh()
    names = {agent["name"]: "mux" for agent in api.roster.describe()}
    if api.grant.agents is not None and PLAIN not in api.grant.agents:
        return names  # the others are for the plain agent
    names |= dict.fromkeys(api.settings.aliases, "alias")
    for offer in await api.providers.offers():
        names.setdefault(str(offer["id"]), str(offer.get("provider") or "provider"))
    return names


def channel_ids(row: RunRow) -> list[str]:
    """The ids of a run's channels, in the order in which they were asked for."""
    return [str(channel["id"]) for channel in row.request.get("channels", ())]

"""The OpenAI face over HTTP: ``POST /v1/chat/completions`` and ``GET /v1/models``.

Only transport: the encoder is `mux.faces.openai_chat`. A request is a run whose agents are the ``model``'s;
when the client hangs up, the run is cancelled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from aiohttp import web
from pydantic import ValidationError

from mux.errors import BadRequest, NotFound
from mux.events import Event, Record
from mux.faces.base import dump
from mux.faces.openai_chat import ChatCompletions, error_body
from mux.http.bodies import problem_of_validation
from mux.http.openai_models import (
    MAX_CHOICES,
    Completion,
    CompletionChunk,
    CompletionRequest,
    ModelCard,
    ModelCards,
    OpenAIError,
)
from mux.http.replies import reply
from mux.http.routes import BODY, Answer, Param, Route
from mux.http.runs import idempotency_key, start_watched
from mux.http.state import API, Api
from mux.http.streams import SSE, follow
from mux.log.protocols import RunRow
from mux.requests import ChannelSpec, StartRequest

__all__ = ["ROUTES", "ChatEncoder", "in_openais_form"]

MAX_WAIT_S = 3600.0
_OPENAIS_CODES = {"agent_unknown": "model_not_found"}  # that its clients know
_PASSED_ON = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty",
    "frequency_penalty", "reasoning_effort", "logit_bias",
)  # fmt: skip


class ChatEncoder:
    """`ChatCompletions` as a face for viewers; belongs to one viewer.

    Our cursors have no place in this protocol, so a stream that ends before its run (drain, rotation) is cut
    with an error frame: the client knows that the answer is not whole.
    """

    name = "openai-chat"
    media_type = SSE
    shared = False
    window_s = 0.0

    def __init__(self, face: ChatCompletions) -> None:
        self._face = face

    def opening(self) -> bytes:
        return b""

    def events(self, records: Sequence[Record], prefix: bytes, suffix: bytes = b"") -> bytes:
        return b"".join(frame for record in records for frame in self._face.feed(record.event()))

    def control(self, frame: Mapping[str, object]) -> bytes:
        if frame.get("type") not in ("stream_rotate", "stream_end", "stream_gap"):
            return b""
        return b"".join(
            self._face.cut("The server ended this stream before the answer was complete; ask again.")
        )

    def heartbeat(self, cursor: bytes) -> bytes:
        return b": keep-alive\n\n"


async def completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/chat/completions``."""
    api: Api = request.app[API]
    asked: CompletionRequest = request[BODY]
    await api.refresh()
    row = (await start_watched(api, _start(asked), idempotency_key(request))).row
    api.engine.viewer_joined(row.run)  # this request is the run's viewer: when it goes, the run is cancelled
    try:
        return await _completion(request, api, asked, row)
    finally:
        api.engine.viewer_left(row.run)


async def _completion(
    request: web.Request, api: Api, asked: CompletionRequest, row: RunRow
) -> web.StreamResponse:
    snapshot = await api.engine.snapshot(row.run)
    options = asked.stream_options
    face = ChatCompletions(
        id=f"chatcmpl-{row.run}",
        model=asked.model,
        created=row.created // 1000,
        channels=[c["id"] for c in snapshot["channels"]],
        include_usage=options is not None and options.include_usage,
        streamed=asked.stream,
    )
    headers = {"Mux-Run": row.run}
    if asked.stream:
        return await follow(request, [row.run], headers=headers, encoder=ChatEncoder(face))
    if not await api.hub.wait_final(row.run, MAX_WAIT_S):
        return reply(error_body(f"The run did not end within {MAX_WAIT_S:g} s.", "timed_out"), 502, headers)
    async for line in api.engine.export(row.run):
        if b'"seq":' in line:
            face.feed(Event.parse(line))
    if (failure := face.failure) is not None:
        return reply(error_body(failure.message, failure.code), 502, headers)
    return reply(face.result(), headers=headers)


def _start(asked: CompletionRequest) -> StartRequest:
    names = [name.strip() for name in asked.model.split("+")] * asked.n
    if not all(names) or len(names) > MAX_CHOICES:
        raise BadRequest(
            "request_invalid", f"model names an agent, or up to {MAX_CHOICES} of them joined by +."
        )
    params = {k: v for k in _PASSED_ON if (v := getattr(asked, k)) is not None}
    try:
        return StartRequest(
            messages=asked.messages,
            channels=[ChannelSpec(agent=name, params=params or None) for name in names],
            metadata=dict(asked.metadata or {}),
            on_disconnect="cancel",
        )
    except ValidationError as e:
        raise problem_of_validation(e, StartRequest) from None


async def models(request: web.Request) -> web.StreamResponse:
    """``GET /v1/models``."""
    return reply(ModelCards(data=await _cards(request)).model_dump())


async def model(request: web.Request) -> web.StreamResponse:
    """``GET /v1/models/{model}``."""
    name = request.match_info["model"]
    for card in await _cards(request):
        if card.id == name:
            return reply(card.model_dump())
    raise NotFound("agent_unknown", f"There is no agent {name[:80]!r}; GET /v1/models lists them.")


async def _cards(request: web.Request) -> list[ModelCard]:
    await request.app[API].refresh()
    return [ModelCard(id=agent["name"]) for agent in request.app[API].roster.describe()]


def in_openais_form(response: web.Response) -> web.Response:
    """A problem document as what this protocol's clients understand."""
    if response.content_type != "application/problem+json":
        return response
    told = json.loads(response.body if isinstance(response.body, bytes) else b"{}")
    fields = told.get("errors") or [{}]
    kind = "invalid_request_error" if response.status < 500 and response.status != 429 else "server_error"
    if response.status == 429:
        kind = "rate_limit_error"
    headers = {k: v for k, v in response.headers.items() if k in ("Retry-After", "Cache-Control", "Allow")}
    code = _OPENAIS_CODES.get(told.get("code", ""), told.get("code", ""))
    body = error_body(told.get("detail", ""), code, kind, fields[0].get("field"))
    return web.Response(
        status=response.status, body=dump(body), content_type="application/json", headers=headers
    )


ROUTES = (
    Route(
        "POST",
        "/v1/chat/completions",
        completions,
        "OpenAI's chat completions: `model` is an agent, or several joined by `+` (one choice each).",
        "openai",
        error_form=OpenAIError,
        body=CompletionRequest,
        answers={200: Answer("The completion, or its chunks.", Completion, (SSE,), item=CompletionChunk)},
        errors=(404, 409, 429, 502, 503),
        stream=True,
    ),
    Route(
        "GET",
        "/v1/models",
        models,
        "The agents as models.",
        "openai",
        error_form=OpenAIError,
        answers={200: Answer("The agents.", ModelCards)},
    ),
    Route(
        "GET",
        "/v1/models/{model}",
        model,
        "One agent as a model.",
        "openai",
        error_form=OpenAIError,
        params=(Param("model", "the agent's name", place="path", required=True),),
        answers={200: Answer("The agent.", ModelCard)},
        errors=(404,),
    ),
)

"""The OpenAI face over HTTP: ``POST /v1/chat/completions`` and ``GET /v1/models``.

Only transport: the encoder is `mux.faces.openai_chat`. A request is a run whose agents are the ``model``'s;
when the client hangs up, the run is cancelled. A run that fails before it has shown anything is answered
with the status of what went wrong, as the provider's own class where a provider refused (`answer`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

from aiohttp import web
from pydantic import ValidationError

from mux.errors import NotFound, Unavailable
from mux.events import Error
from mux.faces.base import dump
from mux.faces.openai_chat import ChatCompletions, error_body
from mux.http.bodies import problem_of_validation
from mux.http.faces import Answering, answer_once, channel_ids, channels_of, models_of
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
from mux.http.state import API
from mux.http.streams import SSE
from mux.requests import ChannelSpec, StartRequest

__all__ = ["ROUTES", "answer", "in_openais_form", "kind_of"]

_OPENAIS_CODES: Final = {"agent_unknown": "model_not_found"}  # that its clients know
_KEPT: Final = frozenset(
    {400, 401, 403, 404, 413, 422, 429}
)  # classes of an upstream's status that stay its own
_STATUS_OF: Final = {
    "rate_limited": 429,
    "upstream_unavailable": 503,
    "interrupted": 503,
    "turn_timeout": 504,
    "timed_out": 504,
    "upstream_stall": 504,
    "param_unsupported": 400,
    "not_supported": 400,
    "tool_duplicate": 400,
    "model_unknown": 404,
}
_CLIENTS_FAULT: Final = frozenset({400, 404, 405, 408, 409, 413, 415, 422})


async def completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/chat/completions``."""
    api = request[API]
    asked: CompletionRequest = request[BODY]
    await api.refresh()
    start = _start(asked, channels_of(api, asked.model, copies=asked.n, most=MAX_CHOICES))
    row = (await start_watched(api, start, idempotency_key(request))).row
    options = asked.stream_options
    face = ChatCompletions(
        id=f"chatcmpl-{row.run}",
        model=asked.model,
        created=row.created // 1000,
        channels=channel_ids(row),
        include_usage=options is not None and options.include_usage,
        streamed=asked.stream,
    )
    return await answer(request, row.run, face, streamed=asked.stream)


def _start(asked: CompletionRequest, channels: list[ChannelSpec]) -> StartRequest:
    params = asked.params()
    own = {"params": params or None, "client_tools": asked.client_tools()}
    try:
        return StartRequest(
            messages=asked.messages,
            channels=[spec.model_copy(update=own) for spec in channels],
            metadata=dict(asked.metadata or {}),
            on_disconnect="cancel",
        )
    except ValidationError as e:
        raise problem_of_validation(e, StartRequest) from None


class _Folding(Answering, Protocol):
    """What both of OpenAI's faces come to, where the answer is one document."""

    acted: bool

    @property
    def complete(self) -> bool: ...

    @property
    def failure(self) -> Error | None: ...

    def result(self) -> dict[str, Any]: ...


async def answer(request: web.Request, run: str, face: _Folding, *, streamed: bool) -> web.StreamResponse:
    """Answer a request of one of OpenAI's faces: with its stream, its one document, or a status."""
    headers = {"Mux-Run": run}
    response = await answer_once(request, run, face, streamed=streamed, headers=headers)
    if response is not None:
        return response
    if (failure := face.failure) is not None:
        return _failed(failure, headers, again=not (face.spoke or face.acted))
    if not face.complete:
        raise Unavailable("draining", "The server stops before the answer is complete; ask again.")
    return reply(face.result(), headers=headers)


# --- errors -------------------------------------------------------------------------------------------------


def _failed(failure: Error, headers: Mapping[str, str], *, again: bool) -> web.Response:
    """A run that failed as an answer with a status: the upstream's own class where it refused.

    Args:
        again: nothing has been done that another try would do twice.
    """
    status = failure.status if failure.status in _KEPT else _STATUS_OF.get(failure.code, 502)
    sent = dict(headers)
    # The SDKs try again by themselves on 408, 409, 429 and 5xx: a run of agents is no cheap thing to do
    # thrice.
    sent["x-should-retry"] = "true" if again and failure.retryable else "false"
    if failure.retry_after_s is not None:
        sent["Retry-After"] = str(max(1, math.ceil(failure.retry_after_s)))
    return reply(error_body(failure.message, failure.code, kind_of(status)), status, sent)


def kind_of(status: int) -> str:
    """The ``type`` that OpenAI gives errors of this status."""
    if status in _CLIENTS_FAULT:
        return "invalid_request_error"
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error"
    )


def in_openais_form(response: web.Response) -> web.Response:
    """A problem document as what this protocol's clients understand."""
    if response.content_type != "application/problem+json":
        return response
    problem: dict[str, Any] = json.loads(response.body if isinstance(response.body, bytes) else b"{}")
    fields = problem.get("errors") or [{}]
    headers = {
        k: v
        for k, v in response.headers.items()
        if k in ("Retry-After", "Cache-Control", "Allow", "WWW-Authenticate")
    }
    if not problem.get("retryable"):
        headers["x-should-retry"] = "false"
    code = _OPENAIS_CODES.get(problem.get("code", ""), problem.get("code", ""))
    param = problem.get("param") or fields[0].get("field")
    body = error_body(problem.get("detail", ""), code, kind_of(response.status), param)
    return web.Response(
        status=response.status, body=dump(body), content_type="application/json", headers=headers
    )


# --- models -------------------------------------------------------------------------------------------------


async def models(request: web.Request) -> web.StreamResponse:
    """``GET /v1/models``."""
    found = await models_of(request[API])
    cards = [ModelCard(id=name, owned_by=owner) for name, owner in found.items()]
    return reply(ModelCards(data=cards).model_dump())


async def model(request: web.Request) -> web.StreamResponse:
    """``GET /v1/models/{model}``."""
    name = request.match_info["model"]
    owner = (await models_of(request[API])).get(name)
    if owner is None:
        raise NotFound(
            "agent_unknown", f"There is no agent or model {name[:80]!r}; GET /v1/models lists them."
        )
    return reply(ModelCard(id=name, owned_by=owner).model_dump())


ROUTES = (
    Route(
        "POST",
        "/v1/chat/completions",
        completions,
        "OpenAI's chat completions: `model` is an agent, a configured model, an alias, or `a+b`.",
        "openai",
        error_form=OpenAIError,
        body=CompletionRequest,
        answers={200: Answer("The completion, or its chunks.", Completion, (SSE,), item=CompletionChunk)},
        errors=(401, 404, 409, 422, 429, 502, 503, 504),
        stream=True,
    ),
    Route(
        "GET",
        "/v1/models",
        models,
        "Agents, configured models and aliases.",
        "openai",
        error_form=OpenAIError,
        answers={200: Answer("What `model` may name.", ModelCards)},
    ),
    Route(
        "GET",
        "/v1/models/{model}",
        model,
        "One of them.",
        "openai",
        error_form=OpenAIError,
        params=(Param("model", "its name", place="path", required=True),),
        answers={200: Answer("It can be used.", ModelCard)},
        errors=(404,),
    ),
)

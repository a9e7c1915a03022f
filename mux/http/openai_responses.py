"""The OpenAI Responses face over HTTP: ``/v1/responses``.

Only transport: the encoder is `mux.faces.openai_responses`. A response is a run, and its id names it
(``resp_<run>``; ``resp_<run>_<seq>`` is what came after an approval at that seq), so nothing is kept beside
runs: ``previous_response_id`` is the run's thread, and what is echoed of a request is read back from the run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic import ValidationError

from mux.errors import Conflict, NotFound
from mux.faces.openai_responses import Responses
from mux.http.bodies import problem_of_validation
from mux.http.faces import channels_of, decide, decision, events_of, one_run, stream
from mux.http.openai import answer
from mux.http.openai_models import OpenAIError
from mux.http.openai_responses_models import ResponseFrame, ResponseObject, ResponseRequest
from mux.http.replies import reply
from mux.http.routes import BODY, Answer, Param, Route, query
from mux.http.runs import idempotency_key, start_watched, to_the_end
from mux.http.state import API, Api
from mux.http.streams import SSE
from mux.log.protocols import RunRow
from mux.requests import ChannelSpec, StartRequest

__all__ = ["ROUTES"]

CANCEL_S: Final = 10.0  # how long a cancelled run may take until its response is answered
_ID = re.compile(r"resp_([A-Za-z0-9-]{1,32})(?:_([0-9]{1,12}))?", re.ASCII)
_ITEM_ID = re.compile(r"(?:msg|rs|fc|mcp|item)_([A-Za-z0-9-]{1,32})_([0-9]{1,12})", re.ASCII)
_ABOUT: Final = "responses"  # the run's metadata that says how it was asked for


@dataclass(frozen=True, slots=True)
class _Asked:
    """A response as its id names it."""

    run: str
    after: int  # the seq of the approval that it goes on from; 0 = from the beginning

    @property
    def id(self) -> str:
        return f"resp_{self.run}_{self.after}" if self.after else f"resp_{self.run}"

    @classmethod
    def parse(cls, text: str) -> _Asked:
        match = _ID.fullmatch(text)
        if match is None:
            raise NotFound("run_not_found", f"There is no response {text[:80]!r}.")
        return cls(match[1], int(match[2] or 0))


# --- create -------------------------------------------------------------------------------------------------


async def create(request: web.Request) -> web.StreamResponse:
    """``POST /v1/responses``."""
    api = request[API]
    body: ResponseRequest = request[BODY]
    await api.refresh()
    if responses := body.approvals():
        row, asked = await _decided(api, responses)
    else:
        row = (await start_watched(api, await _start(api, body), idempotency_key(request))).row
        asked = _Asked(row.run, 0)
    if body.background and not body.stream:
        return reply(await _current(api, row, asked), headers={"Mux-Run": row.run})
    return await answer(request, row.run, _face(row, asked), streamed=body.stream)


async def _start(api: Api, body: ResponseRequest) -> StartRequest:
    thread = None
    if body.previous_response_id is not None:
        before = await api.engine.row(_Asked.parse(body.previous_response_id).run)
        if before.finished is None:
            raise Conflict("run_open", "The previous response is not over yet; wait for it, or cancel it.")
        thread = before.thread
    channels = channels_of(api, body.model)
    messages = body.messages([item async for item in _referenced(api, body)])
    own: dict[str, Any] = {"params": body.params() or None, "client_tools": body.client_tools()}
    if body.max_tool_calls is not None:
        own["budget"] = {"tool_calls": body.max_tool_calls}
    about = {
        "model": body.model,
        "previous_response_id": body.previous_response_id,
        "instructions": body.instructions,
        "background": body.background or None,
    }
    try:
        return StartRequest(
            messages=messages,
            channels=[
                ChannelSpec.model_validate(
                    spec.model_dump(exclude_defaults=True) | own | _instructed(api, spec, body.instructions)
                )
                for spec in channels
            ],
            thread=thread,
            metadata={**(body.metadata or {}), _ABOUT: {k: v for k, v in about.items() if v is not None}},
            on_disconnect="continue" if body.background else "cancel",
        )
    except ValidationError as e:
        raise problem_of_validation(e, StartRequest) from None


def _instructed(api: Api, spec: ChannelSpec, instructions: str | None) -> dict[str, Any]:
    """The client's instructions come after the agent's own, which they don't replace."""
    if instructions is None:
        return {}
    own = getattr(api.roster.agents.get(spec.agent), "instructions", "") or ""
    return {"instructions": f"{own}\n\n{instructions}" if isinstance(own, str) and own else instructions}


async def _referenced(api: Api, body: ResponseRequest) -> Any:
    """The output items that the input names by id only, by their id."""
    runs: dict[str, dict[str, Any]] = {}
    for item_id in body.references():
        match = _ITEM_ID.fullmatch(item_id)
        if match is None:
            raise NotFound("run_not_found", f"There is no item {item_id[:80]!r}.")
        run = match[1]
        if run not in runs:
            row = await api.engine.row(run)
            response = await _current(api, row, _Asked(run, 0))
            runs[run] = {item["id"]: item for item in response["output"]}
        if item_id not in runs[run]:
            raise NotFound("run_not_found", f"There is no item {item_id[:80]!r}.")
        yield runs[run][item_id]


async def _decided(api: Api, responses: list[dict[str, Any]]) -> tuple[RunRow, _Asked]:
    """Answer the approvals that a response waits for; the run goes on, and with it the next response."""
    run, decisions = one_run(
        {
            str(r.get("approval_request_id")): decision(approved=r.get("approve"), reason=r.get("reason"))
            for r in responses
        }
    )
    row = await api.engine.row(run)
    return row, _Asked(run, await decide(api, run, decisions))


# --- look at, cancel, delete --------------------------------------------------------------------------------


async def show(request: web.Request) -> web.StreamResponse:
    """``GET /v1/responses/{response}``."""
    api, asked = request[API], _Asked.parse(request.match_info["response"])
    row = await api.engine.row(asked.run)
    if not query(request, "stream", False):
        return reply(await _current(api, row, asked))
    after = query(request, "starting_after", -1)
    face = _face(row, asked, starting_after=after)
    return await stream(request, row.run, face, headers={"Mux-Run": row.run})


async def cancel(request: web.Request) -> web.StreamResponse:
    """``POST /v1/responses/{response}/cancel``."""
    api, asked = request[API], _Asked.parse(request.match_info["response"])
    row = await api.engine.row(asked.run)
    if row.finished is None:
        with contextlib.suppress(Conflict):  # it ended meanwhile
            await to_the_end(api.engine.cancel(row.run, "now"))
        await api.hub.wait_final(row.run, CANCEL_S)
    return reply(await _current(api, row, asked))


async def delete(request: web.Request) -> web.StreamResponse:
    """``DELETE /v1/responses/{response}``."""
    api, asked = request[API], _Asked.parse(request.match_info["response"])
    await to_the_end(api.engine.delete(asked.run))
    api.hub.forget(asked.run)
    return reply({"id": asked.id, "object": "response", "deleted": True})


async def input_items(request: web.Request) -> web.StreamResponse:
    """``GET /v1/responses/{response}/input_items``."""
    api, asked = request[API], _Asked.parse(request.match_info["response"])
    items = list(_inputs(await api.engine.row(asked.run)))
    if query(request, "order", "desc") == "desc":
        items.reverse()
    after, limit = query(request, "after"), query(request, "limit", 20)
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise NotFound("run_not_found", f"There is no item {after[:80]!r}.")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return reply(
        {
            "object": "list",
            "data": page,
            "has_more": len(items) > len(page),
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }
    )


def _inputs(row: RunRow) -> Iterator[dict[str, Any]]:
    messages = row.request.get("messages") or [{"role": "user", "content": row.message or ""}]
    for number, message in enumerate(messages):
        name = f"in_{row.run}_{number}"
        if message["role"] == "tool":
            call = {
                "type": "function_call_output",
                "call_id": message.get("tool_call_id"),
                "status": "completed",
            }
            yield {"id": name, **call, "output": message.get("content") or ""}
            continue
        content = message.get("content")
        kind = "output_text" if message["role"] == "assistant" else "input_text"
        if content:
            parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
            yield {
                "id": name,
                "type": "message",
                "role": message["role"],
                "content": parts,
                "status": "completed",
            }
        for at, call in enumerate(message.get("tool_calls") or ()):
            about = {"type": "function_call", "call_id": call.get("id"), "status": "completed"}
            yield {"id": f"{name}_{at}", **about, **call.get("function", {})}


# --- a run as a response ------------------------------------------------------------------------------------


def _face(row: RunRow, asked: _Asked, *, starting_after: int = -1) -> Responses:
    return Responses(
        id=asked.id,
        created=row.created // 1000,
        base=_echo(row),
        resumed_at=asked.after,
        starting_after=starting_after,
    )


async def _current(api: Api, row: RunRow, asked: _Asked) -> dict[str, Any]:
    """The response as it stands."""
    face = _face(row, asked)
    async for event in events_of(api, row.run):
        face.feed(event)
    face.settle()
    response = face.result()
    if response["status"] == "in_progress" and row.status == "queued":
        response["status"] = "queued"
    return response


def _echo(row: RunRow) -> dict[str, Any]:
    """What a response repeats of its request, read back from the run."""
    channels: list[Mapping[str, Any]] = row.request.get("channels") or [{}]
    params: Mapping[str, Any] = channels[0].get("params") or {}
    about: Mapping[str, Any] = row.metadata.get(_ABOUT) or {}
    text: dict[str, Any] = {"format": {"type": "text"}}
    if isinstance(form := params.get("response_format"), dict):
        text["format"] = {"type": form.get("type"), **(form.get("json_schema") or {})}
    if "verbosity" in params:
        text["verbosity"] = params["verbosity"]
    choice = params.get("tool_choice", "auto")
    if isinstance(choice, dict):
        choice = {"type": "function", "name": (choice.get("function") or {}).get("name")}
    return {
        "model": about.get("model") or "+".join(str(c.get("model") or c.get("agent")) for c in channels),
        "background": bool(about.get("background")),
        "instructions": about.get("instructions"),
        "previous_response_id": about.get("previous_response_id"),
        "metadata": {k: v for k, v in row.metadata.items() if k != _ABOUT},
        "parallel_tool_calls": params.get("parallel_tool_calls", True),
        "temperature": params.get("temperature"),
        "top_p": params.get("top_p"),
        "max_output_tokens": params.get("max_tokens"),
        "reasoning": {"effort": params.get("reasoning_effort"), "summary": None},
        "store": True,
        "text": text,
        "tool_choice": choice,
        "tools": [_tool(t) for t in channels[0].get("client_tools") or ()],
        "truncation": "auto",
    }


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.get("name"),
        "description": tool.get("description") or None,
        "parameters": tool.get("parameters") or {"type": "object", "properties": {}},
        "strict": tool.get("strict"),
    }


_RESPONSE = Param("response", "the response's id", place="path", required=True)
_WHOLE = Answer("The response as it stands.", ResponseObject)

ROUTES = (
    Route(
        "POST",
        "/v1/responses",
        create,
        "OpenAI's responses: `model` is an agent, a configured model, an alias, or several joined by `+`.",
        "openai",
        error_form=OpenAIError,
        body=ResponseRequest,
        answers={200: Answer("The response, or its events.", ResponseObject, (SSE,), item=ResponseFrame)},
        errors=(401, 404, 409, 422, 429, 502, 503, 504),
        stream=True,
    ),
    Route(
        "GET",
        "/v1/responses/{response}",
        show,
        "A response as it stands, or its events from a number on.",
        "openai",
        error_form=OpenAIError,
        params=(
            _RESPONSE,
            Param("stream", "its events, from the beginning or from `starting_after` on", "boolean"),
            Param(
                "starting_after", "only events after this sequence_number", "integer", schema={"minimum": 0}
            ),
            Param("include", "accepted; everything that there is comes anyway", many=True),
            Param("include[]", "likewise", many=True),
            Param("include_obfuscation", "accepted; nothing is obfuscated", "boolean"),
        ),
        answers={200: Answer(_WHOLE.about, ResponseObject, (SSE,), item=ResponseFrame)},
        errors=(404, 503),
        stream=True,
    ),
    Route(
        "POST",
        "/v1/responses/{response}/cancel",
        cancel,
        "Stop a response.",
        "openai",
        error_form=OpenAIError,
        params=(_RESPONSE,),
        answers={200: _WHOLE},
        errors=(404, 503),
    ),
    Route(
        "DELETE",
        "/v1/responses/{response}",
        delete,
        "Forget a response.",
        "openai",
        error_form=OpenAIError,
        params=(_RESPONSE,),
        answers={200: Answer("It is forgotten.", media=("application/json",))},
        errors=(404, 409, 503),
    ),
    Route(
        "GET",
        "/v1/responses/{response}/input_items",
        input_items,
        "What a response was asked.",
        "openai",
        error_form=OpenAIError,
        params=(
            _RESPONSE,
            Param("limit", "items a page", "integer", schema={"minimum": 1, "maximum": 100}),
            Param("order", "newest first or oldest first", schema={"enum": ["asc", "desc"]}),
            Param("after", "`last_id` of the page before"),
            Param("include", "accepted; everything that there is comes anyway", many=True),
            Param("include[]", "likewise", many=True),
        ),
        answers={200: Answer("The items.", media=("application/json",))},
        errors=(404, 503),
    ),
)

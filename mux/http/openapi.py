"""``/openapi.json``: the route table and the models, as OpenAPI 3.1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mux import __version__
from mux.events import event_json_schema
from mux.http.control import FRAMES
from mux.http.models import Problem
from mux.http.routes import Answer, Param, Route

__all__ = ["openapi"]

_REF = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}


def openapi(table: Sequence[Route], *, base: str = "") -> dict[str, Any]:
    """The document of these routes, below a path."""
    used = {
        m
        for r in table
        for m in (r.body, r.error_form, *(m for a in r.answers.values() for m in (a.model, a.item)))
        if m is not None
    }
    models: list[type[BaseModel]] = sorted({*used, Problem, *FRAMES}, key=lambda m: m.__name__)
    bodies = {r.body for r in table}
    refs, schemas = models_json_schema(
        [(m, "validation" if m in bodies else "serialization") for m in models], ref_template=_REF
    )
    ref = {model.__name__: schema for (model, _), schema in refs.items()}
    components: dict[str, Any] = dict(schemas.get("$defs", {}))
    event = event_json_schema(ref_template=_REF)
    components |= event.pop("$defs", {})
    components["Event"] = event
    frames = [ref[m.__name__] for m in FRAMES]
    components["StreamItem"] = {
        "description": "What a stream carries: logged events, and frames about the connection.",
        "anyOf": [{"$ref": _REF.format(model="Event")}, *frames],
    }
    paths: dict[str, Any] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, ref)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mux",
            "version": __version__,
            "summary": "Many agents, one labelled, ordered, resumable event stream.",
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "servers": [{"url": f"{base}/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(r.tag for r in table)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "a key, mux_…"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
                "session": {"type": "apiKey", "in": "cookie", "name": "mux_session"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}, {"session": []}],
    }


_Refs = dict[str, Any]


def _operation(route: Route, ref: _Refs) -> dict[str, Any]:
    out: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.about,
        "tags": [route.tag],
        "responses": _responses(route, ref),
    }
    if route.all_params:
        out["parameters"] = [_parameter(p) for p in route.all_params]
    if route.needs == "public":
        out["security"] = []
    if route.body is not None:
        out["requestBody"] = {
            "required": not route.empty_body,
            "content": {"application/json": {"schema": ref[route.body.__name__]}},
        }
    elif route.raw_body is not None:
        out["requestBody"] = {"required": True, "content": {route.raw_body: {"schema": {"type": "string"}}}}
    return out


def _operation_id(route: Route) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", route.path.lower().replace("/api", "")).strip("_")
    return f"{route.method.lower()}_{words or 'root'}"


def _parameter(param: Param) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": param.kind, **param.schema}
    out: dict[str, Any] = {"name": param.name, "in": param.place, "description": param.about}
    if param.place == "path" or param.required:
        out["required"] = True
    if param.many:
        schema = {"type": "array", "items": schema}
        out |= {"style": "form", "explode": True}
    if param.prefix:
        out["name"] = param.name.rstrip(".")
        schema = {"type": "object", "additionalProperties": schema}
        out["description"] += " (sent as one parameter for each key, with a dot before it)"
    return out | {"schema": schema}


def _responses(route: Route, ref: _Refs) -> dict[str, Any]:
    out = {str(status): _answer(answer, ref) for status, answer in route.answers.items()}
    content: dict[str, Any] = _PROBLEM
    if route.error_form is not None:
        content = {"application/json": {"schema": ref[route.error_form.__name__]}}
    of_body = {408, 413, 415} if route.body is not None else set()
    asked = {401} if route.needs != "public" else set()
    for status in sorted({*_EVERYWHERE, *of_body, *asked, *route.errors}):
        out.setdefault(str(status), {"description": HTTPStatus(status).phrase, "content": content})
    return out


_EVERYWHERE = frozenset({400, 403, 500})  # 403: a Host or Origin that is not allowed
_LINES: dict[str, Any] = {"type": "string", "description": "one JSON object in each line"}


def _sse_block(item: dict[str, Any] | None) -> dict[str, Any]:
    """One block of an event stream: before OpenAPI 3.2, ``schema`` describes each of them.

    Args:
        item: what ``data`` holds; ``None`` where not every block holds JSON (OpenAI's ``[DONE]``).
    """
    data: dict[str, Any] = {"type": "string"}
    if item is not None:
        data |= {"contentMediaType": "application/json", "contentSchema": item}
    fields = {
        "data": data,
        "id": {"type": "string", "description": "the cursor after this block"},
        "retry": {"type": "integer", "description": "ms to wait before a reconnect"},
    }
    return {"type": "object", "properties": fields}


def _answer(answer: Answer, ref: _Refs) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if answer.model is not None:
        content["application/json"] = {"schema": ref[answer.model.__name__]}
    for media in answer.media:
        if media == "application/json":
            content[media] = {"schema": {"type": "object"}}
        elif media in ("text/plain", "text/x-diff"):
            content[media] = {"schema": {"type": "string"}}
        else:
            item = ref[answer.item.__name__] if answer.item else {"$ref": _REF.format(model="StreamItem")}
            schema = _sse_block(None if answer.item else item) if "event-stream" in media else _LINES
            content[media] = {"schema": schema, "x-item-schema": item}
    out: dict[str, Any] = {"description": answer.about}
    if content:
        out["content"] = content
    if answer.headers:
        out["headers"] = {
            name: {"description": about, "schema": {"type": "string"}}
            for name, about in answer.headers.items()
        }
    return out

"""The application: routes, pages, and the boundary around every handler."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from mux._paths import bundled
from mux.http import (
    ag_ui,
    agents,
    chat_stream,
    health,
    openai,
    openai_responses,
    runs,
    streams,
    ui_messages,
    workspaces,
)
from mux.http.openapi import openapi
from mux.http.pages import Pages
from mux.http.problems import answer_to
from mux.http.replies import reply
from mux.http.routes import Answer, Handler, Route, add_routes
from mux.http.security import add_headers, check
from mux.http.state import API, Api

__all__ = ["ROUTES", "build_app"]

NATIVE: tuple[Route, ...] = (
    *runs.ROUTES,
    *workspaces.ROUTES,
    *streams.ROUTES,
    *chat_stream.ROUTES,
    *agents.ROUTES,
    *openai.ROUTES,
    *openai_responses.ROUTES,
    *ag_ui.ROUTES,
    *ui_messages.ROUTES,
    *health.ROUTES,
)


def _document_route(table: Sequence[Route]) -> Route:
    """The route of the document, which is made when it is first asked for: that takes 150 ms, a tenth of
    the whole start-up, and a thread."""

    @functools.cache
    def made() -> dict[str, Any]:
        return openapi([*table, route])

    async def document(request: web.Request) -> web.StreamResponse:
        return reply(await asyncio.to_thread(made), headers={"Cache-Control": "no-cache"})

    route = Route(
        "GET", "/openapi.json", document, "This document.", "operations",
        answers={200: Answer("OpenAPI 3.1.", media=("application/json",))},
    )  # fmt: skip
    return route


ROUTES: tuple[Route, ...] = (*NATIVE, _document_route(NATIVE))


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around every handler: who may call, and failures as answers.

    One layer, because an open stream keeps the frames of all layers for as long as it lives.
    """
    try:
        return check(request) or await handler(request)
    except Exception as e:  # noqa: BLE001 - the boundary of HTTP: answered, and logged if it is a defect
        response = answer_to(request, e)
        return openai.in_openais_form(response) if request.path.startswith("/v1/") else response


def build_app(api: Api, *, static: Path | None = None) -> web.Application:
    """The aiohttp application of these parts.

    Args:
        api: what the handlers work with.
        static: the dashboard's folder; default the one that ships with the package.
    """
    app = web.Application(
        middlewares=[boundary],
        client_max_size=int(api.settings.http.max_body_mb * 1024 * 1024),
    )
    app[API] = api
    app.on_response_prepare.append(add_headers)
    add_routes(app, ROUTES)
    Pages(static or bundled("static")).add_to(app)
    return app

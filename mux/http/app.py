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
    key_routes,
    openai,
    openai_responses,
    runs,
    streams,
    ui_messages,
    workspaces,
)
from mux.http.access import Access
from mux.http.openapi import openapi
from mux.http.pages import Pages
from mux.http.problems import answer_to
from mux.http.replies import reply
from mux.http.routes import Answer, Handler, Route, add_routes
from mux.http.security import add_headers, check
from mux.http.state import SITE, Api

__all__ = ["ROUTES", "build_app"]

ACCESS: web.AppKey[Access] = web.AppKey("access", Access)
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
    *key_routes.ROUTES,
    *health.ROUTES,
)


def _document_route(table: Sequence[Route]) -> Route:
    """The route of the document, which is made when it is first asked for: that takes 150 ms, a tenth of
    the whole start-up, and a thread."""

    @functools.cache
    def made(base: str) -> dict[str, Any]:
        return openapi([*table, route], base=base)

    async def document(request: web.Request) -> web.StreamResponse:
        base = request.app[SITE].settings.base_path
        return reply(await asyncio.to_thread(made, base), headers={"Cache-Control": "no-cache"})

    route = Route(
        "GET", "/openapi.json", document, "This document.", "operations",
        answers={200: Answer("OpenAPI 3.1.", media=("application/json",))},
        scope="public",
    )  # fmt: skip
    return route


ROUTES: tuple[Route, ...] = (*NATIVE, _document_route(NATIVE))


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around every handler: who may call, and failures as answers.

    One layer, because an open stream keeps the frames of all layers for as long as it lives.
    """
    try:
        if (answer := check(request)) is not None:
            return answer
        await request.app[ACCESS].admit(request)
        return await handler(request)
    except Exception as e:  # noqa: BLE001 - the boundary of HTTP: answered, and logged if it is a defect
        response = answer_to(request, e)
        base = request.app[SITE].settings.base_path
        return openai.in_openais_form(response) if request.path.startswith(f"{base}/v1/") else response


def build_app(api: Api, access: Access, *, static: Path | None = None) -> web.Application:
    """The aiohttp application of these parts.

    Args:
        api: what the handlers work with, of everybody.
        access: decides who may call.
        static: the dashboard's folder; default the one that ships with the package.
    """
    app = web.Application(
        middlewares=[boundary],
        client_max_size=int(api.settings.http.max_body_mb * 1024 * 1024),
    )
    app[SITE] = api
    app[ACCESS] = access
    app.on_response_prepare.append(add_headers)
    add_routes(app, ROUTES, base=api.settings.base_path)
    Pages(static or bundled("static")).add_to(app, base=api.settings.base_path)
    return app

"""Every error as a problem document (RFC 9457) with our stable ``code``; the boundary of the handlers."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from mux.errors import MuxError
from mux.faces.base import dump
from mux.telemetry import get_logger

__all__ = ["errors_become_problems", "problem", "problem_of"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    retry_after: float | None = None,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> web.Response:
    """A problem document as a response.

    Args:
        status: HTTP status.
        code: stable identifier, for programs.
        detail: one sentence for people, with what to do.
        retry_after: seconds, sent as the header (rounded up).
        members: further members of the document.
    """
    document: dict[str, Any] = {
        "type": f"urn:mux:problem:{code}",
        "title": _TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        **members,
    }
    sent = dict(headers or {})
    if retry_after is not None:
        sent["Retry-After"] = str(max(1, math.ceil(retry_after)))
    sent.setdefault("Cache-Control", "no-store")
    return web.Response(
        status=status, body=dump(document), content_type="application/problem+json", headers=sent
    )


def problem_of(error: MuxError) -> web.Response:
    """The problem document of one of our errors."""
    taken = {"type", "title", "status", "detail", "code", "retryable", "retry_after", "headers"}
    members = {k: v for k, v in error.extra.items() if k not in taken}
    return problem(
        error.status,
        error.code,
        error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        **members,
    )


@web.middleware
async def errors_become_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The failure boundary of HTTP: whatever a handler raises becomes a problem document."""
    try:
        return await handler(request)
    except MuxError as e:
        return problem_of(e)
    except web.HTTPException as e:
        return _framework_problem(request, e)
    except ConnectionError:
        raise  # the peer is gone: nobody to tell
    except Exception:  # noqa: BLE001 - the boundary of HTTP: logged, and answered without details
        get_logger().exception("request_failed", method=request.method, path=request.path)
        return problem(500, "internal_error", "Something went wrong in the server; its log has the details.")


def _framework_problem(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    """aiohttp's own refusals in our form; redirects and other non-errors pass."""
    if error.status < 400:
        raise error
    path = request.path[:200]
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return problem(
            405,
            "method_not_allowed",
            f"{path} does not take {error.method}; it takes {allowed}.",
            headers={"Allow": allowed},
        )
    if isinstance(error, web.HTTPNotFound):
        return problem(
            404, "route_not_found", f"There is nothing at {path}. GET /openapi.json lists what there is."
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return problem(
            413, "body_too_large", "The request's body is larger than this server takes (http.max_body_mb)."
        )
    return problem(error.status, f"http_{error.status}", error.reason)

"""Every error as a problem document (RFC 9457) with our stable ``code``."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from aiohttp import web

from mux.errors import Fault, MuxError
from mux.faces.base import dump
from mux.telemetry import get_logger

__all__ = ["answer_to", "problem", "problem_of"]

_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    fault: Fault | None = None,
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
        fault: whose it was; by default the client's below 500, else the server's.
        retry_after: seconds, sent as the header (rounded up).
        members: further members of the document.
    """
    document: dict[str, Any] = {
        "type": f"urn:mux:problem:{code}",
        "title": _TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "fault": fault or ("client" if status < 500 else "server"),
        "retryable": retryable,
        **members,
    }
    sent = dict(headers or {})
    if retry_after is not None:
        sent["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == HTTPStatus.UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    sent.setdefault("Cache-Control", "no-store")
    return web.Response(
        status=status, body=dump(document), content_type="application/problem+json", headers=sent
    )


def problem_of(error: MuxError) -> web.Response:
    """The problem document of one of our errors."""
    taken = {"type", "title", "status", "detail", "code", "fault", "retryable", "retry_after", "headers"}
    members = {k: v for k, v in error.extra.items() if k not in taken}
    return problem(
        error.status,
        error.code,
        error.message,
        fault=error.fault,
        retryable=error.retryable,
        retry_after=error.retry_after,
        **members,
    )


def answer_to(request: web.Request, error: Exception) -> web.Response:
    """Whatever a handler raises as an answer; what is no error, or has nobody to be told, is raised again.

    Raises:
        ConnectionError: a part of another answer is out: it is cut, so that nobody takes it for the whole.
    """
    if request.writer.output_size > 0 and not isinstance(error, ConnectionError):
        raise _cut(request, error) from error
    if isinstance(error, MuxError):
        return problem_of(error)
    if isinstance(error, web.HTTPException) and error.status >= 400:
        return _framework_problem(request, error)
    if isinstance(error, web.HTTPException | ConnectionError):
        raise error  # a redirect; or the peer is gone
    get_logger().error("request_failed", method=request.method, path=request.path, exc_info=error)
    return problem(500, "internal_error", "Something went wrong in the server; its log has the details.")


def _cut(request: web.Request, error: Exception) -> ConnectionError:
    log = get_logger().bind(method=request.method, path=request.path)
    if isinstance(error, MuxError):
        log.warning("answer_cut", code=error.code, reason=error.message)
    else:
        log.error("answer_cut", exc_info=error)
    if request.transport is not None:
        request.transport.abort()  # closed in order, an answer without chunks would look complete
    return ConnectionError("a part of another answer was sent already")


def _framework_problem(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals in our form."""
    path = request.path[:200]
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        if error.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": f"{allowed}, OPTIONS"})
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

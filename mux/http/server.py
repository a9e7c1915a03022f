"""aiohttp's server with one change: what its parser refuses is answered with a problem document too.

Such a request never reaches the application and its middlewares, so it is answered by the protocol object.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from aiohttp import web

from mux.http.problems import problem
from mux.telemetry import get_logger

__all__ = ["Runner"]


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as HTTP; the connection is closed after it."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of another answer was sent already")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            get_logger().error("request_failed", exc_info=exc)
            response = problem(status, "internal_error", "Something went wrong in the server; see its log.")
        else:
            get_logger().debug("request_refused", reason=message)
            said = (message or "it is malformed").partition("\n")[0].rstrip(":.")
            response = problem(status, "http_invalid", f"This is not HTTP as the server reads it: {said}.")
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, application: web.Server, options: dict[str, Any]) -> None:
        super().__init__(application.request_handler, request_factory=application.request_factory, **options)
        self._options = {k: v for k, v in options.items() if k != "handler_cancellation"}

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._options)


class Runner(web.AppRunner):
    """Runs the application.

    Args:
        app: the application.
        shutdown_timeout: seconds that open requests may take after the last accept.
        options: of `aiohttp.web.RequestHandler` and `aiohttp.web.Server`.
    """

    def __init__(self, app: web.Application, *, shutdown_timeout: float, **options: Any) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=shutdown_timeout, **options)
        self._options = options

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._options)

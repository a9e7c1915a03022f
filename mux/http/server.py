"""aiohttp's server with two changes.

What its parser refuses is answered with a problem document too: such a request never reaches the application
and its middlewares, so it is answered by the protocol object. And a request's head has to be complete in
time, or whoever sends a byte now and then keeps a connection for ever.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from aiohttp import web

from mux.http.problems import problem
from mux.telemetry import get_logger

__all__ = ["Runner"]


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("_head_s", "_head_timer")

    def __init__(self, manager: web.Server, *, head_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_s = head_s
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A head is awaited from here on."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """The clock runs while a head has begun and is not complete."""
        super().data_received(data)
        if self._messages or self._request_in_progress:
            self._stop_waiting()
        elif self._head_timer is None:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is awaited any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(self._head_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.transport is not None and not self._messages and not self._request_in_progress:
            self.transport.close()

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
    def __init__(self, application: web.Server, head_s: float, options: dict[str, Any]) -> None:
        super().__init__(application.request_handler, request_factory=application.request_factory, **options)
        self._head_s = head_s
        self._options = {k: v for k, v in options.items() if k != "handler_cancellation"}

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, head_s=self._head_s, **self._options)


class Runner(web.AppRunner):
    """Runs the application.

    Args:
        app: the application.
        head_s: seconds that a request's head may take.
        shutdown_timeout: seconds that open requests may take after the last accept.
        options: of `aiohttp.web.RequestHandler` and `aiohttp.web.Server`.
    """

    def __init__(
        self, app: web.Application, *, shutdown_timeout: float, head_s: float = 10.0, **options: Any
    ) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=shutdown_timeout, **options)
        self._head_s = head_s
        self._options = options

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._head_s, self._options)

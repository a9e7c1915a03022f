"""Whether the process lives, and whether it takes new runs."""

from __future__ import annotations

from aiohttp import web

from mux import __version__
from mux.http.models import Health, Readiness
from mux.http.replies import reply
from mux.http.routes import Answer, Route
from mux.http.state import API

__all__ = ["ROUTES"]


async def healthz(request: web.Request) -> web.StreamResponse:
    """``GET /healthz``: the process answers."""
    return reply({"status": "ok", "version": __version__})


async def readyz(request: web.Request) -> web.StreamResponse:
    """``GET /readyz``: new runs are taken; 503 with the reasons if not."""
    api = request.app[API]
    checks = dict(await api.checks())
    if not api.engine.accepting:
        checks["engine"] = "not accepting runs: starting, or shutting down"
    if checks:
        return reply({"status": "unavailable", "checks": checks}, 503, {"Retry-After": "2"})
    return reply({"status": "ready", "checks": {}})


ROUTES = (
    Route(
        "GET", "/healthz", healthz, "The process is alive.", "operations",
        answers={200: Answer("It is.", Health)},
    ),
    Route(
        "GET", "/readyz", readyz, "New runs are taken.", "operations",
        answers={200: Answer("They are.", Readiness), 503: Answer("They are not, and why.", Readiness)},
    ),
)  # fmt: skip

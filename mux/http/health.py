"""Whether the process lives, whether it takes new runs, and how much it has to do."""

from __future__ import annotations

from aiohttp import web

from mux import __version__
from mux.http.models import Health, Readiness
from mux.http.replies import reply
from mux.http.routes import Answer, Route
from mux.http.state import API
from mux.metrics import MEDIA_TYPE, counter, gauge

__all__ = ["ROUTES"]


async def healthz(request: web.Request) -> web.StreamResponse:
    """``GET /healthz``: the process answers."""
    return reply({"status": "ok", "version": __version__})


async def readyz(request: web.Request) -> web.StreamResponse:
    """``GET /readyz``: new runs are accepted, and taken; 503 with the reasons if not."""
    api = request[API]
    checks = dict(await api.checks())
    if (reason := api.engine.unready()) is not None:
        checks["engine"] = reason
    if checks:
        return reply({"status": "unavailable", "checks": checks}, 503, {"Retry-After": "2"})
    return reply({"status": "ready", "checks": {}})


async def metrics(request: web.Request) -> web.StreamResponse:
    """``GET /metrics``, in Prometheus' text format 0.0.4."""
    api = request[API]
    stats = await api.engine.stats()
    now = [
        gauge("mux_runs_running", "Runs that have a slot.", stats["running"]),
        gauge("mux_runs_queued", "Runs that wait for a slot.", stats["queued"]),
        gauge("mux_channels_running", "Channels whose agent runs.", stats["channels"]),
        gauge("mux_accepting", "Whether new runs are taken.", stats["accepting"]),
        gauge("mux_streams_open", "Open streams.", api.hub.count),
        gauge("mux_streams_limit", "Streams that may be open (limits.max_viewers).", api.hub.max_viewers),
        gauge("mux_viewer_lag_events", "Events that the slowest viewer is behind.", api.hub.lag()),
        counter(
            "mux_provider_errors", "Requests that an endpoint failed, by the error's code.",
            ("provider", "code"), api.providers.errors(),
        ),
        counter(
            "mux_provider_circuit_opened", "How often an endpoint was not asked any more for a while.",
            ("provider",), {(name,): count for name, count in api.providers.opened().items()},
        ),
    ]  # fmt: skip
    return web.Response(
        body=api.metrics.text(now),
        headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"},
    )


ROUTES = (
    Route(
        "GET", "/healthz", healthz, "The process is alive.", "operations",
        answers={200: Answer("It is.", Health)}, scope="public",
    ),
    Route(
        "GET", "/metrics", metrics, "How much the server has to do, for Prometheus.", "operations",
        answers={200: Answer("The gauges.", media=("text/plain",))},
        scope="admin",
    ),
    Route(
        "GET", "/readyz", readyz, "New runs are taken.", "operations",
        answers={200: Answer("They are.", Readiness), 503: Answer("They are not, and why.", Readiness)},
        scope="public",
    ),
)  # fmt: skip

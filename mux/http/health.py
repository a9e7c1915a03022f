"""Whether the process lives, whether it takes new runs, and how much it has to do."""

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
    """``GET /readyz``: new runs are accepted, and taken; 503 with the reasons if not."""
    api = request[API]
    checks = dict(await api.checks())
    if (reason := api.engine.unready()) is not None:
        checks["engine"] = reason
    if checks:
        return reply({"status": "unavailable", "checks": checks}, 503, {"Retry-After": "2"})
    return reply({"status": "ready", "checks": {}})


_GAUGES = (  # name, member of `Engine.stats`, what it is
    ("mux_runs_running", "running", "Runs that have a slot."),
    ("mux_runs_queued", "queued", "Runs that wait for a slot."),
    ("mux_channels_running", "channels", "Channels whose agent runs."),
    ("mux_accepting", "accepting", "Whether new runs are taken."),
)


async def metrics(request: web.Request) -> web.StreamResponse:
    """``GET /metrics``, in Prometheus' text format 0.0.4: how much there is to do now."""
    api = request[API]
    stats = await api.engine.stats()
    gauges = [(name, int(stats[member]), about) for name, member, about in _GAUGES]
    gauges.append(("mux_streams_open", api.hub.count, "Open streams."))
    gauges.append(
        ("mux_streams_limit", api.hub.max_viewers, "Streams that may be open (limits.max_viewers).")
    )
    lines = [f"# HELP {name} {about}\n# TYPE {name} gauge\n{name} {value}\n" for name, value, about in gauges]
    return web.Response(
        body="".join(lines).encode(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"},
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

"""The roster and the models, as programs and the dashboard choose from them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mux.http.models import AgentList, ModelList
from mux.http.replies import reply
from mux.http.routes import Answer, Route
from mux.http.state import API

__all__ = ["ROUTES"]


async def agents(request: web.Request) -> web.StreamResponse:
    """``GET /api/agents``; changed files are read again first."""
    roster = request.app[API].roster
    await request.app[API].refresh()
    return reply(
        {
            "agents": roster.describe(),
            "problems": [_problem(p) for p in roster.problems],
            "warnings": [str(w) for w in roster.warnings],
        }
    )


def _problem(problem: Any) -> dict[str, str]:
    return {"path": str(problem.path), "reason": str(problem.reason)}


async def models(request: web.Request) -> web.StreamResponse:
    """``GET /api/models``."""
    return reply({"models": await request.app[API].providers.offers()})


ROUTES = (
    Route(
        "GET",
        "/api/agents",
        agents,
        "The roster: descriptions, tools and models.",
        "agents",
        answers={200: Answer("The agents, and the files that could not be loaded.", AgentList)},
    ),
    Route(
        "GET",
        "/api/models",
        models,
        "Models that the configured endpoints offer.",
        "agents",
        answers={200: Answer("The models.", ModelList)},
    ),
)

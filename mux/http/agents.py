"""The roster and the models, as programs and the dashboard choose from them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mux.http.models import AgentList, ModelList
from mux.http.replies import reply
from mux.http.routes import Answer, Route
from mux.http.state import API

__all__ = ["ROUTES"]

_READERS = frozenset({"search_docs", "list_docs", "read_doc"})
_MANUAL = "Mux's manual"  # what they read where no folder is configured


async def agents(request: web.Request) -> web.StreamResponse:
    """``GET /api/agents``; changed files are read again first."""
    api = request[API]
    roster = api.roster
    await api.refresh()
    folders = [str(root) for root in api.settings.documents.roots] or [_MANUAL]
    return reply(
        {
            "agents": [_with_documents(agent, folders) for agent in roster.describe()],
            "problems": [_problem(p) for p in roster.problems],
            "warnings": [str(w) for w in roster.warnings],
        }
    )


def _with_documents(agent: dict[str, Any], folders: list[str]) -> dict[str, Any]:
    """The agent, with the folders that it may read where it has a tool that reads documents."""
    return agent | {"documents": folders} if _READERS.intersection(agent.get("tools") or ()) else agent


def _problem(problem: Any) -> dict[str, str]:
    return {"path": str(problem.path), "reason": str(problem.reason)}


async def models(request: web.Request) -> web.StreamResponse:
    """``GET /api/models``."""
    return reply({"models": await request[API].providers.offers()})


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

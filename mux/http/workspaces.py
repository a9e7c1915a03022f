"""What a channel changed in its workspace, and taking that over into the original folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, Field

from mux.errors import AgentError, Conflict
from mux.http.replies import reply
from mux.http.routes import Answer, Route
from mux.http.runs import CHANNEL, RUN, to_the_end
from mux.http.state import API
from mux.http.streams import wants
from mux.run import TERMINAL
from mux.workspaces import FileChange, workspaces_of

__all__ = ["ROUTES"]

_DIFF = "text/x-diff"


class Diff(BaseModel):
    """What a channel changed since its lane began."""

    run: str
    channel: str
    files: list[FileChange]
    insertions: int
    deletions: int
    diff: str = Field(description="in git's unified format, with binary files")
    truncated: bool = Field(description="the diff is longer than 16 MB and left out; it can be applied")


class Applied(BaseModel):
    """Which paths of the original folder were written or removed."""

    run: str
    channel: str
    files: list[str] = Field(description="empty: the original has all of it already")
    status: Literal["applied"] = "applied"


@contextmanager
def _refused() -> Iterator[None]:
    """What would fail a channel (a quota, a file that can't be read) refuses a request."""
    try:
        yield
    except AgentError as e:
        raise Conflict(e.code, e.message) from e


async def diff(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs/{run}/channels/{channel}/diff``."""
    api, run, channel = request[API], request.match_info["run"], request.match_info["channel"]
    media = wants(request, ("application/json", _DIFF))
    row = await api.engine.row(run)
    with _refused():
        found = await workspaces_of(api.settings).changes(run, row.thread, channel)
    if media == _DIFF:
        name = f"{run}.{channel}.diff"
        headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}"'}
        return web.Response(text=found.diff, content_type=_DIFF, charset="utf-8", headers=headers)
    files = [f.model_dump(exclude_none=True) for f in found.files]
    told = found.model_dump(exclude={"base", "tree", "files"})
    return reply({"run": run, "channel": channel, "files": files, **told})


async def apply(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/channels/{channel}/apply``."""
    api, run, channel = request[API], request.match_info["run"], request.match_info["channel"]
    snapshot = await api.engine.snapshot(run)
    for found in snapshot["channels"]:
        if found["id"] == channel and found["status"] not in TERMINAL:
            raise Conflict(
                "channel_running", f"Channel {channel!r} still works; wait for its end or cancel it."
            )
    with _refused():
        files = await to_the_end(workspaces_of(api.settings).apply(run, snapshot["thread"], channel))
    return reply({"run": run, "channel": channel, "files": files, "status": "applied"})


ROUTES = (
    Route(
        "GET", "/api/runs/{run}/channels/{channel}/diff", diff, "What a channel changed in its workspace.",
        "workspaces", params=(RUN, CHANNEL),
        answers={200: Answer("The files and the diff; with Accept: text/x-diff the diff alone.", Diff,
                             media=(_DIFF,))},
        errors=(404, 406, 409, 503),
    ),
    Route(
        "POST", "/api/runs/{run}/channels/{channel}/apply", apply,
        "Take a channel's changes over into the original folder: all of them or none.", "workspaces",
        params=(RUN, CHANNEL), answers={200: Answer("They are there.", Applied)}, errors=(404, 409, 503),
    ),
)  # fmt: skip

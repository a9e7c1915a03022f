"""Keys, and what is made with them, over HTTP: keys, sessions, tickets, links to a run, usage."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from mux.clock import now_ms
from mux.errors import BadRequest, NotFound
from mux.http.access import COOKIE
from mux.http.keys import Grant, NewKey, Scope, key_not_found
from mux.http.replies import reply
from mux.http.routes import BODY, Answer, Param, Route
from mux.http.runs import to_the_end
from mux.http.security import host_of, scheme_of
from mux.http.state import API, SITE
from mux.requests import ChannelId, KeyLimits

__all__ = ["ROUTES"]

TICKET_S: Final = 30.0
SHARE_S: Final = 7 * 86_400.0  # a link's life, where none is asked for


class Key(BaseModel):
    """A key, without its secret. Times are ms since the epoch."""

    id: str
    owner: str
    scopes: list[Scope]
    title: str | None = None
    agents: list[str] | None = None
    limits: KeyLimits
    created: int
    expires: int | None = None
    revoked: int | None = None


class KeyMade(Key):
    """A new key; ``key`` is its only copy."""

    key: str


class KeyList(BaseModel):
    """All keys, oldest first."""

    keys: list[Key]


class Login(BaseModel):
    """``POST /api/session``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(min_length=1, max_length=200)


class Session(BaseModel):
    """Who calls. ``access``: ``on``; ``off`` where nobody is asked; ``insecure`` where others reach that."""

    access: str
    owner: str
    scopes: list[Scope]
    title: str | None = None
    expires: int | None = Field(
        default=None, description="ms since the epoch: then the key is asked for again"
    )
    limits: KeyLimits
    run: str | None = Field(default=None, description="of a link: the run that it shows")
    login: bool = Field(description="it came by the login page, and can log out")


class Ticket(BaseModel):
    """Opens one stream, once, as ``?ticket=``."""

    ticket: str
    expires: int


class NewShare(BaseModel):
    """``POST /api/runs/{run}/share``.

    Attributes:
        channels: the lanes that the link shows; left out = all, also those that come later.
        plan: also what the lanes were told: instructions and params.
        expires_s: seconds until the link ends; by default a week.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[ChannelId, ...] | None = Field(default=None, min_length=1, max_length=256)
    plan: bool = False
    expires_s: float = Field(default=SHARE_S, gt=0, le=366 * 86_400)


class Share(BaseModel):
    """A link to one run, without its secret."""

    id: str
    run: str
    channels: list[str] | None = None
    plan: bool
    created: int
    expires: int


class ShareMade(Share):
    """A new link; ``url`` and ``key`` are its only copies."""

    url: str
    key: str


class ShareList(BaseModel):
    """The links to a run."""

    shares: list[Share]


class Usage(BaseModel):
    """What an owner has and has used, and what its key allows; days are UTC's."""

    owner: str
    used: dict[str, float]
    limits: KeyLimits


# --- keys ---------------------------------------------------------------------------------------------------


async def keys(request: web.Request) -> web.StreamResponse:
    """``GET /api/keys``."""
    return reply({"keys": [key.listed() for key in await request[API].keys.all("key")]})


async def add_key(request: web.Request) -> web.StreamResponse:
    """``POST /api/keys``."""
    new: NewKey = request[BODY]
    key, text = await to_the_end(request[API].keys.add(new))
    return reply(key.listed() | {"key": text}, 201)


async def revoke_key(request: web.Request) -> web.StreamResponse:
    """``DELETE /api/keys/{id}``."""
    await to_the_end(request[API].keys.revoke(request.match_info["id"]))
    return web.Response(status=204)


# --- sessions and tickets -----------------------------------------------------------------------------------


async def log_in(request: web.Request) -> web.StreamResponse:
    """``POST /api/session``."""
    api = request[API]
    key = await api.keys.find(request[BODY].key.strip())
    if key.kind != "key":
        raise BadRequest("key_invalid", "A session begins with a key.", status=401)
    lasts_s = api.settings.access.session_hours * 3600
    if key.expires is not None:
        lasts_s = min(lasts_s, (key.expires - now_ms()) / 1000)
    session, text = await to_the_end(api.keys.make("session", key, lasts_s))
    response = reply(_session(request, session), 201)
    response.set_cookie(
        COOKIE,
        text,
        max_age=round(lasts_s),
        path=api.settings.base_path or "/",
        httponly=True,
        samesite="Strict",
        secure=scheme_of(request) == "https",
    )
    return response


async def session(request: web.Request) -> web.StreamResponse:
    """``GET /api/session``."""
    return reply(_session(request, request[API].grant))


def _session(request: web.Request, grant: Grant) -> dict[str, Any]:
    insecure = request.app[SITE].settings.insecure
    access = "insecure" if insecure else "on" if grant.created or grant.owner != "local" else "off"
    return {
        "access": access,
        "owner": grant.owner,
        "scopes": list(grant.scopes),
        "title": grant.title,
        "expires": grant.expires,
        "run": grant.run,
        "limits": grant.limits.model_dump(exclude_none=True),
        "login": grant.kind == "session",
    }


async def log_out(request: web.Request) -> web.StreamResponse:
    """``DELETE /api/session``."""
    api = request[API]
    if api.grant.kind == "session":
        await to_the_end(api.keys.drop("session", api.grant.id))
    response = web.Response(status=204)
    response.del_cookie(COOKIE, path=api.settings.base_path or "/")
    return response


async def ticket(request: web.Request) -> web.StreamResponse:
    """``POST /api/tickets``."""
    made, text = await to_the_end(request[API].keys.make("ticket", request[API].grant, TICKET_S))
    return reply({"ticket": text, "expires": made.expires}, 201)


# --- links to a run -----------------------------------------------------------------------------------------


async def share(request: web.Request) -> web.StreamResponse:
    """``POST /api/runs/{run}/share``."""
    api, run, body = request[API], request.match_info["run"], request[BODY]
    known = {channel["id"] for channel in (await api.engine.snapshot(run))["channels"]}
    if missing := [name for name in body.channels or () if name not in known]:
        raise NotFound("channel_not_found", f"Run {run} has no channel {missing[0]!r}.")
    grant = api.grant.model_copy(
        update={"scopes": ("read",), "run": run, "channels": body.channels, "plan": body.plan}
    )
    made, text = await to_the_end(api.keys.make("share", grant, body.expires_s))
    base = f"{scheme_of(request)}://{host_of(request)}{api.settings.base_path}"
    # Behind the hash: browsers send that to no server, and in no Referer.
    return reply(_as_link(made) | {"url": f"{base}/shared#{text}", "key": text}, 201)


async def shares(request: web.Request) -> web.StreamResponse:
    """``GET /api/runs/{run}/share``."""
    return reply({"shares": [_as_link(one) for one in await _shares(request)]})


async def unshare(request: web.Request) -> web.StreamResponse:
    """``DELETE /api/runs/{run}/share/{id}``."""
    name = request.match_info["id"]
    if name not in [one.id for one in await _shares(request)]:
        raise key_not_found(name)
    await to_the_end(request[API].keys.drop("share", name))
    return web.Response(status=204)


async def _shares(request: web.Request) -> list[Grant]:
    api, run, now = request[API], request.match_info["run"], now_ms()
    await api.engine.own(run)
    links = await api.keys.all("share")
    return [
        one for one in links if one.run == run and one.owner == api.grant.owner and (one.expires or 0) > now
    ]


def _as_link(one: Grant) -> dict[str, Any]:
    return one.model_dump(include={"id", "run", "channels", "plan", "created", "expires"}, exclude_none=True)


async def usage(request: web.Request) -> web.StreamResponse:
    """``GET /api/usage``."""
    api = request[API]
    used = await api.engine.usage()
    used["viewers"] = sum(1 for _ in api.hub.rows(api.grant.owner))
    limits = api.grant.limits.model_dump(exclude_none=True)
    return reply({"owner": api.grant.owner, "used": used, "limits": limits})


_ID = Param("id", "its id", place="path", required=True)
_RUN = Param("run", "the run's id", place="path", required=True)

ROUTES = (
    Route(
        "GET", "/api/keys", keys, "All keys, without their secrets.", "access",
        answers={200: Answer("The keys.", KeyList)}, errors=(503,), scope="admin",
    ),
    Route(
        "POST", "/api/keys", add_key, "Make a key. The answer holds its only copy.", "access",
        body=NewKey, answers={201: Answer("The key.", KeyMade)}, errors=(503,), scope="admin",
    ),
    Route(
        "DELETE", "/api/keys/{id}", revoke_key, "End a key, and all that was opened with it.", "access",
        params=(_ID,), answers={204: Answer("It is revoked.")}, errors=(404, 503), scope="admin",
    ),
    Route(
        "POST", "/api/session", log_in, "Exchange a key for a cookie, as the login page does.", "access",
        body=Login, answers={201: Answer("The session; the cookie is `mux_session`.", Session)},
        errors=(401, 503), scope="public",
    ),
    Route(
        "GET", "/api/session", session, "Who calls, and until when.", "access",
        answers={200: Answer("The caller.", Session)}, shared=True,
    ),
    Route(
        "DELETE", "/api/session", log_out, "Log out.", "access",
        answers={204: Answer("The session is over.")}, errors=(503,), scope="read",
    ),
    Route(
        "POST", "/api/tickets", ticket, "A ticket for one stream, for 30 s, where no header can be sent.",
        "access", answers={201: Answer("The ticket.", Ticket)}, errors=(503,), scope="read",
    ),
    Route(
        "POST", "/api/runs/{run}/share", share, "Make a read-only link to one run.", "access",
        params=(_RUN,), body=NewShare, empty_body=True,
        answers={201: Answer("The link. The answer holds its only copy.", ShareMade)}, errors=(404, 503),
    ),
    Route(
        "GET", "/api/runs/{run}/share", shares, "The links to a run.", "access",
        params=(_RUN,), answers={200: Answer("The links.", ShareList)}, errors=(404, 503),
    ),
    Route(
        "DELETE", "/api/runs/{run}/share/{id}", unshare, "End a link, and its streams.", "access",
        params=(_RUN, _ID), answers={204: Answer("It is over.")}, errors=(404, 503),
    ),
    Route(
        "GET", "/api/usage", usage, "What you have and have used, and your key's limits.", "access",
        answers={200: Answer("The usage.", Usage)}, errors=(503,),
    ),
)  # fmt: skip

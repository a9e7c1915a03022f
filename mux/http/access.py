"""Who calls, and what that one may: the one place that decides, before any handler runs.

A caller is known by a key (``Authorization: Bearer``, ``X-Api-Key``, or the session's cookie, which all count
alike), by a ticket (`?ticket=`, for one stream), or by an authenticating proxy. Access is off, and everything
is the owner ``local``'s, on loopback as long as no key was ever made, and wherever ``--insecure`` says so.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from mux.errors import BadRequest, ConfigError, MuxError
from mux.http.keys import LOCAL, OWNER, Grant
from mux.http.routes import Route
from mux.http.security import from_trusted_proxy
from mux.http.state import API, Api, RosterLike
from mux.settings import Settings
from mux.telemetry import get_logger
from mux.viewers import Hub

__all__ = ["COOKIE", "Access", "check_exposure", "is_exposed"]

COOKIE: Final = "mux_session"


def is_exposed(settings: Settings) -> bool:
    """Whether others than this machine reach the server."""
    try:
        return not ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        return settings.host != "localhost"


def check_exposure(settings: Settings, *, keys: bool) -> None:
    """Refuse to listen where others reach it while nobody would be asked who they are.

    Args:
        keys: whether there are any.

    Raises:
        ConfigError: ``address_not_loopback``, with the three ways out.
    """
    asks = keys or settings.access.proxy_header is not None
    if asks or settings.insecure or not is_exposed(settings):
        return
    raise ConfigError(
        "address_not_loopback",
        f"{settings.host} is reachable from other machines, and nobody would be asked for a key. Make one "
        "first (mux keys add OWNER); or name an authenticating proxy ([access] proxy_header and "
        "trusted_proxies); or let everybody in who reaches it (--insecure).",
    )


class Access:
    """Decides.

    Args:
        api: what handlers work with where nobody is asked.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._keys = api.keys
        settings = api.settings
        self._header = settings.access.proxy_header
        self._off = settings.insecure
        self._always = self._header is not None or is_exposed(settings)

    async def admit(self, request: web.Request) -> None:
        """Let the request through to its handler, which finds in it what its caller may see.

        Raises:
            BadRequest: ``key_missing`` and the like (401), ``scope_missing``, ``proxy_untrusted`` (403).
        """
        route: Route | None = getattr(request.match_info.handler, "route", None)
        if route is None or route.needs == "public":
            request[API] = self._api
            return
        grant = await self._grant(request, route)
        if not grant.may(route.needs):
            raise BadRequest(
                "scope_missing",
                f"This needs the scope {route.needs!r}, which the key does not have.",
                status=403,
            )
        if grant.run is not None and not route.shared:
            raise BadRequest("scope_missing", "This link shows one run, and nothing else.", status=403)
        if route.needs == "read" and (owner := request.rel_url.query.get("owner")) not in (None, grant.owner):
            if not grant.may("admin"):
                raise BadRequest(
                    "scope_missing", "Only the scope 'admin' may ask for another owner.", status=403
                )
            grant = grant.model_copy(update={"owner": owner, "scopes": ("read",)})
        request[API] = self._of(grant)

    def _of(self, grant: Grant) -> Api:
        roster: RosterLike = self._api.roster
        if grant.agents is not None:
            roster = _Allowed(roster, frozenset(grant.agents))
        return replace(self._api, engine=self._api.engine.of(grant), roster=roster, grant=grant)

    async def _grant(self, request: web.Request, route: Route) -> Grant:
        if self._off:
            return LOCAL
        if (user := self._proxied(request)) is not None:
            return user
        text = _secret_of(request)
        if text is None and route.takes_ticket:
            text = request.rel_url.query.get("ticket")
        if not self._always and not await self._keys.any():
            return LOCAL
        if text is None:
            raise BadRequest(
                "key_missing",
                "This server asks for a key: send Authorization: Bearer mux_… (mux keys add makes one).",
                status=401,
            )
        grant = await self._keys.find(text)
        if grant.kind == "ticket" and not route.takes_ticket:
            raise BadRequest("key_invalid", "A ticket opens one stream, as ?ticket=.", status=401)
        return grant

    def _proxied(self, request: web.Request) -> Grant | None:
        """Whom the proxy names. Anybody else who sends its header means to be taken for somebody."""
        if self._header is None or not (names := request.headers.getall(self._header, ())):
            return None
        if not from_trusted_proxy(request, self._api.settings):
            raise BadRequest(
                "proxy_untrusted",
                f"{self._header} is believed from the proxies of access.trusted_proxies only.",
                status=403,
            )
        if len(names) > 1 or not re.fullmatch(OWNER, names[0]):
            raise BadRequest("proxy_untrusted", f"{self._header} has to name one user.", status=403)
        admin = names[0] in self._api.settings.access.proxy_admins
        return Grant(owner=names[0], scopes=("admin",) if admin else ("run",))

    # --- what is open already -----------------------------------------------------------------------------

    async def watch(self, hub: Hub, heartbeat_s: float) -> None:
        """The background task: streams of keys that were revoked or have expired end within a heartbeat."""
        while True:
            await asyncio.sleep(heartbeat_s / 2)
            for holder in hub.holders():
                try:
                    if not await self._keys.still(holder):
                        hub.send_away(holder, "revoked")
                except MuxError as e:  # the store is away: the next look may find it
                    get_logger().warning("key_not_looked_at", code=e.code)
                except Exception as e:  # noqa: BLE001 - a broken record must not keep the others' streams open
                    get_logger().error("key_not_looked_at", key=holder, exc_info=e)


class _Allowed:
    """The agents that a key may use, as if there were no others."""

    def __init__(self, roster: RosterLike, names: frozenset[str]) -> None:
        self._roster = roster
        self._names = names
        self.problems: tuple[Any, ...] = ()
        self.warnings: tuple[Any, ...] = ()

    @property
    def agents(self) -> dict[str, Any]:
        return {name: agent for name, agent in self._roster.agents.items() if name in self._names}

    def describe(self) -> list[dict[str, Any]]:
        return [agent for agent in self._roster.describe() if agent["name"] in self._names]

    def refresh(self) -> bool:
        return self._roster.refresh()


def _secret_of(request: web.Request) -> str | None:
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and text.strip():
        return text.strip()
    return request.headers.get("X-Api-Key") or request.cookies.get(COOKIE)

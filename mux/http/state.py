"""What the handlers work with: one frozen value in the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from mux.engine.plan import key_limit
from mux.http.keys import LOCAL, Grant, Keys
from mux.http.owned import OwnersEngine
from mux.metrics import Metrics
from mux.settings import Settings
from mux.viewers import Encoder, Hub, Selection, Viewer

__all__ = ["API", "SITE", "Api", "ProvidersLike", "RosterLike"]


EVERYTHING = Selection()


class RosterLike(Protocol):
    """The roster as HTTP shows it."""

    @property
    def agents(self) -> Mapping[str, Any]: ...

    @property
    def problems(self) -> Sequence[Any]: ...

    @property
    def warnings(self) -> Sequence[Any]: ...

    def describe(self) -> list[dict[str, Any]]: ...

    def refresh(self) -> bool: ...


class ProvidersLike(Protocol):
    """The model endpoints as HTTP shows them."""

    async def offers(self) -> list[dict[str, Any]]: ...

    def errors(self) -> Mapping[tuple[str, ...], int]: ...

    def opened(self) -> Mapping[str, int]: ...


async def _no_checks() -> Mapping[str, str]:
    return {}


async def _no_refresh() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Api:
    """Everything that a handler may need.

    Attributes:
        checks: for ``/readyz``: what is wrong, by part; empty = ready.
        refresh: sees to it that changed roster files are read again.
        grant: the caller.
        extra_hosts: names that it answers for, besides those of the settings.
    """

    engine: OwnersEngine
    hub: Hub
    keys: Keys
    settings: Settings
    roster: RosterLike
    providers: ProvidersLike
    checks: Callable[[], Awaitable[Mapping[str, str]]] = _no_checks
    refresh: Callable[[], Awaitable[None]] = _no_refresh
    extra_hosts: tuple[str, ...] = field(default=())
    metrics: Metrics = field(default_factory=Metrics)
    grant: Grant = LOCAL

    async def open(
        self,
        runs: Sequence[str],
        after: str | None,
        encoder: Encoder,
        selection: Selection = EVERYTHING,
        *,
        vector: bool = False,
        observe: bool = False,
    ) -> Viewer:
        """Open a viewer of runs of the caller's; see `Hub.open`.

        Raises:
            Overloaded: ``key_limit``, too.
        """
        await self.engine.own(*runs)
        grant = self.grant
        most = grant.limits.viewers
        if most is not None and sum(1 for _ in self.hub.rows(grant.owner)) >= most:
            raise key_limit("viewers", most, retry_after=5)
        if (shared := grant.shared()) is not None:
            selection = selection.seen_by(shared)
        async with self.hub.turns:  # opening, unlike being there, costs something
            return await self.hub.open(
                runs, after, encoder, selection, vector=vector, observe=observe, owner=grant.owner,
                holder=grant.id or None,
            )  # fmt: skip


SITE: web.AppKey[Api] = web.AppKey("site", Api)  # everybody's
API: web.RequestKey[Api] = web.RequestKey("api", Api)  # the caller's

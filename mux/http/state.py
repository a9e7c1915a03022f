"""What the handlers work with: one frozen value in the application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from mux.log.protocols import RunPage, RunQuery, RunRow
from mux.metrics import Metrics
from mux.requests import AddChannel, ApprovalAnswer, CancelMode, PatchRun, StartRequest, SteerRequest
from mux.settings import Settings
from mux.viewers import Hub

__all__ = ["API", "Api", "EngineLike", "ProvidersLike", "RosterLike", "StartedLike"]


class StartedLike(Protocol):
    """What starting a run gives back."""

    @property
    def row(self) -> RunRow: ...

    @property
    def created(self) -> bool: ...


class EngineLike(Protocol):
    """The part of the engine that HTTP uses. Everything raises only MuxError."""

    @property
    def accepting(self) -> bool: ...

    async def start_run(
        self, req: StartRequest, *, owner: str = ..., key: str | None = ..., streaming: bool = ...
    ) -> StartedLike: ...

    async def row(self, run: str, *, owner: str | None = ...) -> RunRow: ...

    async def snapshot(self, run: str, *, owner: str | None = ...) -> dict[str, Any]: ...

    async def list_runs(self, query: RunQuery) -> RunPage: ...

    def summary(self, row: RunRow) -> dict[str, Any]: ...

    async def patch(self, run: str, change: PatchRun) -> dict[str, Any]: ...

    async def delete(self, run: str) -> None: ...

    async def cancel(self, run: str, mode: CancelMode) -> None: ...

    async def cancel_channel(self, run: str, channel: str, mode: CancelMode) -> None: ...

    async def add_channel(self, run: str, spec: AddChannel) -> str: ...

    async def retry(self, run: str, channel: str, model: str | None) -> tuple[str, str]: ...

    async def steer(self, run: str, channel: str, request: SteerRequest) -> str: ...

    async def answer(self, run: str, call_id: str, answer: ApprovalAnswer, by: str) -> dict[str, Any]: ...

    def viewer_joined(self, run: str, *, observe: bool = ...) -> None: ...

    def viewer_left(self, run: str, *, observe: bool = ..., sent_away: bool = ...) -> None: ...

    def export(self, run: str) -> AsyncIterator[bytes]: ...

    async def import_run(self, lines: AsyncIterator[bytes]) -> str: ...

    def unready(self) -> str | None:
        """Why it does not do its part now; ``None`` if it does."""

    async def stats(self) -> dict[str, Any]: ...


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
        extra_hosts: names that it answers for, besides those of the settings.
    """

    engine: EngineLike
    hub: Hub
    settings: Settings
    roster: RosterLike
    providers: ProvidersLike
    checks: Callable[[], Awaitable[Mapping[str, str]]] = _no_checks
    refresh: Callable[[], Awaitable[None]] = _no_refresh
    extra_hosts: tuple[str, ...] = field(default=())
    metrics: Metrics = field(default_factory=Metrics)


API: web.AppKey[Api] = web.AppKey("api", Api)

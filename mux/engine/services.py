"""What every part of the engine needs, in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from mux.agent import Agent, Guard
from mux.engine.journal import Clock, Publish
from mux.engine.plan import RosterLike
from mux.log.protocols import Store
from mux.settings import Settings

__all__ = ["GuardFor", "Services"]

GuardFor: TypeAlias = Callable[[Agent, str, str], Guard]  # agent, run, channel


@dataclass(frozen=True, slots=True)
class Services:
    """The engine's surroundings.

    Attributes:
        owner: this process, as the store's fences name it.
    """

    settings: Settings
    store: Store
    roster: RosterLike
    guard_for: GuardFor
    publish: Publish
    clock: Clock
    owner: str
    log: structlog.typing.FilteringBoundLogger

"""Where runs are driven: what every part of the engine needs of the server, in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from mux.agent import Agent, Guard
from mux.clock import Clock
from mux.engine.plan import RosterLike
from mux.log.protocols import Store
from mux.settings import Settings

__all__ = ["GuardFor", "Site"]

GuardFor: TypeAlias = Callable[[Agent, str, str], Guard]  # agent, run, channel


@dataclass(frozen=True, slots=True)
class Site:
    """The engine's surroundings.

    Attributes:
        name: this process, as the store knows it.
        clock: for rows.
        run_clock: makes the clock of one run, which should be steady while it lasts.
    """

    settings: Settings
    store: Store
    roster: RosterLike
    guard_for: GuardFor
    clock: Clock
    run_clock: Callable[[], Clock]
    name: str
    log: structlog.typing.FilteringBoundLogger

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
from mux.metrics import Metrics
from mux.settings import Settings

__all__ = ["GuardFor", "Site", "Times"]

GuardFor: TypeAlias = Callable[[Agent, str, str], Guard]  # agent, run, channel


@dataclass(frozen=True, slots=True)
class Times:
    """Waits of the engine, in seconds, and one count.

    Attributes:
        come_back: what viewers have to come back whose connection the server ended.
        say_every: how often a front says anew how many viewers a run has there.
        answer: how long a caller waits for a run's worker.
        again: before a run that the store failed is tried again, the last again and again.
        fresh: that a list waits for runs whose store hangs; then it shows them as last kept.
        tries: takeovers in a row without getting on, after which a run's agents are given up.
    """

    come_back: float = 15.0
    answer: float = 5.0
    say_every: float = 5.0
    again: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 30.0)
    fresh: float = 0.5
    tries: int = 50


@dataclass(frozen=True, slots=True)
class Site:
    """The engine's surroundings.

    Attributes:
        name: this process, as the store knows it.
        times: how long things take that are no user's to set.
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
    times: Times
    metrics: Metrics
    log: structlog.typing.FilteringBoundLogger

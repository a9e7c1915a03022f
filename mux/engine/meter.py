"""Counting what a channel and its run have used, against their budgets."""

from __future__ import annotations

import time

from mux.agent import Budget
from mux.events import Body, StepFinished, ToolStart, Usage, UsageReport
from mux.run import ChannelState

__all__ = ["Meter", "stricter"]

_FIELDS = ("steps", "tokens", "cost", "seconds", "tool_calls")


def stricter(a: Budget | None, b: Budget | None) -> Budget | None:
    """Field by field the lower limit of the two."""
    if a is None or b is None:
        return a or b

    def lower(name: str) -> float | None:
        values = [v for v in (getattr(a, name), getattr(b, name)) if v is not None]
        return min(values) if values else None

    return Budget.model_validate({name: lower(name) for name in _FIELDS})


class Meter:
    """What was used so far. ``outer`` is the run's meter, which counts the same."""

    def __init__(self, budget: Budget | None = None, outer: Meter | None = None) -> None:
        self.budget = budget
        self._outer = outer
        self._started = time.monotonic()
        self._steps = 0
        self._tool_calls = 0
        self._tokens = 0
        self._cost = 0.0
        self._reported: dict[int, Usage] = {}  # of the newest step: `usage` and `step_finished` say it twice

    def start(self) -> None:
        """Seconds count from here."""
        self._started = time.monotonic()

    def limit(self, budget: Budget | None) -> None:
        """The budget that holds from now on; seconds count from here."""
        self.budget = budget
        self.start()

    @property
    def seconds(self) -> float | None:
        """The fewest seconds that this budget, or the run's, allows in all."""
        budgets = [self.budget, self._outer.budget if self._outer is not None else None]
        limits = [b.seconds for b in budgets if b is not None and b.seconds is not None]
        return min(limits, default=None)

    def restore(self, channel: ChannelState) -> None:
        """Begin with what the log shows of a channel (after a crash)."""
        usage = channel.usage or Usage()
        self._add(len(channel.steps), sum(t.at != "written" for t in channel.tools.values()), usage)

    def see(self, body: Body) -> None:
        """Count one draft of the channel."""
        if isinstance(body, UsageReport):
            self._report(body.step, body.usage())
        elif isinstance(body, StepFinished):
            self._add(1, 0, Usage())
            if body.usage is not None:
                self._report(body.step, body.usage)
        elif isinstance(body, ToolStart):
            self._add(0, 1, Usage())

    def _report(self, step: int, usage: Usage) -> None:
        if self._reported.get(step) == usage:
            return
        self._reported = {step: usage}
        self._add(0, 0, usage)

    def _add(self, steps: int, tool_calls: int, usage: Usage) -> None:
        self._steps += steps
        self._tool_calls += tool_calls
        self._tokens += (usage.input_tokens or 0) + (usage.output_tokens or 0)
        self._cost += usage.cost or 0.0
        if self._outer is not None:
            self._outer._add(steps, tool_calls, usage)

    def exceeded(self) -> str | None:
        """The name of a budget that is reached, of this meter or the run's."""
        budget = self.budget
        if budget is not None:
            used = {
                "steps": self._steps,
                "tokens": self._tokens,
                "cost": self._cost,
                "seconds": time.monotonic() - self._started,
                "tool_calls": self._tool_calls,
            }
            for name in _FIELDS:
                limit = getattr(budget, name)
                if limit is not None and used[name] >= limit:
                    return name
        return self._outer.exceeded() if self._outer is not None else None

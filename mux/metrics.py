"""What a server did, in numbers for Prometheus: counted where it happens, written by `prometheus_client`.

Nothing is measured per token: events are counted a batch at a time, and what a channel used, took and failed
by is read off its state when it ends. Names of agents, models and tools are labels of theirs, the first
fifty of each; later ones are counted as ``other``, so that no client can make a server keep more and more.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mux.events import Record
from mux.run import ChannelState

__all__ = ["MEDIA_TYPE", "Metrics", "counter", "gauge"]

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MOST: Final = 50  # values of one label
_LOOK_S: Final = 0.5  # how often the loop's lag is measured
_LONG: Final = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_SHORT: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 100)
_TINY: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)


class _Names:
    """The values of one label, bounded."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, name: str | None) -> str:
        name = name or "unknown"
        if name not in self._known:
            if len(self._known) >= _MOST:
                return "other"
            self._known.add(name)
        return name


def gauge(name: str, about: str, value: float) -> Metric:
    """One number as it is now."""
    return GaugeMetricFamily(name, about, value=value)


def counter(name: str, about: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Counts that somebody else keeps, by the values of their labels."""
    family = CounterMetricFamily(name, about, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=True)
        self._agent, self._model, self._tool, self._code = _Names(), _Names(), _Names(), _Names()
        self._events: Counts[str] = Counts()
        self._now: list[Metric] = []
        self._lag = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        whose = ["agent", "model"]
        self._runs = Counter("mux_runs", "Runs that ended.", ["status"], registry=registry)
        self._run_s = Histogram(
            "mux_run_seconds", "How long runs took.", ["status"], buckets=_LONG, registry=registry
        )
        self._channels = Counter(
            "mux_channels", "Channels that ended.", [*whose, "status"], registry=registry
        )
        self._errors = Counter(
            "mux_channel_errors", "Channels that failed, by the error's code.", [*whose, "code"],
            registry=registry,
        )  # fmt: skip
        self._ttft_s = Histogram(
            "mux_ttft_seconds", "From a channel's first request to its first token.", whose, buckets=_SHORT,
            registry=registry,
        )  # fmt: skip
        self._between_s = Histogram(
            "mux_token_interval_seconds", "Mean time between a channel's tokens.", whose, buckets=_SHORT,
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "mux_tokens", "Tokens as reported by the endpoints.", [*whose, "kind"], registry=registry
        )
        self._cost = Counter(
            "mux_cost", "What that cost, where it is known.", [*whose, "currency"], registry=registry
        )
        self._tool_s = Histogram(
            "mux_tool_seconds", "How long calls of tools ran.", ["tool", "outcome"], buckets=_LONG,
            registry=registry,
        )  # fmt: skip
        self._append_s = Histogram(
            "mux_store_append_seconds", "How long the store took to keep events.", buckets=_TINY,
            registry=registry,
        )  # fmt: skip
        self._takeovers = Counter(
            "mux_takeovers", "Runs taken over that another process, or an earlier one, had begun.",
            registry=registry,
        )  # fmt: skip
        self._slow = Counter(
            "mux_viewers_dropped", "Viewers that read too slowly and were dropped.", registry=registry
        )
        lag = Gauge(
            "mux_loop_lag_seconds", "The longest the event loop was late since the last scrape.",
            registry=registry,
        )  # fmt: skip
        lag.set_function(self._longest_lag)
        registry.register(self)

    # --- told as it happens ---------------------------------------------------------------------------------

    def appended(self, seconds: float) -> None:
        """The store kept a batch of events."""
        self._append_s.observe(seconds)

    def published(self, records: Sequence[Record]) -> None:
        """Events are in the log."""
        events = self._events
        for record in records:
            events[record.type] += 1

    def taken_over(self) -> None:
        """A run that had begun elsewhere goes on here."""
        self._takeovers.inc()

    def viewer_dropped(self) -> None:
        """A viewer read too slowly."""
        self._slow.inc()

    def run_ended(self, status: str, duration_ms: int) -> None:
        """A run's last event is in its log."""
        self._runs.labels(status).inc()
        self._run_s.labels(status).observe(duration_ms / 1000)

    def channel_ended(self, channel: ChannelState) -> None:
        """A channel's ``done`` is in the log."""
        done, usage = channel.done, channel.usage
        if done is None:
            return
        whose = self._agent(channel.agent), self._model(channel.model)
        self._channels.labels(*whose, done.status).inc()
        if channel.error is not None:
            self._errors.labels(*whose, self._code(channel.error.code)).inc()
        if done.ttft_ms is not None:
            self._ttft_s.labels(*whose).observe(done.ttft_ms / 1000)
        if done.tokens_per_s:
            self._between_s.labels(*whose).observe(1 / done.tokens_per_s)
        for kind in ("input", "output", "reasoning", "cached") if usage else ():
            if count := getattr(usage, f"{kind}_tokens"):
                self._tokens.labels(*whose, kind).inc(count)
        if usage is not None and usage.cost:
            self._cost.labels(*whose, usage.currency or "unknown").inc(usage.cost)
        for call in channel.tools.values():
            if call.result is not None and call.started_ts is not None:
                outcome = "error" if call.result.is_error else "ok"
                self._tool_s.labels(self._tool(call.tool), outcome).observe(call.result.elapsed_ms / 1000)

    # --- read when asked ------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        events: dict[tuple[str, ...], float] = {(kind,): count for kind, count in self._events.items()}
        yield counter("mux_events", "Events in logs, by type.", ("type",), events)
        yield from self._now

    def text(self, now: Iterable[Metric] = ()) -> bytes:
        """Everything, in Prometheus' text format (`MEDIA_TYPE`).

        Args:
            now: what others read off at this moment.
        """
        self._now = list(now)
        return generate_latest(self._registry)

    # --- the loop's lag -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to measure how late the event loop is."""
        self._due = time.monotonic() + _LOOK_S
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._lag = max(self._lag, time.monotonic() - self._due)
        self.start()

    def _longest_lag(self) -> float:
        lag, self._lag = self._lag, 0.0
        return lag

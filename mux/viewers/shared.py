"""What somebody sees of a run who has only a link to it: some of its lanes, and not what they were told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mux.events import Record

__all__ = ["Shared"]

_PLAN: Final = frozenset({"instructions", "params", "tools", "budget", "inputs"})  # inputs name other runs
_OF_LANES: Final = frozenset({"run_started", "channel_added", "run_finished"})


@dataclass(frozen=True, slots=True)
class Shared:
    """What a link shows.

    Attributes:
        channels: the only lanes that it shows; ``None`` = all.
        plan: also what they were told: instructions, params, and the run's metadata.
    """

    channels: frozenset[str] | None
    plan: bool

    def _shows(self, channel: Any) -> bool:
        return self.channels is None or channel in self.channels

    def record(self, record: Record) -> Record | None:
        """The event as it is shown; ``None`` if it is not."""
        if record.channel is not None and not self._shows(record.channel):
            return None
        if record.type not in _OF_LANES:
            return record
        event: dict[str, Any] = json.loads(record.data)
        if record.type == "channel_added":
            if not self._shows(event["id"]):
                return None
            event = self._lane(event)
        elif record.type == "run_started":
            event["channels"] = [self._lane(c) for c in event["channels"] if self._shows(c["id"])]
            if not self.plan:
                event.pop("metadata", None)
        else:
            event["channels"] = {k: v for k, v in event["channels"].items() if self._shows(k)}
            if self.channels is not None:
                event.pop("usage", None)
        return record._replace(data=json.dumps(event, ensure_ascii=False).encode(), body=None)

    def _lane(self, channel: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in channel.items() if self.plan or k not in _PLAN}

    def snapshot(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """The run's snapshot as it is shown."""
        out = dict(run)
        out["channels"] = [
            channel | ({"plan": self._lane(channel["plan"])} if "plan" in channel else {})
            for channel in run["channels"]
            if self._shows(channel["id"])
        ]
        out["agents"] = list(dict.fromkeys(channel["agent"] for channel in out["channels"]))
        if not self.plan:
            out["metadata"] = {}
        if self.channels is not None:
            out["usage"] = {}
        return out

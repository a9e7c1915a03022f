"""What the guarded stream asks of its channel's guard, which makes it: so neither names the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import structlog

from mux.events import GuardrailHit
from mux.guardrails.compiled import Rule, Stage
from mux.guardrails.scan import Blocked

__all__ = ["Judge"]


class Judge(Protocol):
    """What the stream asks of its channel's guard (:class:`mux.guardrails.guard.RuleGuard`)."""

    log: structlog.typing.FilteringBoundLogger

    def for_stages(self, *stages: Stage) -> tuple[Rule, ...]:
        """The rules that hold at any of these stages."""

    def blocked(self, block: Blocked, stage: Stage) -> None:
        """Log a block."""

    def masked(self, rules: Iterable[Rule], stage: Stage) -> list[GuardrailHit]:
        """Log what was masked; the events that say so."""

    def refusal(self, rule: Rule) -> str:
        """What the user sees after a block by this rule."""

"""The guard of one channel: verdicts on values, and the guarded stream of drafts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import structlog

from mux.agent import Draft, Said, Verdict
from mux.events import GuardrailHit
from mux.guardrails.compiled import Rule, Stage
from mux.guardrails.lane import clean_value, names
from mux.guardrails.scan import Blocked
from mux.guardrails.stream import GuardedStream
from mux.telemetry import get_logger

__all__ = ["RuleGuard"]


class RuleGuard:
    """Implements :class:`mux.agent.Guard` for a set of rules.

    Args:
        rules: all rules of the channel, of every stage.
        run, channel: for the log line of a block.
        log: where that line goes.
        refusal: what the user sees where a rule has no text of its own.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        run: str,
        channel: str,
        log: structlog.typing.FilteringBoundLogger | None,
        refusal: str,
    ) -> None:
        self._rules = rules
        self._refusal = refusal
        self.log = (log or get_logger()).bind(run=run, channel=channel)
        self._told: set[tuple[str, Stage]] = set()

    def for_stages(self, *stages: Stage) -> tuple[Rule, ...]:
        """The rules that hold at any of these stages."""
        return tuple(r for r in self._rules if not r.stages.isdisjoint(stages))

    async def input(self, text: str) -> Verdict:
        return await self._verdict("input", text)

    async def tool_input(self, tool: str, arguments: dict[str, Any]) -> Verdict:
        return await self._verdict("tool_input", arguments)

    async def tool_output(self, tool: str, output: str, data: Any = None) -> Verdict:
        verdict = await self._verdict("tool_output", [output, data])
        if verdict.action == "blocked":
            return verdict
        return Verdict(verdict.action, tuple(verdict.value), verdict.rules)

    def stream(self, drafts: AsyncIterator[Said]) -> AsyncIterator[Said | Draft]:
        if not self.for_stages("output", "tool_input", "tool_output"):
            return drafts
        return GuardedStream(self, drafts).run()

    async def _verdict(self, stage: Stage, value: Any) -> Verdict:
        try:
            cleaned, fired = await clean_value(value, self.for_stages(stage))
        except Blocked as e:
            self.blocked(e, stage)
            return Verdict("blocked", None, (e.rule.name,), e.rule.refusal)
        if not fired:
            return Verdict("pass", value)
        self.masked(fired, stage)
        return Verdict("masked", cleaned, names(fired))

    def blocked(self, block: Blocked, stage: Stage) -> None:
        """The one log line of a block. It never carries the text."""
        self.log.warning(
            "guardrail", rule=block.rule.name, stage=stage, action="blocked", reason=block.reason
        )

    def masked(self, rules: Iterable[Rule], stage: Stage) -> list[GuardrailHit]:
        """A log line for the first time that each rule masks; and the events, one per match."""
        hits = []
        for rule in rules:
            if (rule.name, stage) not in self._told:
                self._told.add((rule.name, stage))
                self.log.info("guardrail", rule=rule.name, stage=stage, action="masked")
            hits.append(GuardrailHit(rule=rule.name, stage=stage, action="masked"))
        return hits

    def refusal(self, rule: Rule) -> str:
        """What the user sees after a block by this rule."""
        return rule.refusal or self._refusal

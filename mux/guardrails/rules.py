"""The rules of a server and of an agent, compiled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import structlog
from pydantic import ValidationError

from mux.agent import Guard, OpenGuard
from mux.errors import ConfigError
from mux.guardrails.compiled import Rule, compile_rule
from mux.guardrails.guard import RuleGuard
from mux.guardrails.presets import PRESETS
from mux.settings import GuardrailRule, problem_of

__all__ = ["AgentRules", "Rules"]

AgentRules: TypeAlias = (
    Mapping[str, GuardrailRule | Mapping[str, Any]] | Sequence[str | GuardrailRule | Mapping[str, Any]]
)


class Rules:
    """A set of compiled rules, from which each channel gets its guard.

    Attributes:
        warnings: sentences about rules that work, but not as well as they could.
    """

    def __init__(self, rules: Sequence[Rule], warnings: Sequence[str], base: Path) -> None:
        self._rules = tuple(rules)
        self._base = base
        self.warnings = list(warnings)

    @classmethod
    def compile(cls, rules: Mapping[str, GuardrailRule], *, base: Path | None = None) -> Rules:
        """Compile configured rules.

        Args:
            rules: by name.
            base: the folder that ``path.py:function`` is relative to (default: the working directory).

        Raises:
            ConfigError: ``guardrail_invalid``: the rule, and what to write instead.
        """
        base = base or Path(os.curdir)
        made = [compile_rule(name, rule, base) for name, rule in rules.items()]
        return cls([rule for rule, _ in made], [w for _, warned in made for w in warned], base)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(rule.name for rule in self._rules)

    def with_agent(self, rules: AgentRules) -> Rules:
        """These rules and an agent's own.

        Args:
            rules: by name; or a list of names (of a preset, or of a rule that holds anyway), of rules, and
                of mappings with a ``name`` of their own.

        Raises:
            ConfigError: ``guardrail_invalid``.
        """
        own = self._named(rules)
        if not own:
            return self
        added = Rules.compile(own, base=self._base)
        return Rules([*self._rules, *added._rules], [*self.warnings, *added.warnings], self._base)

    def _named(self, rules: AgentRules) -> dict[str, GuardrailRule]:
        if isinstance(rules, Mapping):
            return {name: _rule(name, value) for name, value in rules.items()}
        own: dict[str, GuardrailRule] = {}
        for i, entry in enumerate(rules, 1):
            if isinstance(entry, str):
                if entry in self.names:
                    continue
                if entry not in PRESETS:
                    known = ", ".join(sorted({*self.names, *PRESETS}))
                    raise ConfigError(
                        "guardrail_invalid", f"There is no guardrail named {entry!r}. Known: {known}."
                    )
                own[entry] = GuardrailRule(preset=entry)
            elif isinstance(entry, GuardrailRule):
                own[f"agent-rule-{i}"] = entry
            else:
                name = str(entry.get("name", f"agent-rule-{i}"))
                own[name] = _rule(name, {k: v for k, v in entry.items() if k != "name"})
        return own

    def guard(
        self,
        *,
        run: str,
        channel: str,
        log: structlog.typing.FilteringBoundLogger | None = None,
        refusal: str,
    ) -> Guard:
        """The guard of one channel.

        Args:
            run, channel: for the log line of a block.
            log: where that line goes.
            refusal: what the user sees instead of a blocked reply, where the rule has no text of its own.
        """
        if not self._rules:
            return OpenGuard()
        return RuleGuard(self._rules, run=run, channel=channel, log=log, refusal=refusal)


def _rule(name: str, value: GuardrailRule | Mapping[str, Any]) -> GuardrailRule:
    if isinstance(value, GuardrailRule):
        return value
    try:
        return GuardrailRule.model_validate(dict(value))
    except ValidationError as e:
        loc, why = problem_of(e)
        raise ConfigError(
            "guardrail_invalid", f"Guardrail {name!r}: {'.'.join(map(str, loc))}: {why}."
        ) from e

"""Agents written with other frameworks. Each adapter is imported only when one of its agents is met."""

from __future__ import annotations

from typing import Any

__all__ = ["adapt"]


def adapt(value: Any) -> Any:
    """Our agent around another framework's, told by its class; any other value as it is."""
    kind = type(value)
    if kind.__module__.split(".")[0] == "agents" and kind.__name__ in ("Agent", "SandboxAgent"):
        from mux.adapters.openai_agents import OpenAIAgentsAgent

        return OpenAIAgentsAgent(value)
    return value

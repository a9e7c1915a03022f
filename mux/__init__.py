"""Mux: many agents, one labelled, ordered, resumable event stream.

The names below are what agents and tools are written with. They are imported when they are first used, so
that ``import mux`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mux.agent import (
        AgentContext,
        Budget,
        ChannelRequest,
        ChannelResult,
        Message,
        Nested,
        Outcome,
        agent,
    )
    from mux.client import MuxClient, SyncMuxClient
    from mux.errors import AgentError, MuxError
    from mux.events import (
        Custom,
        Event,
        Phase,
        Reasoning,
        Refusal,
        StepFinished,
        StepStarted,
        Token,
        ToolArgs,
        ToolCall,
        ToolProgress,
        ToolResult,
        ToolStart,
        Usage,
        UsageReport,
    )
    from mux.llm.agent import LlmAgent
    from mux.settings import Settings, load_settings
    from mux.tools.base import Tool, ToolContext, ToolOutput, ToolProblem
    from mux.tools.decorator import tool

__all__ = [
    "AgentContext",
    "AgentError",
    "Budget",
    "ChannelRequest",
    "ChannelResult",
    "Custom",
    "Event",
    "LlmAgent",
    "Message",
    "MuxClient",
    "MuxError",
    "Nested",
    "Outcome",
    "Phase",
    "Reasoning",
    "Refusal",
    "Settings",
    "StepFinished",
    "StepStarted",
    "SyncMuxClient",
    "Token",
    "Tool",
    "ToolArgs",
    "ToolCall",
    "ToolContext",
    "ToolOutput",
    "ToolProblem",
    "ToolProgress",
    "ToolResult",
    "ToolStart",
    "Usage",
    "UsageReport",
    "__version__",
    "agent",
    "load_settings",
    "tool",
]

_HOMES = {
    "mux.agent": (
        "AgentContext", "Budget", "ChannelRequest", "ChannelResult", "Message", "Nested", "Outcome", "agent",
    ),
    "mux.client": ("MuxClient", "SyncMuxClient"),
    "mux.errors": ("AgentError", "MuxError"),
    "mux.events": (
        "Custom", "Event", "Phase", "Reasoning", "Refusal", "StepFinished", "StepStarted", "Token",
        "ToolArgs", "ToolCall", "ToolProgress", "ToolResult", "ToolStart", "Usage", "UsageReport",
    ),
    "mux.llm.agent": ("LlmAgent",),
    "mux.settings": ("Settings", "load_settings"),
    "mux.tools.base": ("Tool", "ToolContext", "ToolOutput", "ToolProblem"),
    "mux.tools.decorator": ("tool",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'mux' has no attribute {name!r}")
    home = importlib.import_module(module)
    if name == "agent":
        return home  # the submodule of that name, which is callable as the decorator
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

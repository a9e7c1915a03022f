"""Well-known coding agents that speak ACP, and the command that each is started by."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

__all__ = ["KNOWN", "KnownAgent", "snippet"]


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """A program that can be a lane.

    Attributes:
        env: variables that it may need besides its own login.
        tried: the version that we ran as a lane; ``None``: the command is as its pages name it.
    """

    name: str
    title: str
    command: tuple[str, ...]
    install: str
    env: tuple[str, ...] = ()
    tried: str | None = None

    @property
    def path(self) -> str | None:
        """Where its program is, if it is on PATH."""
        return shutil.which(self.command[0])


KNOWN: tuple[KnownAgent, ...] = (
    KnownAgent(
        "claude-code", "Claude Code", ("claude-agent-acp",),
        "npm install -g @agentclientprotocol/claude-agent-acp", ("ANTHROPIC_API_KEY",),
    ),
    KnownAgent(
        "codex", "Codex", ("codex-acp",), "npm install -g @agentclientprotocol/codex-acp", ("OPENAI_API_KEY",)
    ),
    KnownAgent(
        "gemini", "Gemini CLI", ("gemini", "--acp"), "npm install -g @google/gemini-cli", ("GEMINI_API_KEY",)
    ),
    KnownAgent(
        "qwen-code", "Qwen Code", ("qwen", "--acp"), "npm install -g @qwen-code/qwen-code",
        ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"), tried="0.24.4",
    ),
    KnownAgent("opencode", "OpenCode", ("opencode", "acp"), "npm install -g opencode-ai"),
    KnownAgent("goose", "goose", ("goose", "acp"), "see https://block.github.io/goose"),
)  # fmt: skip


def snippet(agent: KnownAgent) -> str:
    """The entry for ``mux.toml``, ready to be pasted."""
    words = ", ".join(f'"{word}"' for word in agent.command)
    names = ", ".join(f'"{name}"' for name in agent.env)
    env = f"\nenv = [{names}]" if names else ""
    return f'[acp.{agent.name}]\ncommand = [{words}]{env}\nworkspace = "."'

"""What the rehearsal model sees when it is asked for a turn: the task, and what the tools said so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mux.agent import Message
from mux.llm.model import ModelRequest, ToolSchema
from mux.llm.rehearsal.voices import Voice, blocks, handed_over

__all__ = ["Result", "Situation"]

_MAX_TASK = 4_000  # characters: the rules read it on the event loop, and what matters comes first


@dataclass(frozen=True, slots=True)
class Result:
    """One call of this turn and what came of it.

    Attributes:
        round: which of the turn's model calls asked for it, from 0.
    """

    tool: str
    arguments: Mapping[str, Any]
    output: str
    is_error: bool
    round: int

    def argument(self, name: str) -> str:
        """An argument as text; empty if there is none."""
        return str(self.arguments.get(name, ""))

    @property
    def first_argument(self) -> str:
        return str(next(iter(self.arguments.values()), ""))


@dataclass(frozen=True, slots=True)
class Situation:
    """The conversation, read.

    Attributes:
        task: the last user message, without what was handed over with it.
        tools: what may be called, by name.
        results: what the calls since the task gave, in order.
        rounds: how many times the model was asked since the task.
        turns: how many user messages there were before.
        channel: the own channel's id.
        handed: outputs of other channels that came with the task.
    """

    task: str
    tools: Mapping[str, ToolSchema]
    results: tuple[Result, ...] = ()
    rounds: int = 0
    turns: int = 0
    channel: str = ""
    handed: tuple[Voice, ...] = ()

    @classmethod
    def of(cls, request: ModelRequest) -> Situation:
        """Read a request."""
        messages = list(request.messages)
        users = [i for i, m in enumerate(messages) if m.role == "user"]
        last = users[-1] if users else -1
        after = messages[last + 1 :]
        task, handed = handed_over(messages[last].text if users else "")
        return cls(
            task=task[:_MAX_TASK],
            tools={t.name: t for t in request.tools},
            results=tuple(_results(after)),
            rounds=sum(m.role == "assistant" for m in after),
            turns=max(len(users) - 1, 0),
            channel=request.channel,
            handed=tuple(handed),
        )

    def of_tool(self, *names: str) -> list[Result]:
        """The results of these tools."""
        return [r for r in self.results if r.tool in names]

    @property
    def voices(self) -> list[Voice]:
        """Every other channel that is known of, as it was heard last."""
        latest = {v.channel: v for v in self.handed}
        for result in self.of_tool("ask_channels", "delegate"):
            latest.update((v.channel, v) for v in blocks(result.output))
        return list(latest.values())

    @property
    def last(self) -> list[Result]:
        """The results of the last round."""
        return [r for r in self.results if r.round == self.rounds - 1]


def _results(messages: Sequence[Message]) -> list[Result]:
    answers = {m.call_id: m for m in messages if m.role == "tool"}
    results: list[Result] = []
    asked = [m for m in messages if m.role == "assistant"]
    for number, message in enumerate(asked):
        for call in message.calls:
            answer = answers.get(call.call_id)
            if answer is not None:
                results.append(
                    Result(call.tool, _object(call.arguments), answer.text, answer.is_error, number)
                )
    return results


def _object(raw: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

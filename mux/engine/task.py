"""What a channel is asked: history of its lane on the thread, the messages given, outputs handed over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from mux.agent import Guard, Message, MessageCall
from mux.engine.intake import Reader
from mux.engine.plan import Plan, PlannedChannel
from mux.requests import ChatMessage

__all__ = ["Checked", "HandOver", "Task", "checked", "make_task"]


@dataclass(frozen=True, slots=True)
class HandOver:
    """One channel's output as another channel gets it."""

    name: str  # ``channel`` or ``run/channel``
    agent: str
    status: str
    output: str
    error: str | None = None

    def block(self) -> str:
        """The labelled block; a channel that failed is named as failed."""
        name, agent, status = map(quoteattr, (self.name, self.agent, self.status))
        lines = [f"<output channel={name} agent={agent} status={status}>"]
        if self.error:
            lines.append(f"(This channel did not succeed: {self.error})")
        if self.output:
            lines.append(self.output)
        return "\n".join([*lines, "</output>"])


@dataclass(frozen=True, slots=True)
class Task:
    """The conversation a channel begins with; ``new`` of its last messages belong to this run."""

    text: str
    messages: tuple[Message, ...]
    new: int


def make_task(
    plan: Plan, channel: PlannedChannel, history: Sequence[Message], outputs: Iterable[HandOver]
) -> Task:
    """Put the pieces together: history, given messages, the task with the outputs handed over."""
    blocks = "\n\n".join(o.block() for o in outputs)
    asked = (channel.asked and channel.asked.messages) or plan.messages
    if channel.message is not None or asked is None:
        given: list[Message] = []
        last = Message(role="user", content=channel.message or plan.message or "")
    else:
        *given, last = [_message(m) for m in asked]
    if blocks:
        last = _with_text(last, blocks)
    messages = (*history, *given, last)
    return Task(last.text, messages, len(given) + 1)


def _with_text(message: Message, blocks: str) -> Message:
    if isinstance(message.content, str):
        return message.model_copy(update={"content": f"{message.content}\n\n{blocks}"})
    return message.model_copy(
        update={"content": [*message.content, {"type": "text", "text": "\n\n" + blocks}]}
    )


def _message(chat: ChatMessage) -> Message:
    """A message of the chat format; ``developer`` is what providers call ``system`` today."""
    extra: dict[str, Any] = chat.model_extra or {}
    calls = []
    for call in extra.get("tool_calls") or ():
        function = call.get("function") or {} if isinstance(call, dict) else {}
        if isinstance(call, dict) and call.get("id") and function.get("name"):
            calls.append(
                MessageCall(
                    call_id=str(call["id"]),
                    tool=str(function["name"]),
                    arguments=str(function.get("arguments") or "{}"),
                )
            )
    return Message(
        role="system" if chat.role == "developer" else chat.role,
        content=chat.content if chat.content is not None else "",
        calls=tuple(calls),
        call_id=str(extra["tool_call_id"]) if chat.role == "tool" and extra.get("tool_call_id") else None,
    )


@dataclass(frozen=True, slots=True)
class Checked:
    """What the input guardrails say of a task.

    Attributes:
        task: the task, cleaned if need be; ``None`` if it was blocked.
        rules: the rules that fired.
        refusal: the blocking rule's own words for the user, if it has any.
    """

    task: Task | None
    rules: tuple[str, ...] = ()
    refusal: str | None = None


async def checked(task: Task, guard: Guard) -> Checked:
    """Run the input guardrails over what this run adds to the conversation."""
    reader = Reader(guard)
    new: list[Message] = []
    for message in task.messages[len(task.messages) - task.new :]:
        said = {"content": message.content, "calls": [c.model_dump() for c in message.calls]}
        read = await reader.read(said)
        if reader.blocked:
            return Checked(None, tuple(reader.rules), reader.refusal)
        new.append(Message.model_validate({**message.model_dump(), **read}))
    kept = task.messages[: len(task.messages) - task.new]
    return Checked(Task(new[-1].text, (*kept, *new), task.new), tuple(reader.rules))

"""Keeps a conversation within a model's context, by a stated policy and never silently.

The policy, in this order, each step only as far as needed:

1. tool outputs are shortened, oldest first (not those that the model has not seen yet);
2. whole turns are dropped, oldest first: a turn is a user message and all that follows it up to the next one.
   The system message and the last user message always stay;
3. rounds (an assistant message with its tool results) of the present turn are dropped, oldest first;
4. the newest tool outputs are shortened as well, the longest first.

Tokens are estimated on the safe side (see `estimate`), because every provider counts differently and asking
it would cost a request. Pure: no I/O, no clock.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mux.agent import Message
from mux.llm.model import ToolSchema

__all__ = ["Fitted", "estimate", "fit", "schema_tokens"]

_BYTES_PER_TOKEN = 3.0  # English has about 4 bytes a token, code and other scripts about 3
_MESSAGE_TOKENS = 6  # role and separators
_PART_TOKENS = 1_200  # an image or file part, of which only the provider knows the size
_KEEP_CHARS = 400  # what is kept of a shortened tool output
_LEAST_RESERVE = 256  # tokens always left for the answer


def estimate(message: Message, *, recent: bool = True) -> int:
    """About how many tokens a message takes, rather too many than too few.

    Args:
        recent: it is of the turn that is going on, whose thoughts go back to providers that want them.
    """
    if isinstance(message.content, str):
        size, parts = len(message.content.encode("utf-8", "replace")), 0
    else:
        texts = [str(p.get("text", "")) for p in message.content if p.get("type") == "text"]
        size, parts = sum(len(t.encode("utf-8", "replace")) for t in texts), len(message.content) - len(texts)
    size += sum(len(c.tool) + len(c.arguments.encode("utf-8", "replace")) + 16 for c in message.calls)
    if message.provider_items:
        size += len(json.dumps(message.provider_items, default=str))
        wanted = any(isinstance(i, dict) and i.get("kind") == "reasoning" for i in message.provider_items)
        if recent and wanted and message.reasoning:
            size += len(message.reasoning.encode("utf-8", "replace"))
    return _MESSAGE_TOKENS + parts * _PART_TOKENS + math.ceil(size / _BYTES_PER_TOKEN)


def schema_tokens(tools: Iterable[ToolSchema]) -> int:
    """About how many tokens the tools' schemas take."""
    size = sum(len(t.name) + len(t.description) + len(json.dumps(dict(t.parameters))) for t in tools)
    return math.ceil(size / _BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation that fits, and what was done to it.

    Attributes:
        messages: what to send.
        shortened: number of tool outputs that were shortened.
        dropped: number of messages that were left out.
        before, after: estimated tokens.
    """

    messages: tuple[Message, ...]
    shortened: int
    dropped: int
    before: int
    after: int

    @property
    def trimmed(self) -> bool:
        return bool(self.shortened or self.dropped)

    def report(self, limit: int) -> dict[str, Any]:
        """The value of the ``history_trimmed`` event."""
        return {
            "tool_outputs_shortened": self.shortened,
            "messages_dropped": self.dropped,
            "tokens_before": self.before,
            "tokens_after": self.after,
            "context_tokens": limit,
        }


class _Fit:
    """One fitting: `None` marks a dropped message, so that positions stay."""

    def __init__(self, messages: Sequence[Message], sizes: list[int], room: int) -> None:
        self.messages: list[Message | None] = list(messages)
        self.sizes = sizes
        self.room = room
        self.shortened = 0

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def fits(self) -> bool:
        return self.total <= self.room

    def shorten(self, index: int) -> None:
        message = self.messages[index]
        if message is None or len(message.text) <= _KEEP_CHARS + 80:
            return
        left_out = len(message.text) - _KEEP_CHARS
        text = f"{message.text[:_KEEP_CHARS]}\n[… {left_out} characters left out to fit the model's context]"
        short = message.model_copy(update={"content": text})
        self.messages[index], self.sizes[index] = short, estimate(short)
        self.shortened += 1

    def drop(self, start: int, end: int) -> None:
        for i in range(start, end):
            message = self.messages[i]
            if message is not None and message.role != "system":
                self.messages[i], self.sizes[i] = None, 0


def fit(messages: Sequence[Message], limit: int | None, *, reserve: int = 0) -> Fitted:
    """Bring a conversation within a context limit.

    Args:
        messages: the conversation, system message first.
        limit: the model's context in tokens; ``None`` = unknown, nothing is changed.
        reserve: tokens to leave free, for the answer and the tools' schemas.

    Returns:
        The messages to send. They may still be too long when the task alone exceeds the limit: the provider
        then says so, which is clearer than a task cut in half.
    """
    if limit is None:
        return Fitted(tuple(messages), 0, 0, 0, 0)
    users = [i for i, m in enumerate(messages) if m.role == "user"]
    last_user = users[-1] if users else 0
    sizes = [estimate(m, recent=i > last_user) for i, m in enumerate(messages)]
    before = sum(sizes)
    if before <= limit - max(reserve, _LEAST_RESERVE):
        return Fitted(tuple(messages), 0, 0, before, before)
    work = _Fit(messages, sizes, max(limit - max(reserve, _LEAST_RESERVE), 0))
    rounds = [i for i in range(last_user + 1, len(messages)) if messages[i].role == "assistant"]
    unseen = rounds[-1] if rounds else len(messages)  # results after it go to the model for the first time
    for i, message in enumerate(messages[:unseen]):
        if work.fits:
            break
        if message.role == "tool":
            work.shorten(i)
    first = next((i for i, m in enumerate(messages) if m.role != "system"), 0)
    for start, end in zip([first, *users[1:]], users[1:], strict=False):
        if work.fits:
            break
        work.drop(start, end)
    for start, end in itertools.pairwise(rounds):
        if work.fits:
            break
        work.drop(start, end)
    newest = [i for i in range(unseen, len(messages)) if messages[i].role == "tool"]
    for i in sorted(newest, key=lambda i: -work.sizes[i]):
        if work.fits:
            break
        work.shorten(i)
    kept = tuple(m for m in work.messages if m is not None)
    return Fitted(kept, work.shortened, len(messages) - len(kept), before, work.total)

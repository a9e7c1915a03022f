"""Token counts as endpoints report them, in the several places and spellings they use; or counted here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mux.agent import Message
from mux.events import Usage
from mux.llm.model import ToolSchema

__all__ = ["estimated_usage", "merge_usage", "read_usage"]


def _count(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value < 0:
        return None
    return int(value) if value < 1e15 else None


def _first(*sources: tuple[Any, str]) -> int | None:
    for holder, name in sources:
        if isinstance(holder, dict) and (count := _count(holder.get(name))) is not None:
            return count
    return None


def read_usage(raw: Any) -> Usage | None:
    """Read a ``usage`` object of chat.completions or Responses; ``None`` if it says nothing.

    ``input_tokens`` includes what came from a cache, ``output_tokens`` what was reasoning, as OpenAI counts.
    """
    if not isinstance(raw, dict):
        return None
    inp = raw.get("prompt_tokens_details") or raw.get("input_tokens_details")
    out = raw.get("completion_tokens_details") or raw.get("output_tokens_details")
    cost = raw.get("cost")
    usable_cost = isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost < 1e9
    usage = Usage(
        input_tokens=_first((raw, "prompt_tokens"), (raw, "input_tokens")),
        output_tokens=_first((raw, "completion_tokens"), (raw, "output_tokens")),
        reasoning_tokens=_first((out, "reasoning_tokens"), (raw, "reasoning_tokens")),
        # DeepSeek: prompt_cache_hit_tokens; Moonshot: cached_tokens beside the totals;
        # gateways of Anthropic's models: cache_read_input_tokens
        cached_tokens=_first(
            (inp, "cached_tokens"),
            (raw, "prompt_cache_hit_tokens"),
            (raw, "cached_tokens"),
            (raw, "cache_read_input_tokens"),
        ),
        cost=float(cost)
        if usable_cost and cost is not None
        else None,  # OpenRouter reports it, in US dollars
        currency="USD" if usable_cost else None,
    )
    return None if usage == Usage() else usage


def merge_usage(old: Usage | None, new: Usage | None) -> Usage | None:
    """Later reports win, field by field: running totals are sent more than once. A zero after a count is no
    report: some fill the usage of chunks that have none with zeros."""
    if old is None or new is None:
        return new if old is None else old
    told = new.model_dump(exclude_none=True)
    return old.model_copy(update={k: v for k, v in told.items() if v or getattr(old, k) is None})


def estimated_usage(
    messages: Sequence[Message], tools: Iterable[ToolSchema], written: Iterable[str]
) -> Usage:
    """What a turn used about, for an endpoint that does not say: four Latin characters are a token, of other
    scripts two thirds of a character, as tokenizers of today have it.

    Args:
        messages, tools: what was sent.
        written: what came back, reasoning and arguments included.
    """
    sent = sum(4 + _tokens(m.text) + sum(_tokens(c.tool + c.arguments) for c in m.calls) for m in messages)
    sent += sum(_tokens(f"{t.name}{t.description}{t.parameters}") for t in tools)
    return Usage(input_tokens=sent, output_tokens=_tokens("".join(written)), estimated=True)


def _tokens(text: str) -> int:
    if text.isascii():
        return math.ceil(len(text) / 4)
    others = sum(ord(c) > 0x24F for c in text)
    return math.ceil((len(text) - others) / 4 + others / 1.5)

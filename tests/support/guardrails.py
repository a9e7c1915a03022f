"""Running texts through compiled rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mux.guardrails.compiled import Rule, compile_rule
from mux.guardrails.lane import Lane
from mux.guardrails.scan import Blocked
from mux.settings import GuardrailRule

__all__ = ["compiled", "flow", "never"]


def compiled(**rule: Any) -> Rule:
    return compile_rule("rule", GuardrailRule(**rule), Path())[0]


async def flow(rules: list[Rule], pieces: list[str], *, is_json: bool = False) -> tuple[list[str], bool]:
    """What a lane releases piece by piece, and whether it was blocked."""
    lane = Lane(rules, is_json=is_json)
    out: list[str] = []
    try:
        for piece in pieces:
            await lane.push(piece)
            out.append(lane.take()[0])
        await lane.push("", final=True)
        out.append(lane.take()[0])
    except Blocked:
        return out, True
    return out, False


def never(text: str) -> bool:
    """A function rule that forbids nothing, but must see every text whole."""
    return False

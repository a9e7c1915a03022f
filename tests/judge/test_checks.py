"""Checks of answers."""

from __future__ import annotations

from typing import Any

import pytest

from mux.judge.checks import check_answer
from mux.judge.experiment import Check

TOOLS = [{"tool": "search", "arguments": {"q": "x"}}, {"tool": "read", "arguments": {}}]


@pytest.mark.parametrize(
    ("check", "text", "status"),
    [
        ({"type": "equals", "value": "a"}, "a\n", "pass"),
        ({"type": "not-icontains", "value": "PARIS"}, "in Paris", "fail"),
        ({"type": "contains-all", "value": ["a", "b"]}, "a c", "fail"),
        ({"type": "regex", "value": r"\d+"}, "n 7", "pass"),
        ({"type": "regex", "value": "("}, "x", "error"),
        ({"type": "regex", "value": r"(?:a|aa)+$"}, "a" * 60 + "b", "error"),
        ({"type": "is-json", "value": {"required": ["x"]}}, '{"x": 1}', "pass"),
        ({"type": "contains-json", "value": {"required": ["x"]}}, 'so: {"y": 1}', "fail"),
        ({"type": "python", "value": "len(output) < 3"}, "ab", "pass"),
        ({"type": "python", "value": "a = 'x\u2028y'\r\nreturn len(a) == 3"}, "ab", "pass"),
        ({"type": "python", "value": "1 / 0"}, "ab", "error"),
        ({"type": "calls", "value": {"in_order": ["search", "read"]}}, "", "pass"),
        ({"type": "calls", "value": {"in_order": ["read", "search"]}}, "", "fail"),
        ({"type": "calls", "value": [{"tool": "search", "arguments": {"q": "y"}}]}, "", "fail"),
        ({"type": "latency", "threshold": 100}, "", "fail"),
        ({"type": "cost", "threshold": 1}, "", "error"),
    ],
)
async def test_a_check_passes_fails_or_can_not_be_decided(check: Any, text: str, status: str) -> None:
    channel = {"text": text, "tools": TOOLS, "duration_ms": 200, "usage": {}}
    assert (await check_answer(Check(**check), channel)).status == status

"""Token counts in the spellings of their senders."""

from __future__ import annotations

from typing import Any

import pytest

from mux.events import Usage
from mux.llm.usage import merge_usage, read_usage


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (
            {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
            Usage(input_tokens=7, output_tokens=1),
        ),
        ({"input_tokens": 7, "output_tokens": 0}, Usage(input_tokens=7, output_tokens=0)),
        (
            {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}},
            Usage(input_tokens=7, cached_tokens=4),
        ),
        ({"prompt_tokens": 7, "prompt_cache_hit_tokens": 4}, Usage(input_tokens=7, cached_tokens=4)),
        ({"prompt_tokens": 7, "cached_tokens": 4}, Usage(input_tokens=7, cached_tokens=4)),
        ({"completion_tokens_details": {"reasoning_tokens": 3}}, Usage(reasoning_tokens=3)),
        ({"prompt_tokens": 7, "cost": 0.5}, Usage(input_tokens=7, cost=0.5, currency="USD")),
        ({"prompt_tokens": None, "completion_tokens": "many"}, None),
        ({"prompt_tokens": -1, "completion_tokens": float("nan")}, None),
        ({"prompt_tokens": True}, None),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_counts_are_read_as_reported_and_never_invented(raw: Any, usage: Usage | None) -> None:
    assert read_usage(raw) == usage


def test_later_reports_win_field_by_field() -> None:
    first, later = Usage(input_tokens=7, output_tokens=1), Usage(output_tokens=9)
    assert merge_usage(first, later) == Usage(input_tokens=7, output_tokens=9)
    assert merge_usage(None, later) == later
    assert merge_usage(first, None) == first

"""What turns cost, where a price library is installed."""

from __future__ import annotations

import sys

import pytest

from mux.events import Usage
from mux.llm.prices import library_cost, preload

OPENAI = "https://api.openai.com/v1"
SPENT = Usage(input_tokens=1_000_000, output_tokens=1_000_000)


def test_a_known_model_of_a_known_endpoint_has_a_cost_where_the_library_is_installed() -> None:
    loaded = preload()
    priced = library_cost(OPENAI, "gpt-4o-mini", SPENT)
    assert (priced.cost is not None) == loaded
    if loaded:
        assert priced == SPENT.model_copy(update={"cost": 0.75, "currency": "USD"})


@pytest.mark.parametrize(
    ("url", "model"), [("http://127.0.0.1:8080/v1", "gpt-4o-mini"), (OPENAI, "no-such-model")]
)
def test_nobody_elses_price_is_used(url: str, model: str) -> None:
    preload()
    assert library_cost(url, model, SPENT) == SPENT


def test_a_reported_cost_stays_and_unknown_tokens_cost_nothing_known() -> None:
    preload()
    reported = SPENT.model_copy(update={"cost": 9.0, "currency": "USD"})
    assert library_cost(OPENAI, "gpt-4o-mini", reported) == reported
    assert library_cost(OPENAI, "gpt-4o-mini", Usage(reasoning_tokens=3)).cost is None


def test_without_the_library_nothing_has_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "genai_prices", raising=False)
    assert library_cost(OPENAI, "gpt-4o-mini", SPENT) == SPENT

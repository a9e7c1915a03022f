"""What a turn cost by a kept price library, where one is installed (``mux-agents[prices]``); never invented.

Prices of ``mux.toml`` and a cost that the endpoint itself reported come before it. Only endpoints that the
library knows by their address have a price: a local server that serves a model of the same name has none.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from mux.events import Usage

__all__ = ["library_cost", "preload"]

_LIBRARY = "genai_prices"


def preload() -> bool:
    """Load the price library, if it is installed; takes half a second, so call it in a thread."""
    if importlib.util.find_spec(_LIBRARY) is None:
        return False
    library = importlib.import_module(_LIBRARY)
    _lookup(library, "https://api.openai.com/v1", "gpt-4.1", Usage(input_tokens=1))  # builds its tables
    return True


def library_cost(base_url: str, model: str, usage: Usage) -> Usage:
    """The usage with its cost; unchanged where the library is not loaded or does not know the model."""
    library = sys.modules.get(_LIBRARY)
    if library is None or usage.cost is not None:
        return usage
    cost = _lookup(library, base_url, model, usage)
    return usage if cost is None else usage.model_copy(update={"cost": cost, "currency": "USD"})


def _lookup(library: Any, base_url: str, model: str, usage: Usage) -> float | None:
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    counts = library.Usage(
        input_tokens=usage.input_tokens or 0,
        cache_read_tokens=min(usage.cached_tokens or 0, usage.input_tokens or 0) or None,
        output_tokens=usage.output_tokens or 0,
    )
    try:
        return float(library.calc_price(counts, model_ref=model, provider_api_url=base_url).total_price)
    except (LookupError, ValueError):
        return None

"""What models cost, where a kept price library is installed; never invented."""

from __future__ import annotations

from mux.settings import Price

__all__ = ["library_price"]


def library_price(base_url: str, model: str) -> Price | None:
    """The price of a model in a price library, or ``None`` if it does not know it or is not installed."""
    return None

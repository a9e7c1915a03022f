"""JSON answers."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from mux.faces.base import dump

__all__ = ["reply"]


def reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response; API answers are never cached (they change, and belong to one owner).

    Args:
        value: what JSON can say, or its bytes.
    """
    return web.Response(
        status=status,
        body=value if isinstance(value, bytes) else dump(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )

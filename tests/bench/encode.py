"""Encode: from an event's value to logged, framed bytes. Target 4.

Peer: the obvious way: build a pydantic model of the whole event, `model_dump_json`, and frame it.
"""

from __future__ import annotations

from mux.events import Cursor, Token, logged_models, token_records
from mux.faces.sse import Sse
from tests.bench.harness import Report, interleaved

__all__ = ["run"]

_EVENTS = 20_480
_BATCH = 64  # what one turn of the merge brings at full speed
RUN = "r0123456789abcde"


async def ours() -> float:
    """Token → record → SSE frames, as the engine's journal and the viewers' shared chunk do it."""
    size = 0
    sse, prefix = Sse(), f"{RUN}.1.".encode()
    for first in range(1, _EVENTS + 1, _BATCH):
        tokens = [Token.of("hello ") for _ in range(_BATCH)]
        texts = [token.content for token in tokens]
        records = token_records(RUN, "analyst", first - 1, first - 1, 1_790_000_000_000, texts)
        size += len(sse.events(records, prefix))
    return _EVENTS if size else 0


async def pydantics() -> float:
    """One model of envelope and body, validated, dumped and framed."""
    model = logged_models()["token"]
    size = 0
    for seq in range(1, _EVENTS + 1):
        value = model(
            run=RUN,
            seq=seq,
            channel="analyst",
            cseq=seq,
            ts=1_790_000_000_000,
            content="hello ",
        )
        data = value.model_dump_json(exclude_none=True)
        size += len(f"id: {Cursor('r0123456789abcde', 1, seq)}\ndata: {data}\n\n".encode())
    return _EVENTS if size else 0


async def run(report: Report, *, quick: bool) -> None:
    """Measure and compare with target 4."""
    figures = await interleaved(
        "encode",
        {"mux": ours, "pydantic build and model_dump_json": pydantics},
        rounds=3 if quick else 7,
        against="pydantic build and model_dump_json",
    )
    report.add(*figures)
    report.target(4, "event value to logged, framed bytes", figures[0].ratio or 0.0, 0.35)

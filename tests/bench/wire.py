"""Wire: CPU from a provider's bytes to our delta, against the openai SDK's own decoder, without a socket.

The model layer's own bound is a fifth. Target 13 is another one: it has the reading in it (see `upstream`).
"""

from __future__ import annotations

import json
from typing import Any

from mux.llm.chat import ChatParser
from mux.llm.wire import TurnReader
from tests.bench.harness import Report, Side, interleaved

__all__ = ["run"]

_CHUNKS = 4_000
_SDK = "openai SDK decoder"


def _frame(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {"id": "chatcmpl-q", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "m"}
    return b"data: " + json.dumps({**chunk, "choices": [choice]}).encode() + b"\n\n"


def _bodies() -> dict[str, list[bytes]]:
    end = [_frame({}, "stop"), b"data: [DONE]\n\n"]
    opener = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    piece = {"index": 0, "function": {"arguments": "y"}}
    return {
        "text": [_frame({"content": f" word{i}"}) for i in range(_CHUNKS)] + end,
        "arguments": [_frame({"tool_calls": [opener]})] + [_frame({"tool_calls": [piece]})] * _CHUNKS + end,
    }


def _ours(chunks: list[bytes]) -> Side:
    async def work() -> float:
        reader = TurnReader(ChatParser(["f"]))
        deltas = sum(len(reader.feed(c)) for c in chunks) + len(reader.end())
        assert reader.failure is None
        return float(min(deltas, len(chunks)))

    return work


def _sdk(chunks: list[bytes]) -> Side:
    import httpx2
    from openai import OpenAI, Stream
    from openai.types.chat import ChatCompletionChunk

    client = OpenAI(api_key="none")

    async def work() -> float:
        request = httpx2.Request("POST", "http://localhost")
        response = httpx2.Response(200, content=iter(chunks), request=request)
        stream = Stream(cast_to=ChatCompletionChunk, response=response, client=client)
        return float(sum(1 for _ in stream))

    return work


async def run(report: Report, *, quick: bool) -> None:
    """Measure both kinds of chunk and compare with the bound of the model layer."""
    for name, chunks in _bodies().items():
        figures = await interleaved(
            f"wire, {name}",
            {"mux": _ours(chunks), _SDK: _sdk(chunks)},
            rounds=3 if quick else 7,
            against=_SDK,
        )
        report.add(*figures)
        report.target(
            "of the model layer", f"bytes to delta, {name} chunks, no socket", figures[0].ratio or 0.0, 0.2
        )

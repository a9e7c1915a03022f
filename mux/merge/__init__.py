"""Many asynchronous streams → one fair stream, as operators of aiostream.

Whoever has streams of their own merges them with channel ids in three lines::

    async with mux.merge.labelled({"gpt": tokens(gpt), "claude": tokens(claude)}).stream() as items:
        async for channel, item in items:
            print(channel, item)

`merger` has the merge itself, `buffer` what lies between its sources and its consumer.
"""

from __future__ import annotations

from mux.merge.buffer import Burst, Port
from mux.merge.merger import END, Batch, End, Failed, Merger, Statistics
from mux.merge.operators import Through, labelled, merge, merged, pipeline

__all__ = [
    "END",
    "Batch",
    "Burst",
    "End",
    "Failed",
    "Merger",
    "Port",
    "Statistics",
    "Through",
    "labelled",
    "merge",
    "merged",
    "pipeline",
]

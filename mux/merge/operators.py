"""The merge as operators of aiostream, to be put into any pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import TypeAlias, TypeVar

from aiostream import operator, stream
from aiostream.core import Stream, sources_operator

from mux.merge.merger import END, Batch, Failed, K, Merger, T

__all__ = ["Through", "labelled", "merge", "merged", "pipeline"]

R = TypeVar("R")
Through: TypeAlias = Callable[[Stream[Batch[K, T]]], Stream[Batch[K, T]]]


@operator
async def merged(merger: Merger[K, T]) -> AsyncIterator[Batch[K, T]]:
    """The batches of a merger as a stream of aiostream; all its sources are closed with the stream."""
    async with merger:
        async for batch in merger:
            yield batch


@sources_operator
async def merge(*sources: AsyncIterable[T], max_buffer: int = 2) -> AsyncIterator[T]:
    """Merge asynchronous sequences: items in order of arrival, each source at most ``max_buffer`` ahead.

    Every source gets the same share when all have something, however slow the consumer is. The first
    failure of a source is raised after the items that came before it, and closes the others.
    """
    merger: Merger[int, T] = Merger(max_buffer=max_buffer)
    async with contextlib.aclosing(merger):
        for number, source in enumerate(sources):
            merger.add(number, source)
        merger.close()
        async for batch in merger:
            for _, item in batch:
                if isinstance(item, Failed):
                    raise item.error
                if item is not END:
                    yield item


@operator
async def labelled(
    sources: Mapping[str, AsyncIterable[T]], *, max_buffer: int = 64
) -> AsyncIterator[tuple[str, T]]:
    """Merge asynchronous sequences as ``(name, item)``, fairly, each at most ``max_buffer`` ahead.

    Args:
        sources: by name, such as a channel's id.

    Raises what the first source to fail raised, after the items that came before it; the others are closed.
    """
    merger: Merger[str, T] = Merger(max_buffer=max_buffer)
    async with contextlib.aclosing(merger):
        for name, source in sources.items():
            merger.add(name, source)
        merger.close()
        async for batch in merger:
            for name, item in batch:
                if isinstance(item, Failed):
                    raise item.error
                if item is not END:
                    yield name, item


def pipeline(
    merger: Merger[K, T],
    take: Callable[[Batch[K, T]], R],
    commit: Callable[[R], None],
    *,
    through: Through[K, T] | None = None,
) -> Stream[R]:
    """A merger's batches, each given to ``take`` and what that made of it to ``commit``, before the next one
    is taken: the data path of a process.

    Args:
        through: puts operators in between, which see every batch.
    """
    batches = merged(merger)
    if through is not None:
        batches = through(batches)

    def taken(batch: Batch[K, T], *_: Batch[K, T]) -> R:
        return take(batch)

    return stream.action(stream.map(batches, taken), commit)

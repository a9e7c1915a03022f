"""The same client without ``async``: one background thread runs the asyncio client.

with mux.SyncMuxClient() as client:
    run = client.start("Summarise the manual", agents=["researcher"])
    for event in run.events():
        ...
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from mux.client.aio import MuxClient, Run
from mux.events import Event

__all__ = ["SyncMuxClient", "SyncRun"]

T = TypeVar("T")
_AHEAD = 256
_CLOSE_S = 5.0


class _Portal:
    """An event loop in a thread of its own, and calls into it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mux-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items here; they cross the threads in batches, because each crossing costs some 100 µs."""
        pump: _Pump[T] | None = None

        async def start() -> _Pump[T]:
            return _Pump(items)

        try:
            pump = self.call(start())
            while batch := self.call(pump.take()):
                yield from batch
        finally:
            if pump is not None:
                self.call(pump.close())

    def close(self) -> None:
        async def settle() -> None:
            # aiohttp closes sockets in callbacks; give them a turn before the loop stops.
            await asyncio.sleep(0)
            await self._loop.shutdown_asyncgens()

        self.call(settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        self._loop.close()


class _Pump(Generic[T]):
    """Reads ahead, bounded: when `_AHEAD` items wait, the source waits too."""

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self._ready: list[T] = []
        self._over = False
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async for item in self._items:
                async with self._changed:
                    await self._changed.wait_for(lambda: len(self._ready) < _AHEAD)
                    self._ready.append(item)
                    self._changed.notify_all()
        finally:
            async with self._changed:
                self._over = True
                self._changed.notify_all()

    async def take(self) -> list[T]:
        """What is there, at least one item; empty at the end. Raises what the source raised."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._ready) or self._over)
            batch, self._ready = self._ready, []
            self._changed.notify_all()
        if not batch:
            await self._task
        return batch

    async def close(self) -> None:
        """Stop reading, and close the source."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)  # what it raised was told by `take`
        close = getattr(self._items, "aclose", None)
        if close is not None:
            await close()


class SyncMuxClient:
    """A connection to a Mux server, for code without an event loop; arguments as for `MuxClient`."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._portal = _Portal()
        self.aio = MuxClient(url, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; runs go on without us. Idempotent."""
        if not self._portal.closed:
            self._portal.call(self.aio.close())
            self._portal.close()

    def start(
        self,
        message: str | None = None,
        *,
        agents: Sequence[str] | None = None,
        channels: Sequence[Mapping[str, Any]] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> SyncRun:
        """As `MuxClient.start`."""
        started = self.aio.start(
            message, agents=agents, channels=channels, idempotency_key=idempotency_key, **options
        )
        return SyncRun(self._portal, self._portal.call(started))

    def run(self, run: str) -> SyncRun:
        """As `MuxClient.run`."""
        return SyncRun(self._portal, self.aio.run(run))

    def runs(self, **filters: Any) -> dict[str, Any]:
        """As `MuxClient.runs`."""
        return self._portal.call(self.aio.runs(**filters))

    def agents(self) -> list[dict[str, Any]]:
        """As `MuxClient.agents`."""
        return self._portal.call(self.aio.agents())

    def models(self) -> list[dict[str, Any]]:
        """As `MuxClient.models`."""
        return self._portal.call(self.aio.models())


class SyncRun:
    """A handle on one run; each method as on `Run`."""

    def __init__(self, portal: _Portal, run: Run) -> None:
        self._portal = portal
        self.aio = run
        self.id = run.id
        self.info = run.info

    def events(self, **options: Any) -> Iterator[Event]:
        """As `Run.events`: resumes by itself, each event exactly once."""
        return self._portal.iterate(self.aio.events(**options))

    def channel(self, channel: str, **options: Any) -> Iterator[Event]:
        """As `Run.channel`."""
        return self._portal.iterate(self.aio.channel(channel, **options))

    def text(self, channel: str) -> Iterator[str]:
        """As `Run.text`."""
        return self._portal.iterate(self.aio.text(channel))

    def snapshot(self) -> dict[str, Any]:
        """As `Run.snapshot`."""
        return self._portal.call(self.aio.snapshot())

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """As `Run.wait`."""
        return self._portal.call(self.aio.wait(timeout_s))

    def cancel(self, channel: str | None = None, *, mode: str = "now") -> None:
        """As `Run.cancel`."""
        self._portal.call(self.aio.cancel(channel, mode=mode))

    def steer(self, channel: str, content: str, *, mode: str = "steer") -> str:
        """As `Run.steer`."""
        return self._portal.call(self.aio.steer(channel, content, mode=mode))

    def add_channel(self, agent: str, **options: Any) -> str:
        """As `Run.add_channel`."""
        return self._portal.call(self.aio.add_channel(agent, **options))

    def retry(self, channel: str, *, model: str | None = None) -> tuple[SyncRun, str]:
        """As `Run.retry`."""
        run, name = self._portal.call(self.aio.retry(channel, model=model))
        return SyncRun(self._portal, run), name

    def approve(self, call_id: str, decision: str = "approve", **options: Any) -> None:
        """As `Run.approve`."""
        self._portal.call(self.aio.approve(call_id, decision, **options))

    def update(self, **changes: Any) -> dict[str, Any]:
        """As `Run.update`."""
        return self._portal.call(self.aio.update(**changes))

    def delete(self) -> None:
        """As `Run.delete`."""
        self._portal.call(self.aio.delete())

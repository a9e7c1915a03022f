"""The one subscription of a process: what others append to the logs that somebody watches here, commands for
the runs that are driven here, answers to the commands that were sent from here.

A viewer costs no connection, and a subscription that was lost with a connection is taken up again by itself.
What was published meanwhile is missed; so whenever Redis confirms a subscription, the first or a later one,
its subscriber is told to look for itself what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from mux.log.redis.link import GONE
from mux.telemetry import get_logger

__all__ = ["Tail"]

_PAUSE_S = 0.3  # before the next attempt to connect
_PING_S = 5.0  # of silence, after which the connection is looked at: it may be half open

Heard = Callable[[bytes | None], None]


class Tail:
    """Channels and who listens to them.

    Each subscriber is called on the loop with a message, or with ``None``: the subscription holds from now
    on, and something may have been missed before.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pubsub = client.pubsub()
        self._heard: dict[bytes, Heard] = {}
        self._task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._pinged = False

    async def start(self, name: str, heard: Heard) -> None:
        """Subscribe to a first channel, and listen from now on. Raises redis-py's errors."""
        self._heard[name.encode()] = heard
        await self._pubsub.subscribe(name)
        self._task = asyncio.get_running_loop().create_task(self._listen(), name="mux-redis-tail")

    async def stop(self) -> None:
        """Disconnect; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._heard.clear()
        with contextlib.suppress(Exception):  # it is gone either way
            await self._pubsub.aclose()

    async def subscribe(self, name: str, heard: Heard) -> None:
        """Listen to a channel. While Redis is away this is done as soon as it is back."""
        self._heard[name.encode()] = heard
        await self._change(self._pubsub.subscribe, name)

    async def unsubscribe(self, name: str) -> None:
        """Do not listen any more; idempotent."""
        if self._heard.pop(name.encode(), None) is not None:
            await self._change(self._pubsub.unsubscribe, name)

    async def _change(self, change: Callable[[str], Any], name: str) -> None:
        async with self._changing:
            try:
                await change(name)
            except GONE:  # the listening task connects again, and subscribes to all there is
                self._pubsub.channels.pop(name.encode(), None)

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._pubsub.get_message(timeout=_PING_S)
                if message is None:
                    await self._look()
                    continue
            except (*GONE, RuntimeError) as e:  # RuntimeError: there was no connection to begin with
                await self._reconnect(e)
                continue
            except Exception:  # noqa: BLE001 - one odd answer must not end the subscription of all
                get_logger().exception("subscription failed")
                await self._reconnect(ConnectionError())
                continue
            self._pinged = False
            heard = self._heard.get(message["channel"]) if message["type"] != "pong" else None
            if heard is None:
                continue
            if message["type"] == "message":
                heard(message["data"])
            elif message["type"] == "subscribe":
                heard(None)

    async def _look(self) -> None:
        """Nothing came for a while: ask whether the connection still is one."""
        if self._pinged:
            raise TimeoutError
        self._pinged = True
        async with self._changing:
            await self._pubsub.ping()

    async def _reconnect(self, error: Exception) -> None:
        get_logger().debug("subscription lost", reason=type(error).__name__)
        async with self._changing:
            self._pinged = False
            with contextlib.suppress(Exception):
                await self._pubsub.aclose()
            self._pubsub = self._client.pubsub()
            try:
                await self._pubsub.subscribe(*(name.decode() for name in self._heard))
                return
            except Exception as e:  # noqa: BLE001 - whatever it is, the next attempt comes
                get_logger().debug("no subscription yet", reason=type(e).__name__)
        await asyncio.sleep(_PAUSE_S)

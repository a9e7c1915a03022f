"""A worker's lease: while it lasts, the runs that the worker took are nobody else's.

It is renewed by a thread, so that a busy event loop does not lose it. But a loop that has been blocked for
longer than the lease drives nothing, whatever its thread says: then the thread lets the lease end, and the
runs go elsewhere.

Whoever renews ends the leases of others that are over, and offers their runs again, in one step of Redis
and by Redis's clock. A worker that finds its lease ended (it was stopped for a while) drops its runs at once;
what it still appends is refused by the fences.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from redis import exceptions as refusals

from mux.log.protocols import Holder
from mux.log.redis.scripts import SCRIPTS
from mux.log.redis.url import Target
from mux.telemetry import get_logger

__all__ = ["QUEUE", "Lease", "live_servers"]

QUEUE = "mux:{queue}:meta"  # a key of the queue's slot
TTL_S = 10.0
_EVERY_S = 1.0  # between renewals at most: how much later than its end a lease is noticed to have ended


class Lease:
    """One process's part in the work.

    Args:
        target: where Redis is.
        cluster: whether it is a cluster.
        worker: this process's name among the workers.
        ttl_s: how long the lease lasts without a renewal.
        lost: called on the loop, once, when it ended while this process was away.
    """

    def __init__(
        self, target: Target, *, cluster: bool, worker: str, ttl_s: float, lost: Callable[[], None]
    ) -> None:
        self.worker = worker
        self._target = target
        self._cluster = cluster
        self._ttl_s = ttl_s
        self._lost = lost
        self._url: str | None = None
        self._client: Any = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: float | None = None  # since when the loop has been asked for a turn
        self._blocked = False

    async def start(self, url: str | None) -> None:
        """Take part from now on. Raises redis-py's errors."""
        self._url = url
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._renew, True)
        self._thread = threading.Thread(target=self._run, name="mux-redis-lease", daemon=True)
        self._thread.start()

    async def announce(self, url: str) -> None:
        """Say at which address this server answers."""
        self._url = url

    async def stop(self) -> None:
        """Give it back, and the runs with it; idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._leave)

    # --- on the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(min(self._ttl_s / 4, _EVERY_S)):
            if not self._loop_turns():
                continue
            try:
                self._renew(False)
                failing = False
            except (refusals.RedisError, OSError) as e:
                if not failing:
                    get_logger().warning(
                        "worker's lease not renewed", store=self._target.shown, reason=type(e).__name__
                    )
                failing = True

    def _loop_turns(self) -> bool:
        """Whether the event loop has had a turn within the lease."""
        assert self._loop is not None
        if self._asked is None:
            self._asked = time.monotonic()
            with contextlib.suppress(RuntimeError):  # closed without closing the store
                self._loop.call_soon_threadsafe(self._turn)
        asked = self._asked
        blocked = asked is not None and time.monotonic() - asked > self._ttl_s
        if blocked and not self._blocked:
            get_logger().error("event loop is blocked: its runs go to other workers", seconds=self._ttl_s)
        self._blocked = blocked
        return not blocked

    def _turn(self) -> None:
        self._asked = None

    def _renew(self, join: bool) -> None:
        about = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "url": self._url})
        state, _ = self._eval("renew", self.worker, round(self._ttl_s * 1000), about, int(join))
        if state == b"lost":
            get_logger().error("worker's lease ended while it was away: its runs went elsewhere")
            self._eval("renew", self.worker, round(self._ttl_s * 1000), about, 1)
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._lost)

    def _leave(self) -> None:
        try:
            self._eval("leave", self.worker)
        except (refusals.RedisError, OSError):  # then it ends by itself
            get_logger().warning("worker's lease not given back", store=self._target.shown)
        if self._client is not None:
            self._client.close()
            self._client = None

    def _eval(self, script: str, *args: Any) -> Any:
        if self._client is None:
            self._client = self._target.blocking_client(cluster=self._cluster)
        return self._client.eval(SCRIPTS[script], 1, QUEUE, *args)


def live_servers(target: Target) -> list[Holder]:
    """The servers that use this store now; none if Redis does not answer."""
    client = target.blocking_client(cluster=False)
    try:
        _, found = client.eval(SCRIPTS["servers"], 1, QUEUE)
        about = [json.loads(one) for one in found if one]
        return [Holder(one.get("pid"), one.get("url")) for one in about]
    except (refusals.RedisError, OSError, ValueError, AttributeError):
        return []
    finally:
        client.close()

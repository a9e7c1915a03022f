"""One server per Redis database: a lease with a TTL that names its holder, renewed by a thread.

A thread, because a busy event loop must not lose it. The scripts check the lease with every write, so a
server that lost it (it slept for longer than the TTL, and another one started) can't write any more.

A holder on this machine is looked at: if its process is gone, the lease is taken at once. One on another
machine is waited for: either it renews, and so lives, or its lease ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

from redis import exceptions as refusals

from mux.errors import StoreError
from mux.log.protocols import Holder
from mux.log.redis.link import Link
from mux.log.redis.scripts import PREFIX, SCRIPTS
from mux.log.redis.url import Target
from mux.telemetry import get_logger

__all__ = ["KEY", "Lease", "holder_of"]

KEY = PREFIX + "lease"
TTL_S = 12.0
_LOOK_S = 0.2  # between two looks at another server's lease


class Lease:
    """This server's right to write.

    Args:
        target: where Redis is.
        ttl_s: how long it lasts without a renewal: a killed server on another machine blocks for so long.

    Attributes:
        token: what the scripts compare.
        lost: it is no longer ours, and nothing may be written any more.
    """

    def __init__(self, target: Target, *, ttl_s: float = TTL_S) -> None:
        self._target = target
        self._ttl_s = ttl_s
        self.token = secrets.token_hex(8)
        self.lost = False
        self._emptied = False
        self._url: str | None = None
        self._generation = b"0"
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._client: Any = None

    def _info(self) -> str:
        return json.dumps({
            "pid": os.getpid(), "host": socket.gethostname(), "url": self._url, "machine": _machine(),
            "started": _started(os.getpid()),
        })  # fmt: skip

    async def take(self, link: Link, url: str | None) -> None:
        """Take it, waiting for the end of one whose server may be dead, and have it renewed from then on.

        Raises:
            StoreError: ``store_locked``, with ``url`` and ``pid`` of the other server in ``extra``.
        """
        self._url = url
        ttl_ms = round(self._ttl_s * 1000)
        dead = ""
        seen: tuple[bytes, int] | None = None
        loop = asyncio.get_running_loop()
        patience = loop.time() + self._ttl_s + 2
        info = await asyncio.to_thread(self._info)
        while True:
            state, *told = await link.call("take", KEY, self.token, info, ttl_ms, dead)
            if state == b"ok":
                self._generation = told[0]
                break
            token, about, left = told
            alive = await asyncio.to_thread(_alive, about)
            renewed = seen is not None and seen[0] == token and left > seen[1]
            if alive or renewed or loop.time() > patience:
                raise _locked(self._target, _holder(about))
            if alive is False:
                dead = token.decode()
                continue
            if seen is None:
                get_logger().warning(
                    "another server has this store; waiting until its lease ends, or is renewed",
                    store=self._target.shown, host=_named(about, "host"), pid=_named(about, "pid"),
                    seconds=round(left / 1000, 1),
                )  # fmt: skip
            if seen is None or seen[0] != token:
                seen = (token, left)
            await asyncio.sleep(_LOOK_S)
        self._thread = threading.Thread(target=self._keep, name="mux-redis-lease", daemon=True)
        self._thread.start()

    async def announce(self, url: str) -> None:
        """Say at which address this server answers."""
        self._url = url
        await asyncio.to_thread(self.renew)

    async def release(self) -> None:
        """Give it back, if Redis answers; idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._give_back)

    # --- on threads -----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        told = False
        while not self._stop.wait(self._ttl_s / 4) and not self.lost:
            renewed = self.renew()
            if not renewed and not told and not self.lost:
                get_logger().warning(
                    "store lease not renewed: Redis does not answer", store=self._target.shown
                )
            told = not renewed

    def renew(self) -> bool:
        """Renew it now, or find out that it is lost; ``False`` if Redis does not say."""
        with self._guard:
            try:
                (state,) = self._run("renew", self._info(), round(self._ttl_s * 1000), self._generation)
            except (refusals.RedisError, OSError):
                return False
        if state == b"ok":
            return True
        if not self.lost:
            self._emptied = state == b"empty"
            self.lost = True
            reason = self.why_lost().message
            get_logger().error("store lease lost: nothing is written any more", reason=reason)
        return True

    def why_lost(self) -> StoreError:
        """What to tell whoever wants to write."""
        if self._emptied:
            return StoreError(
                "store_failed",
                f"{self._target.shown} came back without what this server wrote, or it was emptied. Restart "
                "this server; see to it that Redis keeps its data (appendonly yes).",
                retryable=False,
            )
        return StoreError(
            "store_locked",
            f"Another server took {self._target.shown} over while this one did not answer. Stop this one.",
            retryable=False,
        )

    def _give_back(self) -> None:
        with self._guard:
            try:
                self._run("release")
            except (refusals.RedisError, OSError):  # then it ends by itself
                get_logger().warning("store lease not given back", store=self._target.shown)
            if self._client is not None:
                self._client.close()
                self._client = None

    def _run(self, script: str, *args: Any) -> list[bytes]:
        if self._client is None:
            self._client = self._target.client()
        answer: list[bytes] = self._client.eval(SCRIPTS[script], 1, KEY, self.token, *args)
        return answer


def holder_of(target: Target) -> Holder | None:
    """Who has the lease now; ``None`` if nobody has, or Redis does not answer."""
    client = target.client()
    try:
        about = client.hget(KEY, "info")
    except (refusals.RedisError, OSError):
        return None
    finally:
        client.close()
    if about is None or _alive(about) is False:
        return None
    return _holder(about)


def _named(about: bytes, name: str) -> Any:
    try:
        return json.loads(about).get(name)
    except (ValueError, AttributeError):
        return None


def _holder(about: bytes) -> Holder:
    return Holder(_named(about, "pid"), _named(about, "url"))


def _locked(target: Target, holder: Holder) -> StoreError:
    where = f" at {holder.url}" if holder.url else f" (process {holder.pid})" if holder.pid else ""
    extra = {k: v for k, v in (("url", holder.url), ("pid", holder.pid)) if v is not None}
    return StoreError(
        "store_locked",
        f"Another server{where} uses {target.shown}. Use that one, stop it, or choose another database with "
        "--store.",
        retryable=False,
        extra=extra,
    )


def _alive(about: bytes) -> bool | None:
    """Whether the holder's process lives; ``None`` if this machine can't know."""
    machine = _machine()
    if not machine or _named(about, "machine") != machine:
        return None
    return bool(_started(_named(about, "pid")) == _named(about, "started"))


def _machine() -> str:
    """This boot and this namespace of process ids; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: object) -> str | None:
    """When a process was started, so that another one with its number is told from it."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]

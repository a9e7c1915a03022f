"""Calls to Redis that share round trips and outlive outages.

Calls that arrive while an answer is awaited go out together, as one pipeline, so micro-batches of many runs
share a round trip, and a lone call goes at once. A call whose answer was lost is sent again, in the same
order, until its time is over: every script knows what it has applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from redis import exceptions as refusals

from mux.errors import StoreError
from mux.log.redis.scripts import SCRIPTS, sha
from mux.log.redis.url import Target
from mux.telemetry import get_logger

__all__ = ["GONE", "Link", "refusal"]

_GROUP = 256  # calls of one round trip
_PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.3)  # before the next attempt, the last again and again
_DOWN_S = 0.5  # patience of a call that comes when the outage is longer than the bound: more than a pause
_TELL_S = 30.0  # between two lines about calls that fail
GONE = (refusals.ConnectionError, refusals.TimeoutError, OSError, EOFError, TimeoutError)
# This one is no master (any more): its address, or the cluster's map, may lead to the new one soon.
_NO_MASTER = (
    refusals.ReadOnlyError,
    refusals.ClusterDownError,
    refusals.TryAgainError,
    refusals.SlotNotCoveredError,
    refusals.MovedError,
    refusals.RedisClusterException,
)
# What another attempt won't mend.
_FINAL = (refusals.AuthenticationError, refusals.AuthorizationError)


class _Call:
    __slots__ = ("args", "deadline", "done", "future")

    def __init__(
        self, args: tuple[Any, ...], future: asyncio.Future[Any], done: Callable[[Any], None] | None,
        deadline: float,
    ) -> None:  # fmt: skip
        self.args = args
        self.future = future
        self.done = done
        self.deadline = deadline

    def resolve(self, value: Any) -> None:
        """Give the answer to the store first, also if the caller was cancelled; then to the caller."""
        if self.done is not None:
            self.done(value)
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Link:
    """A client, and the task that sends what was asked of it.

    Args:
        target: where Redis is.
        outage_s: seconds that a call waits for a Redis that does not answer.
        answer_s: seconds for one answer; a server that takes longer is as good as gone.
        what: a word for the log lines: what waits meanwhile.
    """

    def __init__(self, target: Target, *, outage_s: float, answer_s: float = 5.0, what: str) -> None:
        self._target = target
        self._outage_s = outage_s
        self._answer_s = answer_s
        self._what = what
        self._client: Any = None
        self._calls: deque[_Call] = deque()
        self._woken: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._down_since: float | None = None
        self._warned = False
        self._logged = float("-inf")

    @property
    def client(self) -> Any:
        """redis-py's, for what is no script."""
        return self._client

    async def start(self, *, cluster: bool) -> None:
        """Connect. Raises StoreError ``store_failed``."""
        self._client = self._target.client(cluster=cluster, answer_s=self._answer_s)
        try:
            await self._load()
        except (*GONE, refusals.RedisError) as e:
            await self._client.aclose()
            raise refusal(e, self._target) from None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"mux-redis-{self._what}")

    async def stop(self, *, patience_s: float = 2.0) -> None:
        """Finish what was asked, within the patience, and disconnect; idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        if self._calls and self._down_since is None:
            await asyncio.wait([call.future for call in self._calls], timeout=patience_s)
        while not task.done():  # redis-py may swallow a cancel that comes with its answer
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
        while self._calls:
            self._calls.popleft().fail(self._closed())
        with contextlib.suppress(Exception):  # it is gone either way
            await self._client.aclose()

    def call(
        self, script: str, key: str, *args: Any, done: Callable[[Any], None] | None = None
    ) -> asyncio.Future[Any]:
        """Run a script in the slot of ``key``; ``done`` is called with its answer even if nobody waits for it
        any more.

        Raises:
            StoreError: ``store_failed``: the store is not open.
        """
        return self.command("EVALSHA", sha(script), 1, key, *args, done=done)

    def command(self, *args: Any, done: Callable[[Any], None] | None = None) -> asyncio.Future[Any]:
        """Run any command with a key; see `call`."""
        if self._task is None:
            raise self._closed()
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = now + self._outage_s
        if self._down_since is not None:
            deadline = max(self._down_since + self._outage_s, now + _DOWN_S)
        future: asyncio.Future[Any] = loop.create_future()
        self._calls.append(_Call(args, future, done, deadline))
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
        return future

    # --- the task -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            if not self._calls:
                self._woken = loop.create_future()
                await self._woken
            group = [self._calls.popleft() for _ in range(min(len(self._calls), _GROUP))]
            try:
                error = await self._exchange(group)
            except asyncio.CancelledError:
                self._calls.extendleft(reversed(group))
                raise
            except Exception as e:  # noqa: BLE001 - a defect here must not leave callers waiting for ever
                get_logger().exception("store link failed", store=self._target.shown)
                for call in group:
                    call.fail(StoreError("store_failed", f"{self._target.shown} failed: {type(e).__name__}."))
                continue
            if error is None:
                failures = 0
                self._answers()
            else:
                await self._wait_out(error, failures)
                failures += 1

    async def _exchange(self, group: list[_Call]) -> Exception | None:
        """Send the calls, and give out the answers. What was not answered is first in the queue again, and
        the reason is returned."""
        pipe = self._client.pipeline(transaction=False)
        for call in group:
            pipe.execute_command(*call.args)
        try:
            answers = await pipe.execute(raise_on_error=False)
        except (*GONE, *_NO_MASTER, *_FINAL, refusals.ResponseError) as e:
            answers = [e] * len(group)
        again: list[_Call] = []
        error: Exception | None = None
        unknown = False
        for call, answer in zip(group, answers, strict=True):
            if isinstance(answer, refusals.NoScriptError):  # another node, or somebody flushed the scripts
                unknown = True
                again.append(call)
            elif isinstance(answer, _FINAL):
                call.fail(refusal(answer, self._target))
            elif isinstance(answer, (*GONE, *_NO_MASTER)):
                error = answer
                again.append(call)
            elif isinstance(answer, Exception):
                call.fail(refusal(answer, self._target))
            else:
                call.resolve(answer)
        self._calls.extendleft(reversed(again))
        if unknown:
            try:
                await self._load()
            except (*GONE, refusals.RedisError) as e:
                error = e
        return error

    async def _load(self) -> None:
        for text in SCRIPTS.values():
            await self._client.script_load(text)

    # --- outages --------------------------------------------------------------------------------------------

    async def _wait_out(self, error: Exception, failures: int) -> None:
        """Between two attempts: refuse the calls whose time is over. The first attempt comes at once: mostly
        Redis closed a connection that was idle for long, which is worth no line."""
        now = asyncio.get_running_loop().time()
        if self._down_since is None:
            self._down_since = now
        if failures == 1:
            self._warned = True
            get_logger().warning(
                "store does not answer", store=self._target.shown, waiting=self._what,
                reason=type(error).__name__,
            )  # fmt: skip
        over = [call for call in self._calls if call.deadline <= now]
        if over:
            self._calls = deque(call for call in self._calls if call.deadline > now)
            for call in over:
                call.fail(refusal(error, self._target))
            if now > self._logged + _TELL_S:
                self._logged = now
                get_logger().error(
                    "store does not answer for too long", store=self._target.shown, failing=self._what,
                    waited_s=self._outage_s,
                )  # fmt: skip
        pause = _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]
        if isinstance(error, _NO_MASTER):
            pause = _PAUSES_S[-1]
            if hasattr(self._client, "connection_pool"):  # a cluster's client looks for the master itself
                with contextlib.suppress(Exception):
                    await self._client.connection_pool.disconnect()
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311

    def _answers(self) -> None:
        if self._down_since is not None:
            down_s = asyncio.get_running_loop().time() - self._down_since
            self._down_since = None
            if self._warned:
                self._warned = False
                get_logger().info("store answers again", store=self._target.shown, down_s=round(down_s, 2))

    def _closed(self) -> StoreError:
        return StoreError("store_failed", f"The store {self._target.shown} is not open.")


def refusal(error: Exception, target: Target) -> StoreError:
    """What an error means, and what to do about it. Its own text is shown only where it can't quote anything
    but Redis's words."""
    text = str(error)
    where = target.shown
    if isinstance(error, _FINAL) or text.startswith(("WRONGPASS", "NOAUTH")):
        return StoreError(
            "store_failed",
            f"{where} refuses this name or password. Check the URL of --store.",
            retryable=False,
        )
    if isinstance(error, refusals.NoPermissionError):
        return StoreError(
            "store_failed",
            f"This user of {where} may not run the commands that Mux needs. Give it +@all on ~mux:* and "
            "&mux:*, or use another.",
            retryable=False,
        )
    if isinstance(error, refusals.OutOfMemoryError):
        return StoreError(
            "store_full",
            f"The memory of {where} is full (maxmemory). Raise it or shorten retention; what was "
            "acknowledged is safe.",
        )
    if text.startswith("MISCONF"):
        return StoreError(
            "store_full",
            f"{where} can't write to its disk and takes no writes. See its log; free some space.",
        )
    if isinstance(error, refusals.ReadOnlyError):
        return StoreError("store_readonly", f"{where} is a replica. Use its master's address with --store.")
    if isinstance(error, _NO_MASTER):
        return StoreError("store_failed", f"{where} belongs to a cluster that is not complete now.")
    if isinstance(error, GONE):
        return StoreError(
            "store_failed",
            f"{where} does not answer ({type(error).__name__}). Check that Redis runs and can be reached; "
            "what was acknowledged is as safe as it keeps it.",
        )
    return StoreError("store_failed", f"{where} refused a command: {text[:200]}")

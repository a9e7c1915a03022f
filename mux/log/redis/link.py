"""One connection to Redis that outlives outages: calls in order, pipelined, retried within a bound.

Calls that arrive while an answer is awaited go out together with the next write, so micro-batches of many
runs share a round trip, and a lone call goes at once. A call whose answer was lost is sent again after the
reconnection, in the same order; the scripts know a batch that they have applied.
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
from mux.log.redis.url import CONNECT_S, Target
from mux.telemetry import get_logger

__all__ = ["Link", "refusal"]

_GROUP = 256  # calls of one round trip
_ANSWER_S = 5.0  # for one answer; a server that takes longer is as good as gone
_PAUSES_S = (0.05, 0.1, 0.2, 0.3)  # between attempts to connect, the last again and again
_DOWN_S = 0.5  # patience of a call that comes when the outage is longer than the bound: more than a pause
_STEADY_S = 1.0  # a connection that is lost again sooner is not taken up again at once
_TELL_S = 30.0  # between two lines about calls that fail
_GONE = (refusals.ConnectionError, refusals.TimeoutError, OSError, EOFError, TimeoutError)
# This one is no master (any more): its address may lead to the new one soon.
_NO_MASTER = (refusals.ReadOnlyError, refusals.ClusterDownError, refusals.TryAgainError)
_AGAIN = (*_GONE, *_NO_MASTER)
# A connection that another attempt won't mend.
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

    def answer(self, value: Any) -> None:
        """Tell the store first, also if the caller was cancelled; then the caller."""
        if isinstance(value, Exception):
            self.fail(value)
            return
        if self.done is not None:
            self.done(value)
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Link:
    """A connection and the task that writes to it and reads from it.

    Args:
        target: where Redis is.
        outage_s: seconds that a call waits for a Redis that does not answer.
        what: a word for the log lines: what waits meanwhile.
        reconnected: called after each outage.
    """

    def __init__(
        self, target: Target, *, outage_s: float, what: str, reconnected: Callable[[], None] | None = None
    ) -> None:
        self._target = target
        self._outage_s = outage_s
        self._what = what
        self._reconnected = reconnected
        self._connection: Any = None
        self._calls: deque[_Call] = deque()
        self._woken: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._down_since: float | None = None
        self._recovered = self._told = float("-inf")
        self._error: Exception = ConnectionError()

    async def start(self) -> None:
        """Connect. Raises StoreError ``store_failed``."""
        try:
            await self._connect()
        except _GONE as e:
            raise self._unreachable(e) from None
        except refusals.RedisError as e:
            raise refusal(e, self._target) from None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"mux-redis-{self._what}")

    async def stop(self, *, patience_s: float = 2.0) -> None:
        """Finish what was asked, within the patience, and disconnect; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            if self._calls and self._down_since is None:
                futures = [call.future for call in self._calls if not call.future.done()]
                if futures:
                    await asyncio.wait(futures, timeout=patience_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._fail_all(self._closed())
        await self._disconnect()
        self._down_since = None

    def call(self, name: str, *args: Any, done: Callable[[Any], None] | None = None) -> asyncio.Future[Any]:
        """Run a script; ``done`` is told its answer even if nobody waits for it any more.

        Raises:
            StoreError: ``store_failed``: the store is not open.
        """
        return self.command("EVALSHA", sha(name), 1, *args, done=done)

    def command(self, *args: Any, done: Callable[[Any], None] | None = None) -> asyncio.Future[Any]:
        """Run any command; see `call`."""
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
        while True:
            if not self._calls:
                self._woken = loop.create_future()
                await self._woken
            try:
                await self._exchange()
            except _AGAIN as e:
                await self._recover(e)
            except Exception as e:  # noqa: BLE001 - a defect here must not leave callers waiting for ever
                get_logger().exception("store link failed", store=self._target.shown)
                self._fail_all(
                    StoreError("store_failed", f"{self._target.shown} failed: {type(e).__name__}.")
                )
                await self._disconnect()
                await self._recover(e)

    async def _exchange(self) -> None:
        """Send what waits, and read the answers. A call stays in the queue until it is answered."""
        connection = self._connection
        count = min(len(self._calls), _GROUP)
        calls = [self._calls[i] for i in range(count)]
        now = asyncio.get_running_loop().time
        again: list[_Call] = []
        try:
            async with asyncio.timeout(_ANSWER_S) as limit:
                await connection.send_packed_command(
                    connection.pack_commands([call.args for call in calls]), check_health=False
                )
                for call in calls:
                    try:
                        value = await connection.read_response(disconnect_on_error=False)
                    except refusals.NoScriptError:  # somebody flushed the scripts
                        again.append(call)
                        value = None
                    except _AGAIN:  # also LOADING: Redis has just started
                        raise
                    except refusals.ResponseError as e:
                        value = refusal(e, self._target)
                    limit.reschedule(now() + _ANSWER_S)
                    self._calls.popleft()
                    if call not in again:
                        call.answer(value)
        finally:  # however it ended: a call that is in no queue is never answered
            self._calls.extendleft(reversed(again))
        if again:
            async with asyncio.timeout(_ANSWER_S):
                await self._load(connection)

    # --- outages --------------------------------------------------------------------------------------------

    async def _recover(self, error: Exception) -> None:
        """Connect again, however long it takes; calls whose time is over are told. The first attempt comes at
        once: mostly Redis closed a connection that was idle for long, which is worth no line."""
        loop = asyncio.get_running_loop()
        self._down_since = began = loop.time()
        self._error = error
        log = get_logger(store=self._target.shown)
        attempts = 0
        if isinstance(error, _NO_MASTER) or began - self._recovered < _STEADY_S:
            log.warning("store does not answer", waiting=self._what, reason=type(error).__name__)
            await self._pause(_PAUSES_S[-1])
            attempts = 1
        while not await self._attempt():
            if attempts == 0:
                log.warning("store does not answer", waiting=self._what, reason=type(self._error).__name__)
            await self._pause(_PAUSES_S[min(attempts, len(_PAUSES_S) - 1)])
            attempts += 1
        self._down_since = None
        self._recovered = loop.time()
        if attempts:
            log.info("store answers again", down_s=round(self._recovered - began, 2))
        if self._reconnected is not None:
            self._reconnected()

    async def _attempt(self) -> bool:
        """Try to connect; ``False``: it did not work, and `_error` says why."""
        await self._disconnect()
        attempt = asyncio.get_running_loop().create_task(self._connect())
        try:
            while not attempt.done():
                await asyncio.wait([attempt], timeout=0.1)
                self._expire()
            await attempt
        except _FINAL as e:
            self._error = e
            self._fail_all(refusal(e, self._target))
            return False
        except (*_GONE, refusals.RedisError) as e:
            self._error = e
            return False
        finally:
            if not attempt.done():
                attempt.cancel()
                await asyncio.gather(attempt, return_exceptions=True)
        return True

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds * random.uniform(0.8, 1.2)  # noqa: S311
        while (left := until - loop.time()) > 0:
            await asyncio.sleep(min(left, 0.1))
            self._expire()

    def _expire(self) -> None:
        """Tell the calls whose time is over."""
        now = asyncio.get_running_loop().time()
        over = [call for call in self._calls if call.deadline <= now]
        if not over:
            return
        self._calls = deque(call for call in self._calls if call.deadline > now)
        for call in over:
            call.fail(self._unreachable(self._error))
        if now > self._told + _TELL_S:
            self._told = now
            get_logger().error(
                "store does not answer for too long", store=self._target.shown, failing=self._what,
                waited_s=self._outage_s,
            )  # fmt: skip

    async def _connect(self) -> None:
        connection = self._target.connection()
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.connect()
                await self._load(connection)
        except BaseException:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)
            raise
        self._connection = connection

    async def _load(self, connection: Any) -> None:
        await connection.send_packed_command(
            connection.pack_commands([("SCRIPT", "LOAD", text) for text in SCRIPTS.values()]),
            check_health=False,
        )
        for _ in SCRIPTS:
            await connection.read_response(disconnect_on_error=False)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it is gone either way
                await connection.disconnect(nowait=self._down_since is not None)

    def _fail_all(self, error: Exception) -> None:
        while self._calls:
            self._calls.popleft().fail(error)

    def _unreachable(self, error: Exception) -> StoreError:
        if isinstance(error, (*_FINAL, *_NO_MASTER)):
            return refusal(error, self._target)
        reason = type(error).__name__
        return StoreError(
            "store_failed",
            f"{self._target.shown} does not answer ({reason}). Check that Redis runs and can be reached; "
            "what was acknowledged is as safe as it keeps it.",
        )

    def _closed(self) -> StoreError:
        return StoreError("store_failed", f"The store {self._target.shown} is not open.")


def refusal(error: Exception, target: Target) -> StoreError:
    """What an error answer means, and what to do about it. Its own text is shown only where it can't quote
    anything but Redis's words."""
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
            f"This user of {where} may not run the commands that Mux needs. Give it +@all on ~mux:*, or use "
            "another.",
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
    if isinstance(error, refusals.ClusterDownError):
        return StoreError("store_failed", f"{where} belongs to a cluster that is not complete now.")
    if isinstance(error, refusals.MovedError):
        return StoreError(
            "store_failed",
            f"{where} is a cluster's node that has not Mux's keys. Use {error.host}:{error.port} "
            "with --store.",
            retryable=False,
        )
    return StoreError("store_failed", f"{where} refused a command: {text[:200]}")

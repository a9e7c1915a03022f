"""Commands to the workers of runs, and their answers; see `mux.log.protocols.Commands`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mux.errors import MuxError, Overloaded, Unavailable
from mux.log.protocols import run_not_found
from mux.log.redis.link import Link
from mux.log.redis.scripts import run_key
from mux.telemetry import get_logger

__all__ = ["RedisCommands"]

Deliver = Callable[[str, bytes], None]


class RedisCommands:
    """A command is kept beside its run until it is answered; a word on a channel says that it is there.

    Args:
        link: calls go out on it.
        front: this process's name, to which answers are published.
    """

    def __init__(self, link: Link, front: str) -> None:
        self._link = link
        self._front = front
        self._deliver: dict[str, Deliver] = {}
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._looking: set[asyncio.Task[None]] = set()

    async def send(self, run: str, command: str, payload: bytes, *, timeout_s: float) -> bytes:
        answer = self._answers.setdefault(command, asyncio.get_running_loop().create_future())
        try:
            state, *found = await self._link.call("send", run_key(run), command, self._front, payload)
            if state == b"missing":
                raise run_not_found(run)
            if state == b"full":
                raise Overloaded("too_many_commands", f"Too much is asked of run {run} at once; try again.")
            if state == b"answered":
                return bytes(found[0])
            done, _ = await asyncio.wait([answer], timeout=timeout_s)
            if done:
                return answer.result()
            found = (await self._link.call("answered", run_key(run), command))[1:]  # its word may be lost
            if found[0] is not None:
                return bytes(found[0])
        finally:
            self._answers.pop(command, None)
        raise Unavailable(
            "worker_unreachable",
            f"Nobody who drives run {run} has answered yet; what was asked is done as soon as one does.",
            retry_after=2.0,
        )

    async def receive(self, run: str, deliver: Deliver) -> None:
        self._deliver[run] = deliver
        await self._look(run)

    async def answer(self, run: str, command: str, payload: bytes) -> None:
        await self._link.call("answer", run_key(run), command, payload)

    async def stop_receiving(self, run: str) -> None:
        self._deliver.pop(run, None)

    # --- what the subscriptions bring -----------------------------------------------------------------------

    def commanded(self, message: bytes | None) -> None:
        """A command was sent to a run of this worker, or some may have been missed."""
        if message is None:
            for driven in self._deliver:
                task = asyncio.get_running_loop().create_task(self._look(driven))
                self._looking.add(task)
                task.add_done_callback(self._looking.discard)
            return
        run, command, payload = message.split(b" ", 2)
        deliver = self._deliver.get(run.decode())
        if deliver is not None:
            deliver(command.decode(), payload)

    def answered(self, message: bytes | None) -> None:
        """An answer to a command of this front, or some may have been missed: then `send` asks at the end."""
        if message is None:
            return
        name, answered = message.split(b" ", 1)
        answer = self._answers.get(name.decode())
        if answer is not None and not answer.done():
            answer.set_result(answered)

    async def _look(self, run: str) -> None:
        try:
            found: Sequence[bytes] = (await self._link.call("asked", run_key(run)))[1]
        except MuxError as e:  # the subscription comes back later, and with it another look
            get_logger(run=run).warning("commands could not be read", code=e.code)
            return
        deliver = self._deliver.get(run)
        pairs = iter(found)
        for command, sent in zip(pairs, pairs, strict=True):
            if deliver is not None:
                deliver(command.decode(), sent.split(b" ", 1)[1])

    async def stop(self) -> None:
        """Nothing is delivered any more; idempotent."""
        self._deliver.clear()
        for task in list(self._looking):
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)

"""Queue and commands of a store that one process has for itself (`memory` and `sqlite`), and keys in memory.

Nothing of them is kept. At a start the engine offers the runs that are not finished, in the order in which
they came; a command that was not answered before a crash was not acknowledged either.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from mux.clock import now_ms
from mux.errors import Overloaded, Unavailable

__all__ = ["LocalCommands", "LocalKeys", "LocalQueue"]

MAX_COMMANDS = 256  # that may wait for one run's worker


class LocalQueue:
    """See `mux.log.protocols.Queue`."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[str]] = OrderedDict()  # owner → runs; the first owner is next
        self._owners: dict[str, str] = {}  # of all runs that wait or are taken
        self._taken: set[str] = set()
        self._offered: Callable[[], None] = lambda: None

    async def offer(self, run: str, owner: str) -> None:
        if run in self._owners:
            return
        self._owners[run] = owner
        self._waiting.setdefault(owner, deque()).append(run)
        self._offered()

    async def take(self, worker: str, limit: int) -> Sequence[str]:
        runs: list[str] = []
        while self._waiting and len(runs) < limit:
            owner, mine = self._waiting.popitem(last=False)
            runs.append(mine.popleft())
            if mine:
                self._waiting[owner] = mine
        self._taken.update(runs)
        return runs

    async def withdraw(self, run: str, worker: str) -> bool:
        if run in self._taken or run not in self._owners:
            return False
        self._remove(run, self._owners[run])
        self._taken.add(run)
        return True

    def _remove(self, run: str, owner: str) -> None:
        mine = self._waiting[owner]
        mine.remove(run)
        if not mine:
            del self._waiting[owner]

    async def give_back(self, run: str, worker: str) -> None:
        if run not in self._taken:
            return
        self._taken.remove(run)
        self._waiting.setdefault(self._owners[run], deque()).appendleft(run)
        self._offered()

    async def finish(self, run: str, worker: str) -> None:
        owner = self._owners.pop(run, None)
        if owner is None or run in self._taken:
            self._taken.discard(run)
            return
        self._remove(run, owner)

    async def position(self, run: str) -> int | None:
        if run in self._taken or run not in self._owners:
            return None
        # Owners take turns: before its n-th run, each other owner has had n, or n - 1 if its turn is later.
        owner = self._owners[run]
        before = self._waiting[owner].index(run)
        place, earlier = before, True
        for other, runs in self._waiting.items():
            if other == owner:
                earlier = False
            else:
                place += min(len(runs), before + earlier)
        return place + 1

    async def waiting(self) -> int:
        return len(self._owners) - len(self._taken)

    def on_lost(self, lost: Callable[[], None]) -> None:
        """One process loses nothing to others."""

    def on_offered(self, offered: Callable[[], None]) -> None:
        self._offered = offered


class LocalCommands:
    """See `mux.log.protocols.Commands`."""

    def __init__(self) -> None:
        self._deliver: dict[str, Callable[[str, bytes], None]] = {}
        self._open: dict[str, dict[str, bytes]] = {}  # run → command → payload, until it is answered
        self._answers: dict[tuple[str, str], asyncio.Future[bytes]] = {}

    async def send(self, run: str, command: str, payload: bytes, *, timeout_s: float) -> bytes:
        waiting = self._open.setdefault(run, {})
        if len(waiting) >= MAX_COMMANDS:
            raise Overloaded("too_many_commands", f"Too much is asked of run {run} at once; try again.")
        waiting[command] = payload
        answer = self._answers[run, command] = asyncio.get_running_loop().create_future()
        deliver = self._deliver.get(run)
        if deliver is not None:
            deliver(command, payload)
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise Unavailable(
                "worker_unreachable",
                f"Nobody who drives run {run} has answered yet; what was asked is done as soon as one does.",
                retry_after=2.0,
            ) from None
        finally:
            self._answers.pop((run, command), None)

    async def receive(self, run: str, deliver: Callable[[str, bytes], None]) -> None:
        self._deliver[run] = deliver
        for command, payload in list(self._open.get(run, {}).items()):
            deliver(command, payload)

    async def answer(self, run: str, command: str, payload: bytes) -> None:
        waiting = self._open.get(run)
        if waiting is not None:
            waiting.pop(command, None)
            if not waiting:
                del self._open[run]
        answer = self._answers.get((run, command))
        if answer is not None and not answer.done():
            answer.set_result(payload)

    async def stop_receiving(self, run: str) -> None:
        self._deliver.pop(run, None)


class LocalKeys:
    """See `mux.log.protocols.KeyStore`."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], tuple[bytes, int | None]] = {}

    async def put(self, kind: str, name: str, data: bytes, *, expires: int | None = None) -> None:
        now = now_ms()
        self._records = {k: v for k, v in self._records.items() if v[1] is None or v[1] > now}
        self._records[kind, name] = (data, expires)

    async def get(self, kind: str, name: str) -> bytes | None:
        return self._records.get((kind, name), (None,))[0]

    async def all(self, kind: str) -> Sequence[bytes]:
        return [data for (of, _), (data, _) in self._records.items() if of == kind]

    async def pop(self, kind: str, name: str) -> bytes | None:
        return self._records.pop((kind, name), (None,))[0]

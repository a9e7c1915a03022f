"""What a store is: the log of events, the runs around it, the queue for workers, and commands to them.

Small on purpose. Every backend (memory, sqlite, redis) passes the same contract suite in
``tests/log/``. A backend knows nothing of bodies: it keeps records by run and seq.

Ownership: whoever drives a run holds a *fence*, a number that only grows. `RunStore.claim` raises it; an
append with an older fence is refused with :class:`~mux.errors.Fenced`, so an owner that was declared dead
can't write any more.

Seq is minted by the fence's holder (it alone appends), and the log proves it gapless: an append whose first
seq is not ``head + 1`` is refused. What `append` acknowledged survives as the backend promises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Protocol, TypeAlias

from mux.errors import Conflict, Fenced, MuxError, NotFound
from mux.events import Record

__all__ = [
    "FINAL",
    "OPEN",
    "Commands",
    "EventLog",
    "Head",
    "Holder",
    "Idempotency",
    "KeyStore",
    "Kind",
    "Page",
    "Queue",
    "RunPage",
    "RunQuery",
    "RunRow",
    "RunStore",
    "Store",
    "StoreInfo",
    "check_append",
    "check_changes",
    "idempotency_conflict",
    "run_exists",
    "run_not_found",
]

Kind: TypeAlias = Literal["run", "experiment"]
RowStatus: TypeAlias = Literal["queued", "running", "waiting", "completed", "partial", "failed", "cancelled"]
OPEN: Final[tuple[RowStatus, ...]] = ("queued", "running", "waiting")
FINAL: Final[tuple[RowStatus, ...]] = ("completed", "partial", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Head:
    """Where a run's log stands: ``first`` is the lowest seq still kept (1 unless trimmed), ``head`` the
    last appended (0 = empty), ``epoch`` changes when the store can't prove that nothing was lost."""

    epoch: int
    first: int
    head: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some records after a position, in order, and where the log stood when they were read."""

    records: Sequence[Record]
    at: Head


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a backend promises, for start-up messages, ``doctor`` and ``/readyz``."""

    url: str
    durable: Literal["no", "process", "power"]  # survives: nothing, kill -9, power loss
    note: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who uses a store, as far as it is known."""

    pid: int | None
    url: str | None


class EventLog(Protocol):
    """The append-only sequence of each run's events."""

    async def append(self, run: str, fence: int, records: Sequence[Record]) -> None:
        """Append a batch; on return it is as durable as the backend promises.

        Raises:
            Fenced: the fence is not the newest.
            Conflict: ``seq_conflict``: the batch does not begin at ``head + 1`` or has a gap.
            NotFound: ``run_not_found``.
            StoreError: ``store_full``, ``store_readonly``, ``store_locked``, ``store_failed``; nothing of
                the batch is kept.
        """

    def append_now(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None] | None:
        """`append_many` without waiting, where that takes no longer than the wait would; ``None``, and
        nothing is done, where it does: the store needs a disk, a thread or another machine for it."""

    async def append_many(
        self, batches: Sequence[tuple[str, int, Sequence[Record]]]
    ) -> Sequence[MuxError | None]:
        """Append batches of several runs, each ``(run, fence, records)``, in one commit where the backend has
        such; for each what `append` would have raised. One that is refused does not touch the others."""

    async def read(self, run: str, after: int, *, limit: int = 1000, max_bytes: int = 1 << 20) -> Page:
        """At most ``limit`` records with seq > ``after``, stopping after ``max_bytes`` of data (at least one
        record). When ``after`` lies in trimmed history the page begins at ``at.first``.

        Raises:
            NotFound: ``run_not_found``.
        """

    async def head(self, run: str) -> Head:
        """Where the log stands. Raises NotFound."""

    async def wait(self, run: str, after: int, timeout_s: float) -> Head:
        """Return as soon as ``head > after``, or when the time is over."""

    async def trim(self, run: str, before: int) -> Head:
        """Forget records with seq < ``before``; idempotent, never touches ``before`` and later."""

    async def follow(self, run: str, publish: Callable[[str, Head | None, Sequence[Record]], None]) -> None:
        """From now on ``publish(run, head, records)`` is called with what *other* processes append to the
        log, in order; without a head when something else happened to the run (deleted, rebuilt). It is
        called on the loop, and must not block or raise. Some of it may be lost with a connection: a gap of
        seq shows that, and `read` has the rest. A store of one process has nothing to call it for."""

    async def unfollow(self, run: str) -> None:
        """Nobody watches the run here any more. Idempotent."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """What is kept of a run beside its log.

    Attributes:
        request: the accepted request, as JSON: enough to start the run again after a crash.
        created, updated, finished: ms since the epoch.
        agents: names of the agents of its channels.
        summary: usage, duration_ms, channel states: for lists, written when the run ends.
        kind: whose events its log holds: a run's, or an experiment's (`mux.judge`).
        damaged: names of the fields that the store holds and that can't be read; they are empty.
    """

    run: str
    thread: str
    owner: str
    status: RowStatus
    created: int
    updated: int
    request: Mapping[str, Any]
    title: str | None = None
    starred: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    message: str | None = None
    agents: tuple[str, ...] = ()
    finished: int | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "run"
    damaged: tuple[str, ...] = ()

    @classmethod
    def stored(cls, run: str, encoded: Mapping[str, str | bytes | None], **fields: Any) -> RunRow:
        """A row as a store kept it; ``encoded`` holds the fields that it keeps as JSON.

        One that can't be read is empty and named in ``damaged``: it must not take a whole list down.
        """
        damaged: list[str] = []
        for name, text in encoded.items():
            if text is None:  # not written: by an older Mux, or as nothing
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = _DAMAGED
            empty = _EMPTY.get(name)
            if value is _DAMAGED or (empty is not None and not isinstance(value, type(empty))):
                damaged.append(name)
                value = empty
            fields[name] = tuple(value) if name == "agents" else value
        for name, empty in _EMPTY.items():
            if fields.get(name) is None:
                fields[name] = empty
        return cls(run, **fields, damaged=tuple(damaged))


_DAMAGED: Final = object()
_EMPTY: Final[Mapping[str, Any]] = {
    "thread": "", "owner": "", "status": "failed", "created": 0, "updated": 0, "request": {},
    "metadata": {}, "agents": [], "summary": {}, "kind": "run",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key for one start: the same key with the same body hash answers the same run."""

    owner: str
    key: str
    body_hash: str
    expires: int  # ms since the epoch


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Filters of a list, newest first. ``after`` is the opaque ``next`` of the page before."""

    owner: str | None = None
    status: tuple[str, ...] = ()
    agent: str | None = None
    thread: str | None = None
    q: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    starred: bool | None = None
    limit: int = 50
    after: str | None = None
    kind: Kind = "run"


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of runs; ``hits`` names, for a search, where it was found: run → channel → excerpt."""

    runs: Sequence[RunRow]
    next: str | None = None
    hits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class RunStore(Protocol):
    """Runs, threads, idempotency and ownership."""

    async def create(
        self, row: RunRow, idempotency: Idempotency | None = None, records: Sequence[Record] = ()
    ) -> RunRow:
        """Keep a new run, durably, and with it the first records of its log; with a known idempotency key
        give back the run that it made first.

        Raises:
            Conflict: ``idempotency_conflict``: the key was used with another body.
        """

    async def get(self, run: str) -> RunRow:
        """Raises NotFound ``run_not_found``."""

    async def update(self, run: str, **changes: Any) -> RunRow:
        """Change fields of the row (``updated`` is set); raises NotFound."""

    async def list(self, query: RunQuery) -> RunPage:
        """A page, newest first, stable under concurrent inserts (keyset paging).

        Raises:
            BadRequest: ``page_invalid``: ``after`` is not one of ours.
        """

    async def delete(self, run: str) -> None:
        """Forget the run, its log, texts and conversations; raises NotFound."""

    async def unfinished(self) -> Sequence[RunRow]:
        """Runs that have no final status yet, oldest first: what to recover at start-up."""

    async def claim(self, run: str, owner: str) -> int:
        """Take the run over: raise its fence and return it. Appends with older fences fail from now on."""

    async def index_text(self, run: str, channel: str | None, text: str) -> None:
        """Make text findable by `list` (``q``); replaces what was indexed for that run and channel."""

    async def put_conversation(self, thread: str, channel: str, run: str, data: bytes) -> None:
        """Keep a channel's conversation as it stood at the end of a run."""

    async def conversation(self, thread: str, channel: str, before: str | None = None) -> bytes | None:
        """The newest conversation of that channel on the thread, of a run older than ``before`` if given."""

    async def size(self, owner: str) -> int:
        """Bytes of the events of all finished runs of an owner."""

    async def expire(
        self, *, older_than_ms: int | None, keep_runs: int | None, max_bytes: int | None
    ) -> Sequence[str]:
        """Retention: delete finished, unstarred runs by age, count and total size; returns their ids."""


class Queue(Protocol):
    """Runs that wait for a worker, fair between owners: each owner's next run comes in turn.

    A run that was taken is its worker's until it is finished or given back, or until the worker's lease ends:
    then it is offered again, in front of its owner's others. Workers in one process never lose theirs.
    """

    async def offer(self, run: str, owner: str) -> None:
        """Let a run wait for a worker; does nothing for one that waits or is taken already."""

    async def take(self, worker: str, limit: int) -> Sequence[str]:
        """At most ``limit`` runs that are this worker's from now on, at once; mostly none."""

    async def withdraw(self, run: str, worker: str) -> bool:
        """Take this very run, if it waits; whether it did. It is then this worker's, as by `take`."""

    async def give_back(self, run: str, worker: str) -> None:
        """The worker does not go on with it: it waits again, in front of its owner's others."""

    async def finish(self, run: str, worker: str) -> None:
        """The run's last event is in its log (or the run is gone): nobody takes it any more."""

    async def position(self, run: str) -> int | None:
        """Its place among those that wait, from 1; ``None`` if it does not wait."""

    async def waiting(self) -> int:
        """How many wait."""

    def on_lost(self, lost: Callable[[], None]) -> None:
        """``lost`` is called on the loop when this process's lease ended while it was away (stopped, cut off,
        blocked): all that it took went to others, and it must drop these runs at once. It takes part again
        from then on."""

    def on_offered(self, offered: Callable[[], None]) -> None:
        """``offered`` is called on the loop when `take` may find something; at times for nothing."""


class Commands(Protocol):
    """What callers ask of the worker that drives a run, wherever it is.

    A command that was sent outlives the worker: it is delivered until it was answered, to the next worker if
    need be. So one may be delivered twice, and whoever applies it knows it by its id.
    """

    async def send(self, run: str, command: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Send a command to the run's worker and wait for its answer.

        Args:
            command: an id of the caller's choice, unique in the run.

        Raises:
            Unavailable: ``worker_unreachable``: nobody answered in time; the command is still delivered.
            Overloaded: ``too_many_commands``: so many wait for the run's worker that no more are taken.
        """

    async def receive(self, run: str, deliver: Callable[[str, bytes], None]) -> None:
        """From now on ``deliver(command, payload)`` is called for each command to the run, first for those
        that wait. It is called on the loop, must not block or raise, and leads to one `answer`."""

    async def answer(self, run: str, command: str, payload: bytes) -> None:
        """Answer a command: whoever sent it gets the payload, and it is not delivered again."""

    async def stop_receiving(self, run: str) -> None:
        """The run is not driven here any more. Idempotent."""


class KeyStore(Protocol):
    """What says who may call: small records by kind and id. What is in them is `mux.http.keys`'s matter.

    Unlike the rest of a store it may be used while a server has the store open, by ``mux keys``.
    """

    async def put(self, kind: str, name: str, data: bytes, *, expires: int | None = None) -> None:
        """Keep a record, in place of the one that has this name.

        Args:
            expires: ms since the epoch, from which on it may be forgotten; ``None`` = never.
        """

    async def get(self, kind: str, name: str) -> bytes | None:
        """The record; ``None`` if there is none."""

    async def all(self, kind: str) -> Sequence[bytes]:
        """All records of a kind, in no order."""

    async def pop(self, kind: str, name: str) -> bytes | None:
        """Remove a record and give it back: of two callers at once only one gets it."""


class Store(EventLog, RunStore, Protocol):
    """One backend."""

    info: StoreInfo

    @property
    def keys(self) -> KeyStore:
        """Who may call."""

    @property
    def queue(self) -> Queue:
        """Runs that wait for a worker."""

    @property
    def commands(self) -> Commands:
        """What is asked of workers."""

    async def open(self, *, url: str | None = None) -> None:
        """Open it; ``url`` is this server's own address, shown to a second server that finds it locked.

        Raises:
            StoreError: ``store_locked`` (with the other server's address in ``extra["url"]`` if it is
                known), ``store_readonly``, ``store_failed``.
        """

    async def check(self) -> None:
        """Write something and take it away again. Raises StoreError where a start would."""

    async def announce(self, url: str) -> None:
        """Say at which address this server answers, once it is known (a port chosen by the system)."""

    async def close(self) -> None:
        """Flush and close; idempotent."""


# --- what every backend refuses, and how it answers ---------------------------------------------------------

_CHANGEABLE = frozenset(f.name for f in fields(RunRow)) - {"run", "updated", "damaged"}


def run_not_found(run: str) -> NotFound:
    """The one answer for a run that is not (or no longer) kept."""
    return NotFound("run_not_found", f"There is no run {run!r}: it was deleted, or the id is wrong.")


def run_exists(run: str) -> Conflict:
    """The answer to a second run with the same id."""
    return Conflict("run_exists", f"There is a run {run!r} already.")


def idempotency_conflict(key: str) -> Conflict:
    """The answer to a known key with another body."""
    return Conflict(
        "idempotency_conflict",
        f"The idempotency key {key!r} was used with another body. Use a new key for a new request.",
    )


def check_append(run: str, newest_fence: int, head: int, fence: int, records: Sequence[Record]) -> None:
    """Refuse a batch of a former owner, and one that would leave a gap or overwrite.

    Raises:
        Fenced: the fence is not the newest.
        Conflict: ``seq_conflict``.
    """
    if fence != newest_fence:
        raise Fenced(
            "fenced",
            f"Another owner took run {run!r} over (fence {newest_fence}, not {fence}): stop writing to it.",
            retryable=False,
        )
    expected = head + 1
    for record in records:
        if record.seq != expected:
            raise Conflict(
                "seq_conflict", f"Run {run!r} expects seq {expected} next, and was given {record.seq}."
            )
        expected += 1


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuse a field that a row does not have.

    Raises:
        TypeError: it is a mistake of the calling code.
    """
    if unknown := set(changes) - _CHANGEABLE:
        raise TypeError(f"a run's row has no field that can be changed called {sorted(unknown)}")

"""The half of the engine that callers meet: accepts requests, keeps them, answers reads, sends commands.

It meets the other half (`mux.engine.worker`) only in the store: it offers a run to the queue, and sends
commands to whoever drives it, in this process or in another one. A run that nobody drives yet (it waits for a
place) is changed here, under a claim of our own, and waits on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from mux._failpoints import failpoint
from mux.engine.archive import Archive
from mux.engine.commands import (
    Add,
    Answer,
    Cancel,
    Command,
    Retry,
    Steer,
    Watched,
    decode_answer,
    encode,
)
from mux.engine.intake import check_id, guards, message_of, publishable, read_metadata, read_plan
from mux.engine.multiplexer import Publish
from mux.engine.plan import (
    Plan,
    PlannedChannel,
    agent_forbidden,
    key_limit,
    make_plan,
    new_id,
    plan_of,
    spec_of,
    title_of,
)
from mux.engine.run import lane, run_finished
from mux.engine.site import Site
from mux.engine.stored import Stored
from mux.engine.tasks import Tasks, finish
from mux.engine.worker import Worker
from mux.errors import BadRequest, Conflict, MuxError, NotFound, Overloaded, Unavailable
from mux.events import Event
from mux.log.protocols import FINAL, OPEN, Head, Idempotency, RunQuery, RunRow
from mux.requests import (
    AddChannel,
    ApprovalAnswer,
    CancelMode,
    ChannelSpec,
    Grace,
    KeyLimits,
    StartRequest,
    SteerRequest,
)

__all__ = ["NO_LIMITS", "Front", "Started"]

NO_LIMITS: Final = KeyLimits()
_RETRY_AFTER_S: Final = 5.0  # runs last seconds to minutes; a shorter wait would only make a crowd come back


@dataclass(frozen=True, slots=True)
class Started:
    """The answer to a start; ``created`` is false when the idempotency key was known."""

    row: RunRow
    created: bool


class Front:
    """See the module.

    Args:
        site: the server.
        stored: reads runs.
        archive: lists, edits and deletes runs.
        worker: of this process; used only for what nobody else can know: how many places it has, and to
            change a run that nobody drives.
        publish: shows a run's records to viewers here; must not block or raise.
    """

    def __init__(
        self, site: Site, stored: Stored, archive: Archive, worker: Worker, publish: Publish
    ) -> None:
        self.accepting = False
        self._site = site
        self._store = site.store
        self._stored = stored
        self._archive = archive
        self._worker = worker
        self._publish = publish
        self._keys: dict[tuple[str, str], tuple[Idempotency, str]] = {}  # the newest, and their runs
        self._starting: dict[tuple[str, str], tuple[str, asyncio.Task[Started]]] = {}
        self._entering = 0  # runs that were let in and are not offered yet
        self._viewers: Counter[str] = Counter()
        self._saying: dict[str, asyncio.Task[None]] = {}  # run → who tells its worker of viewers
        self._limiting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks = Tasks()

    async def close(self) -> None:
        """Stop what goes on beside requests."""
        await self._tasks.close()

    async def row(self, run: str, *, owner: str | None = None) -> RunRow:
        """The run's row.

        Raises:
            NotFound: ``run_not_found``, also for another owner's run.
        """
        return await self._archive.row(run, owner=owner)

    # --- starting -------------------------------------------------------------------------------------------

    async def start_run(
        self,
        request: StartRequest,
        *,
        owner: str,
        key: str | None,
        streaming: bool,
        agents: Sequence[str] | None,
        limits: KeyLimits,
    ) -> Started:
        """See `Engine.start_run`."""
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()

        def start() -> Coroutine[Any, Any, Started]:
            return self._start(request, owner, key, digest, streaming, agents, limits)

        if key is None:
            return await start()
        while (first := self._starting.get((owner, key))) is not None:  # it needs no place of its own
            await asyncio.wait([first[1]])
            if not first[1].cancelled() and first[1].exception() is None:
                _check_digest(first[0], digest)
                return Started(first[1].result().row, created=False)
        task = asyncio.get_running_loop().create_task(start())
        self._starting[owner, key] = (digest, task)
        task.add_done_callback(lambda done: self._started(owner, key, done))
        return await asyncio.shield(task)

    def _started(self, owner: str, key: str, task: asyncio.Task[Started]) -> None:
        del self._starting[owner, key]
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; a caller that went away can't be

    async def _start(
        self,
        request: StartRequest,
        owner: str,
        key: str | None,
        digest: str,
        streaming: bool,
        agents: Sequence[str] | None,
        limits: KeyLimits,
    ) -> Started:
        known, run = self._keys.get((owner, key or ""), (None, ""))
        if known is not None and known.expires > self._site.clock():
            _check_digest(known.body_hash, digest)
            with contextlib.suppress(NotFound):  # it was deleted: the key is free again
                return Started(await self.row(run), created=False)
        self._check_accepting()
        last = await self._last_of_thread(request.thread, owner)
        plan = make_plan(
            request,
            self._site.roster,
            last=last,
            default_agents=self._site.settings.default_agents,
            max_channels=self._site.settings.limits.max_channels,
            streaming=streaming,
        )
        for channel in plan.channels:
            if agents is not None and channel.agent not in agents:
                raise agent_forbidden(channel.agent, agents)
        if limits.channels is not None and len(plan.channels) > limits.channels:
            raise key_limit("channels", limits.channels)
        await self._check_inputs(plan, owner)
        thread = request.thread or new_id("t")
        idempotency = None
        if key is not None:
            expires = self._site.clock() + round(self._site.settings.limits.idempotency_s * 1000)
            idempotency = Idempotency(owner, key, digest, expires)
        return await self._launch(
            plan, owner, thread, request.title, dict(request.metadata), limits, idempotency
        )

    def _check_accepting(self) -> None:
        if not self.accepting:
            raise Unavailable(
                "draining",
                "This server takes no new runs: it is stopping, or only a worker. Try again in a moment.",
                retry_after=2.0,
            )

    async def _last_of_thread(self, thread: str | None, owner: str) -> RunRow | None:
        if thread is None:
            return None
        page = await self._store.list(RunQuery(owner=owner, thread=thread, limit=1))
        return page.runs[0] if page.runs else None

    async def _check_inputs(self, plan: Plan, owner: str) -> None:
        for name in {i for c in plan.channels for i in c.inputs if "/" in i}:
            try:
                await self.row(name.partition("/")[0], owner=owner)
            except NotFound:
                raise BadRequest(
                    "input_unknown", f"inputs names {name!r}, but there is no such run."
                ) from None

    async def _launch(
        self,
        plan: Plan,
        owner: str,
        thread: str,
        title: str | None,
        metadata: dict[str, Any],
        limits: KeyLimits,
        idempotency: Idempotency | None = None,
    ) -> Started:
        """Start a planned run; a caller that goes away does not leave it half started."""
        self._check_accepting()
        run, now = new_id("r"), self._site.clock()
        guard_of, agents = guards(self._site, run), tuple(dict.fromkeys(c.agent for c in plan.channels))
        await check_id("thread's id", thread, agents, guard_of)
        plan = await read_plan(plan, guard_of)
        message = await publishable(message_of(plan), agents, guard_of)
        title = await publishable(title, agents, guard_of) or title_of(message)
        metadata = await read_metadata(metadata, agents, guard_of)
        row = RunRow(
            run=run, thread=thread, owner=owner, status="queued", created=now, updated=now,
            request=plan.dump(), title=title, metadata=metadata, message=message, agents=agents,
        )  # fmt: skip
        async with self._within(owner, limits):
            await self._check_room()
            self._entering += 1
            try:
                return await finish(self._keep(row, plan, idempotency))
            finally:
                self._entering -= 1

    @contextlib.asynccontextmanager
    async def _within(self, owner: str, limits: KeyLimits) -> AsyncIterator[None]:
        """Start a run within a key's limits: one after the other, or two would take the last place."""
        if limits == NO_LIMITS:
            yield
            return
        lock = self._limiting.setdefault(owner, asyncio.Lock())
        async with lock:
            if limits.runs is not None:
                open_runs = RunQuery(owner=owner, status=OPEN, limit=max(1, limits.runs))
                if len((await self._store.list(open_runs)).runs) >= limits.runs:
                    raise key_limit("runs", limits.runs, retry_after=_RETRY_AFTER_S)
            await self._archive.check_usage(owner, limits)
            yield

    async def _check_room(self) -> None:
        """Raise `Overloaded` (429) if neither a place nor room in the queue is free."""
        limits = self._site.settings.limits
        waiting = await self._store.queue.waiting() + self._entering
        if waiting >= limits.max_queue + self._worker.room:
            raise Overloaded(
                "too_many_runs",
                f"{limits.max_runs} runs are running and {waiting} wait. Try again later, or raise "
                "limits.max_runs or limits.max_queue.",
                retry_after=_RETRY_AFTER_S,
            )

    async def _keep(self, row: RunRow, plan: Plan, idempotency: Idempotency | None) -> Started:
        started = plan.start_event(row.thread, row.message, row.metadata)
        first = Event(row.run, 1, None, 1, row.created, started, ()).record()
        known = await self._store.create(row, idempotency, [first])
        if known.run != row.run:
            return Started(known, created=False)
        failpoint("accept.after")
        self._publish(row.run, Head(1, 1, 1), [first])
        if idempotency is not None:
            self._remember_key(idempotency, row.run)
        await self._store.queue.offer(row.run, row.owner)
        return Started(row, created=True)

    def _remember_key(self, idempotency: Idempotency, run: str) -> None:
        """So that a repeated key is answered without room for a run; the store knows the others."""
        self._keys[idempotency.owner, idempotency.key] = (idempotency, run)
        while len(self._keys) > 2 * self._site.settings.limits.max_runs:
            del self._keys[next(iter(self._keys))]

    # --- commands -------------------------------------------------------------------------------------------

    async def _send(self, run: str, command: Command) -> str | None:
        """Have a command applied by whoever drives the run.

        Raises:
            Conflict: ``run_finished``.
            NotFound: ``run_not_found``.
            Unavailable: ``worker_unreachable``.
            MuxError: what the command was refused with.
        """
        name = new_id("c")
        if self._worker.drive(run) is None:
            row = await self._store.get(run)
            if row.status in FINAL:
                raise run_finished(run)
            if await self._store.queue.withdraw(run, self._site.name):
                return await self._apply_here(row, name, command)
        answer = await self._store.commands.send(
            run, name, encode(command), timeout_s=self._site.times.answer
        )
        return decode_answer(answer)

    async def _apply_here(self, row: RunRow, name: str, command: Command) -> str | None:
        """Change a run that waits for a place, and let it wait on, or be over."""
        over = False
        try:
            drive = await self._worker.claim(row)
            try:
                return await drive.apply(name, command)
            finally:
                over = drive.machine.state.finished is not None
                self._worker.leave(drive)
        finally:
            if not over:
                await self._store.queue.give_back(row.run, self._site.name)

    async def cancel(self, run: str, mode: CancelMode, channel: str | None = None) -> None:
        """Cancel a run or a channel; what is over stays as it is."""
        try:
            await self._send(run, Cancel(mode=mode, channel=channel))
        except Conflict as e:
            if e.code != "run_finished":
                raise
            if channel is not None and channel not in (await self._stored.state(run))[0].channels:
                raise NotFound("channel_not_found", f"Run {run} has no channel {channel!r}.") from None

    async def add_channel(self, run: str, spec: AddChannel) -> str:
        """Add a channel to a running run; returns its id."""
        added = await self._send(run, Add(spec=ChannelSpec(**spec.model_dump())))
        return added or ""

    async def retry(self, run: str, channel: str, model: str | None, limits: KeyLimits) -> tuple[str, str]:
        """See `Engine.retry`."""
        try:
            added = await self._send(run, Retry(channel=channel, model=model))
        except Conflict as e:
            if e.code != "run_finished":
                raise
            return await self._retry_finished(run, channel, model, limits)
        return run, added or ""

    async def _retry_finished(
        self, run: str, channel: str, model: str | None, limits: KeyLimits
    ) -> tuple[str, str]:
        row = await self._store.get(run)
        plan = plan_of(row)
        old = plan.channel(channel)
        if old is None:
            raise NotFound("channel_not_found", f"Run {run} has no channel {channel!r}.")
        self._site.roster.get(old.agent)
        inputs = tuple(f"{run}/{i}" if "/" not in i else i for i in (*old.waits_for, *old.inputs))
        spec = spec_of(old).model_dump(exclude={"id", "depends_on", "when", "inputs", "model"})
        again = PlannedChannel(
            **spec, id=lane(old.id), model=model or old.model, inputs=tuple(dict.fromkeys(inputs)),
            asked=old.asked,
        )  # fmt: skip
        before = plan.history_before or run
        new = plan.model_copy(
            update={"channels": (again,), "history_before": before, "on_disconnect": "continue"}
        )
        started = await self._launch(new, row.owner, row.thread, row.title, dict(row.metadata), limits)
        return started.row.run, again.id

    async def steer(self, run: str, channel: str, request: SteerRequest) -> str:
        """See `Engine.steer`."""
        command = Steer(channel=channel, message_id=new_id("m"), content=request.content, mode=request.mode)
        await self._send(run, command)
        return command.message_id

    async def answer(self, run: str, call_id: str, answer: ApprovalAnswer, by: str) -> dict[str, Any]:
        """See `Engine.answer`."""
        if answer.decision == "edit" and answer.arguments is None:
            raise BadRequest("arguments_missing", "Send the edited `arguments` with decision `edit`.")
        channel = await self._send(run, Answer(call_id=call_id, answer=answer, by=by))
        return {"run": run, "channel": channel, "call_id": call_id, "decision": answer.decision, "by": by}

    # --- viewers --------------------------------------------------------------------------------------------

    def viewer_joined(self, run: str) -> None:
        """A viewer opened a stream here."""
        self._viewers[run] += 1
        self._tasks.spawn(self._say(run, 0.0))
        if run not in self._saying:
            self._saying[run] = self._tasks.spawn(self._keep_saying(run))

    def viewer_left(self, run: str, *, sent_away: bool) -> None:
        """The viewer is gone, however it went."""
        self._viewers[run] -= 1
        if self._viewers[run] <= 0:
            del self._viewers[run]
            if (saying := self._saying.pop(run, None)) is not None:
                saying.cancel()
        self._tasks.spawn(self._say(run, self._site.times.come_back if sent_away else 0.0))

    async def _keep_saying(self, run: str) -> None:
        more = True
        while more:
            await asyncio.sleep(self._site.times.say_every)
            more = await self._say(run, 0.0)

    async def _say(self, run: str, back_s: float) -> bool:
        """Tell the run's worker how many viewers it has here; whether it wants to know."""
        watched = Watched(front=self._site.name, viewers=self._viewers[run], back_s=back_s)
        if (drive := self._worker.drive(run)) is not None:
            drive.presence.watched(watched.front, watched.viewers, back_s)
            return True
        try:
            row = await self._store.get(run)
            if row.status in FINAL or row.request.get("on_disconnect", "continue") == "continue":
                return False
            if await self._store.queue.position(run) is not None:
                if not watched.viewers:
                    self._tasks.spawn(self._cancel_unwatched(row, back_s))
            else:
                await self._store.commands.send(
                    run, new_id("c"), encode(watched), timeout_s=self._site.times.answer
                )
        except NotFound:
            return False
        except MuxError as e:
            self._site.log.debug("viewers not told", run=run, code=e.code)
        return True

    async def _cancel_unwatched(self, row: RunRow, back_s: float) -> None:
        """The last viewer of a run that waits for a place is gone: the grace runs here."""
        try:
            policy = plan_of(row).on_disconnect
        except Conflict:
            return
        await asyncio.sleep(max(back_s, policy.grace_s if isinstance(policy, Grace) else 0.0))
        if row.run not in self._viewers:
            await self.cancel(row.run, "now")


def _check_digest(known: str, digest: str) -> None:
    if known != digest:
        raise Conflict("idempotency_conflict", "This idempotency key was used with another request.")

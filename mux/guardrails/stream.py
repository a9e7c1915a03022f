"""The guarded stream: an agent's drafts on their way to the log.

Text waits in a lane until every rule has decided it. What follows waits behind it, so that the order on the
channel is kept; an end of the step, of the call or of the stream decides all text before it. Where text of
one kind is undecided and other drafts keep coming (reasoning that ended in half a word, then the answer),
they wait for at most ``_PATIENCE`` drafts and then overtake it. Undecided text itself is never passed on: it
follows when it is decided, with more text of its kind or at the end of its step.

Text that comes together is decided by one search for all of it, as long as that finds nothing; where it finds
something, the text is looked at again in the pieces that it came in, so that the same is shown.

Pieces of tool arguments and streamed output wait in lanes of their own, behind which nothing else waits.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeAlias, cast

from mux.agent import Draft, Nested, Outcome, Said
from mux.events import (
    ApprovalRequested,
    ApprovalResolved,
    Body,
    GuardrailHit,
    MessageApplied,
    MessageReceived,
    MessageReturned,
    Phase,
    Reasoning,
    Refusal,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
)
from mux.guardrails.compiled import Rule, Stage
from mux.guardrails.failure import clean_failure
from mux.guardrails.held import Call, Path, Segment, TextBody, at, blocked_result, cut, is_of
from mux.guardrails.judge import Judge
from mux.guardrails.lane import Lane, clean_text, clean_value
from mux.guardrails.scan import Blocked, Carried

__all__ = ["GuardedStream"]

_PATIENCE = 24  # drafts that wait behind undecided text of another kind, about half a second of a model
_OUR_ID = re.compile(r"call_[0-9a-f]{15}")  # chance may make it look like a card number
_CLOSE_S = 5.0  # for an agent to close after a block

_DELTAS = (Token, Reasoning, Refusal)
_Key: TypeAlias = tuple[Path, type[TextBody]]
# Bodies without a word of agent or model (steering carries what the user wrote).
_OURS: tuple[type[Body], ...] = (StepReset, Phase, MessageReceived, MessageApplied, MessageReturned)
_IDS = ("type", "call_id")  # ids are looked at once, when they first come
_CALL_VALUES = (ToolStart, ApprovalRequested, ApprovalResolved)


class GuardedStream(Generic[Said]):
    """Passes one agent's drafts on; see the module's preface.

    Args:
        guard: the rules, their log and their refusal.
        drafts: the agent's drafts; texts that are ready together may come as one list. Closed on every
            way out.
    """

    def __init__(self, guard: Judge, drafts: AsyncIterator[Said]) -> None:
        self._guard = guard
        self._drafts = drafts
        self._output = guard.for_stages("output")
        self._tool_input = guard.for_stages("output", "tool_input")
        self._tool_output = guard.for_stages("output", "tool_output")
        self._lanes: dict[_Key, Lane] = {}
        self._carried: dict[_Key, list[Carried]] = {}  # undecided at the end of the step before
        self._calls: dict[str, Call] = {}
        self._queue: deque[Draft | Segment] = deque()
        self._waiting = 0  # drafts that came while the head of the queue was undecided text
        self._open: dict[str, tuple[Path, str]] = {}  # calls that were shown and have no result yet

    async def run(self) -> AsyncIterator[Said | Draft]:
        """The guarded drafts; texts that came together and may go on together are a list of the same kind."""
        block: Blocked | None = None
        failure: Exception | None = None
        try:
            try:
                async for said in self._drafts:
                    together = said if isinstance(said, list) else [said]
                    ready = self._at_once(together)
                    if ready is not None and len(ready) > 1 and type(ready[0]) is str:
                        yield cast("Said", type(together)(cast("list[Any]", ready)))
                        continue
                    for passed in ready or ():
                        yield passed
                    for draft in together if ready is None else ():
                        for passed in await self._accept(draft):
                            yield passed
                for passed in await self._end_texts(None):
                    yield passed
            except Blocked as e:
                block = e
            except Exception as e:  # noqa: BLE001 - raised again below, without forbidden words
                failure = e
            # held text is never shown after a failure; after an orderly end nothing is left
            for passed in await self._refuse(block) if block is not None else self._without_text():
                yield passed
            if failure is not None:
                raise await clean_failure(failure, self._forbids)
        finally:
            await self._close()

    # --- text that is decided by a glance -------------------------------------------------------------------

    def _at_once(self, drafts: list[Any]) -> list[Draft] | None:
        """Text of the channel itself that came together, with one search for all of it (a draft at a time is
        `_accept`'s way, which takes six times as long). ``None``: it has to go there, draft by draft.
        """
        said = type(drafts[0])
        if said is not str and said is not Token and said is not Reasoning:
            return None
        kind = Token if said is str else said
        lane, queue = self._lanes.get(((), kind)), self._queue
        if lane is None or (queue and not (len(queue) == 1 and is_of(queue[0], lane))):
            return None  # something else waits before it
        texts = drafts if said is str else [draft.content for draft in drafts]
        held = lane.end - lane.start
        if not lane.advance("".join(texts)):
            return None
        text, _ = lane.take()
        queue.clear()
        if lane.start < lane.end:
            queue.append(Segment(kind, (), lane, lane.end))
        elif not held:
            return [draft for draft, text in zip(drafts, texts, strict=True) if text]
        pieces = (piece for piece in cut(text, held, texts) if piece)
        return [*pieces] if said is str else [kind.of(piece) for piece in pieces]

    # --- one draft -----------------------------------------------------------------------------------------

    async def _accept(self, draft: Draft) -> list[Draft]:
        if isinstance(draft, Outcome):
            passed = await self._end_texts(None)
            return [*passed, *await self._outcome(draft)]
        if isinstance(draft, str):
            draft = Token.of(draft)
        path, body = (draft.path, draft.body) if isinstance(draft, Nested) else ((), draft)
        if isinstance(body, _DELTAS):
            return await self._delta(path, body)
        if isinstance(body, StepReset):
            return self._reset(path, draft)
        passed = []
        if isinstance(body, StepFinished | StepStarted | ToolStart | ApprovalRequested):
            passed = await self._end_texts(path)  # a tool never starts before its step has ended upstream
        await self._other(path, body, draft)
        if isinstance(body, ToolStart | ApprovalRequested):
            self._waiting = _PATIENCE  # agents wait until these are in the log: never behind others' text
        return [*passed, *await self._drain()]

    async def _delta(self, path: Path, body: TextBody) -> list[Draft]:
        kind = type(body)
        lane = self._lanes.get((path, kind))
        if lane is None:
            lane = Lane(self._output, carried=self._carried.get((path, kind), ()))
            self._lanes[path, kind] = lane
        await lane.push(body.content)
        last = self._queue[-1] if self._queue else None
        if isinstance(last, Segment) and last.lane is lane:
            last.end = lane.end
        else:
            self._queue.append(Segment(kind, path, lane, lane.end))
        return await self._drain()

    async def _other(self, path: Path, body: Body, draft: Draft) -> None:
        """Queue a draft that is no delta of text, cleaned."""
        if isinstance(body, ToolCall):
            await self._call(path, body.call_id)
            await self._cleaned(path, body, self._output, "output")
        elif isinstance(body, ToolArgs):
            await self._arguments(path, body)
        elif isinstance(body, _CALL_VALUES):
            await self._call(path, body.call_id)
            await self._end_arguments(body.call_id)
            await self._cleaned(path, body, self._tool_input, "tool_input")
        elif isinstance(body, ToolProgress):
            await self._progress(path, body)
        elif isinstance(body, ToolResult):
            await self._result(path, body)
        elif isinstance(body, _OURS):
            self._queue.append(draft)
        else:
            await self._cleaned(path, body, self._output, "output")

    async def _cleaned(self, path: Path, body: Body, rules: tuple[Rule, ...], stage: Stage) -> None:
        """Queue a body with every string in it checked as a whole."""
        values = {k: v for k, v in body.model_dump(exclude_none=True).items() if k not in _IDS}
        cleaned, fired = await clean_value(values, rules)
        if fired:
            self._queue.extend(at(path, hit) for hit in self._hits(fired, stage))
            body = body.model_copy(update=cast("dict[str, Any]", cleaned))
        self._queue.append(at(path, body))

    def _hits(self, fired: list[Rule], stage: Stage) -> list[GuardrailHit]:
        """Events for masked rules: at ``output`` where the rule holds there, else at ``stage``."""
        return [
            hit
            for rule in fired
            for hit in self._guard.masked([rule], "output" if "output" in rule.stages else stage)
        ]

    # --- tool calls ----------------------------------------------------------------------------------------

    async def _call(self, path: Path, call_id: str) -> Call:
        call = self._calls.get(call_id)
        if call is None:
            if not _OUR_ID.fullmatch(call_id):
                _, fired = await clean_text(call_id, self._output)
                if fired:  # an id can't be masked: others refer to it
                    raise Blocked(fired[0])
            call = Call(path, Lane(self._tool_input, is_json=True), Lane(self._tool_output))
            self._calls[call_id] = call
        return call

    async def _arguments(self, path: Path, body: ToolArgs, *, final: bool = False) -> None:
        lane = (await self._call(path, body.call_id)).arguments
        content = await self._lane_text(lane, body.content, "tool_input", path, final=final)
        if content:
            self._queue.append(at(path, body.model_copy(update={"content": content})))

    async def _end_arguments(self, call_id: str) -> None:
        call = self._calls.get(call_id)
        if call is not None:
            await self._arguments(call.path, ToolArgs(call_id=call_id, content=""), final=True)

    async def _progress(self, path: Path, body: ToolProgress) -> None:
        call = await self._call(path, body.call_id)
        call.last_progress = body
        content: str | None = None
        if body.content is not None:
            content = await self._lane_text(call.progress, body.content, "tool_output", path) or None
        await self._cleaned(path, body.model_copy(update={"content": None}), self._tool_output, "tool_output")
        if content is not None:
            last = self._queue.pop()
            cleaned = cast("ToolProgress", last.body if isinstance(last, Nested) else last)
            self._queue.append(at(path, cleaned.model_copy(update={"content": content})))

    async def _end_progress(self, call_id: str) -> None:
        call = self._calls.get(call_id)
        if call is None or call.last_progress is None:
            return
        content = await self._lane_text(call.progress, "", "tool_output", call.path, final=True)
        if content:
            rest = ToolProgress(call_id=call_id, elapsed_ms=call.last_progress.elapsed_ms, content=content)
            self._queue.append(at(call.path, rest))

    async def _lane_text(
        self, lane: Lane, text: str, stage: Stage, path: Path, *, final: bool = False
    ) -> str:
        """Add to a call's lane and take what is decided. A tool rule that blocks only silences the lane:
        the loop asks the guard about the whole value, and answers the model with a blocked result."""
        if lane.silenced:
            return ""
        try:
            await lane.push(text, final=final)
        except Blocked as e:
            if "output" in e.rule.stages:
                raise
            lane.silenced = True
            return ""
        content, fired = lane.take()
        self._queue.extend(at(path, hit) for hit in self._hits(fired, stage))
        return content

    async def _result(self, path: Path, body: ToolResult) -> None:
        await self._call(path, body.call_id)
        await self._end_arguments(body.call_id)
        await self._end_progress(body.call_id)
        self._calls.pop(body.call_id, None)
        try:
            await self._cleaned(path, body, self._tool_output, "tool_output")
        except Blocked as e:
            if "output" in e.rule.stages:
                raise
            self._guard.blocked(e, "tool_output")
            hit = GuardrailHit(rule=e.rule.name, stage="tool_output", action="blocked")
            self._queue.append(at(path, hit))
            self._queue.append(at(path, blocked_result(body.call_id, body.tool, body.elapsed_ms)))

    # --- the queue -----------------------------------------------------------------------------------------

    async def _drain(self) -> list[Draft]:
        """What can be passed on now, in order; undecided text stays in its lane when it is overtaken."""
        passed: list[Draft] = []
        overtaken = False
        while self._queue:
            head = self._queue[0]
            if isinstance(head, Segment):
                self._take(head, passed)
                if head.lane.start < head.end:
                    self._waiting += len(self._queue) > 1
                    overtaken = overtaken or self._waiting > _PATIENCE
                    if not overtaken:
                        break
            else:
                self._note(head)
                passed.append(head)
            self._queue.popleft()
            self._waiting = 0
        return passed

    def _take(self, segment: Segment, passed: list[Draft]) -> None:
        text, fired = segment.lane.take(segment.end)
        passed += [at(segment.path, hit) for hit in self._guard.masked(fired, "output")]
        if text:
            passed.append(at(segment.path, segment.kind(content=text)))

    def _note(self, draft: Draft) -> None:
        path, body = (draft.path, draft.body) if isinstance(draft, Nested) else ((), draft)
        if isinstance(body, ToolCall):
            self._open[body.call_id] = (path, body.tool)
        elif isinstance(body, ToolResult):
            self._open.pop(body.call_id, None)

    async def _end_texts(self, path: Path | None) -> list[Draft]:
        """A step of this path (``None``: everything) is over: decide all of its text."""
        for key, lane in list(self._lanes.items()):
            if path is None or key[0] == path:
                self._carried[key] = await lane.finish()
                # also for what was overtaken, which has no place in the queue any more
                self._queue.append(Segment(key[1], key[0], lane, lane.end))
                del self._lanes[key]
        for call_id, call in list(self._calls.items()):
            if path is None or call.path == path:
                await self._end_arguments(call_id)
        return await self._drain()

    def _reset(self, path: Path, draft: Draft) -> list[Draft]:
        """The step is done again: its undecided text was never shown and never will be."""
        for key in [k for k in self._lanes if k[0] == path]:
            del self._lanes[key]
        return [*self._without_text(), draft]

    def _without_text(self) -> list[Draft]:
        """The queue but for its text, which waits in its lane if it is still wanted."""
        kept = [d for d in self._queue if not isinstance(d, Segment)]
        self._queue.clear()
        self._waiting = 0
        for draft in kept:
            self._note(draft)
        return kept

    # --- the end -------------------------------------------------------------------------------------------

    async def _outcome(self, outcome: Outcome) -> list[Draft]:
        if outcome.output is None:
            return [outcome]
        output, fired = await clean_value(outcome.output, self._output)
        if not fired:
            return [outcome]
        hits = self._guard.masked(fired, "output")
        done = Outcome(outcome.status, str(output), outcome.usage, outcome.ttft_ms, outcome.tokens_per_s)
        return [*hits, done]

    async def _refuse(self, block: Blocked) -> list[Draft]:
        """Close what is open, then report (nothing that was held is shown)."""
        self._queue.clear()
        stage: Stage = "output" if "output" in block.rule.stages else "tool_input"
        self._guard.blocked(block, stage)
        await self._close()
        results = [at(path, blocked_result(call_id, tool)) for call_id, (path, tool) in self._open.items()]
        refusal = self._guard.refusal(block.rule)
        return [
            *results,
            GuardrailHit(rule=block.rule.name, stage=stage, action="blocked"),
            Refusal(content=refusal),
            Outcome("refused", refusal),
        ]

    async def _forbids(self, text: str) -> bool:
        try:
            _, fired = await clean_text(text, self._output)
        except Blocked as e:
            self._guard.blocked(e, "output")
            return True
        return bool(fired)

    async def _close(self) -> None:
        close = getattr(self._drafts, "aclose", None)
        if close is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await close()
        except Exception as e:  # noqa: BLE001 - how an agent takes its closing must not undo the refusal
            self._guard.log.warning("agent failed while closing", error=type(e).__name__)

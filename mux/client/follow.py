"""One logical stream over any number of connections: what `Run.events` stands on.

Pure reading: frames, cursor, proof of order, and the policy of coming back. What a server may do to a stream
and what the client does about it:

- it ends without a terminal frame, stays silent for two heartbeats, or refuses the connection: come back
  after a growing, jittered delay with the last id, until ``reconnect_s`` have passed in which no connection
  brought anything with an id: an event, or the heartbeat of a run in which nothing happens;
- ``stream_rotate``: come back at once; 204 or ``run_finished``: the end;
- a problem document: raise it; a seq that is not the next (under a channel filter, where seq keeps its gaps:
  a cseq that is not its channel's next): raise ``stream_broken``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Literal

import aiohttp

from mux.errors import BadRequest, Conflict, MuxError, NotFound, Overloaded, Unavailable
from mux.events import Event

__all__ = ["FIRST_DELAY_S", "LAST_DELAY_S", "Follower", "problem"]

FIRST_DELAY_S = 0.05
LAST_DELAY_S = 3.0
_SILENCE_S = 25.0  # two heartbeats and a half: a quiet connection is a dead one
_BY_STATUS: Mapping[int, type[MuxError]] = {
    400: BadRequest, 401: BadRequest, 403: BadRequest, 404: NotFound, 409: Conflict, 429: Overloaded,
    503: Unavailable,
}  # fmt: skip


class Follower:
    """One logical stream over any number of connections.

    Args:
        session: the client's connections.
        url: the stream's address.
        params: its query, without the position.
        after: the position to begin after.
        on_gap: what to do where the beginning was trimmed: ``raise`` or ``skip``.
        proves: what tells that nothing is missing: the run's seqs, the channels' (under a filter by channel),
            or only the order (under one by type).
        reconnect_s: seconds after which it gives up, from the loss of a connection that brought something.
    """

    def __init__(
        self,
        session: Callable[[], aiohttp.ClientSession],
        url: str,
        params: list[tuple[str, str]],
        after: str | int | None,
        on_gap: str,
        *,
        proves: Literal["seq", "cseq", "order"],
        reconnect_s: float,
    ) -> None:
        self.session = session
        self.url = url
        self.reconnect_s = reconnect_s
        self.params = params
        self.on_gap = on_gap
        self.proves = proves
        self.compact = ("compact", "1") in params
        self.position = None if after is None else str(after)
        self.seq = _seq_of(self.position)
        self.cseq: dict[str | None, int] = {}
        self.from_start = self.seq == 0
        self.finished = False
        self._heard = False  # the connection brought something

    async def events(self) -> AsyncGenerator[Event, None]:
        reconnect_s = self.reconnect_s
        delay, give_up = 0.0, time.monotonic() + reconnect_s
        while True:
            failure: Exception | None = None
            self._heard = False
            try:
                async with contextlib.aclosing(self._connection()) as connection:
                    async for event in connection:
                        yield event
                if self.finished:
                    return
            except (aiohttp.ClientError, ConnectionError, TimeoutError, Unavailable) as e:
                failure = e
            if self._heard:
                delay, give_up = 0.0, time.monotonic() + reconnect_s
            elif time.monotonic() > give_up:
                raise Unavailable(
                    "server_unreachable",
                    f"The stream {self.url} was lost and could not be resumed in {reconnect_s:g} s; "
                    f"continue later from {self.position or 'the beginning'}.",
                ) from failure
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects
            delay = min(max(delay * 2, FIRST_DELAY_S), LAST_DELAY_S)

    async def _connection(self) -> AsyncGenerator[Event, None]:
        headers = {"Accept": "text/event-stream"}
        params = list(self.params)
        if self.position is not None:
            if self.position.isdecimal():
                params.append(("after", self.position))
            else:
                headers["Last-Event-ID"] = self.position
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=_SILENCE_S)
        async with self.session().get(self.url, params=params, headers=headers, timeout=timeout) as response:
            if response.status == 204:
                self.finished = True
                return
            if response.status != 200:
                raise await problem(response)
            async for frame_id, data in _frames(response.content):
                obj = json.loads(data)
                self._heard = self._heard or frame_id is not None
                for event in self._accept(obj):
                    yield event
                if frame_id:  # only now: a batch counts when all of it was handed out
                    self.position = frame_id
                if self.finished:
                    return

    def _accept(self, obj: dict[str, Any]) -> list[Event]:
        kind = obj["type"]
        if kind == "batch":
            return [self._check(e) for e in obj["events"]]
        if "seq" in obj:
            return [self._check(obj)]
        if kind == "stream_gap":
            if self.on_gap == "raise":
                raise MuxError(
                    "history_trimmed",
                    f"The history of {self.url} begins at seq {obj['first']}; pass on_gap='skip' to read "
                    "what is left.",
                    status=409,
                )
            self.seq, self.from_start = obj["first"] - 1, False
            self.cseq.clear()
        elif kind == "stream_end":
            self.finished = bool(obj.get("final"))
        return []

    def _check(self, obj: dict[str, Any]) -> Event:
        """Prove that this is the next event. (A compacted window is proved by its id alone: inside it, merged
        events carry the seq of their last member.)"""
        event = Event.parse(obj)
        if not self.compact and (event.seq <= self.seq or self._skipped(event)):
            raise MuxError(
                "stream_broken",
                f"{self.url}: seq {event.seq} (cseq {event.cseq}) followed {self.seq}. "
                "This is a defect of the server.",
                status=502,
            )
        self.seq = max(self.seq, event.seq)
        self.cseq[event.channel] = event.cseq
        if event.type == "run_finished":
            self.finished = True
        return event

    def _skipped(self, event: Event) -> bool:
        """Whether an event is missing before this one, as far as the filter lets it be known."""
        if self.proves == "seq":
            return event.seq != self.seq + 1
        if self.proves == "order":
            return False
        before = self.cseq.get(event.channel, 0 if self.from_start else event.cseq - 1)
        return event.cseq != before + 1


def _seq_of(position: str | None) -> int:
    if position is None:
        return 0
    tail = position.rsplit(".", 1)[-1]
    return int(tail) if tail.isdecimal() else 0


async def _frames(content: aiohttp.StreamReader) -> AsyncGenerator[tuple[str | None, bytes], None]:
    """SSE frames as (id, data). Our server frames with LF only, so a frame ends at an empty line."""
    frame_id: str | None = None
    data: list[bytes] = []
    tail = b""
    async for chunk in content.iter_any():
        lines = (tail + chunk).split(b"\n")
        tail = lines.pop()
        for line in lines:
            if not line:
                if data:
                    yield frame_id, b"\n".join(data)
                frame_id, data = None, []
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"id:"):
                frame_id = line[3:].strip().decode()


async def problem(response: aiohttp.ClientResponse) -> MuxError:
    """The server's problem document as the error that it describes."""
    try:
        told = json.loads(await response.read())
    except ValueError:
        told = None
    problem = told if isinstance(told, dict) else {}  # a proxy may say anything
    status = response.status
    retry_after = response.headers.get("Retry-After", "")
    return _BY_STATUS.get(status, MuxError)(
        str(problem.get("code", f"http_{status}")),
        str(problem.get("detail") or problem.get("title") or f"The server answered {status}."),
        status=status,
        retry_after=float(retry_after) if retry_after.isdecimal() else None,
        extra={k: v for k, v in problem.items() if k not in ("code", "detail", "title", "status", "type")},
    )

"""The Python client: start runs, follow them through disconnects and restarts, control them.

    async with mux.MuxClient() as client:
        run = await client.start("Which is larger, 7919 or 104729?", agents=["analyst", "critic"])
        async for event in run.events():
            if event.type == "token":
                print(event.channel, event.body.content)

Every stream resumes by itself: the client remembers the last event that it handed out, reconnects with that
cursor, and proves with ``seq`` (or ``cseq`` under a channel filter) that nothing was lost or doubled.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp

from mux.client.follow import FIRST_DELAY_S, LAST_DELAY_S, Follower, problem
from mux.errors import BadRequest, MuxError, Unavailable
from mux.events import Event, Token
from mux.run import RunState

__all__ = ["MuxClient", "Run"]

DEFAULT_URL = "http://127.0.0.1:8765"


class MuxClient:
    """A connection to a Mux server.

    Args:
        url: the server's address; default ``MUX_URL``, else ``http://127.0.0.1:8765``.
        key: an API key, for servers that ask for one; default ``MUX_KEY``.
        reconnect_s: how long a stream tries to come back after a connection was lost, in seconds, counted
            anew whenever one brought something; then the last error is raised.
        timeout_s: deadline of a single request that is no stream, in seconds.

    Raises:
        BadRequest: ``url_invalid``.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        reconnect_s: float = 60.0,
        timeout_s: float = 30.0,
    ) -> None:
        self.url = _address(url or os.environ.get("MUX_URL") or DEFAULT_URL)
        self.reconnect_s = reconnect_s
        self.timeout_s = timeout_s
        self._key = key or os.environ.get("MUX_KEY")
        self._http: aiohttp.ClientSession | None = None
        self._met = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; runs go on without us."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    # --- starting and finding runs ---------------------------------------------------------------------

    async def start(
        self,
        message: str | None = None,
        *,
        agents: Sequence[str] | None = None,
        channels: Sequence[Mapping[str, Any]] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Run:
        """Start a run.

        Args:
            message: the task.
            agents: names from the roster; or
            channels: one mapping per channel, as ``POST /api/runs`` takes them (``agent``, ``tools``, …).
            idempotency_key: the same key with the same request gives the same run. One is made if none is
                given, so that a request repeated after a lost connection starts no second run.
            options: further members of the request (``thread``, ``messages``, ``max_parallel``, …).

        Raises:
            MuxError: what the server answered, with its code; nothing was started.
        """
        body = {"message": message, "agents": agents, "channels": channels, **options}
        body = {k: list(v) if k in ("agents", "channels") else v for k, v in body.items() if v is not None}
        key = idempotency_key or f"{time.time_ns():x}{random.getrandbits(64):016x}"
        answer = await self.repeatable("POST", "/api/runs", json=body, headers={"Idempotency-Key": key})
        return Run(self, answer["run"], answer)

    def run(self, run: str) -> Run:
        """A handle on a run that exists already; nothing is sent."""
        return Run(self, run)

    async def runs(self, **filters: Any) -> dict[str, Any]:
        """One page of the list: ``{"runs": […], "next"?: …}``; filters as ``GET /api/runs`` takes them."""
        page: dict[str, Any] = await self.request(
            "GET", "/api/runs", params={k: str(v) for k, v in filters.items()}
        )
        return page

    async def agents(self) -> list[dict[str, Any]]:
        """The roster."""
        agents: list[dict[str, Any]] = (await self.request("GET", "/api/agents"))["agents"]
        return agents

    async def models(self) -> list[dict[str, Any]]:
        """Models that the configured endpoints offer."""
        models: list[dict[str, Any]] = (await self.request("GET", "/api/models"))["models"]
        return models

    # --- requests --------------------------------------------------------------------------------------

    async def request(self, method: str, path: str, **options: Any) -> Any:
        """One request; its JSON answer. A GET is repeated while the server can't be reached.

        Raises:
            MuxError: the server's problem document as an error, or ``server_unreachable``: at once if the
                server was never reached, else when it stayed away.
        """
        return await (self.repeatable if method == "GET" else self._once)(method, path, **options)

    async def _once(self, method: str, path: str, **options: Any) -> Any:
        try:
            async with self.session().request(
                method, self.url + path, timeout=aiohttp.ClientTimeout(total=self.timeout_s), **options
            ) as response:
                self._met = True
                if response.status >= 400:
                    raise await problem(response)
                return await response.json() if response.status != 204 else None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as e:
            raise Unavailable(
                "server_unreachable", f"No Mux server answers at {self.url}; start one with: mux serve"
            ) from e
        except aiohttp.ContentTypeError as e:
            raise MuxError("server_foreign", f"What answers at {self.url} is no Mux server.") from e

    async def repeatable(self, method: str, path: str, **options: Any) -> Any:
        """A request that is safe to repeat, repeated while the server can't be reached."""
        give_up = time.monotonic() + min(self.reconnect_s, self.timeout_s)
        delay = FIRST_DELAY_S
        while True:
            try:
                return await self._once(method, path, **options)
            except Unavailable:
                if not self._met or time.monotonic() + delay > give_up:
                    raise
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_DELAY_S)

    def session(self) -> aiohttp.ClientSession:
        """The connection pool, opened with the first request."""
        if self._http is None or self._http.closed:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._http = aiohttp.ClientSession(
                headers=headers, read_bufsize=1 << 20, auto_decompress=True, raise_for_status=False
            )
        return self._http


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise BadRequest("url_invalid", f"{url!r} is no address of a server: write it as {DEFAULT_URL}")
    return url.rstrip("/")


@dataclass(slots=True)
class Run:
    """A handle on one run.

    Attributes:
        id: the run's id.
        info: what the server answered when it was started (``thread``, ``channels``, …).
    """

    client: MuxClient
    id: str
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/api/runs/{self.id}"

    def events(
        self,
        *,
        after: str | int | None = None,
        channels: Sequence[str] = (),
        types: Sequence[str] = (),
        compact: bool = False,
        until_channels: bool = False,
        observe: bool = False,
        on_gap: Literal["raise", "skip"] = "raise",
    ) -> AsyncIterator[Event]:
        """Follow the run from its beginning, or from a cursor, to its end.

        Args:
            after: a cursor (an SSE ``id``) or a seq; what comes after it is delivered.
            channels, types: filters; run events always pass; types may be globs (``tool_*``).
            compact: let the server merge runs of deltas that lie close in time (text is identical).
            until_channels: end when every channel of the filter is done.
            observe: do not count as a viewer of the run's disconnect policy.
            on_gap: what to do when the server has already trimmed what was asked for.

        Yields:
            events in order, each exactly once, through any number of reconnects.

        Raises:
            MuxError: ``history_trimmed`` (a gap), ``stream_broken`` (the server skipped or repeated an
                event: a defect), ``server_unreachable`` after ``reconnect_s``, or what the server answered.
        """
        params = [("channel", c) for c in channels] + [("type", t) for t in types]
        params += [("compact", "1")] if compact else []
        params += [("until", "channels")] if until_channels else []
        params += [("observe", "1")] if observe else []
        proves: Literal["seq", "cseq", "order"] = "order" if types else "cseq" if channels else "seq"
        client = self.client
        return Follower(
            client.session,
            f"{client.url}{self.path}/events",
            params,
            after,
            on_gap,
            proves=proves,
            reconnect_s=client.reconnect_s,
        ).events()

    async def channel(self, channel: str, **options: Any) -> AsyncIterator[Event]:
        """Follow one channel to its end: its events only."""
        async for event in self.events(channels=[channel], until_channels=True, **options):
            if event.channel == channel:
                yield event

    async def text(self, channel: str) -> AsyncIterator[str]:
        """The channel's answer as it is written.

        A step that was done again (``step_reset``) is said again from its beginning: where that matters, use
        `follow`, whose state takes it back.
        """
        async for event in self.channel(channel, types=["token", "done"]):
            if isinstance(event.body, Token):
                yield event.body.content

    async def snapshot(self) -> dict[str, Any]:
        """States, texts, tool calls, usage and metrics as they stand, from the server."""
        snapshot: dict[str, Any] = await self.client.request("GET", self.path)
        return snapshot

    async def follow(self, *, observe: bool = False) -> AsyncIterator[tuple[Event, RunState]]:
        """Follow the run and fold it on the way: each event with the state after it (one object, updated).

        Folding needs every event, so there is no filter and no compaction here.
        """
        state = RunState(self.id)
        async for event in self.events(observe=observe):
            state.apply(event)
            yield event, state

    async def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait until the run is finished; its final snapshot.

        Raises:
            TimeoutError: it was not finished in ``timeout_s`` seconds. The run goes on.
        """
        async with asyncio.timeout(timeout_s):
            async for _ in self.events(types=["run_finished"], observe=True):
                pass
            return await self.snapshot()

    # --- control ---------------------------------------------------------------------------------------

    async def cancel(self, channel: str | None = None, *, mode: str = "now") -> None:
        """Stop the run, or one channel; ``graceful`` lets the running step end."""
        where = f"{self.path}/channels/{channel}" if channel else self.path
        await self.client.repeatable("POST", f"{where}/cancel", json={"mode": mode})

    async def steer(self, channel: str, content: str, *, mode: str = "steer") -> str:
        """Send a message to a running channel; returns its ``message_id``."""
        answer = await self.client.request(
            "POST", f"{self.path}/channels/{channel}/messages", json={"content": content, "mode": mode}
        )
        return str(answer["message_id"])

    async def add_channel(self, agent: str, **options: Any) -> str:
        """Add a channel to the running run; returns its id."""
        answer = await self.client.request("POST", f"{self.path}/channels", json={"agent": agent, **options})
        return str(answer["channel"])

    async def retry(self, channel: str, *, model: str | None = None) -> tuple[Run, str]:
        """Do a channel again; returns the run (a new one if this is finished) and the new channel's id."""
        answer = await self.client.request(
            "POST", f"{self.path}/channels/{channel}/retry", json={"model": model} if model else {}
        )
        run = self if answer["run"] == self.id else Run(self.client, answer["run"], answer)
        return run, str(answer["channel"])

    async def approve(
        self,
        call_id: str,
        decision: str = "approve",
        *,
        arguments: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> None:
        """Answer an ``approval_requested``: ``approve``, ``deny``, or ``edit`` with new arguments."""
        body = {"decision": decision, "arguments": arguments, "reason": reason}
        await self.client.request(
            "POST",
            f"{self.path}/approvals/{call_id}",
            json={k: v for k, v in body.items() if v is not None},
        )

    async def update(self, **changes: Any) -> dict[str, Any]:
        """Change ``title``, ``starred`` or ``metadata``."""
        answer: dict[str, Any] = await self.client.request("PATCH", self.path, json=changes)
        return answer

    async def delete(self) -> None:
        """Forget the run."""
        await self.client.request("DELETE", self.path)

"""A small server that speaks the dashboard's part of the HTTP API with scripted agents.

Deterministic where the real service is not: every lane state on demand, refused requests, cut connections,
a log without its beginning. It serves ``static/`` under the strict content security policy and records the
reports.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import web

STATIC = Path(__file__).resolve().parents[2] / "static"
WINDOW_S = 0.05
MERGED = {
    "token": None,
    "reasoning": None,
    "refusal": None,
    "tool_args": "call_id",
    "tool_progress": "call_id",
}

Json: TypeAlias = dict[str, Any]
Script: TypeAlias = Callable[["Lane"], Awaitable[None]]


class Stopped(Exception):
    """The lane was cancelled."""


@dataclass
class Lane:
    """One channel while its script runs: what scripts talk to."""

    run: FakeRun
    id: str
    spec: Json
    status: str = "queued"
    cseq: int = 0
    step: int = 0
    calls: int = 0
    inbox: asyncio.Queue[Json] = field(default_factory=asyncio.Queue)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    origin: Json = field(default_factory=dict)
    started: float = 0.0
    tokens: int = 0

    @property
    def message(self) -> str:
        return str(self.spec.get("message") or self.run.message)

    def emit(self, type_: str, path: list[str] | None = None, **fields: Any) -> None:
        self.run.append(type_, self, path=path, **fields)

    async def pause(self, seconds: float) -> None:
        """Wait, or end at once when the lane is stopped."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)
        if self.stop.is_set():
            raise Stopped

    def begin(self, model: str | None = None) -> None:
        self.step += 1
        self.emit("step_started", step=self.step, model=model or self.spec.get("model") or "fake-1")

    def end(self, reason: str = "stop", **usage: Any) -> None:
        self.emit("step_finished", step=self.step, finish_reason=reason)
        if usage:
            self.emit("usage", step=self.step, **usage)

    async def say(
        self,
        text: str,
        *,
        kind: str = "token",
        rate: float = 200.0,
        size: int = 4,
        path: list[str] | None = None,
    ) -> None:
        """Stream a text in pieces of ``size`` characters, ``rate`` pieces a second."""
        due = asyncio.get_running_loop().time()
        for start in range(0, len(text), size):
            self.emit(kind, content=text[start : start + size], path=path)
            self.tokens += 1
            due += 1 / rate
            wait = due - asyncio.get_running_loop().time()
            if wait > 0.002:
                await self.pause(wait)
            elif start % (size * 64) == 0:
                await self.pause(0)

    async def call(
        self, tool: str, arguments: Json, *, path: list[str] | None = None, pause: float = 0.0
    ) -> str:
        """Write a call's arguments piece by piece; returns its id."""
        self.calls += 1
        call_id = f"{self.id}-c{self.calls}"
        self.emit("tool_call", call_id=call_id, tool=tool, path=path)
        text = json.dumps(arguments)
        for start in range(0, len(text), 6):
            self.emit("tool_args", call_id=call_id, content=text[start : start + 6], path=path)
            if pause:
                await self.pause(pause)
        return call_id

    def result(
        self, call_id: str, tool: str, output: str, *, path: list[str] | None = None, **more: Any
    ) -> None:
        fields = {"is_error": False, "elapsed_ms": 120, **more}
        self.emit("tool_result", call_id=call_id, tool=tool, output=output, path=path, **fields)


class FakeRun:
    """One run: its log, and whoever waits for more of it."""

    def __init__(self, server: FakeServer, body: Json) -> None:
        self.server = server
        self.id = f"r{next(server.ids):06d}{secrets.token_hex(2)}"
        self.thread = body.get("thread") or f"t{self.id}"
        self.message = body.get("message") or ""
        self.metadata: Json = body.get("metadata") or {}
        self.title: str | None = body.get("title")
        self.starred = False
        self.created = int(time.time() * 1000)
        self.events: list[Json] = []
        self.first = 0  # events before this index have been trimmed
        self.cseq = 0
        self.lanes: dict[str, Lane] = {}
        self.status = "running"
        self.changed = asyncio.Event()
        self.approvals: dict[str, asyncio.Future[Json]] = {}
        self.body = body

    def append(self, type_: str, lane: Lane | None, *, path: list[str] | None = None, **fields: Any) -> None:
        if lane:
            lane.cseq += 1
            cseq = lane.cseq
        else:
            self.cseq += 1
            cseq = self.cseq
        event = {
            "run": self.id, "seq": len(self.events) + 1, "channel": lane.id if lane else None, "cseq": cseq,
            "type": type_, "ts": int(time.time() * 1000), **({"path": path} if path else {}),
            **{k: v for k, v in fields.items() if v is not None},
        }  # fmt: skip
        self.events.append(event)
        self.wake()

    def wake(self) -> None:
        """Whoever waits looks again."""
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def finished(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "run_finished"

    def text(self, channel: str) -> str:
        return "".join(e["content"] for e in self.events if e["channel"] == channel and e["type"] == "token")

    def describe(self) -> Json:
        return {
            "run": self.id, "thread": self.thread, "status": self.status, "title": self.title,
            "starred": self.starred, "metadata": self.metadata, "created": self.created,
            "message": self.message, "usage": {},
            "cursor": f"{self.id}.1.{len(self.events)}",
            "channels": [
                {"id": lane.id, "agent": lane.spec["agent"], "model": lane.spec.get("model") or "fake-1",
                 "status": lane.status, "text": self.text(lane.id), "reasoning": "", "tools": [], "usage": {},
                 **lane.origin}
                for lane in self.lanes.values()
            ],
        }  # fmt: skip


def merge_window(events: list[Json]) -> list[Json]:
    """Deltas of one channel that follow each other become one event, as the service's compaction does."""
    out: list[Json] = []
    open_: dict[str, Json] = {}
    for event in events:
        channel = event["channel"] or ""
        last = open_.get(channel)
        key = MERGED.get(event["type"], "")
        if last and key != "" and same_run_of_deltas(last, event, key):
            joined = last.get("content", "") + event.get("content", "")
            merged = {**event, "from_cseq": last.get("from_cseq", last["cseq"])}
            if joined:
                merged["content"] = joined
            out[next(i for i, e in enumerate(out) if e is last)] = merged
            open_[channel] = merged
            continue
        out.append(event)
        if event["type"] in MERGED:
            open_[channel] = event
        else:
            open_.pop(channel, None)
    return sorted(out, key=lambda e: int(e["seq"]))


def same_run_of_deltas(last: Json, event: Json, key: str | None) -> bool:
    """Whether two deltas may become one: same type, same nesting, same call."""
    alike = last["type"] == event["type"] and last.get("path") == event.get("path")
    return bool(alike and (key is None or last[key] == event[key]))


class FakeServer:
    """The aiohttp application and what tests set on it."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.scripts: dict[str, Script] = {}
        self.agents: list[Json] = []
        self.version = "0.1.0"
        self.models = ["fake-1", "fake-2", "local:small"]
        self.prices: dict[str, Json] = {}
        self.hits: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str, Json | None]] = []
        self.reports: list[Json] = []
        self.streams = 0
        self.max_streams = 0
        self.offline = False
        self.heartbeat_s = 10.0
        self.idempotent: dict[str, str] = {}
        self.fail_next: list[tuple[int, str, str]] = []
        self.open: set[asyncio.Task[Any]] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.ids = iter(range(1, 1_000_000))
        self.app = self._build()

    def agent(self, name: str, script: Script, **facts: Any) -> None:
        """Add an agent to the roster."""
        self.scripts[name] = script
        self.agents = [a for a in self.agents if a["name"] != name]
        self.agents.append(
            {"name": name, "description": f"The {name}.", "model": "fake-1", "tools": [], **facts}
        )

    def cut(self) -> None:
        """Cut every open stream in the middle."""
        for task in list(self.open):
            task.cancel()

    async def drained(self) -> None:
        """Stop every script and stream that is still going on."""
        tasks = [*self.tasks, *self.open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _build(self) -> web.Application:
        app = web.Application(middlewares=[self._gate])
        add = app.router.add_route
        add("GET", "/", self._index)
        add("POST", "/csp", self._csp)
        add("GET", "/{path:(js|css|vendor|i18n)/.*|icon.svg}", self._static)
        add("GET", "/healthz", self._health)
        add("GET", "/api/session", self._session)
        add("GET", "/api/agents", self._agents)
        add("GET", "/api/models", self._models)
        add("POST", "/api/runs", self._start)
        add("GET", "/api/runs", self._list)
        add("GET", "/api/events", self._many)
        add("GET", "/api/runs/{run}", self._snapshot)
        add("PATCH", "/api/runs/{run}", self._patch)
        add("DELETE", "/api/runs/{run}", self._delete)
        add("GET", "/api/runs/{run}/events", self._events)
        add("POST", "/api/runs/{run}/cancel", self._cancel)
        add("POST", "/api/runs/{run}/channels", self._add)
        add("POST", "/api/runs/{run}/channels/{channel}/cancel", self._cancel_channel)
        add("POST", "/api/runs/{run}/channels/{channel}/retry", self._retry)
        add("POST", "/api/runs/{run}/channels/{channel}/messages", self._steer)
        add("POST", "/api/runs/{run}/approvals/{call}", self._approve)
        return app

    # --- requests ---------------------------------------------------------------------------------------

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        api = request.path.startswith("/api")
        if api and self.offline:
            assert request.transport is not None
            request.transport.close()
            raise web.HTTPServiceUnavailable
        if api and request.method != "GET":
            body = json.loads(await request.text() or "null")
            self.requests.append((request.method, request.path, body))
            if self.fail_next:
                return problem(*self.fail_next.pop(0))
        try:
            return await handler(request)
        except KeyError:
            return problem(404, "run_unknown", "There is no such run.")

    async def _index(self, _: web.Request) -> web.Response:
        page = (STATIC / "index.html").read_text(encoding="utf-8")
        scripts = re.findall(r"<script type=\"importmap\">(.*?)</script>", page, re.S)
        digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
        hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
        policy = (
            f"default-src 'none'; script-src 'self' {hashes}; font-src 'self'; style-src 'self'; "
            "connect-src 'self'; img-src 'self' data:; require-trusted-types-for 'script'; "
            "trusted-types 'none'; frame-ancestors 'none'; report-uri /csp"
        )
        return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _csp(self, request: web.Request) -> web.Response:
        self.reports.append(json.loads(await request.text()))
        return web.Response(status=204)

    async def _static(self, request: web.Request) -> web.StreamResponse:
        path = (STATIC / request.match_info["path"]).resolve()
        if STATIC not in path.parents or not path.is_file():
            return web.Response(status=404)
        kind = {".js": "text/javascript", ".mjs": "text/javascript"}.get(path.suffix)
        return web.FileResponse(path, headers={"Content-Type": kind} if kind else None)

    async def _session(self, _: web.Request) -> web.Response:
        who = {"access": "off", "owner": "local", "scopes": ["admin"], "limits": {}, "login": False}
        return web.json_response(who)

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "version": self.version})

    async def _agents(self, _: web.Request) -> web.Response:
        return web.json_response({"agents": self.agents})

    async def _models(self, _: web.Request) -> web.Response:
        models = [
            {"id": i, "provider": i if i == "rehearsal" else "fake", "name": i, "available": True}
            for i in self.models
        ]
        priced = [m | ({"price": self.prices[m["name"]]} if m["name"] in self.prices else {}) for m in models]
        return web.json_response({"models": priced})

    async def _start(self, request: web.Request) -> web.Response:
        body = json.loads(await request.text())
        key = request.headers.get("Idempotency-Key", "")
        if key in self.idempotent:
            return web.json_response(self.runs[self.idempotent[key]].describe(), status=201)
        specs = body.get("channels") or [{"agent": name} for name in body.get("agents", [])]
        for spec in specs:
            if spec["agent"] not in self.scripts:
                return problem(404, "agent_unknown", f"There is no agent {spec['agent']!r}.")
        run = self.launch(body, specs)
        if key:
            self.idempotent[key] = run.id
        return web.json_response(run.describe(), status=201)

    def launch(self, body: Json, specs: list[Json]) -> FakeRun:
        """Start a run as the API would."""
        run = FakeRun(self, body)
        self.runs[run.id] = run
        seen: dict[str, int] = {}
        for spec in specs:
            seen[spec["agent"]] = seen.get(spec["agent"], 0) + 1
            name = spec.get("id") or (
                spec["agent"] if seen[spec["agent"]] == 1 else f"{spec['agent']}.{seen[spec['agent']]}"
            )
            run.lanes[name] = Lane(run, name, spec)
        infos = [channel_info(lane) for lane in run.lanes.values()]
        run.append(
            "run_started", None, thread=run.thread, channels=infos, message=run.message, metadata=run.metadata
        )
        limit = asyncio.Semaphore(body.get("max_parallel") or 1000)
        for lane in run.lanes.values():
            self._spawn(self._drive(lane, limit))
        return run

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _drive(self, lane: Lane, limit: asyncio.Semaphore | None = None) -> None:
        run = lane.run
        while (
            any(not done(run.lanes[d]) for d in lane.spec.get("depends_on") or []) and not lane.stop.is_set()
        ):
            await run.changed.wait()
        async with limit or asyncio.Semaphore():
            lane.status = "running"
            lane.started = time.time()
            lane.emit(
                "channel_started",
                agent=lane.spec["agent"],
                model=lane.spec.get("model") or "fake-1",
                attempt=1,
            )
            status, error = "completed", None
            try:
                if lane.stop.is_set():
                    raise Stopped
                await self.scripts[lane.spec["agent"]](lane)
            except Stopped:
                status = "cancelled"
                self._close_calls(lane)
            except ScriptedEnd as end:
                status, error = end.status, end.error
            if error:
                lane.emit("error", **error)
            ms = int((time.time() - lane.started) * 1000)
            lane.status = status
            lane.emit(
                "done",
                status=status,
                duration_ms=ms,
                ttft_ms=40 + len(lane.id),
                attempt=1,
                output=run.text(lane.id)[-2000:],
            )
        self._settle(run)

    def _close_calls(self, lane: Lane) -> None:
        events = [e for e in lane.run.events if e["channel"] == lane.id]
        ended = {e["call_id"] for e in events if e["type"] == "tool_result"}
        for event in [e for e in events if e["type"] == "tool_call" and e["call_id"] not in ended]:
            lane.result(
                event["call_id"], event["tool"], "", is_error=True, error="cancelled", path=event.get("path")
            )

    def _settle(self, run: FakeRun) -> None:
        if run.finished or not all(done(lane) for lane in run.lanes.values()):
            return
        states = {lane.id: lane.status for lane in run.lanes.values()}
        good = sum(s in ("completed", "refused") for s in states.values())
        cancelled = all(s == "cancelled" for s in states.values())
        run.status = (
            "completed"
            if good == len(states)
            else "cancelled"
            if cancelled
            else "partial"
            if good
            else "failed"
        )
        run.append(
            "run_finished",
            None,
            status=run.status,
            channels=states,
            duration_ms=int(time.time() * 1000) - run.created,
        )

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        rows = sorted(self.runs.values(), key=lambda r: r.id, reverse=True)
        if "thread" in query:
            rows = [r for r in rows if r.thread == query["thread"]]
        if "q" in query:
            rows = [r for r in rows if query["q"].lower() in (r.message + (r.title or "")).lower()]
        hits = self.hits if query.get("q") else {}
        found = [r.describe() | {"hits": hits.get(r.id, {})} for r in rows[: int(query.get("limit", 50))]]
        return web.json_response({"runs": found})

    async def _snapshot(self, request: web.Request) -> web.Response:
        return web.json_response(self.runs[request.match_info["run"]].describe())

    async def _patch(self, request: web.Request) -> web.Response:
        run = self.runs[request.match_info["run"]]
        for key, value in json.loads(await request.text()).items():
            setattr(run, key, value)
        return web.json_response(run.describe())

    async def _delete(self, request: web.Request) -> web.Response:
        del self.runs[request.match_info["run"]]
        return web.Response(status=204)

    async def _cancel(self, request: web.Request) -> web.Response:
        run = self.runs[request.match_info["run"]]
        for lane in run.lanes.values():
            lane.stop.set()
        run.wake()
        return web.json_response(run.describe(), status=202)

    async def _cancel_channel(self, request: web.Request) -> web.Response:
        run = self.runs[request.match_info["run"]]
        run.lanes[request.match_info["channel"]].stop.set()
        run.wake()
        return web.json_response(run.describe(), status=202)

    async def _add(self, request: web.Request) -> web.Response:
        run = self.runs[request.match_info["run"]]
        spec = json.loads(await request.text())
        if run.finished:
            return problem(409, "run_finished", "The run is over.")
        name = self._free(run, spec.get("id") or spec["agent"], ".")
        self.join(run, name, spec)
        return web.json_response({"run": run.id, "channel": name}, status=201)

    def join(self, run: FakeRun, name: str, spec: Json, **more: Any) -> Lane:
        """A further channel in a running run."""
        lane = run.lanes[name] = Lane(run, name, spec, origin=more)
        run.append("channel_added", None, **channel_info(lane), **more)
        self._spawn(self._drive(lane))
        return lane

    @staticmethod
    def _free(run: FakeRun, base: str, sign: str) -> str:
        names = [base, *(f"{base}{sign}{n}" for n in range(2, 100))]
        return next(name for name in names if name not in run.lanes)

    async def _retry(self, request: web.Request) -> web.Response:
        run, channel = self.runs[request.match_info["run"]], request.match_info["channel"]
        model = (json.loads(await request.text() or "{}") or {}).get("model")
        old = run.lanes[channel]
        spec = {**old.spec, "model": model or old.spec.get("model"), "depends_on": []}
        if run.finished:
            fresh = self.launch({"thread": run.thread, "message": run.message}, [{**spec, "id": channel}])
            return web.json_response({"run": fresh.id, "channel": channel}, status=201)
        name = self._free(run, channel.split("~")[0], "~")
        self.join(run, name, spec, retry_of=channel)
        return web.json_response({"run": run.id, "channel": name}, status=201)

    async def _steer(self, request: web.Request) -> web.Response:
        run, body = self.runs[request.match_info["run"]], json.loads(await request.text())
        lane = run.lanes[request.match_info["channel"]]
        message = {
            "message_id": secrets.token_hex(4),
            "content": body["content"],
            "mode": body.get("mode", "steer"),
        }
        lane.emit("message_received", **message)
        lane.inbox.put_nowait(message)
        return web.json_response({"message_id": message["message_id"]}, status=202)

    async def _approve(self, request: web.Request) -> web.Response:
        run, call = self.runs[request.match_info["run"]], request.match_info["call"]
        future = run.approvals.get(call)
        if future is None or future.done():
            return problem(409, "approval_resolved", "Somebody else has answered.")
        future.set_result(json.loads(await request.text()))
        return web.json_response({"call_id": call})

    # --- streams ----------------------------------------------------------------------------------------

    async def _many(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, [self.runs[r] for r in request.query["run"].split(",")])

    async def _events(self, request: web.Request) -> web.StreamResponse:
        run = self.runs[request.match_info["run"]]
        if "ndjson" in request.headers.get("Accept", ""):
            lines = "".join(json.dumps(e) + "\n" for e in run.events)
            return web.Response(text=lines, content_type="application/x-ndjson")
        return await self._stream(request, [run])

    async def _stream(self, request: web.Request, runs: list[FakeRun]) -> web.StreamResponse:
        at = {run.id: 0 for run in runs}
        for cursor in filter(None, request.query.get("after", "").split(",")):
            name, epoch, seq = cursor.split(".")
            if epoch != "1" or name not in at:
                return problem(409, "cursor_epoch", "This position is of another log.")
            at[name] = int(seq)
        if all(run.finished and at[run.id] >= len(run.events) for run in runs):
            return web.Response(status=204)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        self.streams += 1
        self.max_streams = max(self.max_streams, self.streams)
        try:
            async for frame in self._frames(runs, at):
                await response.write(frame)
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
            raise
        except ConnectionResetError:
            pass
        finally:
            self.open.discard(task)
            self.streams -= 1
        return response

    async def _frames(self, runs: list[FakeRun], at: dict[str, int]) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        for run in runs:
            if run.first > at[run.id]:
                yield control({"type": "stream_gap", "requested": at[run.id], "first": run.first + 1})
                at[run.id] = run.first
        live = False
        while True:
            fresh = {
                run.id: run.events[at[run.id] : at[run.id] + (100_000 if not live else 5000)] for run in runs
            }
            for run in runs:
                at[run.id] += len(fresh[run.id])
            events = [event for run in runs for event in merge_window(fresh[run.id])]
            cursor = ",".join(f"{run.id}.1.{at[run.id]}" for run in runs)
            if events:
                yield f"id: {cursor}\ndata: {json.dumps({'type': 'batch', 'events': events})}\n\n".encode()
            if not live:
                live = True
                yield control({"type": "stream_live"})
            if all(run.finished and at[run.id] >= len(run.events) for run in runs):
                yield control({"type": "stream_end", "status": runs[-1].status, "final": True})
                return
            if not await self._more(runs, at):
                yield f'id: {cursor}\ndata: {{"type": "heartbeat"}}\n\n'.encode()
            await asyncio.sleep(WINDOW_S)

    async def _more(self, runs: list[FakeRun], at: dict[str, int]) -> bool:
        if any(at[run.id] < len(run.events) for run in runs):
            return True
        waits = [asyncio.ensure_future(run.changed.wait()) for run in runs]
        finished, pending = await asyncio.wait(
            waits, timeout=self.heartbeat_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        return bool(finished)


class ScriptedEnd(Exception):
    """A script ends its lane otherwise than completed."""

    def __init__(self, status: str, error: Json | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.error = error


def done(lane: Lane) -> bool:
    return lane.status not in ("queued", "running", "waiting", "pending")


def channel_info(lane: Lane) -> Json:
    info = {"id": lane.id, "agent": lane.spec["agent"], "model": lane.spec.get("model") or "fake-1"}
    return info | {k: lane.spec[k] for k in ("title", "depends_on") if lane.spec.get(k)}


def problem(status: int, code: str, detail: str) -> web.Response:
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
    return web.json_response(body, status=status, content_type="application/problem+json")


def control(frame: Json) -> bytes:
    return f"data: {json.dumps(frame)}\n\n".encode()

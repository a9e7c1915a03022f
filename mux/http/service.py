"""The composition root: builds every part of the server, starts them in order, and stops them in reverse."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from mux._paths import bundled
from mux.agent import Agent, Guard
from mux.engine import Engine
from mux.errors import ConfigError, MuxError
from mux.events import Record
from mux.guardrails import Rules
from mux.http.access import Access, check_exposure, is_exposed
from mux.http.app import build_app
from mux.http.keys import Keys
from mux.http.owned import OwnersEngine
from mux.http.server import Runner
from mux.http.state import Api
from mux.llm.providers import Providers
from mux.llm.rehearsal import RehearsalModel
from mux.llm.setup import LlmRuntime
from mux.log import Head, Store, open_keys, open_store
from mux.metrics import Metrics
from mux.roster import Roster
from mux.run import TERMINAL
from mux.settings import Settings
from mux.telemetry import get_logger
from mux.tools.builtin import ToolResources
from mux.viewers import Hub

__all__ = ["Service", "check_roles", "load_roster"]

# Longer than any sane header or URL, so that an 8 KiB cursor is answered by us and not by the parser.
MAX_LINE = 64 * 1024
ROSTER_CHECK_S = 1.0  # how old the last look at the roster's files may be when a run starts
INSECURE = "warning: --insecure: whoever reaches this address may do everything, without a key"
CLOSE_S = 2.0  # how long open requests may take after the drain


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the settings alone make; nothing of it is open yet."""

    providers: Providers
    tools: ToolResources
    roster: Roster
    store: Store
    rules: Rules

    @classmethod
    def make(cls, settings: Settings) -> _Parts:
        base = settings.config_path.parent if settings.config_path else Path()
        rules = Rules.compile(settings.guardrails, base=base)
        return cls(
            *_agents(settings),
            open_store(settings.store, durability=settings.durability, lease_s=settings.limits.lease_s),
            rules,
        )

    async def aclose(self) -> None:
        await self.tools.aclose()
        await self.providers.aclose()
        await self.store.close()


class Service:
    """One server.

    Args:
        settings: everything that can be configured.
        shares_port: other processes listen on the same port.

    Attributes:
        url: the server's own address, without a slash at its end; empty before `start`.
    """

    def __init__(self, settings: Settings, *, shares_port: bool = False) -> None:
        self.settings = settings
        self._shares_port = shares_port
        self.url = ""
        self._parts: _Parts | None = None
        self._socket: socket.socket | None = None
        self._runner: Runner | None = None
        self._engine: Engine | None = None
        self._hub: Hub | None = None
        self._hurry = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._roster_checked = 0.0
        self._metrics = Metrics()

    @property
    def parts(self) -> _Parts:
        """What was made from the settings alone, once the service was started."""
        assert self._parts is not None, "start the service first"
        return self._parts

    @property
    def store(self) -> Store:
        """The log and the runs."""
        return self.parts.store

    @property
    def roster(self) -> Roster:
        """The agents."""
        return self.parts.roster

    @property
    def engine(self) -> Engine:
        """The engine, once it was started."""
        assert self._engine is not None, "start the service first"
        return self._engine

    @property
    def hub(self) -> Hub:
        """The viewers, once the service was started."""
        assert self._hub is not None, "start the service first"
        return self._hub

    # --- lifecycle ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind the port, open the store, take unfinished runs over, serve.

        Raises:
            ConfigError: the address may not be served, or an agent or rule can't be used.
            OSError: the port is taken; nothing was opened.
            StoreError: the store is locked (``extra["url"]`` names its server) or broken.
        """
        check_roles(self.settings)
        if is_exposed(self.settings) and not self.settings.insecure:
            async with open_keys(self.settings.store) as kept:
                check_exposure(self.settings, keys=await Keys(kept).any())
        self._socket = _listen(self.settings.host, self.settings.port, shared=self._shares_port)
        self.url = _url(self._socket) + self.settings.base_path
        self._parts = await asyncio.to_thread(_Parts.make, self.settings)  # reads and imports files
        await self.store.open(url=self.url)
        await asyncio.to_thread(self.roster.load)
        http, limits = self.settings.http, self.settings.limits
        self._keys = Keys(self.store.keys, fresh_s=min(1.0, http.heartbeat_s / 4))
        self._hub = Hub(
            self.store,
            describe=self._channels,
            max_viewers=limits.max_viewers,
            heartbeat_s=http.heartbeat_s,
            write_timeout_s=http.write_timeout_s,
            rotate_s=http.rotate_s,
        )
        self._engine = Engine(
            self.settings,
            self.store,
            self.roster,
            guard_for=self._guard,
            publish=self._publish,
            metrics=self._metrics,
            role=self.settings.role,
        )
        await self.parts.tools.start()
        self._metrics.start()
        await self._engine.start()
        await self._serve()
        get_logger().info("serving", url=self.url, store=self.store.info.url)

    async def _serve(self) -> None:
        api = Api(
            engine=OwnersEngine(self.engine),
            hub=self.hub,
            keys=self._keys,
            settings=self.settings,
            roster=self.roster,
            providers=self.parts.providers,
            checks=self._checks,
            refresh=self._refresh_roster,
            metrics=self._metrics,
        )
        access = Access(api)
        self._watch = asyncio.create_task(access.watch(self.hub, self.settings.http.heartbeat_s), name="keys")
        app = await asyncio.to_thread(build_app, api, access)  # lists the dashboard's folder
        self._runner = Runner(
            app,
            access_log=None,
            handler_cancellation=True,  # a viewer's leaving is noticed at once, not at its next heartbeat
            shutdown_timeout=CLOSE_S,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
        )
        await self._runner.setup()
        assert self._socket is not None
        await web.SockSite(self._runner, self._socket, backlog=2048).start()

    async def stop(self, *, grace_s: float) -> None:
        """Drain and close everything; a second call hurries the first.

        Args:
            grace_s: how long running runs may take to finish, in seconds; what is left then is taken over
                at the next start.
        """
        if grace_s <= 0 or self._stopping is not None:
            self._hurry.set()
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_s), name="stop")
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        self._metrics.stop()
        if self._watch is not None:
            self._watch.cancel()
        if self._hub is not None:
            self._hub.drain()
        if self._engine is not None:
            draining = asyncio.create_task(self._engine.drain(grace_s))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
            for task in (draining, hurry):
                task.cancel()
            await asyncio.gather(draining, hurry, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        elif self._socket is not None:
            self._socket.close()
        if self._engine is not None:
            await self._engine.close()
        if self._hub is not None:
            await self._hub.close()
        if self._parts is not None:
            await self._parts.aclose()
        get_logger().info("stopped")

    # --- what the parts need of each other ---------------------------------------------------------------

    def _publish(self, run: str, head: Head | None, records: Sequence[Record]) -> None:
        self._metrics.published(records)
        self.hub.publish(run, head, records)

    def _guard(self, agent: Agent, run: str, channel: str) -> Guard:
        rules = self.parts.rules.with_agent(getattr(agent, "guardrails", None) or ())
        log = get_logger(run=run, channel=channel)
        return rules.guard(run=run, channel=channel, log=log, refusal=self.settings.refusal)

    async def _channels(self, run: str) -> dict[str, bool]:
        snapshot = await self.engine.snapshot(run)
        return {c["id"]: c["status"] in TERMINAL for c in snapshot["channels"]}

    async def _refresh_roster(self) -> None:
        now = time.monotonic()
        if now - self._roster_checked >= ROSTER_CHECK_S:
            self._roster_checked = now
            await asyncio.to_thread(self.roster.refresh)

    async def _checks(self) -> Mapping[str, str]:
        """Whether the store answers and takes what is written."""
        try:
            async with asyncio.timeout(2.0):
                await self.store.check()
        except MuxError as e:
            return {"store": e.message}
        except TimeoutError:
            return {"store": "does not answer"}
        return {}

    def describe(self) -> list[str]:
        """What was loaded from where, as lines for a person."""
        info = self.store.info
        survives = {"no": "nothing survives a restart", "process": "survives a crash of the process"}
        kept = survives.get(info.durable, "survives a loss of power")
        lines = [
            f"agents: {', '.join(sorted(self.roster.agents)) or 'none'}",
            f"model: {self.settings.default_model()}",
            f"store: {info.url} ({kept}{'; ' + info.note if info.note else ''})",
        ]
        if self.settings.insecure:
            lines.append(INSECURE)
        lines += [f"not loaded: {problem.path}: {problem.reason}" for problem in self.roster.problems]
        lines += [f"warning: {warning}" for warning in (*self.roster.warnings, *self.parts.rules.warnings)]
        return lines


def check_roles(settings: Settings) -> None:
    """Refuse roles and processes that would have nothing to meet in.

    Raises:
        ConfigError: ``store_not_shared``.
    """
    alone = settings.store is None or settings.store.partition(":")[0] in ("memory", "sqlite")
    if alone and (settings.role != "all" or settings.processes > 1):
        raise ConfigError(
            "store_not_shared",
            "Several processes, or one with a role of its own, meet in a Redis store: add --store "
            "redis://HOST:PORT/DATABASE (pip install 'mux-agents[redis]').",
        )


def load_roster(settings: Settings) -> Roster:
    """The roster alone, loaded, without a server (``mux agents``, ``mux doctor``)."""
    roster = _agents(settings)[2]
    roster.load()
    return roster


def _agents(settings: Settings) -> tuple[Providers, ToolResources, Roster]:
    providers = Providers(settings)
    providers.register("rehearsal", RehearsalModel())
    tools = ToolResources(settings)
    runtime = LlmRuntime(providers, tools.toolbox, settings, servers=tools)
    dirs = [Path("agents"), *settings.agents]
    return providers, tools, Roster(dirs, runtime, builtin=bundled("agents"))


def _listen(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=2048, reuse_port=shared)
    sock.setblocking(False)
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

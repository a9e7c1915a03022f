"""The load generator: many connections on one epoll, nothing but counting.

Reads one JSON line with what to do from standard input, then commands: ``"go"`` (count from now on),
``"stop"`` (say what was counted), ``"finish"`` (say it when all connections have ended). Writes ``"ready"``
when every connection has got its first bytes. Imports nothing of Mux: its cost is not the server's.

Latency: an event whose content begins with ``@`` and the sender's monotonic clock in ns is timed when the
chunk that begins with it arrives (one clock for all processes of a machine).
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from typing import Any

_STAMP = re.compile(rb"@(\d{6,19})")
_END = b"\r\n0\r\n\r\n"


class _Connection:
    __slots__ = ("begun", "bytes", "events", "first_ms", "opened", "sock", "tail")

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.opened = time.monotonic()
        self.sock = socket.create_connection(address, timeout=30)
        self.sock.sendall(request)
        self.sock.setblocking(False)
        self.begun = False
        self.events = 0
        self.bytes = 0
        self.tail = b""
        self.first_ms: float | None = None


class Generator:
    """All connections of one load."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.address = (spec["host"], spec["port"])
        self.requests = [r.encode() for r in spec["requests"]]
        self.marker = spec.get("marker", '"type":"token"').encode()
        self.sequential = spec.get("sequential", False)
        self.enough: int | None = spec.get("enough")  # events of one connection; then it is closed
        # one for all: a fresh one for each read costs more than the read (mapped, and given back)
        self.buffer = memoryview(bytearray(262_144))
        self.epoll = select.epoll()
        self.open: dict[int, _Connection] = {}
        self.all: list[_Connection] = []
        self.latencies: list[float] = []
        self.waiting = len(self.requests)
        self.first: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Count from now on."""
        self.began, self.cpu = time.monotonic(), time.process_time()
        self.latencies.clear()
        for connection in self.all:
            connection.events = connection.bytes = 0

    def connect(self) -> None:
        """Open the next connection(s)."""
        count = 1 if self.sequential else len(self.requests)
        for request in self.requests[:count]:
            if len(self.all) % 100 == 99:
                self.drain()  # a server that waits for its readers would keep us waiting for it
            connection = _Connection(self.address, request)
            self.open[connection.sock.fileno()] = connection
            self.all.append(connection)
            self.epoll.register(connection.sock, select.EPOLLIN)
        del self.requests[:count]

    def drain(self) -> None:
        """Read what has come."""
        for number, _ in self.epoll.poll(0):
            if number in self.open:
                self.read(number)

    def read(self, number: int) -> None:
        """Take what one connection has."""
        connection = self.open[number]
        try:
            data = self.buffer[: connection.sock.recv_into(self.buffer)].tobytes()
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        now = time.monotonic_ns()
        if data:
            self._count(connection, data, now)
        enough = self.enough is not None and connection.events >= self.enough
        if not data or enough or connection.tail.endswith(_END):
            self.epoll.unregister(number)
            connection.sock.close()
            del self.open[number]
            if self.sequential and self.requests:
                self.connect()

    def _count(self, connection: _Connection, data: bytes, now: int) -> None:
        connection.bytes += len(data)
        if not connection.begun:
            connection.begun = True
            self.waiting -= 1
            if self.waiting == 0:
                say("ready")
        marker = self.marker
        connection.events += (connection.tail + data).count(marker)
        keep = max(len(marker) - 1, len(_END))
        tail = (connection.tail + data[-keep:])[-keep:]
        at = tail.rfind(marker)
        connection.tail = tail[at + len(marker) :] if at >= 0 else tail[-max(len(marker) - 1, 7) :]
        stamp = _STAMP.search(data)
        if stamp is not None:
            latency = (now - int(stamp[1])) / 1e6
            self.latencies.append(latency)
            if connection.first_ms is None:
                connection.first_ms = latency

    def result(self) -> dict[str, Any]:
        """What was counted since the last reset."""
        latencies = sorted(self.latencies) or [0.0]
        firsts = sorted(c.first_ms for c in self.all if c.first_ms is not None) or [0.0]
        return {
            "events": sum(c.events for c in self.all),
            "bytes": sum(c.bytes for c in self.all),
            "least": min((c.events for c in self.all), default=0),
            "most": max((c.events for c in self.all), default=0),
            "open": len(self.open),
            "wall_s": time.monotonic() - self.began,
            "load_cpu_s": time.process_time() - self.cpu,
            "p50_ms": latencies[len(latencies) // 2],
            "p99_ms": latencies[int(len(latencies) * 0.99)],
            "first_p50_ms": firsts[len(firsts) // 2],
        }


def say(value: object) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run until standard input ends."""
    control = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - a buffer would hide lines from epoll
    generator = Generator(json.loads(control.readline()))
    commands = control.fileno()
    generator.epoll.register(commands, select.EPOLLIN)
    generator.connect()
    finishing = False
    while True:
        for number, _ in generator.epoll.poll(1.0):
            if number != commands:
                if number in generator.open:
                    generator.read(number)
                continue
            line = control.readline()
            if not line:
                return
            command = json.loads(line)
            if command == "go":
                generator.reset()
            elif command == "stop":
                say(generator.result())
            finishing = finishing or command == "finish"
        if finishing and not generator.open and not generator.requests:
            say(generator.result())
            finishing = False


if __name__ == "__main__":
    main()

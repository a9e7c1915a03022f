"""``mux serve``: the server, until a signal."""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import os
import signal
import sys
from pathlib import Path

from mux.cli.parser import missing_folders, settings_from
from mux.cli.processes import PORT_SHARED, end_with_supervisor, supervise
from mux.errors import ConfigError, MuxError
from mux.http.service import Service, check_roles
from mux.settings import Settings
from mux.telemetry import configure_logging, printable

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM (drains, exit 0); a second signal ends it at once."""
    settings = settings_from(args)
    configure_logging(settings.log_format, settings.log_level)
    if settings.processes > 1 and PORT_SHARED not in os.environ:
        check_roles(settings)
        return supervise(settings)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings))


def _raise_descriptor_limit() -> None:
    """As many connections as the system allows: the usual soft limit, 1024, is less than `max_viewers`."""
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ImportError, ValueError, OSError):  # not on Windows; or the system keeps to less
        return


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (the extra ``uvloop``)."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return factory


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    stop, now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (now if stop.is_set() else stop).set()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, on_signal)
    shares_port = PORT_SHARED in os.environ
    if shares_port:
        end_with_supervisor()
    service = Service(settings, shares_port=shares_port)
    try:
        await service.start()
    except (OSError, MuxError) as e:
        await service.stop(grace_s=0)
        if not isinstance(e, OSError) or e.errno != errno.EADDRINUSE:
            raise
        raise ConfigError("port_taken", _port_taken(settings.port)) from e
    _spare_the_collector()
    _greet(service)
    await stop.wait()
    print("mux: stopping; a second signal stops at once", file=sys.stderr)
    stopping = asyncio.create_task(service.stop(grace_s=settings.limits.drain_s))
    hurry = asyncio.create_task(now.wait())
    await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await service.stop(grace_s=0)
    hurry.cancel()
    await asyncio.gather(stopping, hurry, return_exceptions=True)
    for name in (signal.SIGINT, signal.SIGTERM):  # all is stopped: a second one that comes late is no failure
        loop.remove_signal_handler(name)
        signal.signal(name, signal.SIG_IGN)
    return 0


def _spare_the_collector() -> None:
    """Look for cyclic garbage less often, and never again at what was loaded at the start.

    Kept events are many small objects without cycles; with Python's own thresholds (700, 10, 10) going
    through them took a good part of a run's CPU at full speed (a third and more, in noisy measurements).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _greet(service: Service) -> None:
    """What was loaded from where, and the address: the last line, so that it stays in sight."""
    for line in [*service.describe(), *(f"warning: {text}" for text in missing_folders(service.settings))]:
        print(printable(line))
    print(f"Mux is ready: {service.url}/", flush=True)


def _port_taken(port: int) -> str:
    who = port_owner(port)
    by = f" by {who}" if who else ""
    return (
        f"Port {port} is taken{by}. Choose another: mux serve --port {port + 1} (or MUX_PORT, or --port 0)."
    )


def port_owner(port: int) -> str | None:
    """Which process listens on a local TCP port, as far as this user may see it (Linux's /proc)."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            part = line.split()
            if part[3] == "0A" and int(part[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{part[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        try:
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().split(b"\0")
                return f"process {process.name} ({b' '.join(words[:4]).decode(errors='replace').strip()})"
        except OSError:  # it ended, or belongs to someone else
            continue
    return None

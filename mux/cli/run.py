"""``mux run``: agents on a task, in the terminal; through a running server where there is one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mux.cli import batch
from mux.cli.parser import missing_folders, settings_from
from mux.cli.render import renderer, show
from mux.client import MuxClient, Run
from mux.errors import BadRequest, MuxError, StoreError
from mux.http.service import Service
from mux.settings import Settings
from mux.telemetry import configure_logging, printable

__all__ = ["command", "connected"]

EXIT_NOT_COMPLETED = 1
# A server of our own, for as long as this command lasts. Whoever may open the store needs no key.
_OWN = {"host": "127.0.0.1", "port": 0, "base_path": "", "insecure": True}
_SERVERS_OWN = (
    "config",
    "agents",
    "docs",
    "model",
)  # settings that a server which runs already has of its own


def command(args: argparse.Namespace) -> int:
    """Run to the end; exit 0 if every channel completed. Ctrl-C cancels the run."""
    settings = settings_from(args)
    configure_logging("console", "warning")
    return asyncio.run(_main(args, settings))


async def _main(args: argparse.Namespace, settings: Settings) -> int:
    url = args.url or os.environ.get("MUX_URL") or None
    async with connected(
        settings, url, unused=[f"--{n}" for n in _SERVERS_OWN if getattr(args, n)]
    ) as client:
        if args.file:
            return await batch.run_batch(client, args)
        message = sys.stdin.read() if args.message == "-" else args.message
        request = request_from(args.agent, message, thread=args.thread)
        run = await client.start(**request)
        loop = asyncio.get_running_loop()

        def on_interrupt() -> None:
            loop.remove_signal_handler(signal.SIGINT)  # a second one ends us, whatever the server does
            _keep(asyncio.create_task(_cancel(run)))

        loop.add_signal_handler(signal.SIGINT, on_interrupt)
        status = await show(run.events(), renderer(as_json=args.json, plain=args.plain, server=client.url))
        return 0 if status == "completed" else EXIT_NOT_COMPLETED


async def _cancel(run: Run) -> None:
    """Cancel a run that nobody waits for any more; one that is over or out of reach is left as it is."""
    with contextlib.suppress(MuxError):
        await run.cancel()


_tasks: set[asyncio.Task[Any]] = set()


def _keep(task: asyncio.Task[Any]) -> None:
    """The loop holds tasks weakly; keep this one until it is done."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def request_from(agents: Sequence[str], message: str | None, *, thread: str | None = None) -> dict[str, Any]:
    """The start request of ``-a NAME -a NAME=TASK "message"``.

    Raises:
        BadRequest: ``message_missing``: an agent has no task.
    """
    channels: list[dict[str, Any]] = []
    for item in agents:
        name, has_task, task = item.partition("=")
        channels.append({"agent": name, "message": task} if has_task else {"agent": name})
    if not message and not (channels and all(c.get("message") for c in channels)):
        raise BadRequest("message_missing", 'Say what to do: mux run -a researcher "your question"')
    request: dict[str, Any] = {"message": message, "thread": thread}
    if channels:
        request["channels"] = channels
    return {k: v for k, v in request.items() if v is not None}


@contextlib.asynccontextmanager
async def connected(
    settings: Settings, url: str | None = None, *, unused: Sequence[str] = ()
) -> AsyncIterator[MuxClient]:
    """A client of the server at ``url``, else of the one that holds this store, else of our own.

    Args:
        unused: flags that were given and that only a server of our own would heed; if it is another's, a
            line on stderr says so.
    """
    service: Service | None = None
    if url is None:
        service = Service(settings.model_copy(update=_OWN))
        try:
            await service.start()
            url = service.url
            for text in missing_folders(settings):
                print(printable(f"mux: {text}"), file=sys.stderr)
        except StoreError as e:
            await service.stop(grace_s=0)
            service = None
            url = e.extra.get("url")
            if e.code != "store_locked" or not url:
                raise
    if unused and service is None:
        print(
            f"mux: the server at {url} runs with its own settings, so {', '.join(unused)} has no effect here;"
            " --store memory: runs apart from it",
            file=sys.stderr,
        )
    try:
        async with MuxClient(url) as client:
            yield client
    finally:
        if service is not None:
            await service.stop(grace_s=0)

"""Sync tools in threads of their own, so that one that hangs can be abandoned without holding up others."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from mux.tools.base import ToolProblem

__all__ = ["MAX_THREADS", "run_in_thread"]

T = TypeVar("T")

# Abandoned threads count as well: a tool that always hangs must not eat the machine.
MAX_THREADS = 200
_slots = threading.BoundedSemaphore(MAX_THREADS)


async def run_in_thread(work: Callable[[], T], *, name: str = "tool") -> T:
    """Run ``work`` in a new daemon thread. A cancelled caller leaves at once; the thread is abandoned.

    Raises:
        ToolProblem: ``tool_failed``: too many threads are busy or were abandoned.
    """
    if not _slots.acquire(blocking=False):
        raise ToolProblem(f"{MAX_THREADS} tool threads are busy or hang; try again later.")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]  # None is a T here if there is no error
        else:
            future.set_exception(error)

    def target() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = context.run(work)
        except (SystemExit, KeyboardInterrupt, StopIteration) as e:  # none of these may enter a future
            error = RuntimeError(f"the tool raised {type(e).__name__}")
        except BaseException as e:  # noqa: BLE001 - the boundary: it is the caller's to handle
            error = e
        finally:
            _slots.release()
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:
            return  # the loop was closed while this abandoned thread still ran: nobody waits

    threading.Thread(target=target, name=name, daemon=True).start()
    return await future

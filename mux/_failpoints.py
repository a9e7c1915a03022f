"""Places where a crash matters, for tests: ``MUX_FAILPOINT=name[:count]`` kills the process there.

The death is a ``kill -9`` of the process itself, so that nothing runs after it: no ``finally``, no flush.
``count`` (default 1) says at which pass. Several may be given, separated by commas. Unset, a failpoint is a
call of an empty function.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

__all__ = ["failpoint", "make_failpoint"]


def _nothing(name: str) -> None:
    pass


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_failpoint(spec: str | None, die: Callable[[], None] = _kill) -> Callable[[str], None]:
    """The function that modules call at each place.

    Args:
        spec: ``name[:count][,…]``, as in the environment variable; ``None`` or empty for no failpoint.
        die: what happens at the place (tests of this module put something milder here).

    Raises:
        ValueError: the count is not a number: a test that believes it kills something must not pass.
    """
    if not spec:
        return _nothing
    left: dict[str, int] = {}
    for part in spec.split(","):
        name, _, count = part.strip().partition(":")
        left[name] = int(count or 1)
    lock = threading.Lock()  # stores pass failpoints on their writer's thread

    def reached(name: str) -> None:
        if name not in left:
            return
        with lock:
            left[name] -= 1
            now = left[name] == 0
        if now:
            die()

    return reached


failpoint = make_failpoint(os.environ.get("MUX_FAILPOINT"))

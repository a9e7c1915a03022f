"""One server per file: a lock beside it that names the server's address.

It is a POSIX lock and not ``flock``: a child process that outlives a killed server must not keep it. Such a
lock is the process's, not the descriptor's, and closing any descriptor of the file would drop it; so this
process keeps a list of its own locks and never opens a file on it twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from pathlib import Path

from mux.errors import StoreError
from mux.log.protocols import Holder

__all__ = ["FileLock", "lock_path", "read_holder"]

_held: dict[Path, FileLock] = {}
_guard = threading.Lock()


def lock_path(path: Path) -> Path:
    """The lock's file of a store's file: beside the file itself, by whatever link it was named."""
    path = path.resolve()
    return path.with_name(path.name + ".lock")


class FileLock:
    """The lock of one store's file.

    Args:
        path: the store's file.
        patience_s: how long to try: a killed server's lock goes a moment after its process.
    """

    def __init__(self, path: Path, *, patience_s: float = 1.0) -> None:
        self._store = path
        self._path = path  # of the lock's file, once it is known where links lead
        self._patience_s = patience_s
        self._fd: int | None = None
        self._url: str | None = None

    def acquire(self, url: str | None) -> None:
        """Take it and say where this server can be reached.

        Raises:
            StoreError: ``store_locked``, with ``url`` and ``pid`` of the other server in ``extra``.
            OSError: the lock's file can't be written.
        """
        self._path = lock_path(self._store)
        with _guard:
            if other := _held.get(self._path):
                raise _locked(self._store, Holder(os.getpid(), other._url))
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not self._try(fd):
                holder = _read(fd)
                os.close(fd)
                raise _locked(self._store, holder)
            self._fd = fd
            _held[self._path] = self
        self.announce(url)

    def _try(self, fd: int) -> bool:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
            else:
                return True

    def announce(self, url: str | None) -> None:
        """Say where this server can be reached."""
        if self._fd is not None:
            self._url = url
            data = json.dumps({"pid": os.getpid(), "url": url}).encode()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, data, 0)

    def release(self) -> None:
        """Give it back; idempotent. The file stays: removing it would race with the next server."""
        with _guard:
            fd, self._fd = self._fd, None
            if fd is not None:
                del _held[self._path]
                with contextlib.suppress(OSError):  # a full disk; the lock itself says the rest
                    os.ftruncate(fd, 0)
                os.close(fd)


def read_holder(path: Path) -> Holder | None:
    """Who has the lock of this store's file; ``None`` when nobody has."""
    with _guard:
        if own := _held.get(lock_path(path)):
            return Holder(os.getpid(), own._url)
        try:
            fd = os.open(lock_path(path), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _read(fd)
        else:
            return None
        finally:
            os.close(fd)


def _read(fd: int) -> Holder:
    try:
        data = json.loads(os.pread(fd, 4096, 0))
        return Holder(data.get("pid"), data.get("url"))
    except (OSError, ValueError, AttributeError):
        return Holder(None, None)


def _locked(path: Path, holder: Holder) -> StoreError:
    where = f" at {holder.url}" if holder.url else f" (process {holder.pid})" if holder.pid else ""
    extra = {k: v for k, v in (("url", holder.url), ("pid", holder.pid)) if v is not None}
    return StoreError(
        "store_locked",
        f"Another server{where} uses {path}. Use that one, stop it, or choose another file with --store.",
        retryable=False,
        extra=extra,
    )

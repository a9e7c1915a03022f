"""The document folders as programs in the sandbox see them: read-only, under ``/docs``, without hidden files.

Monty's own mounts would show a whole folder, with the ``.env`` and ``.git`` that the document tools leave
out. So its file calls are answered here instead, each in a thread, by the same rules as `read_doc`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from pydantic_monty import NOT_HANDLED, AbstractOS, MontyFileHandle
from pydantic_monty.os_access import StatResult, path_from_arg

from mux.tools.roots import MAX_FILES, Roots, on_disk, written

__all__ = ["MAX_BYTES", "PLACE", "DocumentFiles"]

PLACE = "/docs"
# Of one program: what it reads passes through this process, and each MB holds the event loop for some 4 ms.
MAX_BYTES = 100_000_000
MAX_READ = 5_000_000  # bytes of one file
_READS = {
    "Path.exists", "Path.is_file", "Path.is_dir", "Path.is_symlink", "Path.iterdir", "Path.scan", "Path.stat",
    "Path.resolve", "Path.absolute", "Path.read_text", "Path.read_bytes", "open",
}  # fmt: skip
_WRITES = {
    "Path.write_text", "Path.write_bytes", "Path.append_text", "Path.append_bytes", "Path.mkdir",
    "Path.unlink", "Path.rmdir", "Path.rename",
}  # fmt: skip


class DocumentFiles(AbstractOS):
    """Answers the file calls of one program; every other call is left to Monty's own refusal.

    Args:
        roots: the folders; what their document tools hide is hidden here too.
    """

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._read = 0  # bytes so far

    def __call__(
        self, *, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], is_async: bool, **_: Any
    ) -> Any:
        if name not in _READS | _WRITES or _relative(path_from_arg(args[0])) is None:
            return NOT_HANDLED
        if name in _READS:
            return asyncio.to_thread(self.dispatch, name, args, kwargs, is_async=is_async)  # type: ignore[arg-type]
        return _refuse_writing(args[0])

    # --- names ---------------------------------------------------------------------------------------------

    def _find(self, path: PurePosixPath) -> Path | None:
        """The real file or folder; ``None`` if there is none or it may not be seen."""
        relative = _relative(path)
        if relative is None:
            return None
        for name, root in self._roots.folders().items():
            prefix = self._roots.prefix(name)
            if not f"{relative}/".startswith(prefix):
                continue
            try:
                real = Path(os.path.realpath(on_disk(root, relative[len(prefix) :]), strict=True))
            except (OSError, ValueError):  # ValueError: a NUL in the name
                continue
            if real.is_relative_to(root) and not _hidden(relative) and not _hidden(real.relative_to(root)):
                return real
        return None

    def _is_top(self, path: PurePosixPath) -> bool:
        """Whether it is a folder of our own that holds several roots."""
        return _relative(path) == "" and len(self._roots.names) > 1

    def _existing(self, path: PurePosixPath) -> Path:
        found = self._find(path)
        if found is None:
            raise FileNotFoundError(f"[Errno 2] No such file or directory: {str(path)!r}")
        return found

    # --- reading -------------------------------------------------------------------------------------------

    def path_exists(self, path: PurePosixPath) -> bool:
        return self._is_top(path) or self._find(path) is not None

    def path_is_file(self, path: PurePosixPath) -> bool:
        found = self._find(path)
        return found is not None and found.is_file()

    def path_is_dir(self, path: PurePosixPath) -> bool:
        found = self._find(path)
        return self._is_top(path) or (found is not None and found.is_dir())

    def path_is_symlink(self, path: PurePosixPath) -> bool:
        return False  # links are followed inside a root, and are not there outside of it

    def path_open(self, path: PurePosixPath, mode: str) -> MontyFileHandle:
        handle = MontyFileHandle(str(path), mode)
        if handle.writable:
            _refuse_writing(path)
        if self.path_is_dir(path):
            raise IsADirectoryError(f"[Errno 21] Is a directory: {str(path)!r}")
        self._existing(path)
        return handle

    def path_read_bytes(self, path: PurePosixPath | MontyFileHandle) -> bytes:
        name = path_from_arg(path)
        if self.path_is_dir(name):
            raise IsADirectoryError(f"[Errno 21] Is a directory: {str(name)!r}")
        # The real path holds no link any more; one that was put there meanwhile is refused, and so is a pipe.
        descriptor = os.open(self._existing(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(f"[Errno 2] No such file: {str(name)!r}")
            if status.st_size > MAX_READ:
                raise OSError(errno.EFBIG, f"{name} is larger than {MAX_READ // 1_000_000} MB")
            if self._read + status.st_size > MAX_BYTES:
                raise OSError(
                    errno.EDQUOT, f"a program may read {MAX_BYTES // 1_000_000} MB; read each file once"
                )
            data = file.read(MAX_READ)
        self._read += len(data)
        return data

    def path_read_text(self, path: PurePosixPath | MontyFileHandle) -> str:
        return self.path_read_bytes(path).decode()

    def path_iterdir(self, path: PurePosixPath) -> list[PurePosixPath]:
        if self._is_top(path):
            return [PurePosixPath(PLACE, name) for name in self._roots.folders()]
        names: list[str] = []
        with os.scandir(self._existing(path)) as entries:
            for entry in entries:
                plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
                # only links can lead out, and pipes and devices are no documents
                if not _hidden(entry.name) and (plain or self._linked(path / entry.name)):
                    names.append(written(entry.name))
                if len(names) >= MAX_FILES:
                    break
        return [path / name for name in sorted(names)]

    def _linked(self, path: PurePosixPath) -> bool:
        found = self._find(path)
        return found is not None and (found.is_file() or found.is_dir())

    def path_stat(self, path: PurePosixPath) -> StatResult:
        if self._is_top(path):
            return StatResult.dir_stat(mode=0o555)
        status = self._existing(path).stat()
        if stat.S_ISDIR(status.st_mode):
            return StatResult.dir_stat(mode=0o555, mtime=status.st_mtime)
        return StatResult.file_stat(size=status.st_size, mode=0o444, mtime=status.st_mtime)

    def path_resolve(self, path: PurePosixPath) -> str:
        return posixpath.normpath(posixpath.join(PLACE, path))

    def path_absolute(self, path: PurePosixPath) -> str:
        return posixpath.join(PLACE, path)

    # --- writing: all of it is refused before it comes here -------------------------------------------------

    def path_write_text(self, path: PurePosixPath | MontyFileHandle, data: str) -> int:
        _refuse_writing(path)

    def path_write_bytes(self, path: PurePosixPath | MontyFileHandle, data: bytes) -> int:
        _refuse_writing(path)

    def path_mkdir(self, path: PurePosixPath, parents: bool, exist_ok: bool) -> None:
        _refuse_writing(path)

    def path_unlink(self, path: PurePosixPath) -> None:
        _refuse_writing(path)

    def path_rmdir(self, path: PurePosixPath) -> None:
        _refuse_writing(path)

    def path_rename(self, path: PurePosixPath, target: PurePosixPath) -> None:
        _refuse_writing(path)

    def getenv(self, key: str, default: str | None = None) -> str | None:
        return default

    def get_environ(self) -> dict[str, str]:
        return {}


def _relative(path: PurePosixPath) -> str | None:
    """The path inside ``/docs``, without ``..``; ``None`` if it is elsewhere."""
    whole = posixpath.normpath(posixpath.join(PLACE, path))
    if whole == PLACE:
        return ""
    return whole.removeprefix(f"{PLACE}/") if whole.startswith(f"{PLACE}/") else None


def _hidden(path: str | Path) -> bool:
    return any(part.startswith(".") for part in Path(path).parts)


def _refuse_writing(path: PurePosixPath | MontyFileHandle) -> NoReturn:
    raise PermissionError(f"[Errno 30] Read-only file system: {str(path_from_arg(path))!r}")

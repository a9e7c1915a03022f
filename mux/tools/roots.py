"""The folders that document tools may read, and the one way from a name to a file inside them. Blocking."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mux.tools.base import ToolProblem

__all__ = ["Found", "Roots", "on_disk", "written"]

MAX_FILE = 20_000_000  # bytes
MAX_FILES = 20_000  # that are looked at
MAX_DEPTH = 20
# folders that hold no documents, and would crowd out those that do
_SKIPPED = frozenset({"node_modules", "__pycache__", "venv", "site-packages"})


@dataclass(frozen=True, slots=True)
class Found:
    """One regular file inside a root.

    Attributes:
        name: how tools call it: the path inside its root, behind the root's name if there are several.
        file: the real path, links resolved.
        version: changes whenever the content does.
    """

    name: str
    file: Path
    version: tuple[int, int, int, int]
    size: int


class Roots:
    """Some folders, read-only, closed: neither ``..`` nor a link leads out of them.

    Args:
        folders: existing directories; one that does not exist yet is looked for again on each use.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        names: dict[str, Path] = {}
        for folder in folders:
            base = name = written(folder.name) or "root"
            number = 1
            while name in names:
                number += 1
                name = f"{base}-{number}"
            names[name] = folder
        self._folders = names

    @property
    def names(self) -> list[str]:
        """The roots' names, whether they exist or not; no disk is touched."""
        return list(self._folders)

    def folders(self) -> dict[str, Path]:
        """Root name → real path, of those that exist."""
        found: dict[str, Path] = {}
        for name, folder in self._folders.items():
            real = Path(os.path.realpath(folder))
            if real.is_dir():
                found[name] = real
        return found

    def prefix(self, name: str) -> str:
        """What stands before the names of a root's files."""
        return f"{name}/" if len(self._folders) > 1 else ""

    def walk(self) -> Iterator[Found]:
        """All files, in order; hidden ones and caches are left out."""
        for name, root in self.folders().items():
            yield from self._walk(root, root, self.prefix(name), 0)

    def _walk(self, root: Path, folder: Path, prefix: str, depth: int) -> Iterator[Found]:
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            return  # gone or not readable: as if it were not there
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SKIPPED:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth < MAX_DEPTH:
                        yield from self._walk(root, Path(entry.path), prefix, depth + 1)
                    continue
                found = _inspect(root, Path(entry.path), prefix)
            except (OSError, ValueError):
                continue
            if found is not None:
                yield found

    def locate(self, name: str) -> Found:
        """The file of that name.

        Raises:
            ToolProblem: ``tool_failed``: it is not inside a root, does not exist, or is no readable file.
        """
        for root_name, root in self.folders().items():
            prefix = self.prefix(root_name)
            relative = name
            if os.path.isabs(name):
                if not os.path.realpath(name).startswith(f"{root}{os.sep}"):
                    continue
                relative = os.path.relpath(os.path.realpath(name), root)
            elif not name.startswith(prefix):
                continue
            else:
                relative = name[len(prefix) :]
            try:
                found = _inspect(root, on_disk(root, relative), prefix)
            except (OSError, ValueError):  # ValueError: a NUL in the name
                continue
            if found is not None:
                return found
        raise ToolProblem(
            f"There is no readable document {name[:200]!r} in the document folders. "
            "Call list_docs or search_docs for the names that exist."
        )

    def read(self, found: Found) -> bytes:
        """The file's bytes. Raises OSError, also when it was replaced by a link or a pipe meanwhile."""
        if found.size > MAX_FILE:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE // 1_000_000} MB")
        descriptor = os.open(found.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{found.name} is no regular file")
            return file.read(MAX_FILE)


def _inspect(root: Path, path: Path, prefix: str) -> Found | None:
    """The file if it is a regular one whose real place is inside the root. Raises OSError, ValueError."""
    real = Path(os.path.realpath(path, strict=True))
    if not real.is_relative_to(root):
        return None
    parts = real.relative_to(root).parts
    if any(part.startswith(".") for part in parts):
        return None  # .git, .env: not documents, and often secrets
    status = os.stat(real)
    if not stat.S_ISREG(status.st_mode):
        return None
    lexical = os.path.relpath(os.path.normpath(path), root)
    shown = lexical if not lexical.startswith("..") else str(real.relative_to(root))
    version = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    return Found(prefix + written(Path(shown).as_posix()), real, version, status.st_size)


def written(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def on_disk(root: Path, relative: str) -> Path:
    """The path of a file by its name as `written`, in whichever of Unicode's normal forms the disk has it.

    Raises:
        OSError, ValueError: a folder on the way is none, or the name is none.
    """
    path = root / relative
    if (relative.isascii() and "\\x" not in relative) or path.exists():
        return path
    for part in Path(os.path.normpath(relative)).parts:
        wanted = unicodedata.normalize("NFC", part)
        with os.scandir(root) as entries:
            names = (e.name for e in entries if unicodedata.normalize("NFC", written(e.name)) == wanted)
            root = root / next(names, part)
    return root

"""Workspaces: each lane works on a copy of a folder of its own, and what it changed is a diff.

Git is the mechanism, for folders in a repository and for others alike. A lane has a bare repository of ours
(``git``), beside its copy (``tree``). A *snapshot* of a folder is the id of a git tree, made by ``git add``
with that folder as the work tree: it reads the folder and writes into our repository alone. That of the
original when the lane began is its *base*; the diff is base against a snapshot of the copy; a conflict is a
path that differs from the base on both sides. Objects that the original's repository has are borrowed
(``alternates``), not copied.

What a snapshot holds: tracked and untracked files as they lie there (changes that were never committed, too),
symbolic links as links, the executable bit, bytes as they are (no filter and no line-end conversion of git
runs). What it leaves out: files that the repository ignores, empty folders, what lies inside submodules (a
submodule is an empty folder with its commit), and ``.git``. Other repositories inside are plain files. A copy
of a repository is a repository, with its history, without a remote: an agent's own ``git status`` works, and
nothing can be pushed back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

from pydantic import BaseModel, ConfigDict

from mux._paths import data_folder
from mux.errors import AgentError, Conflict, NotFound
from mux.settings import Settings, WorkspaceLimits

__all__ = ["Changes", "FileChange", "Workspace", "Workspaces", "workspaces_of"]

_GIT_S = 300.0  # for one git command
_SWEEP_EVERY_S = 600.0
_MAX_DIFF = 16_000_000  # characters
_GITLINK = "160000"
_STATUS = {"A": "added", "D": "deleted", "M": "modified", "T": "modified", "R": "renamed", "C": "added"}


class FileChange(BaseModel):
    """One changed file.

    Attributes:
        old_path: where it was before, if it was renamed.
        insertions, deletions: lines; left out where it is no text.
        mode, old_mode: in git's form (``100644``, ``100755``, ``120000`` for a link, ``160000`` for a
            submodule); left out where there is none.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    status: Literal["added", "deleted", "modified", "renamed"]
    old_path: str | None = None
    insertions: int | None = None
    deletions: int | None = None
    mode: str | None = None
    old_mode: str | None = None


class Changes(BaseModel):
    """What a lane changed since its base.

    Attributes:
        base, tree: the snapshots before and after.
        diff: in git's unified format, with binary files; bytes that are no UTF-8 are U+FFFD in it.
        truncated: the diff is longer than 16 MB and left out; the files are listed, and it can be applied.
    """

    model_config = ConfigDict(frozen=True)

    base: str
    tree: str
    files: tuple[FileChange, ...] = ()
    insertions: int = 0
    deletions: int = 0
    diff: str = ""
    truncated: bool = False

    def summary(self) -> dict[str, Any]:
        """Without the diff's text, for the ``workspace`` event."""
        return self.model_dump(exclude={"diff", "base", "tree"}, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Workspace:
    """One lane's copy.

    Attributes:
        folder: what we know of the lane: its repository, its copy, its diffs, its agent's notes.
        cwd: where its agent works: the copy of the declared folder, inside ``tree``.
        continued: an earlier run of the thread worked here.
    """

    folder: Path
    origin: Path | None
    base: str
    cwd: Path
    limits: WorkspaceLimits
    continued: bool = False

    @property
    def tree(self) -> Path:
        """The whole copy."""
        return self.folder / "tree"

    def inside(self, path: str) -> Path | None:
        """A path of the agent's as a real one, links followed; ``None`` if that is not in the copy."""
        try:
            real = (self.cwd / path).resolve()
            tree = self.tree.resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        inner = real.is_relative_to(tree) and ".git" not in real.relative_to(tree).parts
        return real if inner else None

    def check_size(self) -> None:
        """Raises AgentError ``workspace_full``: the copy is above its quota. Walks it: use a thread."""
        size = files = 0
        for entry in _walk(self.tree):
            files += 1
            size += entry.stat(follow_symlinks=False).st_size
        _check(size, files, self.limits, "The lane's workspace")

    async def changes(self) -> Changes:
        """What was changed so far; the copy may be worked on meanwhile.

        Raises:
            AgentError: ``workspace_full``, ``workspace_failed``.
        """
        await asyncio.to_thread(self.check_size)
        repo = _Repo(self.folder / "git")
        tree = await repo.snapshot(self.tree, self.base)
        return await repo.compare(self.base, tree)

    async def keep(self, run: str, channel: str) -> Changes:
        """Compute what was changed, and keep it as what this channel of this run ended with."""
        changes = await self.changes()
        await asyncio.to_thread(_write, self.folder / _changes_file(run, channel), changes.model_dump_json())
        return changes


class Workspaces:
    """The workspaces of all lanes, under one folder.

    Args:
        root: that folder; made when it is needed.
        limits: ``[workspaces]``.
    """

    _applying: ClassVar[dict[Path, asyncio.Lock]] = {}

    def __init__(self, root: Path, limits: WorkspaceLimits) -> None:
        self.root = root
        self._limits = limits
        self._swept = 0.0

    def _folder(self, thread: str, channel: str) -> Path:
        lane = channel.partition("~")[0]  # a retry goes on in its lane's files, as in its history
        return self.root / hashlib.sha256(f"{thread}\n{lane}".encode()).hexdigest()[:32]

    @asynccontextmanager
    async def opened(self, origin: Path | None, thread: str, channel: str) -> AsyncIterator[Workspace]:
        """A lane's copy, for as long as it works: a new one, or the one of its thread's last run.

        Args:
            origin: the folder to copy; ``None`` = begin with an empty one.

        Raises:
            AgentError: ``workspace_busy``: another run of the thread works in it; ``workspace_full``: the
                folder is above ``[workspaces]``' bounds; ``workspace_failed``: it can't be copied.
        """
        await self._sweep()
        folder = self._folder(thread, channel)
        lock = await asyncio.to_thread(_lock, folder)
        if lock is None:
            raise AgentError(
                "workspace_busy", "Another run of this thread works in this lane's workspace; wait for it."
            )
        try:
            found = await asyncio.to_thread(_about, folder)
            same = found is not None and found["origin"] == (str(origin) if origin else None)
            about = found if same and found is not None else await self._make(folder, origin)
            await asyncio.to_thread(os.utime, folder / "about.json")  # used now: its age counts from here
            yield self._workspace(folder, about, continued=same)
        finally:
            lock.close()

    def _workspace(self, folder: Path, about: dict[str, Any], *, continued: bool) -> Workspace:
        origin = Path(about["top"]) if about["top"] else None
        cwd = folder / "tree" / about["below"]
        return Workspace(folder, origin, about["base"], cwd, self._limits, continued)

    async def _make(self, folder: Path, origin: Path | None) -> dict[str, Any]:
        await asyncio.to_thread(_clear, folder)
        if shutil.which("git") is None:
            raise AgentError("workspace_failed", "Workspaces need git: install it, or leave 'workspace' out.")
        tree = folder / "tree"
        below = "."
        top: Path | None = None
        repo = _Repo(folder / "git")
        if origin is None:
            await repo.create(None)
            await asyncio.to_thread(tree.mkdir)
            base = await repo.git("write-tree")
        else:
            if not await asyncio.to_thread(origin.is_dir):
                raise AgentError("workspace_failed", f"There is no folder {origin} to work on.")
            real = await asyncio.to_thread(origin.resolve)
            found = await _top_of(real)
            top = found or real
            below = str(real.relative_to(top))
            await repo.create(found)
            await asyncio.to_thread(_check_listing, top, await repo.listing(top), self._limits)
            base = await repo.snapshot(top, None)
            if found is not None:
                await _clone(found, tree)
            await repo.check_out(base, tree)
            if found is not None and await _try("-C", str(tree), "rev-parse", "-q", "--verify", "HEAD"):
                await _git("-C", str(tree), "reset", "-q")
            await asyncio.to_thread((tree / below).mkdir, parents=True, exist_ok=True)
        about = {"origin": str(origin) if origin else None, "top": str(top) if top else None,
                 "below": below, "base": base}  # fmt: skip
        await asyncio.to_thread(_write, folder / "about.json", json.dumps(about))
        return about

    async def changes(self, run: str, thread: str, channel: str) -> Changes:
        """What a channel changed: as it ended, or so far while it works.

        Raises:
            NotFound: ``workspace_unknown``: the channel has no workspace here, or it was removed.
        """
        folder = self._folder(thread, channel)
        kept = await asyncio.to_thread(_read, folder / _changes_file(run, channel))
        if kept is not None:
            return Changes.model_validate_json(kept)
        about = await asyncio.to_thread(_about, folder)
        if about is None or not await asyncio.to_thread(_is_locked, folder):
            raise NotFound(
                "workspace_unknown",
                f"Channel {channel!r} of this run has no workspace on this server, or it was removed.",
            )
        return await self._workspace(folder, about, continued=True).changes()

    async def apply(self, run: str, thread: str, channel: str) -> tuple[str, ...]:
        """Take a channel's changes over into the original folder: all of them or none.

        Returns:
            The paths that were written or removed there; empty if it has them already.

        Raises:
            NotFound: ``workspace_unknown``.
            Conflict: ``workspace_conflict``: the original has changed; ``extra["files"]`` says where.
                ``workspace_no_origin``: the lane began with an empty folder.
        """
        folder = self._folder(thread, channel)
        changes = await self.changes(run, thread, channel)
        about = await asyncio.to_thread(_about, folder)
        origin = Path(about["top"]) if about and about["top"] else None
        if origin is None or not await asyncio.to_thread(origin.is_dir):
            raise Conflict("workspace_no_origin", "There is no original folder for these changes.")
        async with self._applying.setdefault(origin, asyncio.Lock()):
            repo = _Repo(folder / "git")
            now = await repo.snapshot(origin, changes.base)
            theirs = await repo.paths(changes.base, now)
            ours = await repo.paths(changes.base, changes.tree)
            differ = await repo.paths(now, changes.tree)
            submodules = {f.path for f in changes.files if _GITLINK in (f.mode, f.old_mode)}
            wanted = {path for path in ours & differ if path not in submodules}
            clashes = sorted(path for path in wanted if _clashes(path, theirs))
            if clashes:
                raise _conflict(clashes)
            patch = await repo.patch(now, changes.tree, wanted)
            if patch:
                await repo.apply(patch, origin, wanted)
        return tuple(sorted(wanted))

    async def _sweep(self) -> None:
        """Remove the workspaces that nobody has used for long."""
        now = time.monotonic()
        if self._swept and now - self._swept < _SWEEP_EVERY_S:
            return
        self._swept = now
        await asyncio.to_thread(self.remove_old)

    def remove_old(self) -> int:
        """Remove workspaces unused for ``max_age_days``; returns how many. Touches the disk."""
        oldest = time.time() - self._limits.max_age_days * 86_400
        gone = 0
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            about = folder / "about.json"
            with contextlib.suppress(OSError):
                if (about if about.exists() else folder).stat().st_mtime < oldest:
                    lock = _lock(folder)
                    if lock is not None:
                        with lock:
                            _clear(folder)
                            shutil.rmtree(folder, ignore_errors=True)
                        gone += 1
        return gone


def workspaces_of(settings: Settings) -> Workspaces:
    """The workspaces of a server: ``workspaces.dir``, else beside its SQLite store or in the data folder."""
    limits = settings.workspaces
    store = settings.store or ""
    path = store.removeprefix("sqlite:")
    beside = Path(path[2:] if path.startswith("///") else path).expanduser().parent
    own = beside if store.startswith("sqlite:") else data_folder()
    return Workspaces(limits.dir or own / "workspaces", limits)


# --- git -------------------------------------------------------------------------------------------------


class _Repo:
    """A lane's repository of ours, on any folder as its work tree."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def git(
        self, *args: str, tree: Path | None = None, index: str | None = None, text: str = ""
    ) -> str:
        where = [f"--git-dir={self._path}", *([f"--work-tree={tree}"] if tree else [])]
        env = {"GIT_INDEX_FILE": str(self._path / index)} if index else {}
        return await _git(*where, *args, cwd=tree, env=env, text=text)

    async def create(self, source: Path | None) -> None:
        """Make it; it borrows the objects of the repository at ``source`` and ignores what that ignores."""
        kind = "sha1"
        if source is not None:
            kind = await _git("-C", str(source), "rev-parse", "--show-object-format")
        await _git("init", "-q", "--bare", "--template=", f"--object-format={kind}", str(self._path))
        # our files take precedence over every .gitattributes in the folder: no filter runs, no byte changes
        info = {"attributes": "* -text -filter -ident -working-tree-encoding\n"}
        tracked = ""
        if source is not None:
            ask = ("-C", str(source), "rev-parse", "--path-format=absolute", "--git-path")
            objects = await _git(*ask, "objects")
            exclude = await asyncio.to_thread(_read, Path(await _git(*ask, "info/exclude")))
            info["exclude"] = exclude or ""
            tracked = await _git("-C", str(source), "ls-files", "-s", "-z")  # submodules, and what is ignored
            await asyncio.to_thread(_write, self._path / "objects" / "info" / "alternates", objects + "\n")
        for name, text in info.items():
            await asyncio.to_thread(_write, self._path / "info" / name, text)
        entries = [line for line in tracked.split("\0") if line.partition("\t")[0].endswith(" 0")]
        await self.git("read-tree", "--empty")
        await self.git("update-index", "-z", "--index-info", text="\0".join([*entries, ""]))

    async def listing(self, folder: Path) -> list[str]:
        """The files that a snapshot of it would hold."""
        args = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        return [name for name in (await self.git(*args, tree=folder)).split("\0") if name]

    async def snapshot(self, folder: Path, base: str | None) -> str:
        """The tree of a folder as it lies there; what ``base`` has stays tracked though it be ignored."""
        index = f"index.{os.urandom(6).hex()}"
        own = index if base else None
        try:
            if base:
                await asyncio.to_thread(_copy, self._path / "index", self._path / index)
                await self.git("read-tree", "--no-sparse-checkout", "-m", base, tree=folder, index=own)
            inner, files = await self._inner(folder, own)
            without = [f":(exclude,literal){name}" for name in inner]
            await self.git("add", "-A", "--", ".", *without, tree=folder, index=own)
            if files:
                text = "\0".join([*files, ""])
                await self.git("update-index", "--add", "-z", "--stdin", tree=folder, index=own, text=text)
            return await self.git("write-tree", index=own)
        finally:
            await asyncio.to_thread((self._path / index).unlink, missing_ok=True)

    async def _inner(self, folder: Path, index: str | None) -> tuple[list[str], list[str]]:
        """Repositories inside a folder that are no submodules, and their files: `git add` would take the
        former for submodules, and fails where one has no commit."""
        ask = ("ls-files", "-z", "--others", "--exclude-standard")
        names = (await self.git(*ask, tree=folder, index=index)).split("\0")
        inner = [name for name in names if name.endswith("/")]
        files: list[str] = []
        for name in inner:
            found = (await self.git(*ask, tree=folder / name, index="none")).split("\0")
            files += [name + path for path in found if path and not path.endswith("/")]
        return inner, files

    async def check_out(self, tree_id: str, folder: Path) -> None:
        await asyncio.to_thread(folder.mkdir, exist_ok=True)
        await self.git("read-tree", tree_id)
        await self.git("checkout-index", "-q", "-a", "-f", "-u", tree=folder)

    async def compare(self, base: str, tree: str) -> Changes:
        args = ("--no-ext-diff", "--no-textconv", "--no-color", "-M", base, tree)
        raw = (await self.git("diff-tree", "-r", "-z", "--raw", *args[:1], *args[3:])).split("\0")
        counted = (await self.git("diff", "--numstat", "-z", *args)).split("\0")
        diff = _as_text(await self.git("diff", "--binary", "--full-index", *args))
        whole = len(diff) <= _MAX_DIFF
        files = tuple(_files(raw, dict(_counts(counted))))
        return Changes(
            base=base, tree=tree, files=files, truncated=not whole,
            diff=diff + "\n" if diff and whole else "",
            insertions=sum(f.insertions or 0 for f in files), deletions=sum(f.deletions or 0 for f in files),
        )  # fmt: skip

    async def paths(self, one: str, other: str) -> set[str]:
        """The paths in which two trees differ."""
        names = await self.git("diff-tree", "-r", "-z", "--name-only", "--no-renames", one, other)
        return {name for name in names.split("\0") if name}

    async def patch(self, now: str, tree: str, wanted: set[str]) -> str:
        """What brings ``now`` to ``tree`` in the wanted paths, and leaves the others."""
        index = f"index.{os.urandom(6).hex()}"
        try:
            listed = (await self.git("ls-tree", "-r", "-z", "--full-tree", tree)).split("\0")
            have = {line.partition("\t")[2]: line for line in listed if line}
            zero = "0" * len(tree)
            # removals first, so that a folder may take the place of a file
            lines = [f"0 {zero}\t{path}" for path in sorted(wanted - have.keys())]
            lines += [have[path] for path in sorted(wanted & have.keys())]
            await self.git("read-tree", now, index=index)
            await self.git("update-index", "-z", "--index-info", index=index, text="\0".join([*lines, ""]))
            merged = await self.git("write-tree", index=index)
            return await self.git("diff", "--binary", "--full-index", "--no-renames", "--no-ext-diff",
                                  "--no-textconv", "--no-color", now, merged)  # fmt: skip
        finally:
            await asyncio.to_thread((self._path / index).unlink, missing_ok=True)

    async def apply(self, patch: str, folder: Path, wanted: set[str]) -> None:
        """Write a patch into a folder: git checks all of it before it writes any."""
        try:
            await self.git("apply", "--whitespace=nowarn", "-", tree=folder, text=patch + "\n")
        except AgentError as e:
            raise _conflict(sorted(p for p in wanted if p in e.message) or sorted(wanted)) from e


async def _git(*args: str, cwd: Path | None = None, env: dict[str, str] | None = None, text: str = "") -> str:
    """What a git command printed, without its last line end. Bytes that are no UTF-8 pass through."""
    own = {
        "PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0", "GIT_ADVICE": "0", **(env or {}),
    }  # fmt: skip
    fixed = ("-c", "core.hooksPath=" + os.devnull, "-c", "core.fsmonitor=false", "-c", "core.quotePath=false",
             "-c", "core.fileMode=true", "-c", "core.symlinks=true", "-c", "gc.auto=0", "-c",
             "advice.addEmbeddedRepo=false", "-c", "core.safecrlf=false")  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        "git", *fixed, *args, cwd=cwd, env=own,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_GIT_S):
            out, err = await process.communicate(text.encode("utf-8", "surrogateescape"))
    except TimeoutError:
        raise AgentError("workspace_failed", f"git took more than {_GIT_S:g} s for a workspace.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        why = " ".join(err.decode("utf-8", "surrogateescape").split())[-500:]
        raise AgentError("workspace_failed", f"git can't make the workspace: {_as_text(why)}")
    found = out.decode("utf-8", "surrogateescape")
    return found.removesuffix("\n")


async def _try(*args: str) -> str:
    """What a git command printed; empty if it failed."""
    try:
        return await _git(*args)
    except AgentError:
        return ""


async def _top_of(folder: Path) -> Path | None:
    """The top of the repository that a folder is in."""
    top = await _try("-C", str(folder), "rev-parse", "--show-toplevel")
    return Path(top) if top else None


async def _clone(source: Path, tree: Path) -> None:
    """A repository with the history of another, that knows nothing of where it came from."""
    await _git("clone", "-q", "--shared", "--no-checkout", "--template=", str(source), str(tree))
    await _git("-C", str(tree), "remote", "remove", "origin")


# --- reading what git says ---------------------------------------------------------------------------------


def _files(raw: list[str], counts: dict[str, tuple[int | None, int | None]]) -> Iterator[FileChange]:
    at = 0
    while at < len(raw) and raw[at].startswith(":"):
        old_mode, mode, _, _, letter = raw[at][1:].split(" ")
        moved = letter[0] in "RC"
        path = raw[at + 2] if moved else raw[at + 1]
        added, removed = counts.get(path, (None, None))
        yield FileChange(
            path=_as_text(path),
            status=_STATUS.get(letter[0], "modified"),  # type: ignore[arg-type]
            old_path=_as_text(raw[at + 1]) if letter[0] == "R" else None,
            insertions=added,
            deletions=removed,
            mode=None if mode == "000000" else mode,
            old_mode=None if old_mode == "000000" else old_mode,
        )
        at += 3 if moved else 2


def _counts(found: list[str]) -> Iterator[tuple[str, tuple[int | None, int | None]]]:
    at = 0
    while at < len(found) and found[at]:
        added, removed, path = found[at].split("\t", 2)
        if not path:  # renamed: the two paths follow
            path, at = found[at + 2], at + 2
        yield path, (None, None) if added == "-" else (int(added), int(removed))
        at += 1


def _as_text(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _clashes(path: str, theirs: set[str]) -> bool:
    """Whether a path, or a folder above or below it, is among others."""
    return path in theirs or any(p.startswith(path + "/") or path.startswith(p + "/") for p in theirs)


def _conflict(paths: Sequence[str]) -> Conflict:
    names = [_as_text(p) for p in paths]
    return Conflict(
        "workspace_conflict",
        f"The original has changed since the lane began: {', '.join(names[:10])}. Nothing was written.",
        extra={"files": names},
    )


# --- the disk (in threads) ----------------------------------------------------------------------------------


def _changes_file(run: str, channel: str) -> str:
    return f"changes-{run}.{channel}.json"


def _about(folder: Path) -> dict[str, Any] | None:
    text = _read(folder / "about.json")
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and (folder / "tree").is_dir() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8", errors="surrogateescape")
    new.replace(path)


def _copy(source: Path, target: Path) -> None:
    """With its time: git takes a file that is as old as its index for one that may have changed since."""
    if source.exists():
        shutil.copy2(source, target)


def _clear(folder: Path) -> None:
    """Remove a lane's files, also those that were made read-only; its lock stays."""

    def writable(_: Any, path: str, __: Any) -> None:
        with contextlib.suppress(OSError):
            os.chmod(Path(path).parent, stat.S_IRWXU)
            os.chmod(path, stat.S_IRWXU)
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)

    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=writable)
        elif path.name != "lock":
            path.unlink()


def _lock(folder: Path) -> TextIO | None:
    """The lane for us alone on this machine, until it is closed; ``None`` if it is taken."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _is_locked(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    lock = _lock(folder)
    if lock is not None:
        lock.close()
    return lock is None


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files below a folder, links not followed; what vanishes meanwhile is passed over."""
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        yield entry


def _check_listing(top: Path, names: list[str], limits: WorkspaceLimits) -> None:
    size = 0
    for name in names:
        with contextlib.suppress(OSError):
            found = (top / name).lstat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    _check(size, len(names), limits, str(top))


def _check(size: int, files: int, limits: WorkspaceLimits, what: str) -> None:
    if size > limits.max_mb * 1_048_576 or files > limits.max_files:
        raise AgentError(
            "workspace_full",
            f"{what} has {files:,} files with {size / 1_048_576:,.0f} MiB; {limits.max_files:,} and "
            f"{limits.max_mb:g} MiB are allowed (workspaces.max_files, workspaces.max_mb).",
        )

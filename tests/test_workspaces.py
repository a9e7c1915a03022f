"""Each lane has a copy of its own; the original is touched by `apply` alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest

from mux.errors import AgentError, Conflict, NotFound
from mux.settings import Settings, WorkspaceLimits
from mux.workspaces import Changes, Workspaces, workspaces_of

pytestmark = pytest.mark.allow_blocking  # the tests look at files; the module's own look is in threads


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", *who, "-C", str(folder), *args], check=True, capture_output=True, text=True
    ).stdout.strip()


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files with mode and bytes, the repository's own too."""
    found = {}
    for base, folders, names in os.walk(folder):
        for name in [*names, *(f for f in folders if (Path(base) / f).is_symlink())]:
            path = Path(base) / name
            data = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[str(path.relative_to(folder))] = (path.lstat().st_mode, data)
    return found


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "a.txt").write_text("one\ntwo\nthree\n")
    (folder / "b.txt").write_text("b\n" * 20)
    (folder / "sub").mkdir()
    (folder / "sub" / "c.txt").write_text("c\n")
    (folder / ".gitignore").write_text("*.log\n.env\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "link").symlink_to("a.txt")
    (folder / "bin.dat").write_bytes(bytes(range(256)))
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "a.txt").write_text("one\ntwo\nnever committed\n")
    (folder / "new.txt").write_text("untracked\n")
    (folder / ".env").write_text("SECRET=1\n")
    return folder


@pytest.fixture
def spaces(tmp_path: Path) -> Workspaces:
    return Workspaces(tmp_path / "spaces", WorkspaceLimits())


async def lane(spaces: Workspaces, origin: Path | None, work: str = "", channel: str = "x") -> Changes:
    """A lane that runs a shell script in its copy."""
    async with spaces.opened(origin, "t", channel) as space:
        if work:
            process = await asyncio.create_subprocess_exec("sh", "-ec", work, cwd=space.cwd)
            assert await process.wait() == 0
        return await space.keep("r", channel)


def by_path(changes: Changes) -> dict[str, str]:
    return {f.path: f.status for f in changes.files}


async def test_four_lanes_at_once_touch_neither_the_original_nor_each_other(
    repo: Path, spaces: Workspaces
) -> None:
    before = state(repo)
    names = ["w", "x", "y", "z"]
    found = await asyncio.gather(
        *(lane(spaces, repo, f"echo {n} > {n}.txt; echo {n} > a.txt", n) for n in names)
    )
    for name, changes in zip(names, found, strict=True):
        assert by_path(changes) == {f"{name}.txt": "added", "a.txt": "modified"}
        assert f"+{name}\n" in changes.diff
        assert (changes.insertions, changes.deletions) == (2, 3)
    assert state(repo) == before


async def test_a_copy_has_what_lies_there_and_not_what_is_ignored(repo: Path, spaces: Workspaces) -> None:
    async with spaces.opened(repo, "t", "x") as space:
        assert (space.cwd / "a.txt").read_text() == "one\ntwo\nnever committed\n"
        assert (space.cwd / "new.txt").exists()
        assert not (space.cwd / ".env").exists()
        assert os.readlink(space.cwd / "link") == "a.txt"
        assert (space.cwd / "bin.dat").read_bytes() == bytes(range(256))
        assert git(space.cwd, "log", "--format=%s") == "first"
        assert git(space.cwd, "remote") == ""
        assert set(git(space.cwd, "status", "--short").split("\n")) == {"M a.txt", "?? new.txt"}
        assert not (await space.changes()).files


async def test_a_file_that_is_tracked_though_ignored_is_copied(repo: Path, spaces: Workspaces) -> None:
    (repo / "kept.log").write_text("k\n")
    git(repo, "add", "-f", "kept.log")
    changes = await lane(spaces, repo, "echo more >> kept.log")
    assert by_path(changes) == {"kept.log": "modified"}


async def test_everything_a_lane_can_do_to_a_file_is_in_its_diff_and_comes_over(
    repo: Path, spaces: Workspaces
) -> None:
    changes = await lane(
        spaces, repo,
        "git mv b.txt moved.txt; chmod +x run.sh; rm sub/c.txt; ln -sf b2 link; printf '\\0\\1' > bin.dat;"
        "echo x > made.log; printf 'a\\r\\nb\\r\\n' > crlf.txt; echo q > 'ä \"q\" x.txt';"
        "git add -A; git -c user.name=a -c user.email=a@b commit -qm mine",
    )  # fmt: skip
    files = {f.path: f for f in changes.files}
    assert (files["moved.txt"].status, files["moved.txt"].old_path) == ("renamed", "b.txt")
    assert (files["run.sh"].old_mode, files["run.sh"].mode) == ("100644", "100755")
    assert files["sub/c.txt"].status == "deleted"
    assert files["link"].mode == "120000"
    assert files["bin.dat"].insertions is None
    assert "GIT binary patch" in changes.diff
    assert "made.log" not in files
    took = await spaces.apply("r", "t", "x")
    assert set(took) == {*files, "b.txt"}
    assert not (repo / "b.txt").exists()
    assert not (repo / "sub" / "c.txt").exists()
    assert os.access(repo / "run.sh", os.X_OK)
    assert os.readlink(repo / "link") == "b2"
    assert (repo / "bin.dat").read_bytes() == b"\0\1"
    assert (repo / "crlf.txt").read_bytes() == b"a\r\nb\r\n"
    assert (repo / 'ä "q" x.txt').read_text() == "q\n"
    assert (repo / ".env").read_text() == "SECRET=1\n"
    assert git(repo, "log", "--format=%s") == "first"
    assert await spaces.apply("r", "t", "x") == ()


async def test_a_conflict_names_its_files_and_writes_nothing(repo: Path, spaces: Workspaces) -> None:
    await lane(spaces, repo, "echo lane > a.txt; echo lane > fresh.txt; echo lane > sub/c.txt")
    (repo / "a.txt").write_text("mine\n")
    (repo / "fresh.txt").write_text("mine\n")
    before = state(repo)
    with pytest.raises(Conflict) as caught:
        await spaces.apply("r", "t", "x")
    assert caught.value.code == "workspace_conflict"
    assert caught.value.extra["files"] == ["a.txt", "fresh.txt"]
    assert state(repo) == before


async def test_a_file_that_the_original_ignores_is_never_written_over(repo: Path, spaces: Workspaces) -> None:
    await lane(spaces, repo, "echo > .gitignore; echo lane > .env")
    with pytest.raises(Conflict, match=r"\.env"):
        await spaces.apply("r", "t", "x")
    assert (repo / ".env").read_text() == "SECRET=1\n"
    assert "*.log" in (repo / ".gitignore").read_text()


async def test_a_folder_in_place_of_a_file_is_a_conflict_or_comes_over(
    repo: Path, spaces: Workspaces
) -> None:
    await lane(spaces, repo, "rm new.txt; mkdir new.txt; echo x > new.txt/in")
    await lane(spaces, repo, "rm new.txt; mkdir new.txt; echo y > new.txt/in", "y")
    await spaces.apply("r", "t", "x")
    assert (repo / "new.txt" / "in").read_text() == "x\n"
    with pytest.raises(Conflict):
        await spaces.apply("r", "t", "y")


async def test_other_changes_of_the_original_stay(repo: Path, spaces: Workspaces) -> None:
    await lane(spaces, repo, "echo lane > sub/c.txt")
    (repo / "a.txt").write_text("mine\n")
    assert await spaces.apply("r", "t", "x") == ("sub/c.txt",)
    assert (repo / "a.txt").read_text() == "mine\n"
    assert (repo / "sub" / "c.txt").read_text() == "lane\n"


async def test_a_folder_that_is_no_repository_works_alike(tmp_path: Path, spaces: Workspaces) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.txt").write_bytes(b"a\r\n")
    before = state(plain)
    changes = await lane(spaces, plain, "echo b >> a.txt; echo n > n.txt")
    assert by_path(changes) == {"a.txt": "modified", "n.txt": "added"}
    assert state(plain) == before
    await spaces.apply("r", "t", "x")
    assert (plain / "a.txt").read_bytes() == b"a\r\nb\n"
    assert not (plain / ".git").exists()


async def test_a_folder_below_the_top_works_in_its_whole_repository(repo: Path, spaces: Workspaces) -> None:
    async with spaces.opened(repo / "sub", "t", "x") as space:
        assert space.cwd == space.tree / "sub"
        (space.cwd / "c.txt").write_text("changed\n")
        assert by_path(await space.keep("r", "x")) == {"sub/c.txt": "modified"}
    await spaces.apply("r", "t", "x")
    assert (repo / "sub" / "c.txt").read_text() == "changed\n"


async def test_a_submodule_is_an_empty_folder_and_never_changed(
    repo: Path, tmp_path: Path, spaces: Workspaces
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "o.txt").write_text("o\n")
    git(other, "add", "-A")
    git(other, "commit", "-q", "-m", "o")
    git(repo, "submodule", "add", "-q", str(other), "module")
    changes = await lane(spaces, repo, "test -d module; test ! -e module/o.txt; echo 1 > sub/c.txt")
    assert by_path(changes) == {"sub/c.txt": "modified"}
    await spaces.apply("r", "t", "x")
    assert (repo / "module" / "o.txt").exists()


async def test_a_repository_inside_that_is_no_submodule_is_its_files(repo: Path, spaces: Workspaces) -> None:
    inside = repo / "inside"
    inside.mkdir()
    git(inside, "init", "-q")
    (inside / "i.txt").write_text("i\n")
    changes = await lane(
        spaces, repo,
        "echo 2 >> inside/i.txt; mkdir made; cd made; git init -q; echo x > .gitignore; touch x y;"
        "git add -A; git -c user.name=a -c user.email=a@b commit -qm m; git init -q deeper",
    )  # fmt: skip
    assert by_path(changes) == {"inside/i.txt": "modified", "made/.gitignore": "added", "made/y": "added"}
    await spaces.apply("r", "t", "x")
    assert (repo / "inside" / "i.txt").read_text() == "i\n2\n"
    assert (repo / "made" / "y").exists()


async def test_no_filter_and_no_hook_of_the_repository_runs(
    repo: Path, tmp_path: Path, spaces: Workspaces
) -> None:
    mark = tmp_path / "mark"
    git(repo, "config", "filter.evil.clean", f"sh -c 'touch {mark}; cat'")
    git(repo, "config", "filter.evil.smudge", f"sh -c 'touch {mark}; cat'")
    git(repo, "config", "core.fsmonitor", f"touch {mark}")
    (repo / ".gitattributes").write_text("*.txt filter=evil text eol=crlf\n")
    for hook in ("post-checkout", "post-index-change"):
        path = repo / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {mark}\n")
        path.chmod(0o755)
    await lane(spaces, repo, "echo lane > sub/c.txt")
    await spaces.apply("r", "t", "x")
    assert (repo / "sub" / "c.txt").read_bytes() == b"lane\n"
    assert not mark.exists()


async def test_a_repository_without_a_commit_and_an_empty_start_work(
    tmp_path: Path, spaces: Workspaces
) -> None:
    unborn = tmp_path / "unborn"
    unborn.mkdir()
    git(unborn, "init", "-q")
    (unborn / "a").write_text("a\n")
    assert by_path(await lane(spaces, unborn, "echo b > b")) == {"b": "added"}
    assert by_path(await lane(spaces, None, "echo b > b", "y")) == {"b": "added"}
    with pytest.raises(Conflict, match="no original"):
        await spaces.apply("r", "t", "y")


async def test_the_next_run_of_a_thread_goes_on_and_the_first_diff_stays(
    repo: Path, spaces: Workspaces
) -> None:
    first = await lane(spaces, repo, "echo 1 > one")
    async with spaces.opened(repo, "t", "x~2") as space:
        assert space.continued
        (space.cwd / "two").write_text("2\n")
        assert by_path(await space.keep("r2", "x~2")) == {"one": "added", "two": "added"}
    assert await spaces.changes("r", "t", "x") == first


async def test_one_lane_is_one_run_at_a_time_and_shows_its_diff_meanwhile(
    repo: Path, spaces: Workspaces
) -> None:
    async with spaces.opened(repo, "t", "x") as space:
        (space.cwd / "two").write_text("2\n")
        assert by_path(await spaces.changes("r", "t", "x")) == {"two": "added"}
        with pytest.raises(AgentError) as caught:
            await lane(spaces, repo)
        assert caught.value.code == "workspace_busy"
    with pytest.raises(NotFound):
        await spaces.changes("r", "t", "x")


async def test_quotas_hold_for_the_original_and_for_the_copy(repo: Path, tmp_path: Path) -> None:
    few = Workspaces(tmp_path / "few", WorkspaceLimits(max_files=3))
    with pytest.raises(AgentError, match="max_files"):
        await lane(few, repo)
    small = Workspaces(tmp_path / "small", WorkspaceLimits(max_mb=0.5))
    with pytest.raises(AgentError, match="max_mb") as caught:
        await lane(small, repo, "head -c 800000 /dev/zero > big.log")  # ignored files count too
    assert caught.value.code == "workspace_full"


async def test_what_nobody_uses_is_removed_and_what_is_used_stays(repo: Path, tmp_path: Path) -> None:
    spaces = Workspaces(tmp_path / "spaces", WorkspaceLimits(max_age_days=1))
    await lane(spaces, repo, "mkdir ro; echo 1 > ro/f; chmod 500 ro")
    async with spaces.opened(repo, "t", "y") as used:
        old = time.time() - 2 * 86_400
        for folder in (tmp_path / "spaces").iterdir():
            os.utime(folder / "about.json", (old, old))
        assert spaces.remove_old() == 1
        assert used.cwd.is_dir()
    with pytest.raises(NotFound):
        await spaces.changes("r", "t", "x")


async def test_paths_are_inside_only_if_their_links_are(
    repo: Path, tmp_path: Path, spaces: Workspaces
) -> None:
    async with spaces.opened(repo, "t", "x") as space:
        (space.cwd / "out").symlink_to(tmp_path)
        assert space.inside("a.txt") == space.tree.resolve() / "a.txt"
        assert space.inside(str(space.cwd / "sub/new.txt")) is not None
        for path in ("../x", "/etc/passwd", "out/x", ".git/config", "a\0b", str(repo / "a.txt")):
            assert space.inside(path) is None, path


@pytest.mark.timeout(120)
async def test_twenty_thousand_files_are_copied_and_compared(tmp_path: Path, spaces: Workspaces) -> None:
    many = tmp_path / "many"
    for n in range(20_000):
        path = many / str(n % 100) / f"{n}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{n}\n")
    changes = await lane(spaces, many, "echo x > 7/7.txt; rm 8/8.txt")
    assert by_path(changes) == {"7/7.txt": "modified", "8/8.txt": "deleted"}


async def test_a_change_of_the_same_size_in_the_same_moment_is_seen(repo: Path, spaces: Workspaces) -> None:
    for n in range(10):
        changes = await lane(spaces, repo, "printf 'x\n' > sub/c.txt", f"c{n}")
        assert by_path(changes) == {"sub/c.txt": "modified"}


async def test_a_folder_that_is_not_there_says_so(tmp_path: Path, spaces: Workspaces) -> None:
    with pytest.raises(AgentError, match="no folder"):
        await lane(spaces, tmp_path / "nowhere")


async def test_a_copy_that_was_cut_off_is_made_anew(
    repo: Path, spaces: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise AgentError("workspace_failed", "cut")

    with monkeypatch.context() as patch:
        patch.setattr("mux.workspaces._clone", fails)
        with pytest.raises(AgentError, match="cut"):
            await lane(spaces, repo)
    assert not (await lane(spaces, repo)).files


def test_where_they_are_follows_the_store(tmp_path: Path) -> None:
    def root(**settings: object) -> Path:
        return workspaces_of(Settings.model_validate(settings)).root

    assert root(store=f"sqlite:{tmp_path}/m.db") == tmp_path / "workspaces"
    assert root(workspaces={"dir": str(tmp_path)}) == tmp_path
    assert root(store="memory:").name == "workspaces"

"""What ships is what is tested: wheel, sdist and editable install, each beside the OpenAI Agents SDK.

The SDK installs a top-level package ``agents``; our roster folder has the same name in a checkout and must
neither shadow it nor be overwritten by it (DESIGN section 13).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.process import ROOT, clean_env, serving

ROSTER = {"assistant", "researcher", "analyst", "synthesizer", "lead", "critic"}
BOTH = "import mux, agents; from agents import Agent, Runner; print(mux.__file__); print(agents.__file__)"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.allow_blocking]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end; its output, or a failed test with all that it said."""
    home = cwd if cwd != ROOT else Path(os.devnull)
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean_env(home), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, built from a copy of what git tracks (so that an untracked file can't help)."""
    source = tmp_path_factory.mktemp("source")
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    return out


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel and the Agents SDK; gives its bin folder."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=True)
    wheel = next(dist.glob("*.whl"))
    run(
        home / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check",
        f"{wheel}[openai-agents]", "-c", ROOT / "tests" / "requirements.txt", cwd=home,
    )  # fmt: skip
    return home / "bin"


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
        return body


def test_the_wheel_holds_roster_and_dashboard_inside_the_package(dist: Path) -> None:
    names = zipfile.ZipFile(next(dist.glob("*.whl"))).namelist()
    tops = {n.split("/")[0] for n in names}
    assert tops == {"mux", next(t for t in tops if t.endswith(".dist-info"))}
    assert {f"mux/_agents/{n}" for n in ("assistant.md", "lead.md")} <= set(names)
    assert "mux/_static/index.html" in names
    assert "mux/docs/index.md" in names
    assert not [n for n in names if "/.env" in n or n.endswith("mux/_agents/__init__.py")]


def test_the_sdist_builds_the_same_wheel_and_carries_the_licence(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {n.split("/", 1)[1] for n in sdist.getnames() if "/" in n}
    assert {"LICENSE", "README.md", "pyproject.toml", "agents/assistant.md", "static/index.html"} <= names


def test_the_wheel_imports_beside_the_agents_sdk(installed: Path, tmp_path: Path) -> None:
    ours, theirs = run(installed / "python", "-c", BOTH, cwd=tmp_path).split()
    assert Path(ours).is_relative_to(installed.parent)
    assert Path(theirs).is_relative_to(installed.parent)


def test_the_installed_command_serves_dashboard_and_roster_with_no_checkout_in_sight(
    installed: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, command=[str(installed / "mux")]) as url:
        assert b"<!doctype html>" in get(f"{url}/").lower()
        agents = {a["name"] for a in json.loads(get(f"{url}/api/agents"))["agents"]}
        assert agents == ROSTER
        query = "message=What+is+17*23%3F&agents=analyst,researcher"
        stream = get(f"{url}/api/chat/stream?{query}").decode()
        assert '"type":"run_finished","ts":' in stream
        assert "391" in stream


def test_the_installed_command_serves_as_a_container_would_start_it(installed: Path, tmp_path: Path) -> None:
    """No terminal, no home, nothing of a user's environment, started in ``/``, on all addresses, by a key."""
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    store = ("--store", f"sqlite:{tmp_path / 'mux.db'}")
    mux = str(installed / "mux")
    made = subprocess.run(
        [mux, "keys", "add", "ann", *store], cwd="/", env=bare, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    with serving(Path("/"), "--host", "0.0.0.0", *store, command=[mux], env=bare) as url:
        local = url.replace("0.0.0.0", "127.0.0.1")
        assert json.loads(get(f"{local}/readyz"))["status"] == "ready"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{local}/api/agents")
        request = urllib.request.Request(
            f"{local}/api/agents", headers={"Authorization": f"Bearer {made.stdout.strip()}"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert {a["name"] for a in json.loads(response.read())["agents"]} == ROSTER


def test_the_installed_command_runs_agents_in_the_terminal(installed: Path, tmp_path: Path) -> None:
    text = run(
        installed / "mux", "run", "-a", "analyst", "--json", "What is 17*23?", cwd=tmp_path,
    )  # fmt: skip
    events = [json.loads(line) for line in text.splitlines()]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "run_finished"


def test_an_editable_install_finds_the_sdk_and_the_checkouts_own_files() -> None:
    out = run(sys.executable, "-c", BOTH, cwd=ROOT).split()
    assert Path(out[0]) == ROOT / "mux" / "__init__.py"
    assert "site-packages" in out[1]

"""Every example of the manual and the README is run, as it stands there, against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from mux.settings import load_settings
from tests.support.process import ROOT, clean_env, serving

DOCS = ROOT / "mux" / "docs"
DEFAULT_URL = "http://127.0.0.1:8765"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.allow_blocking]


def examples(language: str, *names: str) -> list[ParameterSet]:
    """The fenced blocks of that language, as parameters named by page and number."""
    found: list[ParameterSet] = []
    for page in sorted(DOCS.glob("*.md")):
        if names and page.name not in names:
            continue
        blocks = [code for lang, code in FENCE.findall(page.read_text()) if lang == language]
        found += [pytest.param(code, id=f"{page.stem}-{i}") for i, code in enumerate(blocks, 1)]
    assert found, f"no {language} examples in {names}"
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as url:
        yield url


def run(command: list[str], cwd: Path, url: str) -> str:
    bin_dir = Path(sys.executable).parent
    env = clean_env(cwd, MUX_URL=url)
    env["PATH"] = f"{bin_dir}:{env['PATH']}"
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("code", examples("bash"))
def test_shell_examples_run_and_calculate(code: str, server: str, tmp_path: Path) -> None:
    out = run(["bash", "-euo", "pipefail", "-c", code.replace(DEFAULT_URL, server)], tmp_path, server)
    assert re.search(r"391|\*\*9\*\*", out), out[-2000:]


@pytest.mark.parametrize("code", examples("python", "python.md", "openai-sdk.md"))
def test_python_examples_run_and_calculate(code: str, server: str, tmp_path: Path) -> None:
    out = run([sys.executable, "-W", "error", "-c", code.replace(DEFAULT_URL, server)], tmp_path, server)
    assert "391" in re.sub(r"[\n ]|analyst|critic", "", out), out[-2000:]


@pytest.mark.parametrize("code", examples("python", "agents.md", "tools.md"))
def test_agent_and_tool_examples_load(code: str, tmp_path: Path) -> None:
    run([sys.executable, "-W", "error", "-c", code], tmp_path, DEFAULT_URL)


def test_the_readmes_agents_are_picked_up_from_the_working_directory(tmp_path: Path) -> None:
    blocks = FENCE.findall((ROOT / "README.md").read_text())
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "poet.md").write_text(next(c for lang, c in blocks if lang == "markdown"))
    (tmp_path / "agents" / "counter.py").write_text(next(c for lang, c in blocks if lang == "python"))
    out = run([sys.executable, "-m", "mux.cli", "agents"], tmp_path, DEFAULT_URL)
    assert "poet" in out
    assert "counter" in out
    out = run(
        [sys.executable, "-m", "mux.cli", "run", "--store", "memory:", "-a", "counter", "--json", "go"],
        tmp_path,
        "",
    )
    assert '"content":"2 "' in out


@pytest.mark.parametrize("code", examples("toml"))
def test_configuration_examples_are_accepted(code: str, tmp_path: Path) -> None:
    (tmp_path / "mux.toml").write_text(code)
    load_settings(env={}, cwd=tmp_path)

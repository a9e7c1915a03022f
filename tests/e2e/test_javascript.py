"""The dashboard's unit tests in Node, and the check of its JSDoc types, as part of the one test run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

JS = Path(__file__).resolve().parents[1] / "js"


@pytest.fixture(scope="module")
def packages() -> Path:
    """What the tests import, installed from the lock file where it is not there yet."""
    marker = JS / "node_modules" / ".installed"
    lock = (JS / "package-lock.json").read_text(encoding="utf-8")
    if not marker.exists() or marker.read_text(encoding="utf-8") != lock:
        subprocess.run(
            ["npm", "ci", "--silent", "--no-audit", "--no-fund"],
            cwd=JS,
            check=True,
            capture_output=True,
            timeout=240,
        )
        marker.write_text(lock, encoding="utf-8")
    return JS


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


@pytest.mark.timeout(300)
def test_the_unit_tests_pass_in_node(packages: Path) -> None:
    node = shutil.which("node")
    assert node, "The dashboard's unit tests need Node 20 or later."
    run(
        [node, "--import", "./register.mjs", "--test", *sorted(p.name for p in packages.glob("*.test.mjs"))],
        packages,
    )


@pytest.mark.timeout(300)
def test_the_types_of_the_dashboard_hold(packages: Path) -> None:
    run(["npx", "--no-install", "tsc", "--noEmit", "-p", "tsconfig.json"], packages)

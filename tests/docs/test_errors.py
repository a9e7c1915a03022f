"""The manual's list of error codes is the list of the codes that the source raises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mux import errors
from tests.support.process import ROOT

CLASSES = set(errors.__all__) | {"problem"}
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
# Raised with a computed class or as data of events; each is looked up by hand in the file named.
ELSEWHERE = {
    "agent_failed",  # engine: the failure boundary of a channel
    "interrupted",  # engine: recovery
    "timed_out",  # engine: the run's time
}


def raised(file: Path) -> set[str]:
    """Codes in calls of our error classes: the first argument that looks like one."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name not in CLASSES:
            continue
        texts = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        found |= set([t for t in texts if CODE.fullmatch(t)][:1])
    return found


INSIDE = {"fenced"}  # between the processes of one store; nobody outside ever sees it


def test_every_code_is_explained_and_no_other() -> None:
    in_source = set().union(*(raised(file) for file in (ROOT / "mux").rglob("*.py"))) | ELSEWHERE
    in_source -= INSIDE
    page = (ROOT / "mux" / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    in_manual = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert in_source - in_manual == set(), "raised, but not in the manual"
    assert in_manual - in_source == set(), "in the manual, but not raised"

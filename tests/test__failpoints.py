"""Failpoints fire once, at the pass that was asked for, and cost nothing when unset."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from mux._failpoints import make_failpoint


def test_unset_never_fires() -> None:
    deaths: list[int] = []
    failpoint = make_failpoint(None, lambda: deaths.append(1))
    failpoint("append.before")
    assert not deaths


def test_fires_at_the_counted_pass_only() -> None:
    deaths: list[int] = []
    failpoint = make_failpoint("append.before:3,other", lambda: deaths.append(1))
    seen = []
    for _ in range(5):
        failpoint("append.before")
        failpoint("elsewhere")
        seen.append(len(deaths))
    assert seen == [0, 0, 1, 1, 1]
    failpoint("other")
    assert len(deaths) == 2


def test_a_count_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="many"):
        make_failpoint("append.before:many")


def test_the_environment_variable_kills_the_process_without_cleanup() -> None:
    code = "from mux._failpoints import failpoint\ntry:\n failpoint('x')\nfinally:\n print('cleanup')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"MUX_FAILPOINT": "x"}, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""

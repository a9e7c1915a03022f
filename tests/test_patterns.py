"""No pattern of the package takes long on text that was made to make it: one page must not stop everybody."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterator

import pytest

import mux
from mux.events import Record
from mux.viewers import Selection

SIZE = 20_000
UNITS = (
    " ", "a", "A", "0", "_", "-", "*", "#", "(", ")", "[", "]", "<", ">", "{", "}", "/", "\\\\", ".", ",",
    ";",
    ":", "=", '"', "'", "\n", "# ", "a ", "a.", "[1] (", " (a, lines 1", "<meta ", "data:a/b;", "{{", "&a",
    "&#1",
    "a-", "0-", "http://", "\\u0", "é", "字",
)  # fmt: skip


def patterns() -> Iterator[tuple[str, re.Pattern[str] | re.Pattern[bytes]]]:
    """Every compiled pattern of the standard library's kind that a module of ours holds."""
    for module in pkgutil.walk_packages(mux.__path__, "mux."):
        if ".__main__" in module.name or module.name.startswith("mux._"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:  # an extra that is not installed
            continue
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern):
                yield f"{module.name}.{name}", value


@pytest.mark.timeout(120)
def test_every_pattern_is_fast_on_text_that_repeats_anything() -> None:
    found = list(patterns())
    assert len(found) > 15
    slow = []
    for name, pattern in found:
        for unit in UNITS:
            for end in ("", "!", "\x00"):
                text = unit * (SIZE // len(unit)) + end
                began = time.thread_time()
                if isinstance(pattern.pattern, bytes):
                    pattern.search(text.encode())
                else:
                    pattern.search(text)
                if time.thread_time() - began > 1.0:  # what is no more than linear takes 0.3 s at most
                    slow.append((name, unit))
    assert slow == []


def test_a_filter_of_many_stars_is_matched_at_once() -> None:
    began = time.thread_time()
    record = Record(seq=1, channel="a", cseq=1, type="approval_requested", ts=1, data=b"{}")
    for stars, passes in (("*" * 63 + "0", False), ("*a" * 31, False), ("*p*e*d", True), ("app*", True)):
        assert Selection.parse([], [stars]).matches(record) is passes
    assert time.thread_time() - began < 0.1

"""What reaches the log: libraries too; no secrets, nothing that terminals obey, and not for ever."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from mux.telemetry import configure_logging, get_logger, printable, register_secret

EVIL = "\x1b]0;owned\x07\x1b]52;c;cHduZWQ=\x07\x9b31m"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, was = logging.getLogger(), structlog.get_config()
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers
    logging.captureWarnings(capture=False)
    structlog.configure(**was)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_librarys_record_is_one_line_like_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    register_secret("sk-canary-123456")
    try:
        raise ValueError(f"no {EVIL} sk-canary-123456")
    except ValueError:
        logging.getLogger("some.library").exception("it %s with sk-canary-123456", "broke")
    (line,) = lines(capsys)
    assert (line["logger"], line["level"], line["event"]) == (
        "some.library",
        "error",
        "it broke with [secret]",
    )
    assert "ValueError: no " in line["exception"]
    assert "canary" not in str(line)


def test_a_library_below_warning_says_nothing_and_a_warning_of_python_is_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json", "debug")
    logging.getLogger("some.library").info("a whole body")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("this will go", DeprecationWarning, stacklevel=1)
    (line,) = lines(capsys)
    assert line["logger"] == "py.warnings"
    assert "this will go" in line["event"]


def test_a_flood_is_a_few_lines_and_a_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging("json")
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for n in range(2000):
        logging.getLogger("noisy").warning("line %d %s", n, "x" * 10_000)
    logging.getLogger("quiet").warning("still heard")
    written = lines(capsys)
    assert [line["logger"] for line in written] == ["noisy"] * 30 + ["quiet"]
    assert max(len(line["event"]) for line in written) <= 2000
    now += 61
    logging.getLogger("noisy").warning("again")
    (line,) = lines(capsys)
    assert (line["event"], line["dropped"]) == ("again", 1970)


def test_a_record_that_cannot_be_written_stops_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
    configure_logging("json")
    logging.getLogger("odd").warning("%d apples", "no number")
    logging.getLogger("odd").warning("fine")
    assert [line["event"] for line in lines(capsys)] == ["%d apples", "fine"]


def test_nothing_of_others_is_obeyed_by_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console")
    try:
        raise RuntimeError(EVIL)
    except RuntimeError:
        get_logger().exception(f"an agent said {EVIL}", agent=EVIL, more=[EVIL], deep={"a": EVIL})
    logging.getLogger("library").warning("a server said %s", EVIL)
    written = capsys.readouterr().err
    assert written.count("owned") >= 6
    assert not {c for c in written if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0}


def test_line_breaks_stay_printable() -> None:
    assert printable("a\nb\tc\r\n") == "a\nb  c\n"

"""Two independent model servers with fault injection, asked by the whole product over HTTP.

Each scenario is a provider of its own in the configuration, so that the circuit of one never touches
another's, and a channel of its own in one run. llama.cpp, the third server, is in ``tests/real``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import call, read
from tests.support.checker import Checker, texts
from tests.support.model_servers import aimock, llmock
from tests.support.service import make_settings, running, write_agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TIMERS = {"first_byte_s": 10, "progress_s": 2, "turn_s": 30}
AGENT = "---\nname: clerk\ndescription: Calculates.\ntools: calculator\n{front}---\nUse the calculator.\n"
CANARY = "sk-canary-in-a-body"


class Told:
    """What one channel said."""

    def __init__(self, events: Sequence[Mapping[str, Any]]) -> None:
        self.events = events

    def only(self, kind: str) -> list[Mapping[str, Any]]:
        return [e for e in self.events if e["type"] == kind]

    def text(self, kind: str = "token") -> str:
        return "".join(e["content"] for e in self.only(kind))

    @property
    def status(self) -> str:
        return str(self.events[-1]["status"])

    @property
    def code(self) -> str | None:
        return next((str(e["code"]) for e in self.only("error")), None)

    @property
    def retries(self) -> list[str]:
        return [e["reason"] for e in self.only("retry")]

    @property
    def results(self) -> list[tuple[str, str | None]]:
        return [(e["output"], e.get("error")) for e in self.only("tool_result")]


async def told(
    base_url: str, folder: Path, scenarios: Sequence[str], *, api: str = "chat", front: str = ""
) -> dict[str, Told]:
    """One run with a channel per scenario; the events have kept every promise."""
    write_agent(folder / "agents", "clerk.md", AGENT.format(front=front))
    providers = {
        s: {"base_url": f"{base_url}/v1", "api": api, "timeouts": TIMERS, "max_retries": 2} for s in scenarios
    }
    async with running(make_settings(agents=[folder / "agents"], providers=providers)) as url:
        channels = [{"id": s, "agent": "clerk", "model": f"{s}:{s}"} for s in scenarios]
        status, run, _ = await call("POST", f"{url}/api/runs", {"message": "Go.", "channels": channels})
        assert status == 201, run
        checker = Checker(run["run"])
        checker.feed(await read(f"{url}/api/runs/{run['run']}/events"))
        _, snapshot, _ = await call("GET", f"{url}/api/runs/{run['run']}")
    checker.assert_gapless()
    checker.assert_order()
    assert CANARY not in str(checker.events) + str(snapshot), "an upstream's body was passed on"
    heard = {s: Told([e for e in checker.events if e["channel"] == s]) for s in scenarios}
    shown = texts(checker.events)
    assert {c["id"]: c["text"] for c in snapshot["channels"]} == {
        s: shown.get((s, "token"), "") for s in heard
    }
    return heard


# --- aimock -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aimock_url() -> Iterator[str]:
    with aimock() as url:
        yield url


def check_answers(got: Mapping[str, Told]) -> None:
    """Text, reasoning, parallel tools, and calls that may not run."""
    assert (got["text"].status, got["text"].text()) == (
        "completed",
        "Grüße 😀 from a mock, in a few chunks of text.",
    )
    assert got["text"].text("reasoning") == "Let me think."
    assert (got["tool"].status, got["tool"].text()) == ("completed", "They are 391 and 4.")
    assert got["tool"].results == [("391", None), ("4", None)]
    assert got["unknown-tool"].status == "completed"
    assert [e for _, e in got["unknown-tool"].results] == ["unknown_tool"]
    assert got["bad-arguments"].status == "completed"
    assert [e for _, e in got["bad-arguments"].results] == ["invalid_arguments"]
    assert not got["bad-arguments"].only("tool_start")


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_aimock_answers_come_through_whole(
    no_leaks: None, aimock_url: str, tmp_path: Path, api: str
) -> None:
    check_answers(
        await told(aimock_url, tmp_path, ["text", "tool", "unknown-tool", "bad-arguments"], api=api)
    )


FAULTS = {
    "always-500": ("upstream_error", ["upstream_error"] * 2),
    "always-429": ("rate_limited", ["rate_limited"] * 2),
    "refused": ("upstream_rejected", []),
    "cut": ("upstream_truncated", []),
    "disconnect": ("upstream_unavailable", ["upstream_unavailable"] * 2),
    "malformed": ("upstream_protocol", []),
}


async def test_aimock_faults_have_their_codes_and_only_unseen_ones_are_retried(
    no_leaks: None, aimock_url: str, tmp_path: Path
) -> None:
    got = await told(aimock_url, tmp_path, [*FAULTS, "once-429", "once-500", "length"])
    assert {s: (got[s].code, got[s].retries) for s in FAULTS} == FAULTS
    assert {got[s].status for s in FAULTS} == {"failed"}
    assert {s: (got[s].status, got[s].text(), got[s].retries) for s in ("once-429", "once-500")} == {
        "once-429": ("completed", "At last.", ["rate_limited"]),
        "once-500": ("completed", "At last.", ["upstream_error"]),
    }
    assert got["cut"].text().startswith("This answer is cut")
    assert got["length"].only("step_finished")[0]["finish_reason"] == "length"


# --- LLMock -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llmock_url() -> Iterator[str]:
    with llmock() as url:
        yield url


def script(name: str, type: str, /, **fields: Any) -> dict[str, Any]:
    return {"type": type, "match": {"model": name}, **fields}


WORDS = "A scripted answer of several words, one chunk each."
SCRIPT = [
    script("tool", "reply", tool_calls=[{"name": "calculator", "arguments": {"expression": "17*23"}}]),
    script("tool", "reply", text="It is 391."),
    script("bad-arguments", "tool_fault", kind="malformed_arguments"),
    script("unknown-tool", "tool_fault", kind="unknown_tool"),
    script("once-429", "fail", status=429, retry_after=1, message=CANARY),
    script("once-503", "fail", status=503, message=CANARY),
    script("always-500", "fail", status=500, message=CANARY, times=None),
    script("refused", "fail", status=401, message=CANARY, times=None),
    script("cut", "stream_fault", kind="truncate", after_chunks=3),
    script("disconnect", "stream_fault", kind="disconnect", after_chunks=3),
    script("malformed", "stream_fault", kind="malformed", after_chunks=3),
    script("stall", "stream_fault", kind="stall", after_chunks=3, stall_seconds=20),
]
NAMES = ["text", *dict.fromkeys(s["match"]["model"] for s in SCRIPT)]
BROKEN = {
    "cut": "upstream_truncated",
    "disconnect": "upstream_truncated",
    "malformed": "upstream_protocol",
    "stall": "upstream_stall",
}
CODES = {"always-500": "upstream_error", "refused": "upstream_rejected"}


@pytest.fixture
async def scripted(llmock_url: str) -> str:
    """LLMock with the script queued and nothing remembered; its address."""
    replies = [script(n, "reply", text=WORDS, times=None) for n in NAMES if n != "bad-arguments"]
    status, _, _ = await call("POST", f"{llmock_url}/_llmock/reset")
    assert status == 200
    status, queued, _ = await call("POST", f"{llmock_url}/_llmock/scenario", {"behaviors": SCRIPT + replies})
    assert status == 201, queued
    return llmock_url


async def test_llmock_faults_have_their_codes_and_shown_text_is_not_asked_for_again(
    no_leaks: None, scripted: str, tmp_path: Path
) -> None:
    got = await told(scripted, tmp_path, NAMES)
    assert (got["text"].status, got["text"].text()) == ("completed", WORDS)
    assert (got["tool"].text(), got["tool"].results) == ("It is 391.", [("391", None)])
    assert {s: got[s].code for s in (BROKEN | CODES)} == BROKEN | CODES
    assert all(WORDS.startswith(got[s].text()) and got[s].text() and not got[s].retries for s in BROKEN)
    assert got["once-429"].retries == ["rate_limited"]
    assert got["once-429"].only("retry")[0]["delay_ms"] >= 1000, "Retry-After is honoured"
    assert got["once-503"].retries == ["upstream_error"]
    assert [e for _, e in got["bad-arguments"].results][:1] == ["invalid_arguments"]
    assert [e for _, e in got["unknown-tool"].results][:1] == ["unknown_tool"]


async def test_llmock_judges_that_its_client_copes_where_steps_may_be_done_again(
    no_leaks: None, scripted: str, tmp_path: Path
) -> None:
    got = await told(scripted, tmp_path, NAMES, front="retry_after_reset: true\n")
    _, verdict, _ = await call("GET", f"{scripted}/_llmock/verdict")
    for name in BROKEN:
        shown = texts(got[name].events)[name, "token"]
        assert (got[name].status, shown) == ("completed", WORDS), name
        (reset,) = got[name].only("step_reset")
        assert got[name].text() != WORDS, "what was taken back stays in the log"
        assert got[name].events[reset["from_cseq"] - 1]["type"] == "step_started"
    assert {s: got[s].code for s in CODES} == CODES
    assert not [f for f in verdict["findings"] if f["severity"] == "error"], verdict

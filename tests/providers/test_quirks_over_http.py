"""Every recorded case through the product: request, run, player, events, client.

All cases run in one server, a few at a time, so that the slow ones wait beside each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mux.telemetry import configure_logging
from tests.support.api import call, finished_run, read, start
from tests.support.checker import Checker
from tests.support.player import Case, Running, load_cases, playing
from tests.support.quirk_agents import RAN, write_roster
from tests.support.service import make_settings, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.usefixtures("no_leaks")]

KEY = "sk-quirk-SECRET"
TIMERS = {"first_byte_s": 10, "progress_s": 5, "turn_s": 20}
AT_ONCE = 10
ERRORS = {
    "invalid_json": "invalid_arguments",
    "not_an_object": "invalid_arguments",
    "unknown_tool": "unknown_tool",
}
# those that wait begin first, those that cost most come last: a case's time is its own
ORDER = {"stall-silent": -3, "error-429-exhausted": -2, "slow-first-byte": -1, "sse-many-tiny-deltas": 1}


@dataclass
class Heard:
    """What a client of the event stream has at the end."""

    run: str
    events: list[dict[str, Any]]
    snapshot: dict[str, Any]
    requests: list[dict[str, Any]]

    def only(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["type"] == kind]

    def text(self, kind: str) -> str:
        return "".join(e["content"] for e in self.only(kind))

    def calls(self) -> list[dict[str, Any]]:
        """Calls as ``expect`` writes them."""
        began = {e["call_id"]: e["arguments"] for e in self.only("tool_start")}
        return [
            {"name": e["tool"], "arguments": began.get(e["call_id"]), "error": e.get("error")}
            for e in self.only("tool_result")
            if e.get("error") != "interrupted"
        ]

    @property
    def seconds(self) -> float:
        return float(self.events[-1]["ts"] - self.events[0]["ts"]) / 1000


async def heard(url: str, case: Case, player: Running) -> Heard:
    run = await start(url, case.name, message="Go.")
    blocks = await read(f"{url}/api/runs/{run}/events")
    checker = Checker(run)
    checker.feed(blocks)
    checker.assert_gapless()
    checker.assert_order()
    _, snapshot, _ = await call("GET", f"{url}/api/runs/{run}")
    return Heard(run, checker.events, snapshot, player.requests(case.name))


def check(expect: dict[str, Any], got: Heard) -> None:
    """What a careful client concludes, by the events alone."""
    assert [e["code"] for e in got.only("error")] == ([expect["error"]] if expect["error"] else [])
    if expect["text"] is None:
        assert hashlib.sha256(got.text("token").encode()).hexdigest() == expect["text_sha256"]
    else:
        assert got.text("token") == expect["text"]
    assert got.text("reasoning") == expect["reasoning"]
    assert got.text("refusal") == expect.get("refusal", "")
    finished = got.only("step_finished")
    assert (finished[0]["finish_reason"] if finished else None) == expect["finish"]
    for found, wanted in zip(_sorted(got.calls()), _sorted(expect["tool_calls"]), strict=True):
        assert found["name"] == wanted["name"]
        if sha := wanted.get("arguments_sha256"):
            assert sha == hashlib.sha256(json.dumps(found["arguments"], sort_keys=True).encode()).hexdigest()
        else:
            assert found["arguments"] == (None if wanted.get("error") else wanted["arguments"])
        if wanted.get("error"):
            assert found["error"] == ERRORS[wanted["error"]]
        else:
            assert found["error"] is None


def _sorted(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(calls, key=lambda c: (c["name"], str(c.get("arguments"))))


def check_round_about(case: Case, got: Heard) -> None:
    """How often, how long, and what the end of the channel and the snapshot say."""
    expect = case.expect
    ran = RAN[case.name]
    assert len(ran) == len(got.only("tool_start"))
    assert len(ran) <= expect.get("dispatches", len(ran))
    if "requests" in expect:
        assert len(got.requests) == expect["requests"]
    assert len(got.requests) == 1 + len(got.only("retry"))
    assert all(r["auth"] == f"Bearer {KEY}" for r in got.requests)
    assert expect.get("min_seconds", 0) <= got.seconds <= expect.get("max_seconds", 30)
    if usage := expect.get("usage"):
        (reported,) = got.only("usage")
        assert reported["input_tokens"] == usage["prompt_tokens"]
        assert reported["output_tokens"] == usage["completion_tokens"]
    (done,) = got.only("done")
    assert (done["status"] == "failed") == bool(got.only("error"))
    (channel,) = got.snapshot["channels"]
    assert channel["status"] == done["status"]
    assert channel["text"] == got.text("token")
    assert channel["reasoning"] == got.text("reasoning")
    assert len(channel["tools"]) == len(got.only("tool_call"))


def judge(case: Case, got: Heard) -> str | None:
    """Why the case fails; ``None`` if it does not."""
    failures: list[AssertionError] = []
    for other in ({}, *case.expect.get("accept", ())):
        try:
            check({**case.expect, **other}, got)
            check_round_about(case, got)
        except AssertionError as error:
            failures.append(error)
        else:
            return None
    return f"{case.name}: {failures[0]}\n  events: {str([_short(e) for e in got.events])[:1500]}"


def _short(event: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in event.items() if k not in ("run", "channel", "seq", "ts", "message", "channels")}


async def test_every_case_ends_over_http_as_a_careful_client_concludes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = sorted(load_cases(), key=lambda c: ORDER.get(c.name, 0))
    monkeypatch.setenv("QUIRK_KEY", KEY)
    RAN.clear()
    configure_logging("json", "debug")
    store = tmp_path / "mux.sqlite"
    roster = write_roster(tmp_path / "agents", [(c.name, c.spec["tools"]) for c in cases])
    # cases say how long they may take; the debug mode's own tracing triples the cost of every callback
    asyncio.get_running_loop().set_debug(False)
    turn = asyncio.Semaphore(AT_ONCE)
    async with playing() as player:
        providers = {
            c.name: {
                "base_url": player.base_url(c.name),
                "api_key_env": "QUIRK_KEY",
                "api": c.api,
                "timeouts": TIMERS,
            }
            for c in cases
        }
        settings = make_settings(agents=[roster], providers=providers, store=f"sqlite:{store}")
        async with running(settings) as url:

            async def one(case: Case) -> Heard:
                async with turn:
                    return await heard(url, case, player)

            await finished_run(url, "assistant")  # the first request of a server loads the SDK

            results = await asyncio.gather(*(one(c) for c in cases), return_exceptions=True)
    problems: list[str] = []
    for case, got in zip(cases, results, strict=True):
        found = f"{case.name}: {got!r}" if isinstance(got, BaseException) else judge(case, got)
        problems += [found] if found else []
    logs = capsys.readouterr()
    kept = b"".join(f.read_bytes() for f in sorted(tmp_path.glob("mux.sqlite*")))  # noqa: ASYNC240 - after the run
    shown = json.dumps([[h.events, h.snapshot] for h in results if isinstance(h, Heard)])
    for secret in {KEY, *(s for c in cases for s in c.expect.get("never_contains", ()))}:
        places = {"log": logs.err + logs.out, "events or snapshot": shown, "store": kept.decode("latin-1")}
        problems += [f"{secret!r} is in the {place}" for place, text in places.items() if secret in text]
    assert not problems, "\n".join([f"{len(problems)} of {len(cases)} cases:", *problems])
    assert "channel" in logs.err, "the log was looked at"

"""What the model layer decides, as a client of the event stream sees it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import call, read, settled
from tests.support.checker import Checker
from tests.support.endpoint import DONE, Endpoint, Exchange, Script, delta, serving
from tests.support.service import make_settings, running, write_agent

pytestmark = pytest.mark.usefixtures("no_leaks")

AGENT = "---\nname: clerk\ndescription: Answers.\nmodel: p:m\n---\n"


@asynccontextmanager
async def asked(
    folder: Path, script: Script, *, guardrails: dict[str, Any] | None = None, **provider: Any
) -> AsyncIterator[tuple[str, Endpoint]]:
    """A server whose one agent asks an endpoint that runs this script."""
    write_agent(folder / "agents", "clerk.md", AGENT)
    async with serving(script) as endpoint:
        settings = make_settings(
            agents=[folder / "agents"],
            providers={"p": {"base_url": endpoint.url, **provider}},
            guardrails=guardrails or {},
        )
        async with running(settings) as url:
            yield url, endpoint


async def begin(url: str, message: str = "Go.", **fields: Any) -> str:
    """Start a run of one channel ``clerk``; its id."""
    thread = {k: fields.pop(k) for k in ("thread",) if k in fields}
    body = {"message": message, "channels": [{"agent": "clerk", **fields}], **thread}
    status, run, _ = await call("POST", f"{url}/api/runs", body)
    assert status == 201, run
    return str(run["run"])


async def events_of(url: str, run: str) -> list[dict[str, Any]]:
    checker = Checker(run)
    checker.feed(await read(f"{url}/api/runs/{run}/events"))
    checker.assert_gapless()
    checker.assert_order()
    return checker.events


def only(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [e for e in events if e["type"] == kind]


# --- further choices ----------------------------------------------------------------------------------------


def piece(index: int, text: str, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


async def three(x: Exchange) -> None:
    await x.head()
    await x.send(piece(0, "on"), piece(2, "thr"), piece(1, "two"), piece(0, "e"), piece(2, "ee"))
    await x.send(piece(0, "", "stop"), piece(1, "", "stop"), piece(2, "", "stop"), DONE)
    await x.end()


async def test_further_choices_are_events_of_their_own_before_the_step_ends(tmp_path: Path) -> None:
    async with asked(tmp_path, three) as (url, endpoint):
        events = await events_of(url, await begin(url, params={"n": 3}))
        assert endpoint.seen[0].body["n"] == 3
    assert "".join(e["content"] for e in only(events, "token")) == "one"
    assert [e["value"] for e in only(events, "custom") if e["name"] == "choice"] == [
        {"step": 1, "index": 1, "content": "two"},
        {"step": 1, "index": 2, "content": "three"},
    ]
    kinds = [e["type"] for e in events]
    assert kinds.index("custom") < kinds.index("step_finished")
    assert only(events, "done")[0]["output"] == "one"


def call_piece(index: int, arguments: str, name: str | None = None) -> bytes:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    call_ = {"index": 0, "function": function, **({"id": "c"} if name else {})}
    choice = {"index": index, "delta": {"tool_calls": [call_]}, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


async def second_calls(x: Exchange) -> None:
    await x.head()
    await x.send(piece(0, "one"), call_piece(1, '{"expression":', "calculator"), call_piece(1, '"1+1"}'))
    await x.send(piece(0, "", "stop"), piece(1, "", "tool_calls"), DONE)
    await x.end()


async def test_a_further_choices_calls_are_shown_and_do_not_run(tmp_path: Path) -> None:
    async with asked(tmp_path, second_calls) as (url, endpoint):
        events = await events_of(url, await begin(url, params={"n": 2}))
        requests = len(endpoint.seen)
    assert [e["value"] for e in only(events, "custom") if e["name"] == "choice"] == [
        {
            "step": 1,
            "index": 1,
            "content": "",
            "tool_calls": [{"tool": "calculator", "arguments": '{"expression":"1+1"}'}],
        }
    ]
    assert not only(events, "tool_call") + only(events, "tool_start")
    assert (only(events, "done")[0]["output"], requests) == ("one", 1)


@pytest.mark.parametrize("action", ["block", "mask"])
async def test_a_guardrail_holds_for_a_further_choices_calls(tmp_path: Path, action: str) -> None:
    rule = {"pattern": r"1\+1", "action": action}
    async with asked(tmp_path, second_calls, guardrails={"no-sums": rule}) as (url, _):
        events = await events_of(url, await begin(url, params={"n": 2}))
    assert "1+1" not in json.dumps(events)
    assert only(events, "guardrail")[0]["action"] == {"block": "blocked", "mask": "masked"}[action]


@pytest.mark.parametrize("action", ["block", "mask"])
async def test_a_guardrail_holds_for_further_choices_too(tmp_path: Path, action: str) -> None:
    rule = {"pattern": "thr[a-z]+", "action": action}
    async with asked(tmp_path, three, guardrails={"no-third": rule}) as (url, _):
        run = await begin(url, params={"n": 3})
        events = await events_of(url, run)
        _, snapshot, _ = await call("GET", f"{url}/api/runs/{run}")
    assert "three" not in json.dumps([events, snapshot])
    assert only(events, "guardrail")[0]["action"] == {"block": "blocked", "mask": "masked"}[action]
    assert only(events, "done")[0]["status"] == ("refused" if action == "block" else "completed")


# --- thoughts in tags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"think_tags": False}])
async def test_thoughts_in_tags_are_reasoning_unless_the_provider_is_said_to_mean_text(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("<th"), delta("ink>Hm.</"), delta("think>\n\nYes."), delta(finish="stop"), DONE)
        await x.end()

    async with asked(tmp_path, script, **options) as (url, _):
        events = await events_of(url, await begin(url))
    said = {k: "".join(e["content"] for e in only(events, k)) for k in ("reasoning", "token")}
    assert said == (
        {"reasoning": "", "token": "<think>Hm.</think>\n\nYes."}
        if options
        else {"reasoning": "Hm.", "token": "Yes."}
    )


# --- history ------------------------------------------------------------------------------------------------


async def hello(x: Exchange) -> None:
    await x.head()
    await x.send(delta("hello"), delta(finish="stop"), DONE)
    await x.end()


async def test_a_conversation_over_the_context_is_trimmed_and_the_stream_says_so(tmp_path: Path) -> None:
    async with asked(tmp_path, hello, context_tokens=2048) as (url, endpoint):
        run = await begin(url, "word " * 1500)
        await settled(url, run)
        _, first, _ = await call("GET", f"{url}/api/runs/{run}")
        events = await events_of(url, await begin(url, "And now? " + "word " * 400, thread=first["thread"]))
        sent = [m["content"] for m in endpoint.seen[1].body["messages"] if m["role"] == "user"]
    (trimmed,) = [e["value"] for e in only(events, "custom") if e["name"] == "history_trimmed"]
    assert trimmed["messages_dropped"] >= 1, trimmed
    assert len(sent) == 1
    assert sent[0].startswith("And now?")
    assert only(events, "done")[0]["status"] == "completed"


# --- retries and the circuit --------------------------------------------------------------------------------


def limited(answers: list[int], wait_s: int) -> Script:
    """429 with ``Retry-After`` as long as statuses are left, then an answer."""

    async def script(x: Exchange) -> None:
        if answers:
            await x.answer(answers.pop(0), retry_after=str(wait_s))
        else:
            await hello(x)

    return script


async def retrying(url: str, run: str) -> None:
    """Wait until the stream says that a retry is being waited for."""
    await read(f"{url}/api/runs/{run}/events", until="retry")


async def test_a_message_ends_the_wait_for_a_retry_at_once(tmp_path: Path) -> None:
    async with asked(tmp_path, limited([429], 15)) as (url, endpoint):
        run = await begin(url)
        await retrying(url, run)
        began = time.monotonic()
        steer = f"{url}/api/runs/{run}/channels/clerk/messages"
        status, _, _ = await call("POST", steer, {"content": "Hurry.", "mode": "interrupt"})
        assert status < 300
        events = await events_of(url, run)
        assert time.monotonic() - began < 8
        assert endpoint.seen[1].body["messages"][-1]["content"].endswith("\n\nHurry.")
    assert [e["finish_reason"] for e in only(events, "step_finished")] == ["interrupted", "stop"]
    assert only(events, "done")[0]["status"] == "completed"


@pytest.mark.parametrize("mode", ["now", "graceful"])
async def test_a_cancel_ends_the_wait_for_a_retry_at_once(tmp_path: Path, mode: str) -> None:
    async with asked(tmp_path, limited([429] * 9, 15)) as (url, endpoint):
        run = await begin(url)
        await retrying(url, run)
        began = time.monotonic()
        await call("POST", f"{url}/api/runs/{run}/cancel", {"mode": mode})
        assert await settled(url, run) == "cancelled"
        assert time.monotonic() - began < 8
        assert len(endpoint.seen) == 1


async def test_an_endpoint_that_keeps_failing_is_left_alone_and_the_error_says_so(tmp_path: Path) -> None:
    async with asked(tmp_path, limited([500] * 99, 0), max_retries=0) as (url, endpoint):
        runs = [await begin(url) for _ in range(8)]
        await asyncio.gather(*(settled(url, r) for r in runs))
        events = await events_of(url, await begin(url))
        assert len(endpoint.seen) == 8, "the ninth sends no request"
    (error,) = only(events, "error")
    assert error["code"] == "upstream_unavailable"
    assert "'p'" in error["message"]
    assert "failed again and again (last: upstream_error)" in error["message"]
    assert "tried again in" in error["message"]

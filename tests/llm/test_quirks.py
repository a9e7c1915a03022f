"""Every recorded case: as bytes through the parser, and over HTTP by `HttpModel`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mux.agent import Message
from mux.errors import UpstreamError
from mux.llm.chat import ChatParser
from mux.llm.model import (
    CallArgs,
    CallBegan,
    Delta,
    ModelRequest,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TextWasThought,
    ToolSchema,
    TurnEnd,
)
from mux.llm.responses import ResponsesParser
from mux.llm.upstream import HttpModel
from mux.llm.wire import TurnReader
from mux.settings import Provider, Timeouts
from tests.support.player import OURS, Case, Running, load_cases, playing

CASES = load_cases()
TIMERS = Timeouts(first_byte_s=10, progress_s=5, turn_s=20)
KEY = "sk-quirk-SECRET"


@dataclass
class Heard:
    """What a client that only appends deltas ends up with."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    outputs: int = 0
    names: dict[int, str] = field(default_factory=dict)
    arguments: dict[int, str] = field(default_factory=dict)
    end: TurnEnd | None = None
    error: UpstreamError | None = None

    def hear(self, delta: Delta) -> None:
        assert self.end is None, "a delta after the turn's end"
        match delta:
            case TextDelta(text):
                self.text += text
            case ReasoningDelta(text):
                self.reasoning += text
            case RefusalDelta(text):
                self.refusal += text
            case OutputDelta():
                self.outputs += 1
            case TextWasThought():
                self.reasoning, self.text = self.reasoning + self.text, ""
            case CallBegan(key, name):
                assert key == len(self.names), "calls are numbered as they begin"
                self.names[key] = name
            case CallArgs(key, text):
                assert key in self.names, "arguments before their call"
                self.arguments[key] = self.arguments.get(key, "") + text
            case TurnEnd():
                self.end = delta


def schemas(case: Case) -> tuple[ToolSchema, ...]:
    return tuple(ToolSchema(n, "", {"type": "object"}) for n in case.spec["tools"])


def check(case: Case, heard: Heard) -> None:
    expect = case.expect
    if expect["text"] is None:
        assert len(heard.text) == expect["text_len"]
        assert hashlib.sha256(heard.text.encode()).hexdigest() == expect["text_sha256"]
    else:
        assert heard.text == expect["text"]
    assert heard.reasoning == expect["reasoning"]
    assert heard.refusal == expect.get("refusal", "")
    if expect["error"]:
        assert heard.error is not None
        assert heard.error.code == expect["error"]
        assert heard.end is None
        return
    assert heard.error is None
    assert heard.end is not None
    assert heard.end.finish == expect["finish"]
    check_calls(expect["tool_calls"], heard)
    if usage := expect.get("usage"):
        assert heard.end.usage is not None
        assert heard.end.usage.input_tokens == usage["prompt_tokens"]
        assert heard.end.usage.output_tokens == usage["completion_tokens"]


def check_calls(expected: list[dict[str, Any]], heard: Heard) -> None:
    assert heard.end is not None
    calls = heard.end.calls
    assert [c.name for c in calls] == [e["name"] for e in expected] == list(heard.names.values())
    for call, want in zip(calls, expected, strict=True):
        if sha := want.get("arguments_sha256"):
            found = json.dumps(call.arguments, sort_keys=True)
            assert sha in {hashlib.sha256(t.encode()).hexdigest() for t in (call.raw, found)}
        else:
            assert call.arguments == want["arguments"]
        if want.get("arguments", True) is not None:
            assert call.error is None
        elif want.get("error") == "invalid_json":
            assert call.error in ("invalid_json", "truncated")
            assert call.raw == want["raw"]
        if "id" in want:
            assert call.provider_id == want["id"]
        if extra := want.get("extra_content"):
            assert call.extras == {"extra_content": extra}


def read(case: Case, pieces: list[bytes]) -> tuple[list[Delta], str | None]:
    parser = (
        ResponsesParser(case.spec["tools"]) if case.api == "responses" else ChatParser(case.spec["tools"])
    )
    reader = TurnReader(parser)
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += reader.feed(piece)
    deltas += reader.end()
    return deltas, reader.failure.code if reader.failure else None


WIRE_CASES = [c for c in CASES if c.in_bytes]
SMALL = [c for c in WIRE_CASES if "huge" not in c.name and "many" not in c.name]


@pytest.mark.parametrize("case", WIRE_CASES, ids=lambda c: c.name)
def test_the_bytes_of_a_case_mean_what_it_expects(case: Case) -> None:
    heard = Heard()
    deltas, error = read(case, [case.wire_bytes()])
    for delta in deltas:
        heard.hear(delta)
    heard.error = UpstreamError(error, "") if error else None
    check(case, heard)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_where_the_bytes_are_cut_changes_nothing(case: Case, data: st.DataObject) -> None:
    whole = case.wire_bytes()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(case, pieces) == read(case, [whole])


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_one_byte_at_a_time_changes_nothing(case: Case) -> None:
    whole = case.wire_bytes()
    assert read(case, [whole[i : i + 1] for i in range(len(whole))]) == read(case, [whole])


async def ask(case: Case, player: Running) -> tuple[Heard, list[str]]:
    """One step as the loop takes it: retries only while nothing was shown."""
    provider = Provider(
        base_url=player.base_url(case.name), api_key_env="QUIRK_KEY", api=case.api, timeouts=TIMERS
    )
    model = HttpModel("quirk", provider, env={"QUIRK_KEY": KEY})
    request = ModelRequest("quirk-1", [Message(role="user", content="go")], schemas(case))
    said: list[str] = []
    try:
        for _ in range(4):
            heard = Heard()
            try:
                async for delta in model.stream(request):
                    heard.hear(delta)
            except UpstreamError as e:
                heard.error = e
                said.append(f"{e} {e.extra}")
            shown = heard.text or heard.reasoning or heard.refusal or heard.names or heard.outputs
            if heard.error is None or shown or not heard.error.retryable:
                break
            if (heard.error.retry_after or 0) > 10:
                break
            await asyncio.sleep(heard.error.retry_after or 0)
    finally:
        await model.aclose()
    return heard, said


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c.expect["error"] == "upstream_stall" else c for c in CASES],
    ids=lambda c: c.name,
)
async def test_over_http_a_case_means_what_it_expects(case: Case, no_leaks: None) -> None:
    async with playing() as player:
        began = time.monotonic()
        heard, said = await ask(case, player)
        took = time.monotonic() - began
        requests = player.requests(case.name)
    check(case, heard)
    if wanted := case.expect.get("requests"):
        assert len(requests) == wanted
    assert took >= case.expect.get("min_seconds", 0)
    assert took <= case.expect.get("max_seconds", 15)
    assert all(r["auth"] == f"Bearer {KEY}" for r in requests)
    for secret in (KEY, *case.expect.get("never_contains", ())):
        assert not any(secret in s for s in said)


@pytest.mark.parametrize("rule", range(1, 11))
def test_every_rule_has_a_case_of_our_own(rule: int) -> None:
    own = [json.loads(f.read_text(encoding="utf-8"))["source"] for f in OURS.glob("*.json")]
    assert [s for s in own if re.search(rf"\brule (?:\d+ and )?{rule}\b", s)]

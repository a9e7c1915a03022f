"""Every recorded case of shared/quirks through the agent's loop: what is shown, what runs, how it ends."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mux.agent import AgentContext, Budget, Draft, Outcome
from mux.errors import UpstreamError
from mux.events import (
    Reasoning,
    Refusal,
    StepFinished,
    Token,
    ToolProgress,
    ToolResult,
    ToolStart,
    UsageReport,
)
from mux.llm.agent import LlmAgent
from mux.llm.providers import Providers
from mux.llm.setup import LlmRuntime
from mux.settings import Provider, Settings, Timeouts
from mux.tools.base import Tool
from mux.tools.decorator import tool
from mux.tools.runtime import Toolbox
from tests.support.fake_host import as_event, context
from tests.support.legal import play
from tests.support.player import Case, load_cases, playing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60), pytest.mark.usefixtures("no_leaks")]
TIMERS = Timeouts(first_byte_s=10, progress_s=5, turn_s=20)
ERRORS = {
    "invalid_json": "invalid_arguments",
    "not_an_object": "invalid_arguments",
    "unknown_tool": "unknown_tool",
}


def tools_of(case: Case, ran: list[str]) -> list[Tool]:
    """The case's tools; each says what it was given."""
    made: list[Tool] = []
    for name in case.spec["tools"]:

        @tool(name=name, description="A tool of the recording.", parameters={"type": "object"})
        async def recorded(**arguments: Any) -> str:
            ran.append(json.dumps(arguments, sort_keys=True))
            return "ok"

        made.append(recorded)
    return made


class Heard:
    """What a client of the event stream has at the end."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.error: UpstreamError | None = None

    async def listen(self, drafts: AsyncIterator[Draft]) -> None:
        try:
            async for draft in drafts:
                self.drafts.append(as_event(draft))
        except UpstreamError as error:
            self.error = error

    def text(self, kind: type[Any]) -> str:
        return "".join(d.content for d in self.drafts if isinstance(d, kind))

    def only(self, kind: type[Any]) -> list[Any]:
        return [d for d in self.drafts if isinstance(d, kind)]

    def calls(self) -> list[dict[str, Any]]:
        """Calls as ``expect`` writes them."""
        began = {s.call_id: s.arguments for s in self.only(ToolStart)}
        return [
            {"name": r.tool, "arguments": began.get(r.call_id), "error": r.error}
            for r in self.only(ToolResult)
            if r.error != "interrupted"
        ]


async def heard(case: Case, ran: list[str]) -> Heard:
    """One step of the case (the player repeats itself for a second one)."""
    async with playing() as player:
        provider = Provider(base_url=player.base_url(case.name), api=case.api, timeouts=TIMERS)
        settings = Settings(model="quirk:m", providers={"quirk": provider})
        providers = Providers(settings)
        box = Toolbox(tools_of(case, ran))
        agent = LlmAgent(name="a", tools=list(box.tools), budget=Budget(steps=1))
        ctx: AgentContext = context("Go.", budget=agent.budget)
        result = Heard()
        try:
            await result.listen(agent.bind(LlmRuntime(providers, lambda: box, settings)).run(ctx))
        finally:
            await providers.aclose()
    play(result.drafts, failed=result.error is not None)
    return result


def check(expect: dict[str, Any], got: Heard) -> None:
    assert (got.error.code if got.error else None) == expect.get("error")
    if expect.get("text") is not None:
        assert got.text(Token) == expect["text"]
    elif "text_sha256" in expect:
        assert hashlib.sha256(got.text(Token).encode()).hexdigest() == expect["text_sha256"]
    assert got.text(Reasoning) == expect.get("reasoning", "")
    assert got.text(Refusal) == expect.get("refusal", "")
    finished = got.only(StepFinished)
    assert (finished[0].finish_reason if finished else None) == expect["finish"]
    wanted = expect["tool_calls"]
    if any("arguments_sha256" in c for c in wanted):
        assert [c["name"] for c in got.calls()] == [c["name"] for c in wanted]
        return
    plain = [
        {
            "name": c["name"],
            "arguments": None if c.get("error") else c["arguments"],
            "error": ERRORS.get(c["error"]) if c.get("error") else None,
        }
        for c in wanted
    ]
    assert sorted(map(str, got.calls())) == sorted(map(str, plain))


@pytest.mark.parametrize("case", load_cases(), ids=lambda c: c.name)
async def test_a_recorded_stream_ends_as_a_careful_client_concludes(case: Case) -> None:
    ran: list[str] = []
    began = time.monotonic()
    got = await heard(case, ran)
    took = time.monotonic() - began
    expect = case.expect
    accepted = [expect, *({**expect, **other} for other in expect.get("accept", ()))]
    failures: list[AssertionError] = []
    for version in accepted:
        try:
            check(version, got)
            break
        except AssertionError as error:
            failures.append(error)
    else:
        raise failures[0]
    assert took >= expect.get("min_seconds", 0)
    assert took <= expect.get("max_seconds", 60)
    assert len(ran) == len(got.only(ToolStart))
    if "dispatches" in expect:
        assert len(ran) <= expect["dispatches"]
    if expect.get("usage"):
        assert got.only(UsageReport)[0].input_tokens == expect["usage"]["prompt_tokens"]
    shown = str([d for d in got.drafts if not isinstance(d, ToolProgress)]) + str(got.error)
    assert not [secret for secret in expect.get("never_contains", ()) if secret in shown]
    if got.error is None:
        assert isinstance(got.drafts[-1], Outcome)

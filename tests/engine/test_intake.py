"""What callers write, as it may be kept: each channel by its own agent's rules."""

from __future__ import annotations

from typing import Any

import pytest

from mux.agent import Guard
from mux.engine.intake import BLOCKED, message_of, publishable, read_metadata, read_plan
from mux.engine.plan import Plan, PlannedChannel
from mux.engine.task import make_task
from mux.errors import ConfigError
from mux.guardrails import Rules
from mux.requests import ChatMessage
from mux.settings import GuardrailRule

BADGE = "zq123456"


def _rules(**rule: Any) -> Rules:
    return Rules.compile({"badge": GuardrailRule(stage=("input",), pattern="zq[0-9]{6}", **rule)})


RULES = {
    "masks": _rules(action="mask"),
    "blocks": _rules(refusal="Not here."),
    "free": Rules.compile({"other": GuardrailRule(stage=("input",), pattern="qqq")}),
}


def guard_of(agent: str, channel: str) -> Guard:
    if agent == "broken":
        raise ConfigError("guardrail_invalid", "Its rules can't be used.")
    return RULES[agent].guard(run="r", channel=channel, refusal="No.")


def plan(*agents: str, **fields: Any) -> Plan:
    return Plan(channels=tuple(PlannedChannel(id=a, agent=a) for a in agents), **fields)


def asked(kept: Plan, channel: str) -> list[Any]:
    found = kept.channel(channel)
    assert found is not None
    return [m.content for m in make_task(kept, found, [], []).messages]


@pytest.mark.parametrize("agents", [("free",), ("masks",), ("masks", "free"), ("masks", "free", "blocks")])
async def test_each_channel_keeps_what_its_own_rules_let_pass(agents: tuple[str, ...]) -> None:
    messages = (
        ChatMessage(role="user", content=f"hi {BADGE}", name="joe"),  # type: ignore[call-arg]  # extra
        ChatMessage(
            role="user",
            content=[
                {"type": "text", "text": BADGE},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        ),
    )
    for given in ({"message": f"hi {BADGE}"}, {"messages": messages}):
        kept = await read_plan(plan(*agents, **given), guard_of)
        assert Plan.model_validate(kept.dump()) == kept
        assert kept.blocked == ("blocks" in agents)
        if "free" in agents:
            assert BADGE in str(asked(kept, "free"))
        if "masks" in agents:
            task = str(asked(kept, "masks"))
            assert (BADGE in task, "hi [masked]" in task) == (False, True)
            assert ("image/png" in task) == ("messages" in given)
        if "blocks" in agents:
            blocked = kept.channel("blocks")
            assert blocked is not None
            assert blocked.asked is not None
            assert (blocked.asked.blocked, blocked.asked.refusal) == (True, "Not here.")
            assert message_of(kept) == BLOCKED
        if "free" not in agents:
            assert BADGE not in kept.model_dump_json()


async def test_what_another_channel_s_rules_stop_is_not_announced_as_a_channel_s_own_message() -> None:
    for agents in (("masks", "free"), ("free", "blocks")):
        kept = await read_plan(plan(*agents, message=f"hi {BADGE}"), guard_of)
        assert f"hi {BADGE}" in asked(kept, "free")
        assert BADGE not in kept.start_event("t", message_of(kept), {}).model_dump_json()


async def test_a_channel_whose_rules_can_not_be_used_keeps_nothing() -> None:
    kept = await read_plan(plan("broken", message=BADGE), guard_of)
    assert BADGE not in kept.model_dump_json()
    assert await publishable("a title", ["broken"], guard_of) == BLOCKED
    assert await publishable(None, ["broken"], guard_of) is None


async def test_the_words_of_the_chat_format_are_no_text_of_the_caller() -> None:
    rules = Rules.compile({"words": GuardrailRule(stage=("input",), words=("text", "user", "content"))})
    messages = (ChatMessage(role="user", content=[{"type": "text", "text": "hello"}]),)
    kept = await read_plan(
        plan("a", messages=messages), lambda a, c: rules.guard(run="r", channel=c, refusal="")
    )
    assert (kept.messages, kept.blocked) == (messages, False)


async def test_metadata_loses_only_the_entry_that_is_blocked() -> None:
    given = {"ok": 1, "note": {"deep": [BADGE]}, "card": 4111111111111111}
    assert await read_metadata(given, ["blocks", "free"], guard_of) == {**given, "note": BLOCKED}
    masked = await read_metadata(given, ["masks"], guard_of)
    assert masked == {**given, "note": {"deep": ["[masked]"]}}

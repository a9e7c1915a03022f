"""From a request to a plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.agent import Budget, Message, OpenGuard
from mux.engine.meter import Meter, stricter
from mux.engine.plan import Plan, PlannedChannel, free_id, make_plan, new_id, title_of
from mux.engine.task import Checked, HandOver, checked, make_task
from mux.errors import BadRequest
from mux.events import ChannelAdded, Cursor, Event, StepFinished, Usage, UsageReport
from mux.llm.agent import LlmAgent
from mux.requests import ChannelSpec, StartRequest
from mux.run import RunState
from mux.settings import McpServer
from tests.support.agents import FakeRoster, says


def plan_of(request: StartRequest, **options: object) -> Plan:
    roster = FakeRoster([says("gpt", "x"), says("other", "y")])
    return make_plan(
        request,
        roster,
        last=None,
        default_agents=("other",),
        max_channels=32,
        streaming=bool(options.get("s")),
    )


def test_repeats_are_numbered_and_defaults_fill_in() -> None:
    assert [c.id for c in plan_of(StartRequest(message="m", agents=["gpt", "gpt", "gpt"])).channels] == [
        "gpt", "gpt.2", "gpt.3",
    ]  # fmt: skip
    assert [c.id for c in plan_of(StartRequest(message="m")).channels] == ["other"]


def test_a_plan_survives_its_row() -> None:
    plan = plan_of(StartRequest(message="m", agents=["gpt"], budget=Budget(steps=3)), s=True)
    assert Plan.model_validate(plan.dump()) == plan
    assert plan.on_disconnect != "continue"


def test_what_a_channel_was_asked_is_announced_folded_and_can_be_asked_again() -> None:
    lanes = [
        ChannelSpec(agent="gpt", model="m:one", params={"temperature": 0.5}, instructions="Be brief."),
        ChannelSpec(
            id="last", agent="other", message="Compare.", depends_on=["gpt"], inputs=["gpt"], when="all",
            budget=Budget(steps=2), title="Sum",
        ),
    ]  # fmt: skip
    started = plan_of(StartRequest(message="m", channels=lanes)).start_event("t0", "m", {})
    state = RunState("r0")
    state.apply(Event.parse(Event("r0", 1, None, 1, 1, started).record().data))
    channels = state.snapshot()["channels"]
    assert channels[0]["plan"] == {
        "model": "m:one", "params": {"temperature": 0.5}, "instructions": "Be brief.",
    }  # fmt: skip
    again = [ChannelSpec(id=c["id"], agent=c["agent"], **c["plan"]) for c in channels]
    second = plan_of(StartRequest(message="m", channels=again)).start_event("t0", "m", {})
    assert second == started


def test_a_channel_that_joins_announces_what_it_was_asked_and_by_whom() -> None:
    channel = PlannedChannel(id="w", agent="gpt", message="Dig.", tools=(), parent="lead", added=True)
    event = Event.parse(Event("r0", 2, None, 2, 1, channel.announcement()).record().data)
    assert event.body == ChannelAdded(id="w", agent="gpt", message="Dig.", tools=[], parent="lead")
    assert '"parent":"lead"' in event.record().data.decode()


@given(st.lists(st.text(min_size=1, max_size=70), max_size=12))
def test_ids_made_from_any_name_are_valid_and_unique(names: list[str]) -> None:
    taken: set[str] = set()
    for name in names:
        made = free_id(name, taken)
        assert made not in taken
        assert 1 <= len(made) <= 64
        assert all(c.isascii() and (c.isalnum() or c in "._~-") for c in made)
        taken.add(made)


def test_run_ids_fit_a_cursor() -> None:
    run = new_id("r")
    assert len(run) == 16
    assert Cursor.parse(f"{run}.1.2").run == run


@given(st.text())
def test_titles_are_one_short_line(text: str) -> None:
    title = title_of(text)
    assert title is None or (0 < len(title) <= 80 and "\n" not in title)


def test_budgets_take_the_stricter_limit_and_usage_is_counted_once() -> None:
    both = stricter(Budget(steps=3, tokens=100), Budget(steps=5, cost=1.0))
    assert both == Budget(steps=3, tokens=100, cost=1.0)
    outer = Meter(Budget(tokens=25))
    meter = Meter(Budget(tokens=100), outer)
    for step in (1, 2):
        usage = Usage(input_tokens=8, output_tokens=2)
        meter.see(StepFinished(step=step, finish_reason="stop", usage=usage))
        meter.see(UsageReport(step=step, **usage.model_dump()))
    assert meter.exceeded() is None
    meter.see(UsageReport(step=3, output_tokens=5))
    assert meter.exceeded() == "tokens"


async def test_handed_over_outputs_come_after_the_message() -> None:
    plan = Plan(channels=(PlannedChannel(id="a", agent="a"),), message="sum up")
    history = [Message(role="user", content="before"), Message(role="assistant", content="yes")]
    task = make_task(plan, plan.channels[0], history, [HandOver("b", "b", "failed", "half", "it broke")])
    assert task.messages[:2] == tuple(history)
    assert task.new == 1
    assert task.text.startswith("sum up\n\n<output")
    assert "it broke" in task.text
    assert await checked(task, OpenGuard()) == Checked(task)


def test_a_channel_takes_only_tools_that_its_agent_has() -> None:
    roster = FakeRoster(
        [LlmAgent(name="llm", tools=["add", "look"], mcp={"files": McpServer(command=("f",))})]
    )

    def plan(*tools: str) -> Plan:
        request = StartRequest(message="m", channels=[ChannelSpec(agent="llm", tools=list(tools))])
        return make_plan(request, roster, last=None, default_agents=(), max_channels=32, streaming=False)

    assert plan("look").channels[0].tools == ("look",)
    assert plan().channels[0].tools == ()
    assert plan("files_read").channels[0].tools == ("files_read",)  # known only when the server is connected
    with pytest.raises(BadRequest, match=r"no tool 'lok'\. It has: add, look") as raised:
        plan("look", "lok")
    assert raised.value.code == "tool_unknown"

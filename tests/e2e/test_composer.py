"""The composer: lanes with their own settings, modes, budgets, synthesis; what they become on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.e2e.conftest import BROWSER, Rig, until

pytestmark = BROWSER


async def add(page: Page, agent: str) -> None:
    await page.locator("#add-lane").click()
    await page.locator(f"dialog [data-agent={agent}]").click()
    await expect(page.locator("dialog")).to_have_count(0)


def started(rig: Rig) -> dict[str, Any]:
    return next(body for method, path, body in rig.server.requests if path == "/api/runs" and body)


async def run(page: Page, text: str = "Go.") -> None:
    await page.locator("#composer-text").fill(text)
    await page.keyboard.press("Control+Enter")
    await expect(page.locator(".pane").first).to_be_visible()


async def test_a_lane_has_its_own_agent_model_prompt_parameters_and_budget(rig: Rig) -> None:
    page = await rig.page()
    await add(page, "researcher")
    await page.locator(".lane-chip .chip-main").nth(1).click()
    form = page.locator("dialog")
    await expect(form).to_contain_text("reads docs")
    await form.locator("#model-field").fill("local:small")
    await form.get_by_placeholder("Empty: the shared prompt").fill("Only the log, please.")
    await form.get_by_placeholder("Empty: the agent's own").fill("You are terse.")
    await form.get_by_label("Temperature").fill("0.3")
    await form.get_by_label("Tool calls").fill("4")
    await form.get_by_text("OK", exact=True).click()
    await expect(page.locator(".lane-chip .modified")).to_have_count(1)
    await run(page)
    channel = started(rig)["channels"][1]
    assert channel == {
        "id": "researcher", "agent": "researcher", "model": "local:small", "message": "Only the log, please.",
        "instructions": "You are terse.", "params": {"temperature": 0.3}, "budget": {"tool_calls": 4},
    }  # fmt: skip
    await expect(page.locator("#pane-researcher .prompt-line")).to_have_text("Only the log, please.")


async def test_lanes_are_duplicated_repeated_and_removed(rig: Rig) -> None:
    page = await rig.page()
    await page.get_by_label("Duplicate assistant").click()
    await expect(page.locator(".lane-chip")).to_have_count(2)
    await page.get_by_label("Repeat assistant once more").first.click()
    await expect(page.get_by_role("button", name="Run 3 lanes")).to_be_visible()
    await page.get_by_label("Remove assistant").last.click()
    await run(page)
    assert [c["id"] for c in started(rig)["channels"]] == ["assistant", "assistant.2"]


async def test_one_after_another_and_at_most_k(rig: Rig) -> None:
    page = await rig.page()
    await add(page, "analyst")
    await page.locator("#mode").select_option("sequential")
    await run(page)
    assert started(rig)["channels"][1]["depends_on"] == ["assistant"]
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    rig.server.requests.clear()
    await page.locator("#new-run").click()
    await page.locator("#mode").select_option("limited")
    await page.get_by_label("How many at once").fill("1")
    await run(page)
    assert started(rig)["max_parallel"] == 1


async def test_a_budget_of_the_run_is_sent(rig: Rig) -> None:
    page = await rig.page()
    await page.get_by_text("Budget", exact=True).click()
    await page.locator("dialog").get_by_label("Cost").fill("0.5")
    await page.keyboard.press("Escape")
    await run(page)
    assert started(rig)["budget"] == {"cost": 0.5}


async def test_a_follow_up_continues_every_lane_in_its_thread_and_no_history_crosses(rig: Rig) -> None:
    page = await rig.page()
    await add(page, "analyst")
    await run(page, "First question.")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    first = started(rig)
    rig.server.requests.clear()
    await run(page, "Second question.")
    await expect(page.locator("#pane-analyst .turn")).to_have_count(2)
    await expect(page.locator("#pane-analyst .prompt-line")).to_have_text(
        ["First question.", "Second question."]
    )
    await expect(page.locator("#pane-analyst .turn").first).to_contain_text("395.5")
    await expect(page.locator("#pane-analyst")).not_to_contain_text("The question is about resumption")
    threads = {r.thread for r in rig.server.runs.values()}
    assert len(threads) == 1
    assert [c["id"] for c in started(rig)["channels"]] == [c["id"] for c in first["channels"]]


async def test_a_synthesis_lane_reads_the_others_and_its_citations_lead_to_them(rig: Rig) -> None:
    page = await rig.page()
    await page.locator("[data-example=research]").click()
    chip = page.locator("#pane-synthesis .ref-chip").first
    await expect(chip).to_have_text("A")
    await chip.click()
    await expect(page.locator("#pane-researcher")).to_have_attribute("data-selected", "1")
    channel = started(rig)["channels"][-1]
    assert channel["depends_on"] == ["researcher", "analyst"]
    assert "[A] = researcher" in channel["message"]
    asked = page.locator("#pane-synthesis .prompt")
    await expect(asked).to_contain_text("Own prompt")
    await expect(asked.locator(".prompt-context")).to_contain_text(
        "Reads the answers of researcher, analyst."
    )


async def test_a_synthesis_is_set_up_while_the_lanes_run(rig: Rig) -> None:
    page = await rig.page()
    await add(page, "writer")
    await run(page)
    await page.locator("#add-lane").click()
    await page.locator("dialog").get_by_text("Synthesis").click()
    await page.get_by_text("Compare in a table").click()
    await page.locator("#synthesise").click()
    await expect(page.locator("#pane-synthesizer .state-chip")).to_contain_text("queued")
    await page.locator("#pane-writer .stop").click()
    await expect(page.locator("#pane-synthesizer .state-chip")).to_contain_text("done")
    body = next(b for _, p, b in rig.server.requests if p.endswith("/channels") and b)
    assert body["depends_on"] == ["assistant", "writer"]


async def test_what_is_ready_is_merged_after_the_end_as_a_new_turn(rig: Rig) -> None:
    page = await rig.page()
    await run(page)
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    rig.server.requests.clear()
    await page.locator(".lanes-row").get_by_text("Synthesis").click()
    await page.locator("#synthesise").click()
    await expect(page.locator("#pane-synthesis .state-chip")).to_contain_text("done")
    [channel] = started(rig)["channels"]
    first = next(iter(rig.server.runs))
    assert channel["inputs"] == [f"{first}/assistant"]


async def test_a_refused_start_says_why_and_keeps_the_prompt(rig: Rig) -> None:
    page = await rig.page()
    rig.server.fail_next.append((429, "too_many_runs", "Too many runs at once; try again in 3 s."))
    await page.locator("#composer-text").fill("Precious words.")
    await page.keyboard.press("Enter")
    await expect(page.locator(".toast")).to_contain_text("Too many runs at once")
    assert await page.locator("#composer-text").input_value() == "Precious words."
    rig.expect_console("429")
    await page.keyboard.press("Enter")
    await until(lambda: len(rig.server.runs) == 1)


async def test_an_empty_prompt_starts_nothing(rig: Rig) -> None:
    page = await rig.page()
    await page.locator(".run-button").click()
    await expect(page.locator(".toast")).to_contain_text("Write what the agents should do")
    assert not rig.server.runs


async def test_a_lane_is_left_only_some_of_its_agents_tools(rig: Rig) -> None:
    page = await rig.page()
    await add(page, "researcher")
    chip = page.locator(".lane-chip").nth(1)
    await expect(chip).to_contain_text("3 tools")
    await chip.locator(".chip-main").click()
    tools = page.locator("dialog input[name=tool]")
    await expect(tools).to_have_count(3)
    await tools.nth(0).uncheck()
    await tools.nth(2).uncheck()
    await page.get_by_text("OK", exact=True).click()
    await expect(chip).to_contain_text("1 tool")
    await expect(chip.locator(".modified")).to_have_count(1)
    await run(page)
    assert started(rig)["channels"][1]["tools"] == ["read_doc"]
    await chip.locator(".chip-main").click()
    await page.locator("dialog select").first.select_option("analyst")  # has others: all of them again
    await expect(page.locator("dialog input[name=tool]:checked")).to_have_count(2)


async def test_a_lanes_own_prompt_is_shown_beside_the_shared_one(rig: Rig) -> None:
    page = await rig.page()
    await page.locator("#composer-text").fill("Explain the log in ten lines.")
    await page.locator(".lane-chip .chip-main").click()
    await page.get_by_placeholder("Empty: the shared prompt").fill("Explain the log in two lines.")
    diff = page.locator("dialog .from-shared")
    await expect(diff.locator("del")).to_have_text("ten")
    await expect(diff.locator("ins")).to_have_text("two")
    await page.get_by_placeholder("Empty: the shared prompt").fill("")
    await expect(diff).to_have_count(0)


async def test_tokens_and_cost_are_estimated_while_one_types(rig: Rig) -> None:
    rig.server.prices["fake-1"] = {"input": 10.0, "output": 30.0, "currency": "USD"}
    page = await rig.page()
    await add(page, "analyst")
    words = page.locator("#composer-estimate")
    await expect(words).to_have_text("")
    await page.locator("#composer-text").fill("x" * 4000)
    await expect(words).to_have_text("~2000 tokens in · ~$0.0200")
    await page.locator(".lane-chip .chip-main").nth(1).click()
    await page.locator("#model-field").fill("fake-2")  # nobody knows what that costs
    await page.get_by_text("OK", exact=True).click()
    await expect(words).to_have_text("~2000 tokens in")
    await page.get_by_label("Remove analyst").click()
    await expect(words).to_have_text("~1000 tokens in · ~$0.0100")


async def test_a_prompt_during_a_run_goes_to_the_focused_lane_alone_where_that_is_chosen(rig: Rig) -> None:
    live = rig.server.launch({"message": "x"}, [{"agent": "steered"}, {"agent": "steered"}])
    page = await rig.page(f"#/run/{live.id}")
    await page.locator(".cell").nth(1).click()
    await page.get_by_label("To which lanes").select_option("focus")
    await page.locator("#composer-text").fill("You there.")
    await page.get_by_text("Send now").click()
    await expect(page.locator("[id='pane-steered.2'] .message-text")).to_have_text("You there.")
    await expect(page.locator("#composer-text")).to_have_value("")
    sent = [path for _, path, _ in rig.server.requests if path.endswith("/messages")]
    assert [path.split("/")[-2] for path in sent] == ["steered.2"]


@pytest.mark.parametrize("example", ["compare", "research", "relay"])
async def test_each_example_runs_to_its_end_with_one_click(rig: Rig, example: str) -> None:
    page = await rig.page()
    await page.locator(f"[data-example={example}]").click()
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    lanes = {"compare": 3, "research": 3, "relay": 2}[example]
    await expect(page.locator(".pane .end")).to_have_count(lanes)


async def test_a_follow_up_from_a_link_goes_to_the_lanes_of_that_run(rig: Rig) -> None:
    first = await rig.page()
    await add(first, "analyst")
    await first.locator(".lane-chip .chip-main").nth(1).click()
    await first.locator("#model-field").fill("fake-2")
    await first.get_by_text("OK", exact=True).click()
    await run(first)
    await expect(first.locator("[data-run-status=completed]")).to_be_visible()
    page = await rig.page(first.url.removeprefix(rig.url))  # another browser, with a composer of its own
    await expect(page.locator(".lane-chip .chip-name")).to_have_text(["assistant", "analyst"])
    await page.locator("#composer-text").fill("And then?")
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#pane-analyst .turn")).to_have_count(2)
    again = [b for _, path, b in rig.server.requests if path == "/api/runs" and b][-1]
    assert [(c["agent"], c.get("model")) for c in again["channels"]] == [
        ("assistant", None), ("analyst", "fake-2"),
    ]  # fmt: skip


async def test_a_run_that_a_program_started_is_followed_up_without_its_retries_and_workers(rig: Rig) -> None:
    live = rig.server.launch({"message": "x"}, [{"agent": "lead"}])
    page = await rig.page(f"#/run/{live.id}")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    await page.reload()
    await expect(page.locator("#pane-worker")).to_be_visible()
    await expect(page.locator(".lane-chip .chip-name")).to_have_text(["lead"])


async def test_an_agents_own_example_is_put_into_the_composer(rig: Rig) -> None:
    rig.server.agent("poet", rig.server.scripts["assistant"], examples=["Rhyme on streams."])
    page = await rig.page()
    await page.get_by_text("Try: Rhyme on streams.").click()
    await expect(page.locator("#composer-text")).to_have_value("Rhyme on streams.")
    await expect(page.locator(".lane-chip .chip-name")).to_have_text(["poet"])
    assert not rig.server.requests

"""Panes and lanes: every state, every control, every layout."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.e2e.conftest import BROWSER, Rig, Start, until

pytestmark = BROWSER

STATES = {
    "assistant": "done",
    "approver": "needs you",
    "failing": "failed",
    "refusing": "refused",
    "spending": "over budget",
    "thinking": "thinking",
    "tooling": "tool",
    "writer": "writing",
}


async def test_every_state_is_shown_with_glyph_and_word(start: Start) -> None:
    page = await start(*STATES)
    for agent, word in STATES.items():
        await expect(page.locator(f"#pane-{agent} .state-chip")).to_contain_text(word)
    glyphs = await page.locator(".state-chip").all_inner_texts()
    assert len({text[0] for text in glyphs}) == len(STATES)


async def test_a_lane_without_events_for_twenty_seconds_is_stalled_and_says_how_long(
    rig: Rig, start: Start
) -> None:
    page = await start("silent", context=await clocked(rig))
    await expect(page.locator(".state-chip")).to_contain_text("writing")
    await page.clock.fast_forward(40_000)
    await expect(page.locator(".state-chip")).to_contain_text("stalled")
    assert "s" in await page.locator(".state-chip").inner_text()


async def clocked(rig: Rig):  # type: ignore[no-untyped-def]
    context = await rig.context()
    await context.clock.install()
    return context


async def test_queued_lanes_wait_for_what_they_depend_on(rig: Rig) -> None:
    run = rig.server.launch(
        {"message": "x"}, [{"agent": "writer"}, {"agent": "assistant", "depends_on": ["writer"]}]
    )
    page = await rig.page(f"#/run/{run.id}")
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("queued")
    await page.locator("#pane-writer .stop").click()
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("done")


@pytest.mark.parametrize(("lanes", "columns"), [(1, 1), (2, 2), (4, 2), (8, 3), (16, 3)])
async def test_panes_fill_the_screen(start: Start, lanes: int, columns: int) -> None:
    page = await start(*["assistant"] * lanes, width=1400)
    await expect(page.locator(".pane")).to_have_count(lanes)
    tops = await page.locator(".pane").evaluate_all("nodes => nodes.map(n => n.offsetTop)")
    assert tops.count(tops[0]) == columns
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1400


async def test_maximise_tabs_and_number_keys_show_one_lane(start: Start) -> None:
    page = await start("assistant", "analyst", "researcher")
    await page.locator("body").press("2")
    await page.locator("body").press("m")
    await expect(page.locator(".pane:visible")).to_have_count(1)
    await expect(page.locator("#pane-analyst")).to_be_visible()
    await page.locator("body").press("]")
    await expect(page.locator("#pane-researcher")).to_be_visible()
    await page.locator("body").press("Escape")
    await expect(page.locator(".pane:visible")).to_have_count(3)
    await page.locator("body").press("g")
    await page.locator("body").press("g")
    await expect(page.locator(".pane:visible")).to_have_count(1)


async def test_panes_change_places_by_dragging_and_by_menu_and_stay_so(rig: Rig, start: Start) -> None:
    page = await start("assistant", "analyst", "researcher")
    order = "nodes => nodes.map(n => n.dataset.key)"
    await page.locator("#pane-researcher .pane-head").drag_to(page.locator("#pane-assistant .pane-head"))
    await expect(page.locator(".pane").first).to_have_attribute("data-key", "researcher")
    await page.locator("#pane-researcher [aria-haspopup=dialog]").click()
    await page.get_by_text("Move right").click()
    assert await page.locator(".pane").evaluate_all(order) == ["assistant", "researcher", "analyst"]
    await page.reload()
    await expect(page.locator(".pane")).to_have_count(3)
    assert await page.locator(".pane").evaluate_all(order) == ["assistant", "researcher", "analyst"]


async def test_columns_are_resized_by_keyboard(start: Start) -> None:
    page = await start("assistant", "analyst")
    before = await page.locator("#pane-assistant").evaluate("n => n.offsetWidth")
    await page.locator(".resizer").focus()
    for _ in range(4):
        await page.keyboard.press("ArrowRight")
    assert await page.locator("#pane-assistant").evaluate("n => n.offsetWidth") > before + 50


async def test_on_a_phone_one_pane_is_shown_and_the_strip_leads_to_the_others(start: Start) -> None:
    page = await start("assistant", "analyst", "writer", width=375, height=700)
    await expect(page.locator(".pane:visible")).to_have_count(1)
    await page.locator(".cell[data-key=analyst]").click()
    await expect(page.locator("#pane-analyst")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 375


async def test_a_lane_is_added_to_the_running_run_and_another_by_an_agent(rig: Rig, start: Start) -> None:
    page = await start("writer")
    await page.locator("#add-lane").click()
    await page.locator("[data-agent=lead]").click()
    await expect(page.locator("#pane-lead")).to_be_visible()
    await expect(page.locator("#pane-worker")).to_be_visible()
    nest = page.locator("#pane-lead details.nest").first
    await expect(nest.locator(".nest-head strong").first).to_have_text("scout")
    await expect(nest.locator("details.nest strong")).to_have_text("reader")
    await expect(page.locator("#pane-lead .tool-name")).to_have_text("read_doc")


async def test_retry_keeps_what_was_said_and_takes_the_lanes_place(rig: Rig, start: Start) -> None:
    page = await start("failing", "writer")
    card = page.locator("#pane-failing .card.error")
    await expect(card).to_contain_text("The provider allows no more requests now.")
    await card.get_by_text("Retry", exact=True).click()
    await expect(page.locator("#pane-failing .attempts")).to_contain_text("2/2")
    await expect(page.locator(".pane")).to_have_count(2)
    await page.get_by_label("Earlier attempt").click()
    await expect(page.locator("#pane-failing .attempts")).to_contain_text("1/2")
    await expect(page.locator("#pane-failing .md")).to_contain_text("This begins well")


async def test_swapping_the_model_retries_with_it(rig: Rig, start: Start) -> None:
    page = await start("assistant", "writer")
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("done")
    await page.locator("#pane-assistant .model").click()
    await page.locator("#swap-model").fill("fake-2")
    await page.locator("dialog .primary").click()
    await expect(page.locator("#pane-assistant .model")).to_have_text("fake-2")
    assert ("POST", {"model": "fake-2"}) in [(m, b) for m, _, b in rig.server.requests]


async def test_a_retry_after_the_end_continues_in_the_same_lane(rig: Rig, start: Start) -> None:
    page = await start("assistant", "analyst")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    await page.locator("#pane-analyst .pane-head").get_by_label("Retry analyst").click()
    await expect(page.locator("#pane-analyst .turn")).to_have_count(2)
    await expect(page.locator(".pane")).to_have_count(2)


async def test_steering_one_lane_shows_the_message_and_what_came_of_it(rig: Rig, start: Start) -> None:
    page = await start("steered", "writer")
    await expect(page.locator("#pane-steered .md")).to_contain_text("Tell me more")
    await page.locator(".composer select").first.select_option("steered")
    await page.locator("#composer-text").fill("Be brief.")
    await page.get_by_text("Send now").click()
    await expect(page.locator("#pane-steered .message-text")).to_have_text("Be brief.")
    await expect(page.locator("#pane-steered")).to_contain_text("You said: Be brief.")
    steers = [path for _, path, _ in rig.server.requests if path.endswith("/messages")]
    assert len(steers) == 1


async def test_a_message_to_all_lanes_can_be_queued(rig: Rig, start: Start) -> None:
    page = await start("steered", "steered")
    await expect(page.locator(".pane")).to_have_count(2)
    await page.locator("#composer-text").fill("Both of you.")
    await page.get_by_text("Queue", exact=True).click()
    await until(lambda: len([b for _, p, b in rig.server.requests if p.endswith("/messages")]) == 2)
    assert {b["mode"] for _, p, b in rig.server.requests if p.endswith("/messages") and b} == {"queue"}


async def test_approvals_of_all_lanes_are_in_the_inbox_with_their_arguments(rig: Rig, start: Start) -> None:
    page = await start("approver", "approver", "approver")
    await page.get_by_text("3 need you").click()
    boxes = page.locator("dialog .approval")
    await expect(boxes).to_have_count(3)
    await expect(boxes.first).to_contain_text("/srv/data/old")
    await boxes.first.get_by_text("Approve (Y)").click()
    await expect(boxes).to_have_count(2)
    await boxes.first.get_by_text("Deny (N)").click()
    await page.locator("dialog .approval input").fill("too risky")
    await page.keyboard.press("Enter")
    await expect(boxes).to_have_count(1)
    await boxes.first.get_by_text("Edit arguments").click()
    await boxes.first.locator("textarea").fill('{"path": "/tmp/x"}')
    await boxes.first.get_by_text("Approve with these arguments").click()
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    answers = [b for _, p, b in rig.server.requests if "/approvals/" in p and b]
    assert [a["decision"] for a in answers] == ["approve", "deny", "edit"]
    assert answers[1]["reason"] == "too risky"
    assert answers[2]["arguments"] == {"path": "/tmp/x"}


async def test_a_reader_who_scrolls_up_is_left_alone_and_told_what_is_new(start: Start) -> None:
    page = await start("writer", height=500)
    scroller = page.locator(".pane-scroll")
    await expect(page.locator(".md p").nth(12)).to_be_attached()
    await scroller.hover()
    await page.mouse.wheel(0, -300)
    await expect(page.locator(".pill")).to_contain_text("new line")
    top = await scroller.evaluate("n => n.scrollTop")
    await expect(page.locator(".md p").nth(20)).to_be_attached()
    assert await scroller.evaluate("n => n.scrollTop") == top
    await page.locator(".pill").click()
    await expect(page.locator(".pill")).to_be_hidden()
    assert await scroller.evaluate("n => n.scrollHeight - n.clientHeight - n.scrollTop") < 40


async def test_the_metric_row_shows_what_the_provider_reported_and_marks_the_best(start: Start) -> None:
    page = await start("assistant", "researcher")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    row = page.locator("#pane-assistant .metrics")
    await expect(row.locator("[data-slot=tokens] dd")).to_have_text("412 / 388")
    await expect(row.locator("[data-slot=cost] dd")).to_have_text("$0.0031")
    await expect(page.locator("[data-slot=cost][data-best]")).to_have_count(1)
    await expect(page.locator(".totals")).to_contain_text("$0.0081")


async def test_a_step_that_is_reset_disappears(start: Start) -> None:
    page = await start("resetting")
    await expect(page.locator(".pane")).to_contain_text("Second step, done again.")
    await expect(page.locator(".pane")).not_to_contain_text("never to be seen")


async def test_sources_of_a_lane_are_listed_at_its_end(start: Start) -> None:
    page = await start("researcher")
    await page.locator(".end-sources summary").click()
    await expect(page.locator(".end-sources .source-title")).to_have_text(["Resuming a stream", "Event log"])

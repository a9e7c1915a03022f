"""Panes and lanes: every state, every control, every layout."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from playwright.async_api import Locator, expect

from tests.e2e.conftest import BROWSER, Rig, Start, until
from tests.e2e.fake_server import Lane

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
    "connecting": "connecting",
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
    await expect(page.locator(".pane").nth(1)).to_have_attribute("data-key", "researcher")
    assert await page.locator(".pane").evaluate_all(order) == ["assistant", "researcher", "analyst"]
    await page.reload()
    await expect(page.locator(".pane")).to_have_count(3)
    await expect(page.locator(".pane").nth(1)).to_have_attribute("data-key", "researcher")
    assert await page.locator(".pane").evaluate_all(order) == ["assistant", "researcher", "analyst"]


async def test_columns_rows_and_the_history_are_resized_by_keyboard_and_mouse_and_stay_so(
    start: Start,
) -> None:
    page = await start("assistant", "analyst", "assistant", "analyst")
    pane, rail = page.locator("#pane-assistant"), page.locator(".rail")
    size = "n => [n.offsetWidth, n.offsetHeight]"
    width, height = await pane.evaluate(size)
    await page.get_by_label("Width of this column").focus()
    for _ in range(4):
        await page.keyboard.press("ArrowRight")
    await page.get_by_label("Height of this row").focus()
    for _ in range(4):
        await page.keyboard.press("ArrowUp")
    assert (await pane.evaluate(size))[0] > width + 40
    assert (await pane.evaluate(size))[1] < height - 40
    edge = await page.get_by_label("Width of the history").bounding_box()
    assert edge
    await page.mouse.move(edge["x"] + 4, 400)
    await page.mouse.down()
    await page.mouse.move(edge["x"] + 84, 400, steps=4)
    await page.mouse.up()
    assert (await rail.evaluate(size))[0] == 320
    before = await pane.evaluate(size)
    await page.reload()
    await expect(page.locator(".pane")).to_have_count(4)
    assert (await rail.evaluate(size))[0] == 320
    assert await pane.evaluate(size) == before


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
    nest = page.locator("#pane-lead .nest").first
    await expect(nest.locator(".nest-head strong").first).to_have_text("scout")
    await expect(nest.locator(".nest strong")).to_have_text("reader")
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


async def test_a_cell_tells_what_its_lane_does_and_leads_to_it(start: Start) -> None:
    page = await start("tooling", "writer", "assistant")
    tool = page.locator(".cell[data-key=tooling]")
    await expect(tool.locator("[data-slot=activity]")).to_have_text(re.compile(r"run_python \d+\.\d s"))
    await expect(tool.locator("[data-slot=glyph]")).to_have_text("⚙\ufe0e")
    line = page.locator(".cell[data-key=writer] polyline")
    flat = await page.locator(".cell[data-key=tooling] polyline").get_attribute("points")
    await expect(line).not_to_have_attribute("points", flat or "")
    await page.locator(".cell[data-key=writer]").dblclick()
    await expect(page.locator(".pane:visible")).to_have_count(1)
    await expect(page.locator("#pane-writer")).to_be_visible()
    await page.locator(".cell[data-key=writer]").dblclick()
    await expect(page.locator(".pane:visible")).to_have_count(3)


async def test_a_lane_that_ended_out_of_sight_is_marked_until_one_looks(rig: Rig, start: Start) -> None:
    page = await start("writer", "steered")
    await page.locator(".cell[data-key=writer]").click()
    await page.locator("body").press("m")
    await page.locator("#pane-steered").wait_for(state="hidden")
    rig.server.runs[next(iter(rig.server.runs))].lanes["steered"].stop.set()
    mark = page.locator(".cell[data-key=steered] .unread")
    await expect(mark).to_be_visible()
    await page.locator(".cell[data-key=steered]").click()
    await expect(mark).to_have_count(0)
    await expect(page.locator("#pane-steered")).to_be_visible()


async def test_a_swipe_leads_to_the_next_lane_on_a_phone(start: Start) -> None:
    page = await start("assistant", "analyst", width=375, height=700, has_touch=True)
    swipe = """(grid, by) => {
      const at = (x) => new Touch({ identifier: 1, target: grid, clientX: x, clientY: 300 });
      grid.dispatchEvent(new TouchEvent("touchstart", { touches: [at(200)], bubbles: true }));
      grid.dispatchEvent(new TouchEvent("touchend", { changedTouches: [at(200 + by)], bubbles: true }));
    }"""
    await page.locator(".grid").evaluate(swipe, -120)
    await expect(page.locator("#pane-analyst")).to_be_visible()
    await page.locator(".grid").evaluate(swipe, 120)
    await expect(page.locator("#pane-assistant")).to_be_visible()
    await page.locator(".grid").evaluate(swipe, 30)  # too short: a tap that slipped
    await expect(page.locator("#pane-assistant")).to_be_visible()


async def test_a_failed_lane_says_why_and_offers_retry_swap_and_the_event(rig: Rig, start: Start) -> None:
    page = await start("failing", "assistant")
    card = page.locator("#pane-failing .card.error")
    await expect(card).to_contain_text("rate_limited")
    await expect(card).to_contain_text("Wait a little, or swap to another model. It may work on a retry.")
    await card.get_by_text("Raw event").click()
    await expect(page.locator("dialog pre")).to_contain_text('"type": "error"')
    event = next(e for e in next(iter(rig.server.runs.values())).events if e["type"] == "error")
    await expect(page.locator("dialog")).to_contain_text(f"seq {event['seq']}")
    await page.keyboard.press("Escape")
    await card.get_by_text("Swap and retry").click()
    await page.locator("#swap-model").fill("fake-2")
    await page.locator("dialog .primary").click()
    await until(lambda: ("POST", {"model": "fake-2"}) in [(m, b) for m, _, b in rig.server.requests])


async def test_a_lane_ends_with_its_totals_and_what_can_be_done_with_the_answer(start: Start) -> None:
    page = await start("assistant", "spending")
    end = page.locator("#pane-assistant .end")
    await expect(end).to_contain_text("✓ completed")
    await expect(end).to_contain_text("388 tokens · $0.0031")
    await expect(page.locator("#pane-spending .end .chip")).to_have_text("$ over budget")
    await end.get_by_text("Copy", exact=True).click()
    await page.context.grant_permissions(["clipboard-read"])
    assert (await page.evaluate("navigator.clipboard.readText()")).startswith("## What the log gives")
    async with page.expect_download() as download:
        await end.get_by_text("Export", exact=True).click()
    assert (await download.value).suggested_filename.endswith("-assistant.md")
    await end.get_by_text("Use as prompt").click()
    await expect(page.locator("#composer-text")).to_have_value(re.compile("^## What the log gives"))


async def test_a_lost_connection_is_shown_on_every_running_lane(rig: Rig, start: Start) -> None:
    page = await start("writer", "assistant")
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("done")
    rig.server.offline = True
    rig.server.cut()
    await expect(page.locator("#pane-writer .state-chip")).to_contain_text("reconnecting")
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("done")
    rig.server.offline = False
    await expect(page.locator("#pane-writer .state-chip")).to_contain_text("writing")
    rig.expect_console("ERR_")


async def test_numbers_change_and_nothing_moves(start: Start) -> None:
    page = await start("writer", "assistant", "analyst", "tooling")
    place = "nodes => nodes.map(n => [n.offsetLeft, n.offsetTop, n.offsetWidth])"
    slots = page.locator(".pane .metrics > div")
    rate = page.locator("#pane-writer [data-slot=rate] dd")
    await expect(rate).not_to_have_text("–")
    before = await slots.evaluate_all(place)
    first = await rate.inner_text()
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("done")
    await expect(rate).not_to_have_text(first)
    assert await slots.evaluate_all(place) == before


@pytest.mark.parametrize("width", [1600, 1100, 768, 375])
@pytest.mark.parametrize("lanes", [1, 4, 16])
async def test_no_word_of_a_pane_head_or_metric_is_cut_but_names(
    start: Start, lanes: int, width: int
) -> None:
    page = await start(*["assistant"] * lanes, width=width)
    await expect(page.locator("[data-run-status=completed]")).to_be_attached()
    cut = """nodes => nodes.filter(n => n.offsetParent && n.scrollWidth > n.clientWidth + 1)
      .map(n => n.className + " " + n.textContent)"""
    for what in (".metrics dd", ".state-chip", ".end-actions .btn", ".topbar .btn", ".composer .btn"):
        assert not await page.locator(what).evaluate_all(cut), what
    assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_the_history_gives_way_when_the_window_becomes_narrow(start: Start) -> None:
    page = await start("assistant")
    await expect(page.locator(".rail")).to_be_visible()
    await page.set_viewport_size({"width": 375, "height": 700})
    await expect(page.locator(".rail")).to_have_count(0)
    await page.get_by_label("Show or hide the history").click()
    await expect(page.locator(".rail")).to_be_visible()
    await page.locator(".pane-scroll").focus()
    await page.keyboard.press("Escape")
    await expect(page.locator(".rail")).to_have_count(0)
    await page.set_viewport_size({"width": 1200, "height": 700})
    await expect(page.locator(".rail")).to_be_visible()


async def test_an_answer_that_was_cut_says_so(start: Start) -> None:
    page = await start("cut", "assistant")
    await expect(page.locator("#pane-cut .end")).to_contain_text("cut at the token limit")
    await expect(page.locator("#pane-assistant .end .chip")).to_have_text("✓ completed")
    await expect(page.locator("#pane-assistant .end")).not_to_contain_text("cut")


async def test_a_prompt_says_what_its_lane_knows_of_the_others(rig: Rig) -> None:
    first = rig.server.launch({"message": "x"}, [{"agent": "assistant"}])
    specs: list[dict[str, Any]] = [
        {"agent": "assistant"},
        {"agent": "synthesizer", "depends_on": ["assistant"]},
    ]
    second = rig.server.launch({"message": "y", "thread": first.thread}, specs)
    page = await rig.page(f"#/run/{second.id}")
    known = page.locator("#pane-assistant .prompt-context")
    await expect(known).to_have_text(
        ["Sees nothing of the other lanes' turns.", "Sees the earlier turns of this lane, and of no other."]
    )
    reads = page.locator("#pane-synthesizer .prompt-context")
    await expect(reads).to_have_text(
        "Reads the answers of assistant. Sees nothing of the other lanes' turns."
    )


async def test_compact_shows_more_and_is_remembered(start: Start) -> None:
    page = await start("assistant", "analyst")
    head = page.locator("#pane-assistant .pane-head")
    assert await head.evaluate("n => n.offsetHeight") == 40
    await page.keyboard.press("Control+k")
    await expect(page.locator("dialog input")).to_be_focused()
    await page.keyboard.type("compact")
    await page.keyboard.press("Enter")
    assert await head.evaluate("n => n.offsetHeight") == 32
    await page.reload()
    await expect(page.locator(".pane")).to_have_count(2)
    assert await head.evaluate("n => n.offsetHeight") == 32


async def test_a_lane_is_stopped_and_removed_and_can_be_shown_again(rig: Rig, start: Start) -> None:
    page = await start("writer", "assistant", "analyst")
    await page.get_by_label("More for writer").click()
    await page.get_by_text("Stop and remove").click()
    await expect(page.locator(".pane")).to_have_count(2)
    await expect(page.locator("[data-run-status=completed], [data-run-status=partial]")).to_be_visible()
    await page.get_by_label("More for analyst").click()
    await page.get_by_text("Remove from the screen").click()
    await expect(page.locator(".pane")).to_have_count(1)
    await page.locator("#show-removed").click()
    await expect(page.locator(".pane")).to_have_count(3)
    await expect(page.locator("#pane-writer .state-chip")).to_contain_text("stopped")
    assert [p for _, p, _ in rig.server.requests] == [
        f"/api/runs/{next(iter(rig.server.runs))}/channels/writer/cancel"
    ]


async def test_denying_and_editing_can_be_thought_over(start: Start) -> None:
    page = await start("approver")
    box = page.locator(".approval")
    await box.get_by_text("Deny (N)").click()
    await expect(box.locator("input")).to_be_focused()
    await box.get_by_text("Back").click()
    await box.get_by_text("Edit arguments").click()
    await box.locator("textarea").fill("{")
    await box.get_by_text("Approve with these arguments").click()
    await expect(box.locator(".bad")).to_be_visible()  # it is no JSON: nothing was sent
    await box.get_by_text("Back").click()
    await expect(box).to_contain_text('"path": "/srv/data/old"')
    await box.get_by_text("Approve (Y)").click()
    await expect(page.locator(".state-chip")).to_contain_text("done")


async def test_results_are_shown_by_their_kind(start: Start) -> None:
    page = await start("typed")
    await expect(page.locator(".end")).to_be_visible()
    for head in await page.locator(".tool-head").all():
        await head.click()

    def card(tool: str) -> Locator:
        return page.locator(".tool", has=page.locator(".tool-name", has_text=tool))

    await expect(card("tree").locator(".json-string")).to_have_text('"sqlite"')
    await expect(card("rows").locator("th")).to_have_text(["lane", "tokens"])
    await expect(card("rows").locator("tbody tr").nth(1)).to_have_text("B5")
    await expect(card("patch").locator("ins")).to_have_text("+    return seq")
    await expect(card("patch").locator("del")).to_have_text("-    pass")
    picture = card("picture").locator("img")
    await expect(picture).to_be_visible()
    assert await picture.evaluate("n => n.complete && n.naturalWidth > 0")
    long = card("long").locator(".result pre")
    await expect(long).to_contain_text("1500 more lines")
    await expect(long).to_contain_text("line 1999")
    await expect(long).not_to_contain_text("line 900")
    async with page.expect_download() as download:
        await card("long").get_by_text("Download").click()
    assert len((await (await download.value).path()).read_text().splitlines()) == 2000
    await card("long").get_by_text("Open full").click()
    await expect(page.locator("dialog pre")).to_contain_text("line 900")


async def test_a_tool_card_goes_through_its_states(rig: Rig, start: Start) -> None:
    gate = asyncio.Event()

    async def careful(lane: Lane) -> None:
        lane.begin()
        call = await lane.call("sleep", {"seconds": 3600})
        while not gate.is_set():
            await lane.pause(0.02)
        gate.clear()
        lane.end("tool_calls")
        while not gate.is_set():
            await lane.pause(0.02)
        lane.emit("tool_start", call_id=call, tool="sleep", arguments={"seconds": 3600})
        lane.emit("tool_progress", call_id=call, elapsed_ms=500, message="half way", fraction=0.5)
        await lane.pause(3600)

    rig.server.agent("careful", careful)
    page = await start("careful")
    card, state = page.locator(".tool-item"), page.locator(".tool-state")
    await expect(card).to_have_attribute("data-state", "args")
    await expect(page.locator(".tool-line")).to_have_text("3600")  # of the JSON so far
    gate.set()
    await expect(card).to_have_attribute("data-state", "queued")
    gate.set()
    await expect(card).to_have_attribute("data-state", "running")
    await expect(state).to_have_text("half way")
    assert "0.5" in (await page.locator(".tool-bar").get_attribute("style") or "")
    await page.locator(".stop").click()
    await expect(card).to_have_attribute("data-state", "cancelled")
    await expect(state).to_have_text("cancelled")

"""The main job in the browser: ask, watch, stop, come back."""

from __future__ import annotations

import re

from playwright.async_api import expect

from tests.e2e.conftest import BROWSER, Rig, Start, until

pytestmark = BROWSER


async def test_an_example_runs_with_one_click(rig: Rig) -> None:
    page = await rig.page()
    await page.locator("[data-example=compare]").click()
    await expect(page.locator(".pane")).to_have_count(3)
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    await expect(page.locator(".md-code code .hljs-keyword").first).to_be_visible()
    await expect(page.locator(".md math").first).to_be_attached()
    assert "#/run/" in page.url


async def test_the_composer_starts_the_chosen_agents_with_the_prompt(rig: Rig) -> None:
    page = await rig.page()
    await page.locator("#add-lane").click()
    await page.locator("[data-agent=analyst]").click()
    await page.locator("#composer-text").fill("What is 17 * 23?")
    await page.keyboard.press("Enter")
    await expect(page.locator(".pane")).to_have_count(2)
    method, path, body = rig.server.requests[0]
    assert (method, path) == ("POST", "/api/runs")
    assert body is not None
    assert [c["agent"] for c in body["channels"]] == ["assistant", "analyst"]
    assert body["message"] == "What is 17 * 23?"
    await expect(page.locator(".prompt-line").first).to_have_text("What is 17 * 23?")


async def test_a_tool_card_shows_arguments_progress_and_result(start: Start) -> None:
    page = await start("analyst")
    await expect(page.locator(".tool-item[data-state=ok] .tool-name")).to_have_text("calculator")
    await expect(page.locator(".tool-item[data-state=ok] .tool-line")).to_have_text("17 * 23 + 4.5")
    failed = page.locator(".tool-item[data-state=error]")
    await failed.locator("summary").first.click()
    await expect(failed.locator(".tool-progress")).to_contain_text("34")
    await expect(failed.locator(".result")).to_contain_text("ZeroDivisionError")


async def test_how_long_a_lane_thought_is_said_after_a_reload_too(start: Start) -> None:
    page = await start("assistant")
    await expect(page.locator("#pane-assistant .end")).to_be_attached()
    title = page.locator("details.reasoning .fold-title")
    live = await title.inner_text()
    await page.reload()
    await expect(title).to_have_text(re.compile(r"Thought for \d"))
    seconds = [float(re.findall(r"[\d.]+", text)[0]) for text in (live, await title.inner_text())]
    assert min(seconds) > 0
    assert abs(seconds[0] - seconds[1]) < 0.5


async def test_reasoning_is_folded_and_the_choice_to_open_it_is_kept(rig: Rig, start: Start) -> None:
    page = await start("thinking")
    fold = page.locator("details.reasoning")
    await expect(fold.locator(".fold-ticker")).to_contain_text("Weighing")
    assert not await fold.evaluate("node => node.open")
    await fold.locator("summary").click()
    await expect(fold.locator(".md")).to_contain_text("Weighing one side")
    await page.locator("#stop-all").click()
    await expect(page.locator(".state-chip")).to_contain_text("stopped")
    assert await fold.evaluate("node => node.open")


async def test_stop_one_stops_that_lane_alone(rig: Rig, start: Start) -> None:
    page = await start("writer", "writer")
    await page.locator("#pane-writer .stop").click()
    await expect(page.locator("#pane-writer .state-chip")).to_contain_text("stopped")
    await expect(page.locator("[id='pane-writer.2'] .state-chip")).to_contain_text("writing")
    await page.locator("#stop-all").click()
    await expect(page.locator("[id='pane-writer.2'] .state-chip")).to_contain_text("stopped")
    await expect(page.locator("[data-run-status=cancelled]")).to_be_visible()


async def test_stopping_is_shown_until_the_server_says_that_it_ended(rig: Rig, start: Start) -> None:
    page = await start("writer")
    await expect(page.locator(".state-chip")).to_contain_text("writing")
    lane = next(iter(rig.server.runs.values())).lanes["writer"]
    real, lane.stop.set = lane.stop.set, lambda: None  # type: ignore[method-assign]
    await page.locator("#pane-writer .stop").click()
    await expect(page.locator(".state-chip")).to_contain_text("Stopping")
    await until(lambda: any(path.endswith("/writer/cancel") for _, path, _ in rig.server.requests))
    real()
    await expect(page.locator(".state-chip")).to_contain_text("stopped")


async def test_closing_the_page_does_not_stop_the_run_and_it_is_shown_as_running_later(
    rig: Rig, start: Start
) -> None:
    page = await start("writer")
    await expect(page.locator(".md p").first).to_be_visible()
    await page.close()
    run = next(iter(rig.server.runs.values()))
    again = await rig.page()
    await expect(again.locator(".run-row .status")).to_have_text("running")
    await again.locator(".run-open").click()
    await expect(again.locator(".state-chip")).to_contain_text("writing")
    assert not run.finished


async def test_one_stream_serves_the_tab_and_seven_tabs_leave_room_for_a_request(
    rig: Rig, start: Start
) -> None:
    page = await start("writer", "writer", "writer", "writer")
    await expect(page.locator(".md p").first).to_be_visible()
    assert rig.server.max_streams == 1
    context = page.context
    run = next(iter(rig.server.runs))
    tabs = [await rig.page(f"#/run/{run}", context=context) for _ in range(4)]
    for tab in tabs:
        await expect(tab.locator(".md p").first).to_be_visible()
    await tabs[-1].locator("#stop-all").click()
    await expect(page.locator("[data-run-status=cancelled]")).to_be_visible()

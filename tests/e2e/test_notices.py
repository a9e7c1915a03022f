"""Desktop notifications: asked for, and only while the tab is out of sight."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page, expect

from tests.e2e.conftest import BROWSER, Rig

pytestmark = BROWSER

# Headless Chromium shows no notifications: what the page asks for is written down; so is its visibility.
STAND_IN = """
window.shown = [];
window.away = localStorage.getItem("test.away") === "1";
Object.defineProperty(document, "hidden", { get: () => window.away });
window.Notification = class {
  static permission = localStorage.getItem("test.permission") ?? "default";
  static async requestPermission() {
    this.permission = window.answer ?? "granted";
    localStorage.setItem("test.permission", this.permission);
    return this.permission;
  }
  constructor(title, options) {
    document.documentElement.dataset.shown = String(window.shown.push({ title, ...options }));
    window.last = this;
  }
  close() { this.closed = true; }
};
"""


async def opened(rig: Rig, *agents: str) -> Page:
    context = await rig.context()
    await context.add_init_script(STAND_IN)
    run = rig.server.launch({"message": "Tidy up"}, [{"agent": a} for a in agents])
    page = await rig.page(f"#/run/{run.id}", context=context)
    await expect(page.locator(".pane")).to_have_count(len(agents))
    return page


async def shown(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await page.evaluate("window.shown")
    return found


async def test_a_lane_that_needs_a_person_and_the_end_are_told_to_who_asked_and_is_away(rig: Rig) -> None:
    page = await opened(rig, "writer")
    await page.locator("[data-notices]").click()
    await expect(page.locator("[data-notices]")).to_have_attribute("aria-checked", "true")
    run = next(iter(rig.server.runs.values()))
    await page.evaluate("window.away = true")
    rig.server.join(run, "approver", {"agent": "approver"})
    await expect(page.locator("html")).to_have_attribute("data-shown", "1")
    (note,) = await shown(page)
    assert note["title"] == "approver needs your approval for delete_folder"
    assert note["body"] == "Tidy up"
    await page.evaluate("window.last.onclick()")
    await expect(page.locator("#pane-approver")).to_have_attribute("data-selected", "1")
    for lane in run.lanes.values():
        lane.stop.set()
    await expect(page.locator("html")).to_have_attribute("data-shown", "2")
    assert (await shown(page))[1]["title"] == "The run is over: stopped"
    await page.evaluate("localStorage.setItem('test.away', '1')")
    await page.reload()  # the permission and the wish are remembered; an old end is no news
    await expect(page.locator("[data-run-status=cancelled]")).to_be_visible()
    await expect(page.locator("[data-notices]")).to_have_attribute("aria-checked", "true")
    assert await shown(page) == []


async def test_nobody_is_notified_who_did_not_ask_or_is_looking(rig: Rig) -> None:
    page = await opened(rig, "approver", "assistant")
    await page.evaluate("window.away = true")
    await expect(page.locator("#announce-assertive")).to_contain_text("needs your approval")
    assert await shown(page) == []
    await page.evaluate("window.answer = 'denied'")
    await page.locator("[data-notices]").click()
    await expect(page.locator(".toast")).to_contain_text("does not allow notifications")
    await expect(page.locator("[data-notices]")).to_have_attribute("aria-checked", "false")
    await page.evaluate("window.answer = 'granted'; window.away = false")
    await page.locator("[data-notices]").click()
    await expect(page.locator("[data-notices]")).to_have_attribute("aria-checked", "true")
    await page.locator("body").press("Shift+S")
    await expect(page.locator("[data-run-status]")).not_to_contain_text("running")
    assert await shown(page) == []

"""The keyboard does everything, and the strict policy holds on the real server."""

from __future__ import annotations

import itertools

import pytest
from playwright.async_api import Browser, expect

from tests.e2e.conftest import BROWSER, Rig, Start
from tests.support.service import running

pytestmark = [*BROWSER, pytest.mark.timeout(180)]

DIALOGS = {
    "Control+k": "palette",
    "d": "compare",
    "e": "share",
    "h": "history",
    "a": "inbox",
    "w": "swap",
    "?": "keys",
}


async def test_each_dialog_has_a_key_and_escape_gives_the_focus_back(start: Start) -> None:
    page = await start("assistant", "analyst")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    await page.locator(".cell").first.focus()
    for key, kind in DIALOGS.items():
        await page.keyboard.press(key)
        await expect(page.locator(f"dialog.dialog-{kind}")).to_be_visible()
        assert await page.evaluate("document.activeElement.closest('dialog') !== null"), key
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog")).to_have_count(0)
        await expect(page.locator(".cell").first).to_be_focused()


async def test_a_closed_dialog_does_not_take_the_focus_from_where_one_went_on(rig: Rig) -> None:
    page = await rig.page()
    await page.locator("#add-lane").click()
    await page.locator("dialog [data-agent=analyst]").wait_for()
    at_once, later = await page.evaluate("""async () => {
      document.querySelector("dialog [data-agent=analyst]").click();
      await new Promise((resolve) => setTimeout(resolve)); // the dialog closed as the click's own microtask
      const given = document.activeElement.id;
      document.getElementById("composer-text").focus();
      await new Promise((resolve) => setTimeout(resolve, 300));
      return [given, document.activeElement.id];
    }""")
    assert at_once == "add-lane"
    assert later == "composer-text"


async def test_what_a_dialog_leads_to_has_the_focus(start: Start) -> None:
    page = await start("assistant", "analyst")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    composer = page.locator("#composer-text")
    await page.locator(".cell").first.focus()
    await page.keyboard.press("Control+k")
    await expect(page.get_by_role("combobox", name="Commands")).to_be_focused()
    await page.keyboard.type("prompt")
    await page.keyboard.press("Enter")
    await expect(composer).to_be_focused()
    await page.get_by_label("More for assistant").click()
    await page.locator("dialog").get_by_text("Use as next prompt").click()
    await expect(composer).to_be_focused()
    await expect(composer).not_to_have_value("")


async def test_a_run_is_started_steered_by_lane_stopped_and_retried_without_a_mouse(rig: Rig) -> None:
    page = await rig.page()
    await page.locator("body").press("c")
    await expect(page.locator("#composer-text")).to_be_focused()
    await page.keyboard.type("Compare.")
    await page.keyboard.press("Control+Enter")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    run = rig.server.launch({"message": "x"}, [{"agent": "writer"}, {"agent": "writer"}])
    page = await rig.page(f"#/run/{run.id}")
    await expect(page.locator("#pane-writer .state-chip")).to_contain_text("writing")
    await page.keyboard.press("]")
    await expect(page.locator(".cell[aria-pressed=true]")).to_have_attribute("data-key", "writer.2")
    await page.keyboard.press("[")
    await expect(page.locator(".cell[aria-pressed=true]")).to_have_attribute("data-key", "writer")
    await page.keyboard.press("2")
    await page.keyboard.press("s")
    await expect(page.locator("[id='pane-writer.2'] .state-chip")).to_contain_text("stopped")
    await expect(page.locator("#pane-writer .state-chip")).to_contain_text("writing")
    await page.keyboard.press("r")
    await expect(page.locator("[id='pane-writer.2'] .attempts")).to_contain_text("2/2")
    await page.keyboard.press("Shift+S")
    await expect(page.locator("[data-run-status=cancelled]")).to_be_visible()
    await page.keyboard.press("/")
    await expect(page.locator("#search")).to_be_focused()


async def test_escape_in_a_text_field_stops_nothing(rig: Rig, start: Start) -> None:
    page = await start("writer")
    await page.locator("body").press("m")
    await page.locator("#composer-text").focus()
    await page.keyboard.type("s r S")
    await page.keyboard.press("Escape")
    await expect(page.locator("#pane-writer .state-chip")).to_contain_text("writing")
    assert not [path for method, path, _ in rig.server.requests if method == "POST"]
    assert await page.locator(".frame[data-max]").count() == 1


async def test_y_approves_and_n_denies_the_call_of_the_focused_lane(rig: Rig, start: Start) -> None:
    page = await start("approver", "approver")
    await expect(page.locator(".approval")).to_have_count(2)
    await page.locator("body").press("1")
    await page.keyboard.press("?")
    await expect(page.locator("dialog")).to_be_visible()
    await page.keyboard.press("n")  # meant for nothing behind the dialog
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog")).to_have_count(0)
    await page.keyboard.press("y")
    await expect(page.locator("#pane-approver .state-chip")).to_contain_text("done")
    await page.keyboard.press("2")
    await page.keyboard.press("n")
    await page.keyboard.press("Enter")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    answers = [b["decision"] for _, path, b in rig.server.requests if "/approvals/" in path and b]
    assert answers == ["approve", "deny"]


async def test_end_follows_the_text_again(start: Start) -> None:
    page = await start("writer", height=500)
    scroller = page.locator(".pane-scroll")
    await expect(page.locator(".md p").nth(12)).to_be_attached()
    await scroller.hover()
    await page.mouse.wheel(0, -300)
    await expect(page.locator(".pill")).to_be_visible()
    await page.locator("body").press("End")
    await expect(page.locator(".pill")).to_be_hidden()
    await page.locator(".md p").nth(19).wait_for(state="attached")
    assert await scroller.evaluate("n => n.scrollHeight - n.clientHeight - n.scrollTop") < 40


async def test_bursts_are_told_at_most_once_in_two_seconds(rig: Rig, start: Start) -> None:
    page = await start("silent")
    await page.evaluate(
        """() => {
            window.told = [];
            const watch = new MutationObserver(() => window.told.push(performance.now()));
            watch.observe(document.getElementById("announce-polite"), { childList: true });
        }"""
    )
    run = next(iter(rig.server.runs.values()))
    for n in range(8):
        rig.server.join(run, f"a{n}", {"agent": "resetting" if n % 2 else "assistant"})
    await expect(page.locator("#announce-polite")).to_contain_text("completed")
    await expect(page.locator(".end")).to_have_count(8)
    run.lanes["silent"].stop.set()
    await expect(page.locator("#announce-polite")).to_contain_text("The run is over")
    told = await page.evaluate("window.told")
    assert 2 <= len(told) <= 9
    assert all(later - earlier > 1900 for earlier, later in itertools.pairwise(told))


async def test_with_reduced_motion_nothing_moves(start: Start) -> None:
    page = await start("writer", "tooling", reduced_motion="reduce")
    await expect(page.locator("#pane-tooling .state-chip")).to_contain_text("tool")
    moving = "document.getAnimations().filter((a) => a.playState === 'running').length"
    assert await page.evaluate(moving) == 0


async def test_the_policy_holds_on_the_real_server_and_no_request_leaves_it(browser: Browser) -> None:
    async with running(default_agents=["assistant"]) as url:
        context = await browser.new_context()
        page = await context.new_page()
        problems: list[str] = []
        foreign: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on(
            "request",
            lambda r: foreign.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None,
        )
        answer = await page.goto(f"{url}/")
        assert answer is not None
        policy = answer.headers["content-security-policy"]
        for rule in ("default-src 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"):
            assert rule in policy
        assert "unsafe" not in policy
        await page.locator("[data-example=compare]").click()
        await expect(page.locator("[data-run-status=completed]")).to_be_visible(timeout=60_000)
        await page.keyboard.press("d")
        await expect(page.locator("dialog .diff")).not_to_be_empty()
        await context.close()
    assert not problems, problems
    assert not foreign, foreign

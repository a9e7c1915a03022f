"""axe on every screen in both themes, and what a keyboard, a screen reader and large text need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.e2e.conftest import BROWSER, Rig, Start
from tests.e2e.test_javascript import packages  # noqa: F401  # the fixture that installs axe

pytestmark = [*BROWSER, pytest.mark.timeout(180)]


async def violations(page: Page, packages: Path) -> list[str]:  # noqa: F811
    source = (packages / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    await page.evaluate(f"() => {{ {source}; window.axe = axe || module.exports; }}")
    found: list[dict[str, Any]] = await page.evaluate("axe.run(document).then((r) => r.violations)")
    bad = [v for v in found if v["impact"] in ("serious", "critical")]
    return [f"{v['id']}: {n['target']} {n['failureSummary']}" for v in bad for n in v["nodes"][:3]]


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_no_screen_has_a_serious_violation(rig: Rig, packages: Path, theme: str) -> None:  # noqa: F811
    page = await rig.page(color_scheme=theme)
    await expect(page.locator(".example").first).to_be_enabled()
    assert not await violations(page, packages), "welcome"
    agents = ("assistant", "approver", "failing", "refusing", "researcher", "lead", "writer", "spending")
    run = rig.server.launch({"message": "x"}, [{"agent": a} for a in agents])
    page = await rig.page(f"#/run/{run.id}", color_scheme=theme)
    await expect(page.locator("#pane-researcher .state-chip")).to_contain_text("done")
    await expect(page.locator("#pane-lead .end")).to_be_visible()
    await page.locator("#pane-researcher .tool-head").first.click()
    assert not await violations(page, packages), "run"
    for key in ("?", "d", "e", "a", "h"):
        await page.locator("body").press(key)
        await expect(page.locator("dialog")).to_be_visible()
        assert not await violations(page, packages), key
        await page.keyboard.press("Escape")
    await page.locator(".lane-chip .chip-main").first.click()
    assert not await violations(page, packages), "lane editor"
    await page.keyboard.press("Escape")
    await page.keyboard.press("Control+k")
    await expect(page.locator("dialog")).to_be_visible()
    assert not await violations(page, packages), "palette"


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_no_small_screen_form_or_menu_has_a_serious_violation(
    rig: Rig,
    packages: Path,  # noqa: F811
    theme: str,
) -> None:
    agents = ("lead", "assistant", "researcher", "silent", "tooling")
    run = rig.server.launch({"message": "x"}, [{"agent": a} for a in agents])
    page = await rig.page(f"#/run/{run.id}", color_scheme=theme, width=375, height=740)
    await expect(page.locator("#pane-lead .end")).to_be_attached()
    assert not await violations(page, packages), "phone"
    await page.get_by_label("Show or hide the history").click()
    assert not await violations(page, packages), "history on a phone"
    await page.keyboard.press("Escape")
    await page.set_viewport_size({"width": 1100, "height": 800})
    for nest in await page.locator(".nest > .btn").all():
        await nest.click()
    await expect(page.locator("[id='pane-lead/scout/reader']")).to_be_visible()
    await page.get_by_label("More for worker").click()
    await page.get_by_text("Fold into lead").click()
    await page.locator("#pane-lead").scroll_into_view_if_needed()
    await expect(page.locator(".worker .end")).to_be_attached()
    assert not await violations(page, packages), "sub-agents"
    opened = {
        "#add-lane": "add a lane",
        "#add-synthesis": "synthesis",
        "#pane-silent .model": "swap",
        "#pane-silent [aria-haspopup]": "a running lane's menu",
        "[id='pane-lead/scout'] [aria-haspopup]": "a sub-agent's menu",
        ".run-more": "a run's menu",
        "[aria-haspopup]:text('Budget')": "budget",
    }
    for opener, what in opened.items():
        await page.locator(opener).first.focus()  # by key: panes that go on growing move what is clicked
        await page.keyboard.press("Enter")
        await expect(page.locator("dialog")).to_be_visible()
        assert not await violations(page, packages), what
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog")).to_have_count(0)
    await page.locator("body").press("d")
    for mode in ("Side by side", "Tools"):
        await page.get_by_text(mode, exact=True).click()
        assert not await violations(page, packages), mode
    await page.keyboard.press("Escape")
    page = await rig.page("#/run/none", color_scheme=theme)
    await expect(page.locator("[role=alert] h2")).to_be_visible()
    assert not await violations(page, packages), "a run that is gone"
    rig.expect_console("404")


async def test_f6_goes_through_the_regions_and_the_strip_has_roving_focus(start: Start) -> None:
    page = await start("assistant", "analyst")
    seen = []
    for _ in range(5):
        await page.keyboard.press("F6")
        seen.append(
            await page.evaluate("document.activeElement.closest('[data-region]').className.split(' ')[0]")
        )
    assert set(seen) == {"topbar", "rail", "stage", "strip", "composer"}
    await page.locator(".cell").first.focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator(".cell[data-key=analyst]")).to_be_focused()
    await expect(page.locator(".cell[tabindex='0']")).to_have_count(1)


async def test_boundaries_are_announced_and_tokens_are_not(rig: Rig, start: Start) -> None:
    page = await start("writer")
    await expect(page.locator(".md p").first).to_be_visible()
    run = next(iter(rig.server.runs.values()))
    for agent in ("assistant", "approver"):
        rig.server.join(run, agent, {"agent": agent})
    await expect(page.locator("#announce-assertive")).to_contain_text("needs your approval for delete_folder")
    await expect(page.locator("#announce-polite")).to_contain_text("assistant completed, 388 tokens")
    assert await page.locator("#pane-approver [role=log]").get_attribute("aria-live") == "off"
    assert await page.locator("#pane-approver [role=log]").get_attribute("aria-busy") == "true"


async def test_the_stream_never_moves_the_focus(start: Start) -> None:
    page = await start("writer", "assistant")
    await page.locator("#composer-text").focus()
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("done")
    await expect(page.locator("#composer-text")).to_be_focused()


@pytest.mark.parametrize(("width", "height"), [(375, 700), (800, 500)])
async def test_nothing_scrolls_sideways_on_a_phone_or_at_twice_the_size(
    start: Start, width: int, height: int
) -> None:
    page = await start("assistant", "analyst", width=width, height=height)
    await expect(page.locator("[data-run-status=completed]")).to_be_attached()
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert await page.locator(".pane-scroll:visible").first.evaluate("n => n.clientHeight") > 60


async def test_forced_colours_and_reduced_motion_are_honoured(start: Start) -> None:
    page = await start("assistant", forced_colors="active", reduced_motion="reduce")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    border = await page.locator(".swatch").first.evaluate("n => getComputedStyle(n).borderTopWidth")
    assert border == "1px"


async def test_the_theme_is_switched_and_remembered(rig: Rig) -> None:
    page = await rig.page(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(background)
    for _ in range(2):
        await page.get_by_label("Theme:").click()
    dark = await page.evaluate(background)
    assert dark != light
    await page.reload()
    await expect(page.locator(".example").first).to_be_enabled()
    assert await page.evaluate(background) == dark

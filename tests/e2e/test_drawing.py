"""What is drawn while panes come, go and change their size under a busy page."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.e2e.conftest import BROWSER, Start

pytestmark = [*BROWSER, pytest.mark.timeout(120)]


async def test_panes_go_on_following_the_end_when_others_join_and_the_window_changes(start: Start) -> None:
    page = await start("assistant", "analyst", "lead", "writer", width=1500, height=700)
    await page.locator("#pane-worker").scroll_into_view_if_needed()
    await expect(page.locator("#pane-worker .text .md")).to_contain_text("What the log gives")
    for width in (900, 1500, 1000):
        await page.set_viewport_size({"width": width, "height": 700})
        await page.locator("#pane-assistant").scroll_into_view_if_needed()  # what nobody sees is not drawn
        await expect(page.locator("#pane-assistant .end")).to_be_attached()
    await page.locator("#pane-worker").scroll_into_view_if_needed()
    await expect(page.locator("#pane-worker .end")).to_be_visible()
    await expect(page.locator(".pill:visible")).to_have_count(0)
    rest = "n => n.scrollHeight - n.clientHeight - n.scrollTop"
    await page.locator("#pane-assistant").scroll_into_view_if_needed()
    await expect(page.locator("#pane-assistant .state-chip")).to_contain_text("done")
    assert await page.locator("#pane-assistant .pane-scroll").evaluate(rest) < 3


async def test_long_answers_keep_the_page_small_and_come_back_where_they_were(start: Start) -> None:
    page = await start("load", width=900, spec={"seconds": 32})
    await expect(page.locator("#pane-load .end")).to_be_attached(timeout=80_000)
    await expect(page.locator(".md-spacer")).to_be_attached()
    assert await page.locator(".md-block").count() <= 50
    height = "n => n.scrollHeight"
    pane = page.locator("#pane-load .pane-scroll")
    short = await pane.evaluate(height)
    await pane.evaluate("n => { n.scrollTop = 0 }")
    await expect(page.locator(".md-spacer")).to_have_count(0)
    assert await page.locator(".md-block").count() > 50
    assert abs(await pane.evaluate(height) - short) < 3  # the spacer was exactly as high as what it stood for
    await expect(pane.locator(".md-block").first).to_be_in_viewport()

    text = await pane.locator(".md").inner_text()
    await page.reload()  # a replay draws only its end
    await expect(page.locator("#pane-load .end")).to_be_attached()
    await expect(page.locator(".md-spacer")).to_be_attached()
    assert await page.locator(".md-block").count() <= 50
    await pane.evaluate("n => { n.scrollTop = 0 }")
    await expect(page.locator(".md-spacer")).to_have_count(0)
    assert await pane.locator(".md").inner_text() == text


async def test_a_pane_that_follows_the_end_is_never_blank_however_tall_it_becomes(start: Start) -> None:
    page = await start("load", width=900, height=500, spec={"seconds": 32})
    await expect(page.locator("#pane-load .end")).to_be_attached(timeout=80_000)
    await page.reload()
    await expect(page.locator(".md-spacer")).to_be_attached()
    await page.set_viewport_size({"width": 900, "height": 12_000})
    await expect(page.locator(".md-spacer")).to_have_count(0)  # all of it has room now
    assert await page.locator(".md-block").count() > 50

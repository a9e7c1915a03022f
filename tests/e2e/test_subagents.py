"""Sub-agents: nested in their lane, in a pane of their own, and back; workers' panes, folded and not."""

from __future__ import annotations

import re

from playwright.async_api import Locator, Page, expect

from tests.e2e.conftest import BROWSER, Rig, Start
from tests.e2e.fake_server import Lane

pytestmark = BROWSER


def nest(page: Page, path: str, pane: str = "#pane-lead") -> Locator:
    return page.locator(f"{pane} .nest[data-path='{path}']")


async def test_a_nested_sub_agent_gets_a_pane_of_its_own_and_goes_back(start: Start) -> None:
    page = await start("lead", "assistant")
    await nest(page, "scout").locator("> .btn").click()
    pane = page.locator("[id='pane-lead/scout']")
    await expect(pane).to_have_attribute("data-selected", "1")
    await expect(pane.locator(".tool-name")).to_have_text("read_doc")
    await expect(pane.locator(".nest strong")).to_have_text("reader")
    await expect(pane.locator(".swatch")).to_have_text("A1")
    await expect(page.locator("#pane-lead .tool-name")).to_be_hidden()
    order = "nodes => nodes.map(n => n.dataset.key)"
    assert await page.locator(".pane").evaluate_all(order) == ["lead", "lead/scout", "assistant", "worker"]
    await expect(pane.locator(".stop")).to_have_count(0)  # it is stopped with its lane
    await pane.locator(".origin").click()
    await expect(page.locator("#pane-lead")).to_have_attribute("data-selected", "1")
    await page.reload()
    await expect(pane.locator(".tool-name")).to_have_text("read_doc")
    await pane.get_by_label("Fold lead/scout").click()
    await expect(pane).to_have_count(0)
    await expect(page.locator("#pane-lead .tool-name")).to_be_visible()


async def test_the_pane_of_a_sub_agent_streams(rig: Rig, start: Start) -> None:
    async def boss(lane: Lane) -> None:
        lane.begin()
        await lane.say("Go. ", path=["scout"])
        for n in range(100_000):
            await lane.say(f"Line {n}.\n\n", path=["scout"], rate=40)

    rig.server.agent("boss", boss)
    page = await start("boss", "assistant")
    await nest(page, "scout", "#pane-boss").locator("> .btn").click()
    pane = page.locator("[id='pane-boss/scout']")
    await expect(pane.locator(".state-chip")).to_contain_text("writing")
    await expect(pane.locator(".md")).to_contain_text(re.compile(r"Line \d+\."))
    last = int(re.findall(r"Line (\d+)\.", await pane.locator(".md").inner_text())[-1])
    await expect(pane.locator(".md")).to_contain_text(f"Line {last + 8}.")  # a long pane keeps only its end
    await page.keyboard.press("s")  # the focused pane has no channel of its own to stop
    await expect(page.locator("#pane-boss .state-chip")).to_contain_text("writing")
    assert not [p for m, p, _ in rig.server.requests if m == "POST" and p.endswith("/cancel")]


async def test_a_workers_pane_is_folded_into_its_parents_and_taken_out_again(start: Start) -> None:
    page = await start("lead", "assistant")
    await expect(page.locator("#pane-worker .origin")).to_have_text("↳ lead")
    await expect(page.locator("#pane-worker .state-chip")).to_contain_text("done")
    await page.get_by_label("More for worker").click()
    await page.get_by_text("Fold into lead").click()
    await expect(page.locator("#pane-worker")).to_have_count(0)
    worker = page.locator("#pane-lead .worker")
    await expect(worker.locator(".item .md")).to_contain_text("append-only")
    await expect(worker.locator(".nest-head")).to_contain_text("done")
    await expect(page.locator(".cell")).to_have_count(2)
    await worker.get_by_text("Copy", exact=True).click()  # of what it says, not of what its parent says
    await page.context.grant_permissions(["clipboard-read"])
    assert "append-only" in await page.evaluate("navigator.clipboard.readText()")
    await worker.get_by_text("Own pane").click()
    await expect(page.locator("#pane-worker .item .md")).to_contain_text("append-only")
    await expect(worker).to_have_count(0)
    letters = await page.locator(".cell .swatch").all_inner_texts()
    assert letters == ["A", "B", "C"]


async def test_a_worker_is_not_said_to_have_had_the_runs_prompt(start: Start) -> None:
    page = await start("lead", message="Split this.")
    await expect(page.locator("#pane-lead .prompt-line")).to_have_text("Split this.")
    await expect(page.locator("#pane-worker .origin")).to_be_visible()
    await expect(page.locator("#pane-worker .prompt")).to_have_count(0)

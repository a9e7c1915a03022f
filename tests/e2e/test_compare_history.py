"""Comparing, history, links and exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from playwright.async_api import Page, expect

from tests.e2e.conftest import BROWSER, Rig, Start, until

pytestmark = BROWSER


async def done(page: Page) -> None:
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()


async def test_two_lanes_are_compared_by_words_numbers_and_tools_also_while_one_runs(start: Start) -> None:
    page = await start("researcher", "analyst", "writer")
    await expect(page.locator("#pane-analyst .state-chip")).to_contain_text("done")
    await expect(page.locator("#pane-researcher .state-chip")).to_contain_text("done")
    await page.locator("body").press("d")
    box = page.locator("dialog")
    await expect(box.locator(".diff del").first).to_be_visible()
    await expect(box.locator(".diff ins").first).to_be_visible()
    await expect(box.locator(".deltas").first).to_contain_text("%")
    await box.get_by_text("Tools", exact=True).click()
    await expect(box.locator(".toolseq tr.is-diff")).to_have_count(3)
    await box.get_by_label("Right lane").select_option(label="C writer")
    await box.get_by_text("Words", exact=True).click()
    before = len(await box.locator(".diff ins").last.inner_text())
    await expect(box.locator(".diff ins").last).not_to_have_text("", use_inner_text=True)
    await page.wait_for_function(
        "n => [...document.querySelectorAll('.diff ins')].at(-1).innerText.length > n", arg=before
    )


async def test_side_by_side_scrolls_by_landmarks(start: Start) -> None:
    page = await start("assistant", "assistant", height=600)
    await done(page)
    await page.locator("body").press("d")
    await page.locator("dialog").get_by_text("Side by side").click()
    left, right = page.locator(".side").first, page.locator(".side").last
    await expect(right.locator("figure")).to_be_visible()
    await left.hover()
    await page.mouse.wheel(0, 200)
    await page.wait_for_function("() => document.querySelectorAll('.side')[1].scrollTop > 50")


async def test_repeats_show_median_and_spread(start: Start) -> None:
    page = await start("assistant", "assistant", "assistant", "analyst")
    await done(page)
    await page.locator("body").press("d")
    await expect(page.locator("dialog .deltas").last).to_contain_text("assistant")
    await expect(page.locator("dialog .deltas").last).to_contain_text("388 (388 … 388)")


async def test_history_is_searched_opened_and_linked_to_a_lane(rig: Rig) -> None:
    one = rig.server.launch({"message": "About apples"}, [{"agent": "assistant"}, {"agent": "analyst"}])
    rig.server.launch({"message": "About pears"}, [{"agent": "assistant"}])
    page = await rig.page()
    await expect(page.locator(".run-row")).to_have_count(2)
    await page.locator("body").press("/")
    await page.keyboard.type("apples")
    await expect(page.locator(".run-row")).to_have_count(1)
    await page.locator(".run-open").click()
    await expect(page.locator(".pane")).to_have_count(2)
    await page.locator(".cell[data-key=analyst]").click()
    assert page.url.endswith(f"#/run/{one.id}?lane=analyst")
    again = await rig.page(f"#/run/{one.id}?lane=analyst")
    await expect(again.locator("#pane-analyst")).to_have_attribute("data-selected", "1")
    await page.go_back()
    await expect(page.locator(".welcome")).to_be_visible()


async def test_hits_name_their_lane_and_lead_to_it(rig: Rig) -> None:
    one = rig.server.launch({"message": "About apples"}, [{"agent": "assistant"}, {"agent": "analyst"}])
    rig.server.hits[one.id] = {"assistant": "…a cursor…", "analyst": "…apples cost 395.5…"}
    page = await rig.page()
    await page.locator("#search").fill("apples")
    await page.locator(".rail .run-hit").nth(1).click()
    await expect(page.locator("#pane-analyst")).to_have_attribute("data-selected", "1")
    await page.locator("body").press("h")
    await expect(page.locator("dialog #search-all")).to_have_value("apples")
    await expect(page.locator("dialog .run-hit").first).to_have_text("assistant …a cursor…")
    await page.locator("dialog #search-all").fill("pears")
    await expect(page.locator("dialog")).to_contain_text("Nothing found.")


async def test_the_address_carries_lane_layout_and_the_maximised_pane(start: Start) -> None:
    page = await start("assistant", "analyst")
    await page.locator("body").press("2")
    await page.locator("body").press("g")
    await page.locator("body").press("m")
    await expect(page).to_have_url(re.compile(r"\?lane=analyst&layout=columns&max=1$"))
    other = await page.context.new_page()
    await other.goto(page.url)
    await expect(other.locator(".pane:visible")).to_have_count(1)
    await expect(other.locator("#pane-analyst")).to_be_visible()
    await expect(other.locator(".frame")).to_have_attribute("data-layout", "columns")


async def test_a_run_is_forked_into_the_composer_and_deleted_with_undo(rig: Rig) -> None:
    page = await rig.page()
    await page.locator("#add-lane").click()
    await page.locator("dialog [data-agent=analyst]").click()
    await page.locator("#composer-text").fill("Original words")
    await page.keyboard.press("Enter")
    await done(page)
    await page.get_by_label("Remove analyst").click()
    await page.locator(".run-row").hover()
    await page.locator(".run-more").click()
    await page.locator("dialog").get_by_text("Fork").click()
    await expect(page.locator("#composer-text")).to_have_value("Original words")
    await expect(page.locator(".lane-chip")).to_have_count(2)
    await page.locator(".run-row").hover()
    await page.locator(".run-more").click()
    await page.locator("dialog").get_by_text("Delete").click()
    await expect(page.locator(".run-row")).to_have_count(0)
    await page.get_by_text("Undo").click()
    await expect(page.locator(".run-row")).to_have_count(1)
    assert not [m for m, _, _ in rig.server.requests if m == "DELETE"]


async def test_a_deleted_run_is_gone_when_nobody_undoes_it(rig: Rig) -> None:
    rig.server.launch({"message": "x"}, [{"agent": "assistant"}])
    page = await rig.page()
    await page.locator(".run-row").hover()
    await page.locator(".run-more").click()
    await page.locator("dialog").get_by_text("Delete").click()
    await until(lambda: not rig.server.runs)


async def test_the_table_of_all_runs_compares_two_and_stars(rig: Rig) -> None:
    for word in ("one", "two"):
        rig.server.launch({"message": word, "thread": f"t{word}"}, [{"agent": "assistant"}])
    page = await rig.page()
    await page.get_by_text("All runs").click()
    rows = page.locator(".history tbody tr")
    await expect(rows).to_have_count(2)
    await rows.first.get_by_role("button", name="Star").click()
    await until(lambda: any(r.starred for r in rig.server.runs.values()))
    for i in range(2):
        await rows.nth(i).get_by_role("checkbox").check()
    await page.locator("dialog").get_by_text("Compare", exact=True).click()
    await expect(page.locator("dialog .diff")).to_contain_text("append-only")
    await expect(page.locator("dialog select").first.locator("option")).to_have_count(2)


async def export(page: Page, kind: str, into: Path) -> str:
    async with page.expect_download() as download:
        await page.locator(f"[data-format={kind}]").click()
    path = into / f"out.{kind}"
    await (await download.value).save_as(path)
    return path.read_text(encoding="utf-8")


async def test_exports_carry_the_run_and_the_html_file_shows_it_without_a_server(
    rig: Rig, tmp_path: Path
) -> None:
    lanes: list[dict[str, Any]] = [
        {"agent": "researcher", "params": {"temperature": 0.3}, "tools": ["search_docs"], "repeats": 1},
        {"agent": "analyst", "repeats": 1},
    ]
    run = rig.server.launch(
        {"message": "Do it.", "metadata": {"composer": {"lanes": lanes}}},
        [{"agent": "researcher"}, {"agent": "analyst"}],
    )
    page = await rig.page(f"#/run/{run.id}")
    await done(page)
    await page.locator("body").press("e")
    events = [json.loads(line) for line in (await export(page, "ndjson", tmp_path)).splitlines()]
    assert events == run.events
    assert json.loads(await export(page, "json", tmp_path))["run"] == run.id
    text = await export(page, "md", tmp_path)
    assert text.startswith("---\n")
    assert f'run: "{run.id}"' in text
    assert "**search_docs**" in text
    assert "output_tokens: 260" in text
    assert "\n## A researcher\n" in text
    assert "\n## B analyst\n" in text
    assert 'parameters: temperature=0.3, tools=["search_docs"]' in text
    html = await export(page, "html", tmp_path)
    assert "<script" not in html
    (tmp_path / "out.html").write_text(html, encoding="utf-8")
    context = await rig.context()
    shown = await context.new_page()
    problems: list[str] = []
    shown.on("console", lambda m: problems.append(m.text))
    shown.on(
        "request", lambda r: problems.append(r.url) if not r.url.startswith(("file:", "data:")) else None
    )
    await shown.goto((tmp_path / "out.html").as_uri())
    await expect(shown.locator(".export-lane")).to_have_count(2)
    await expect(shown.locator(".export-lane .swatch")).to_have_text(["A", "B"])
    await expect(shown.locator(".export-lane").first).to_contain_text("What the log gives")
    await expect(shown.locator(".export-lane").first).to_contain_text("temperature=0.3")
    await expect(shown.locator(".hljs-keyword").first).to_be_visible()
    assert not problems


async def test_a_run_of_the_history_is_exported_whole_from_its_menu(rig: Rig, tmp_path: Path) -> None:
    rig.server.launch({"message": "About apples"}, [{"agent": "assistant"}, {"agent": "analyst"}])
    page = await rig.page()
    await page.locator(".run-row").hover()
    await page.locator(".run-more").click()
    await page.locator("dialog").get_by_text("Export").click()
    await expect(page.locator("dialog.dialog-share")).to_be_visible()
    text = await export(page, "md", tmp_path)
    assert "See [the manual](https://example.org/manual)." in text or "status: running" in text


async def test_the_palette_runs_a_command_by_its_name(start: Start) -> None:
    page = await start("assistant", "analyst")
    await page.keyboard.press("Control+k")
    await expect(page.locator("dialog input")).to_be_focused()
    await page.keyboard.type("go to lane b")
    await page.keyboard.press("Enter")
    await expect(page.locator("#pane-analyst")).to_have_attribute("data-selected", "1")
    await page.locator("body").press("?")
    await expect(page.locator("dialog .keys")).to_contain_text("Maximise")
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog")).to_have_count(0)


async def test_escape_in_a_text_field_stops_and_closes_nothing(rig: Rig, start: Start) -> None:
    page = await start("writer")
    await page.locator("body").press("m")
    await page.locator("#composer-text").focus()
    await page.keyboard.press("Escape")
    assert await page.locator(".frame").get_attribute("data-max") == "1"
    assert not rig.server.requests

"""Reloads, cuts, sleeping tabs: every lane ends with exactly the text of an uninterrupted viewer."""

from __future__ import annotations

import random

import pytest
from playwright.async_api import Page, expect

from tests.e2e.conftest import BROWSER, Rig, Start, until
from tests.e2e.fake_server import FakeRun

pytestmark = [*BROWSER, pytest.mark.timeout(180)]

LANES = ("assistant", "analyst", "researcher", "resetting")
TEXTS = """() => import("/js/state.js").then(({ runs }) => {
  const [run] = [...runs.values()].filter((r) => r.lanes.size);
  return Object.fromEntries([...run.lanes.values()].map((l) => [l.id, l.transcripts.answer()]));
})"""
DOM = "(id) => document.querySelector(`#pane-${id} .transcript`).innerText"


async def texts(page: Page) -> dict[str, str]:
    result: dict[str, str] = await page.evaluate(TEXTS)
    return result


def truth(run: FakeRun) -> dict[str, str]:
    """Each lane's text as the log has it, without what was reset."""
    out = {}
    for lane in run.lanes:
        kept: list[tuple[int, str]] = []
        for event in run.events:
            if event["channel"] != lane or event.get("path"):
                continue
            if event["type"] == "step_reset":
                kept = [(c, t) for c, t in kept if c < event["from_cseq"]]
            elif event["type"] in ("token", "refusal"):
                kept.append((event["cseq"], event["content"]))
        out[lane] = "".join(text for _, text in kept)
    return out


async def finished(page: Page) -> None:
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()


async def test_twenty_reloads_and_cuts_at_random_moments_lose_and_double_nothing(
    rig: Rig, start: Start
) -> None:
    page = await start(*LANES)
    seen = next(iter(rig.server.runs.values()))
    whole = await rig.page(f"#/run/{seen.id}")
    for i in range(20):
        target = len(seen.events) + random.randint(1, 60)  # any moment will do
        await until(lambda n=target: len(seen.events) >= n or seen.finished)  # type: ignore[misc]
        if i % 3 == 0:
            await page.reload()
        else:
            rig.server.cut()
    rig.expect_console("ERR_")
    await finished(page)
    await finished(whole)
    rig.expect_console("ERR_")
    assert await texts(page) == truth(seen)
    assert await texts(whole) == truth(seen)
    for lane in LANES:
        shown = [await p.evaluate(DOM, lane) for p in (page, whole)]
        assert strip_times(shown[0]) == strip_times(shown[1])


def strip_times(text: str) -> list[str]:
    """The words without numbers: times differ by what a replay can know."""
    return [w for w in text.split() if not any(c.isdigit() for c in w)]


async def test_the_page_says_when_the_server_is_gone_and_catches_up_when_it_is_back(
    rig: Rig, start: Start
) -> None:
    page = await start("writer")
    run = next(iter(rig.server.runs.values()))
    await expect(page.locator(".md p").first).to_be_visible()
    rig.server.offline = True
    rig.server.cut()
    await expect(page.locator(".banner")).to_be_visible()
    await expect(page.locator(".state-chip")).to_contain_text("reconnecting")
    rig.server.offline = False
    await page.evaluate("window.dispatchEvent(new Event('online'))")
    await expect(page.locator(".banner")).to_be_hidden()
    await page.locator("#stop-all").click()
    await expect(page.locator("[data-run-status=cancelled]")).to_be_visible()
    rig.expect_console("ERR_")
    rig.expect_console("503")
    assert await texts(page) == truth(run)


async def test_a_log_without_its_beginning_is_begun_from_the_snapshot_and_says_so(rig: Rig) -> None:
    run = rig.server.launch({"message": "x"}, [{"agent": "assistant"}])
    await until(lambda: run.finished)
    run.first = len(run.events) - 1
    page = await rig.page(f"#/run/{run.id}")
    await expect(page.locator(".pane")).to_contain_text("What the log gives")
    await expect(page.locator(".pane")).to_contain_text("Earlier events of this run are gone")


async def test_a_run_that_is_gone_has_a_sentence_and_one_action(rig: Rig) -> None:
    page = await rig.page("#/run/r000000gone")
    await expect(page.locator("[role=alert] h2").first).to_have_text("This run does not exist")
    await page.locator(".empty .primary").click()
    await expect(page.locator(".welcome")).to_be_visible()
    rig.expect_console("404")


async def test_fifty_thousand_events_are_there_within_a_second_after_a_reload(rig: Rig) -> None:
    run = rig.server.launch({"message": "x"}, [{"agent": "silent"}] * 16)
    await until(lambda: all(lane.cseq > 2 for lane in run.lanes.values()))
    for i in range(3200):
        for lane in run.lanes.values():
            lane.emit("token", content=f"word{i} ")
    page = await rig.page(f"#/run/{run.id}")
    await expect(page.locator(".pane")).to_have_count(16)
    ms = await page.evaluate(
        """async () => {
          const { Run } = await import("/js/store.js");
          const { follow } = await import("/js/stream.js");
          const id = location.hash.slice(6);
          const fresh = new Run(id), started = performance.now();
          for await (const part of follow({ runs: id, compact: true })) {
            for (const event of part.events) fresh.apply(event);
            if (part.control?.type === "stream_live") break;
          }
          return performance.now() - started;
        }"""
    )
    assert ms < 3000  # the gate of one second is the benchmark's; here the machine is shared
    assert await texts(page) == truth(run)


async def test_a_page_of_the_version_before_says_so_and_offers_to_reload(rig: Rig, start: Start) -> None:
    page = await start("writer")
    await expect(page.locator(".md p").nth(2)).to_be_attached()
    rig.server.cut()
    await expect(page.locator(".md p").nth(6)).to_be_attached()
    await expect(page.locator(".toast")).to_have_count(0)  # the same version after a gap
    rig.server.version = "0.2.0"
    rig.server.cut()
    await expect(page.locator(".toast")).to_contain_text("Mux 0.2.0")
    await page.locator(".toast").get_by_text("Reload").click()
    await expect(page.locator(".pane")).to_be_visible()
    await expect(page.locator(".toast")).to_have_count(0)
    rig.expect_console("ERR_")


async def test_without_agents_or_a_real_model_the_first_screen_says_what_to_do(rig: Rig) -> None:
    rig.server.agents.clear()
    rig.server.models = ["rehearsal"]
    page = await rig.page()
    await expect(page.locator(".welcome")).to_contain_text("The server has no agents.")
    await expect(page.locator(".example").first).to_be_disabled()
    await page.get_by_text("Use a real model").click()
    await expect(page.locator("dialog pre")).to_contain_text("OPENAI_API_KEY")
    await page.keyboard.press("Escape")
    rig.server.agent("assistant", rig.server.scripts["assistant"])
    rig.server.models = ["fake-1", "rehearsal"]
    await page.get_by_text("Look again").click()
    await expect(page.locator(".example").first).to_be_enabled()
    await expect(page.get_by_text("Use a real model")).to_have_count(0)

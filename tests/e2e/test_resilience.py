"""Whatever happens between page and server, every lane ends with the text of an uninterrupted viewer."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.e2e.conftest import BROWSER
from tests.support import endpoint
from tests.support.api import call
from tests.support.servers import Server, Zygote, zygote
from tests.support.service_roster import script, text_of, write_home

pytestmark = [*BROWSER, pytest.mark.slow, pytest.mark.allow_blocking, pytest.mark.timeout(180)]

FAULTS = 4  # in each of the five tests below: twenty in all
WORK = "3 70 0.03"
SCRIBE = '''
import asyncio
from pathlib import Path
import mux

HURRY = Path({hurry!r})

TEXT = """## Part {n}

Some *prose* with `code`, a [link](https://example.org/{n}) and **weight**, long enough for a line or two.

| a | b |
|---|---|
| {n} | two |

```python
def part_{n}() -> int:
    return {n}
```

- first
- second
"""

@mux.agent(name="scribe", description="Writes Markdown.", resumable="restart")
async def agent(ctx):
    yield mux.StepStarted(step=1)
    whole = "\\n".join(TEXT.format(n=n) for n in range(8))
    for start in range(0, len(whole), 5):
        yield mux.Token(content=whole[start : start + 5])
        late = start > 0.6 * len(whole) and not HURRY.exists()  # not before the test has done its worst
        await asyncio.sleep(0.3 if late else 0.02)
    yield mux.StepFinished(step=1, finish_reason="stop")
'''
FOLDED = """async () => {
    const { runs, shown } = await import(new URL("js/state.js", document.baseURI).href);
    const run = runs.get(shown.value.at(-1));
    return Object.fromEntries([...run.lanes.values()].map((lane) => [lane.id, lane.transcripts.answer()]));
}"""
DIRTY = """async () => {
    const { scheduler } = await import(new URL("js/state.js", document.baseURI).href);
    return scheduler.dirty.size;
}"""
DRAWN = """() => Object.fromEntries([...document.querySelectorAll(".pane")].map((pane) => [
    pane.dataset.channel, [...pane.querySelectorAll(".item.text .md")].map((node) => node.textContent)]))"""
STATES = ".state-chip"


@pytest.fixture(scope="module")
def servers() -> Iterator[Zygote]:
    with zygote() as made:
        yield made


def free_port() -> int:
    """A port that is free now: the server must come back at the same address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Field:
    """A real server that can be killed, a run in it, and pages on it."""

    server: Server
    browser: Browser
    dice: random.Random
    run: str = ""
    contexts: list[BrowserContext] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    async def start(self) -> None:
        channels: list[dict[str, Any]] = [
            {"agent": "worker", "message": WORK},
            {"agent": "writer", "message": "250 0.03"},
            {"agent": "scribe"},
            {"agent": "analyst", "message": "What is 17 * 23?", "model": "rehearsal"},
        ]
        status, run, _ = await call(
            "POST", f"{self.server.url}/api/runs", {"message": "go", "channels": channels}
        )
        assert status == 201, run
        self.run = str(run["run"])

    def hurry(self) -> None:
        """From now on the run may end."""
        (self.server.home / "hurry").touch()

    async def page(self, context: BrowserContext | None = None) -> Page:
        """A page on the run, or on the first screen; in a browser profile of its own unless one is given."""
        if context is None:
            context = await self.browser.new_context(viewport={"width": 1200, "height": 800})
            self.contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on(
            "console",
            lambda m: self.problems.append(m.text) if "Content Security Policy" in m.text else None,
        )
        await page.goto(f"{self.server.url}/")
        await page.wait_for_selector(".composer")
        if self.run:
            await self.show(page)
        return page

    async def show(self, page: Page) -> None:
        """Go to the run."""
        await page.evaluate("run => { location.hash = `#/run/${run}` }", self.run)
        await page.wait_for_selector(".pane")

    async def snapshot(self) -> dict[str, Any]:
        _, snapshot, _ = await call("GET", f"{self.server.url}/api/runs/{self.run}")
        assert isinstance(snapshot, dict)
        return snapshot

    async def viewers(self) -> list[dict[str, Any]]:
        """The open streams, as the server counts them."""
        _, found, _ = await call("GET", f"{self.server.url}/api/viewers")
        return list(found["viewers"])


@asynccontextmanager
async def playing(browser: Browser, servers: Zygote, home: Path) -> AsyncIterator[Field]:
    seed = int(os.environ.get("MUX_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}: MUX_TEST_SEED={seed} repeats it")
    async with endpoint.serving(scripted) as model:
        write_home(home, model.url, "[limits]\ndrain_s = 0.3\n")
        (home / "agents" / "scribe.py").write_text(
            SCRIBE.lstrip().replace("{hurry!r}", repr(str(home / "hurry")))
        )
        server = Server(
            servers, home, "--store", f"sqlite:{home / 'mux.db'}", port=free_port(),
            env={"MUX_REHEARSAL_PACE": "30"},
        )  # fmt: skip
        async with server.running():
            play = Field(server, browser, random.Random(seed))
            try:
                yield play
            finally:
                for context in play.contexts:
                    await context.close()
            assert not play.problems, play.problems


async def scripted(exchange: endpoint.Exchange) -> None:
    """The worker's model; it lists no models."""
    if exchange.method == "GET":
        await exchange.answer(404)
    else:
        await script(exchange)


async def settled(page: Page) -> None:
    """Every lane of this page is in a last state."""
    await expect(page.locator("[data-run-status]")).not_to_have_attribute(
        "data-run-status", "running", timeout=60_000
    )
    await expect(page.locator(".pane-scroll[aria-busy=true]")).to_have_count(0)
    while await page.evaluate(DIRTY):  # noqa: ASYNC110 - the page has no event for it
        await asyncio.sleep(0.02)


async def same_as_uninterrupted(play: Field, page: Page, other: Page | None) -> None:
    """The page's lanes, as folded and as drawn, are those of the snapshot and of an undisturbed page."""
    await settled(page)
    fresh = other or await play.page()
    await settled(fresh)
    snapshot = await play.snapshot()
    expected = {channel["id"]: channel["text"] for channel in snapshot["channels"]}
    assert await page.evaluate(FOLDED) == expected
    assert await fresh.evaluate(FOLDED) == expected
    assert await page.evaluate(DRAWN) == await fresh.evaluate(DRAWN)
    assert expected["worker"] == text_of(WORK)
    assert {c["status"] for c in snapshot["channels"]} == {"completed"}, json.dumps(snapshot)[:2000]
    assert await page.locator(STATES).all_inner_texts() == ["✓ done"] * len(expected)


Fault = Callable[[Field, Page], Awaitable[None]]


async def reload(_: Field, page: Page) -> None:
    await page.reload()


async def loss(play: Field, page: Page) -> None:
    await page.context.set_offline(True)
    await asyncio.sleep(play.dice.uniform(0.05, 1.2))
    await page.context.set_offline(False)


async def sleep(play: Field, page: Page) -> None:
    """The browser stops the tab's tasks, as it does with tabs in the background."""
    session = await page.context.new_cdp_session(page)
    await session.send("Page.setWebLifecycleState", {"state": "frozen"})
    await asyncio.sleep(play.dice.uniform(0.3, 1.5))
    await session.send("Page.setWebLifecycleState", {"state": "active"})
    await session.detach()


async def killed(play: Field, _: Page) -> None:
    await play.server.kill()
    await asyncio.sleep(play.dice.uniform(0, 0.5))
    await play.server.start()


async def terminated(play: Field, _: Page) -> None:
    play.server.signal(signal.SIGTERM)
    assert await play.server.wait(20) == 0
    await play.server.start()


@pytest.mark.parametrize("fault", [reload, loss, sleep, killed, terminated], ids=lambda f: str(f.__name__))
async def test_every_lane_ends_with_the_text_of_an_uninterrupted_viewer(
    browser: Browser, servers: Zygote, tmp_path: Path, fault: Fault
) -> None:
    restarts = fault in (killed, terminated)
    async with playing(browser, servers, tmp_path) as play:
        pages = [await play.page() for _ in range(1 if restarts else 2)]
        page = pages[0]
        await play.start()
        await asyncio.gather(*(play.show(p) for p in pages))
        for n in range(FAULTS):
            await asyncio.sleep(play.dice.uniform(0.1, 0.8))
            assert (await play.snapshot())["status"] == "running", f"the run was over before fault {n + 1}"
            await fault(play, page)
        play.hurry()
        await same_as_uninterrupted(play, page, None if restarts else pages[1])


async def test_a_tab_has_one_stream_however_many_turns_it_shows(
    browser: Browser, servers: Zygote, tmp_path: Path
) -> None:
    async with playing(browser, servers, tmp_path) as play:
        page = await play.page()
        await play.start()
        await play.show(page)
        await expect(page.locator("#pane-scribe .state-chip")).to_contain_text("writing")
        assert len(await play.viewers()) == 1
        await page.locator("#add-lane").click()
        await page.locator("[data-agent=hold]").click()
        await expect(page.locator("#pane-hold")).to_be_visible()
        await page.reload()
        await expect(page.locator("#pane-hold .md")).to_contain_text("holding")
        assert len(await play.viewers()) == 1
        await page.locator("#stop-all").click()
        await settled(page)
        assert await play.viewers() == []


async def test_with_seven_tabs_on_a_run_a_request_still_answers(
    browser: Browser, servers: Zygote, tmp_path: Path
) -> None:
    async with playing(browser, servers, tmp_path) as play:
        pages = [await play.page()]
        for _ in range(6):
            pages.append(await play.page(pages[0].context))
        await play.start()
        for page in pages:
            await play.show(page)
        for page in pages:
            await expect(page.locator("#pane-scribe .md").first).to_contain_text("Part 0")
        held = "navigator.locks.query().then((locks) => locks.held.length)"
        await pages[0].wait_for_function(f"{held}.then((n) => n >= 4)")  # one may be about to ask
        assert await pages[0].evaluate(held) == 4  # the others look in: two connections stay free
        async with asyncio.timeout(10):
            await pages[-1].locator("#pane-scribe .stop").click()
        play.hurry()
        for page in pages:
            await expect(page.locator("#pane-scribe .state-chip")).to_contain_text("stopped")
            await expect(page.locator("#pane-worker .state-chip")).to_contain_text("done", timeout=40_000)


async def test_a_run_left_behind_is_shown_as_still_running(
    browser: Browser, servers: Zygote, tmp_path: Path
) -> None:
    async with playing(browser, servers, tmp_path) as play:
        page = await play.page()
        context = page.context
        await play.start()
        await play.show(page)
        await expect(page.locator("#pane-scribe .md")).to_contain_text("Part 0")
        await page.close()
        page = await context.new_page()
        await page.goto(f"{play.server.url}/")
        row = page.locator(".rail .run-open").first
        await expect(row).to_contain_text("running")
        await row.click()
        await expect(page.locator("[data-run-status=running]")).to_be_visible()
        await expect(page.locator("#pane-scribe .state-chip")).to_contain_text("writing")
        await page.locator("#stop-all").click()
        await settled(page)

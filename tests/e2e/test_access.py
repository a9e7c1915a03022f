"""Keys on the dashboard: the login, what survives it, the way out, links to one run; on the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from mux.http.keys import Keys, NewKey
from mux.http.service import Service
from tests.e2e.conftest import BROWSER
from tests.support.service import serving

pytestmark = [*BROWSER, pytest.mark.timeout(120)]


@pytest_asyncio.fixture(loop_scope="session")
async def service() -> AsyncIterator[Service]:
    async with serving(base_path="/mux", http={"heartbeat_s": 0.5}) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    made = await browser.new_context()
    made.set_default_timeout(25_000)
    yield made
    await made.close()


async def key(service: Service, **more: object) -> str:
    return (await Keys(service.store.keys).add(NewKey.model_validate({"owner": "ann"} | more)))[1]


async def log_in(page: Page, text: str) -> None:
    await page.get_by_label("Key", exact=True).fill(text)
    await page.get_by_role("dialog").get_by_role("button", name="Log in").click()


async def test_a_key_is_asked_for_and_what_was_written_survives_it(
    service: Service, context: BrowserContext
) -> None:
    text = await key(service, title="laptop")
    page = await context.new_page()
    await page.goto(f"{service.url}/")
    await log_in(page, "mux_wrong")
    await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("no key of this server")
    await log_in(page, text)
    await expect(page.locator("dialog")).to_have_count(0)
    assert text not in await page.evaluate("document.cookie + JSON.stringify(localStorage) + location.href")
    await page.locator("#composer-text").fill("What is 17 * 23?")
    await expect(page.locator("#log-out")).to_be_visible()
    await Keys(service.store.keys).revoke(text.split("_")[1])
    await page.wait_for_timeout(1100)  # so long a server may know a key from its last look
    await page.locator("#composer-text").press("Control+Enter")
    await expect(page.locator("dialog.dialog-login")).to_be_visible()
    await log_in(page, await key(service))
    await expect(page.locator("#composer-text")).to_have_value("What is 17 * 23?")
    await page.locator("#composer-text").press("Control+Enter")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    await page.locator("#log-out").click()
    await expect(page.locator("dialog.dialog-login")).to_be_visible()


async def test_the_end_of_a_session_is_said_before_it_comes(
    service: Service, context: BrowserContext
) -> None:
    text = await key(service, expires_s=120)
    page = await context.new_page()
    await page.goto(f"{service.url}/")
    await log_in(page, text)
    await expect(page.locator(".toast")).to_contain_text("In 2 minutes")
    await page.locator(".toast").get_by_role("button", name="Log in again").click()
    await expect(page.locator("dialog.dialog-login")).to_be_visible()


async def test_a_link_shows_the_run_to_somebody_without_a_key_and_nothing_can_be_done_there(
    service: Service, context: BrowserContext, browser: Browser
) -> None:
    text = await key(service)
    page = await context.new_page()
    await page.goto(f"{service.url}/")
    await log_in(page, text)
    await expect(page.get_by_role("button", name="Remove assistant")).to_be_visible()
    await page.locator("#composer-text").fill("What is 17 * 23?")
    await page.locator("#composer-text").press("Control+Enter")
    await expect(page.locator("[data-run-status=completed]")).to_be_visible()
    await page.get_by_role("button", name="Share").click()
    await page.locator("[data-make-link]").click()
    url = await page.get_by_label("Link for people without a key").input_value()
    assert url.startswith(f"{service.url}/shared#mux_")
    guests = await browser.new_context()
    guest = await guests.new_page()
    problems: list[str] = []
    guest.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    asked: list[str] = []
    guest.on("request", lambda r: asked.append(r.url))
    await guest.goto(url)
    await expect(guest.locator(".pane")).to_contain_text("rehearsal model")
    await expect(guest.locator("#composer-text")).to_have_count(0)
    for name in ("Retry", "More", "Stop", "New run"):
        await expect(guest.get_by_role("button", name=name)).to_have_count(0)
    assert not problems
    secret = url.rpartition("_")[2]
    assert not [one for one in asked if secret in one.partition("#")[0]]
    await page.get_by_role("button", name="End the link").click()
    await expect(page.get_by_role("button", name="End the link")).to_have_count(0)
    await guest.wait_for_timeout(1100)  # as above
    await guest.reload()
    await expect(guest.locator(".empty")).to_contain_text("The link has ended")
    await guests.close()


async def test_a_page_of_an_insecure_server_says_so(browser: Browser) -> None:
    async with serving(insecure=True) as service:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"{service.url}/")
        await expect(page.locator("[data-insecure]")).to_contain_text("--insecure")
        await expect(page.locator("#log-out")).to_have_count(0)
        await context.close()


async def test_the_documentation_is_there_below_the_path(service: Service, context: BrowserContext) -> None:
    page = await context.new_page()
    await page.goto(f"{service.url}/docs")
    await expect(page.locator("body")).to_contain_text("/api/tickets")

"""What programs load from the real server in a real browser: /docs, stream.js, and the manual's examples."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, ConsoleMessage, Page

from mux.client import MuxClient
from tests.e2e.conftest import BROWSER
from tests.support.agents_for_http import agents_folder
from tests.support.checker import http
from tests.support.cutting import cutting
from tests.support.process import ROOT
from tests.support.service import running

pytestmark = [*BROWSER, pytest.mark.allow_blocking]  # Chromium's driver and the server share this loop

FOLLOW = """async ({ base, run, options }) => {
  const { follow } = await import(`${base}/js/stream.js`);
  const events = [];
  let connections = 0;
  const onState = (state) => { if (state === "open") connections += 1; };
  for await (const part of follow({ base, runs: run, onState, ...options })) events.push(...part.events);
  return { events, connections };
}"""


@asynccontextmanager
async def other_page(browser: Browser) -> AsyncIterator[tuple[str, Page]]:
    """A page of another origin, and that origin."""
    app = web.Application()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>Other</title>", content_type="text/html")

    app.router.add_get("/", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    context = await browser.new_context()
    try:
        tab = await context.new_page()
        await tab.goto(origin)
        yield origin, tab
    finally:
        await context.close()
        await runner.cleanup()


@asynccontextmanager
async def own_page(browser: Browser, url: str, width: int = 1200) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page of the server itself, and every error that it reports."""
    context = await browser.new_context(viewport={"width": width, "height": 900})
    errors: list[str] = []

    def told(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            errors.append(message.text)

    try:
        tab = await context.new_page()
        tab.on("console", told)
        tab.on("pageerror", lambda e: errors.append(str(e)))
        tab.on("request", lambda r: errors.append(r.url) if not r.url.startswith(url) else None)
        await tab.goto(f"{url}/docs")
        yield tab, errors
    finally:
        await context.close()


async def log_of(url: str, run: str) -> list[dict[str, Any]]:
    headers = {"Accept": "application/x-ndjson"}
    async with http("GET", f"{url}/api/runs/{run}/events", headers=headers) as response:
        return [block.data async for block in response.blocks() if "seq" in block.data]


@pytest_asyncio.fixture(loop_scope="session")
async def url() -> AsyncIterator[str]:
    async with running() as base:
        yield base


async def test_docs_show_every_operation_under_the_strict_policy_without_a_word_in_the_console(
    browser: Browser, url: str, tmp_path: Path
) -> None:
    for width in (1200, 390):
        async with own_page(browser, url, width) as (page, errors):
            document = json.loads(await page.evaluate("fetch('/openapi.json').then((r) => r.text())"))
            operations = sum(len(item) for item in document["paths"].values())
            shown = page.locator("main section, main article").filter(has=page.locator("h3"))
            await page.wait_for_selector("main h3")
            text = await page.inner_text("main")
            for path in document["paths"]:
                assert path in text
            for name in document["components"]["schemas"]:
                assert name in text
            assert await page.locator("main h3").count() >= operations, await shown.count()
            policy = (await page.request.get(f"{url}/docs")).headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await page.evaluate(overflow) <= 0
            await page.screenshot(path=tmp_path / f"docs-{width}.png")
            assert errors == []


async def test_an_allowed_origin_follows_through_cuts_with_stream_js(
    browser: Browser, tmp_path: Path
) -> None:
    agents = [agents_folder(tmp_path)]
    async with (
        other_page(browser) as (origin, page),
        running(agents=agents, http={"allowed_origins": [origin]}) as url,
        MuxClient(url) as client,
        cutting(url, seed=3, mean=8000) as proxy,
    ):
        run = await client.start("What is 17*23?", agents=["analyst", "researcher"])
        proxy.mean = 0  # the module itself arrives whole: it can't resume its own loading
        await page.evaluate("(base) => import(`${base}/js/stream.js`)", proxy.url)
        proxy.mean = 8000
        asked = {"base": proxy.url, "run": run.id, "options": {}}
        whole = await page.evaluate(FOLLOW, asked)
        one = await page.evaluate(FOLLOW, asked | {"options": {"channels": ["analyst"]}})
        compact = await page.evaluate(FOLLOW, asked | {"options": {"compact": True}})
        log = await log_of(url, run.id)
        assert whole["connections"] > 2
        assert whole["events"] == log
        assert one["events"] == [e for e in log if e["channel"] in (None, "analyst")]
        assert tokens(compact["events"]) == tokens(log)


def tokens(events: list[dict[str, Any]]) -> str:
    return "".join(e["content"] for e in events if e["type"] == "token" and e["channel"] == "analyst")


async def test_another_origin_gets_neither_the_module_nor_a_stream(browser: Browser, tmp_path: Path) -> None:
    agents = [agents_folder(tmp_path)]
    async with other_page(browser) as (_, page), running(agents=agents) as url, MuxClient(url) as client:
        run = await client.start("3", agents=["counter"])
        await run.wait(20)
        tried = """async (address) => {
          const errors = [];
          await import(`${address}/js/stream.js`).catch((e) => errors.push(e.name));
          await fetch(`${address}/api/runs`).catch((e) => errors.push(e.name));
          await new Promise((done) => {
            const source = new EventSource(`${address}/api/chat/stream?message=1&agents=counter`);
            source.onerror = () => { errors.push(`closed ${source.readyState}`); source.close(); done(); };
          });
          return errors;
        }"""
        assert await page.evaluate(tried, url) == ["TypeError", "TypeError", "closed 2"]
        assert len((await client.runs())["runs"]) == 1


def javascript(page: str) -> str:
    text = (ROOT / "mux" / "docs" / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```js\n(.*?)^```$", text, re.M | re.S))


@pytest.mark.parametrize(
    ("page", "agents", "rest"),
    [
        ("fetch.md", {"analyst", "critic"}, ""),
        ("eventsource.md", {"analyst", "assistant"},
         "while (source.readyState !== 2) await new Promise((done) => setTimeout(done, 20));"),
    ],
)  # fmt: skip
async def test_the_manuals_page_examples_run_in_a_page(
    browser: Browser, url: str, page: str, agents: set[str], rest: str
) -> None:
    async with own_page(browser, url) as (tab, errors):
        text = await tab.evaluate(f"async () => {{ {javascript(page)}\n{rest}\nreturn text; }}")
        assert errors == []
    assert set(text) == agents
    assert "391" in text["analyst"]

"""One Chromium for all browser tests; a scripted server and clean pages for each."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Error, Page, async_playwright, expect

from tests.e2e.fake_server import FakeServer
from tests.e2e.scripts import furnished

ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
FAILED = pytest.StashKey[bool]()
WAIT_MS = 25_000  # generous: browser tests share two cores with whatever else runs


# Every module says ``pytestmark = BROWSER``: one event loop for the session, because Chromium lives on it.
BROWSER = [pytest.mark.browser, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, started once."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    asyncio.get_running_loop().set_debug(False)  # a trace for each call of each frame is too slow
    expect.set_options(timeout=WAIT_MS)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=path, args=ARGS)
        yield chromium
        await chromium.close()


@dataclass
class Rig:
    """What a test works with: the scripted server, and pages that must stay clean."""

    browser: Browser
    server: FakeServer
    url: str
    problems: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    async def context(self, width: int = 1600, height: int = 1000, **options: Any) -> BrowserContext:
        size = {"width": width, "height": height}
        context = await self.browser.new_context(viewport=size, accept_downloads=True, **options)  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MS)
        self.contexts.append(context)
        return context

    async def page(self, path: str = "", *, context: BrowserContext | None = None, **options: Any) -> Page:
        """A page at ``path``; its console errors and its requests elsewhere fail the test."""
        page = await (context or await self.context(**options)).new_page()
        page.on(
            "console", lambda m: self.problems.append(f"{m.text} {m.location}") if m.type == "error" else None
        )
        page.on("pageerror", lambda e: self.problems.append(str(e)))
        page.on("request", lambda r: self.foreign.append(r.url) if not self.own(r.url) else None)
        await page.goto(self.url + path)
        return page

    async def told(self) -> None:
        """Print what each page shows: what a failed test was looking at."""
        for page in [page for context in self.contexts for page in context.pages]:
            looked = page.evaluate(
                "[document.activeElement?.outerHTML.slice(0, 300), document.body.innerText]"
            )
            try:
                print(page.url, "focus: {}\n{:.3000}".format(*await asyncio.wait_for(looked, 5)), sep="\n")
            except (Error, TimeoutError) as error:
                print(page.url, error, sep="\n")
        print("requests:", *((method, path) for method, path, _ in self.server.requests))

    def own(self, url: str) -> bool:
        return url.startswith((self.url, "data:", "blob:"))

    def expect_console(self, part: str) -> None:
        """Errors that the test caused on purpose (the browser reports refused requests)."""
        self.problems = [p for p in self.problems if part not in p]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest_asyncio.fixture(loop_scope="session")
async def rig(browser: Browser, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Scripted server and pages; no console error, no CSP report, no request elsewhere."""
    server = furnished()
    runner = web.AppRunner(server.app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rig = Rig(browser, server, f"http://127.0.0.1:{runner.addresses[0][1]}/")
    yield rig
    if request.node.stash.get(FAILED, False):
        await rig.told()
    for context in rig.contexts:
        await context.close()
    await server.drained()
    await runner.cleanup()
    assert not rig.problems, rig.problems
    assert not server.reports, server.reports
    assert not rig.foreign, rig.foreign


Start = Callable[..., Awaitable[Page]]


@pytest.fixture
def start(rig: Rig) -> Start:
    """Open a page on a run of these agents, started by the API as a program would."""

    async def open_run(
        *agents: str, message: str = "Do it.", spec: dict[str, Any] | None = None, **options: Any
    ) -> Page:
        channels = [{"agent": agent, **(spec or {})} for agent in agents]
        run = rig.server.launch({"message": message}, channels)
        page = await rig.page(f"#/run/{run.id}", **options)
        await page.wait_for_selector(".pane")
        return page

    return open_run


async def until(check: Callable[[], bool], seconds: float = 25.0) -> None:
    """Wait for a condition of this process."""
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110  # what is watched is plain state of the scripted server
            await asyncio.sleep(0.01)

"""A real server with typists, a browser to look at it, and what the machine itself costs just then.

On a shared machine a wall time says as much about the neighbours as about the page. So the floors are
measured in the same run: an empty page is typed into, kept busy for a fixed time, and fetches the same files.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, CDPSession, Page, async_playwright

from tests.e2e.conftest import ARGS
from tests.support.api import call
from tests.support.servers import Server, zygote

__all__ = [
    "Floor", "Stage", "cpu_s", "floor", "heap_mb", "key_times", "metrics", "stage", "there", "thread_tasks",
    "type_keys",
]  # fmt: skip

TYPIST = Path(__file__).parent / "roster" / "typist.py"
KEYS = """() => {
    window.keyTimes = [];
    new PerformanceObserver((list) => {
        for (const e of list.getEntries()) if (e.name === "keydown") window.keyTimes.push(e.duration);
    }).observe({ type: "event", durationThreshold: 16 });
}"""
BLANK = """() => {
    const area = document.body.appendChild(document.createElement("textarea"));
    area.id = "blank";
    area.focus();
}"""
BUSY = """() => {
    const began = performance.now();
    let x = 0;
    for (let i = 0; i < 4e7; i++) x = (x * 31 + i) | 0;
    return [performance.now() - began, x];
}"""
FETCHED = """async (paths) => {
    const began = performance.now();
    await Promise.all(paths.map(async (path) => (await fetch(path, { cache: "reload" })).arrayBuffer()));
    return performance.now() - began;
}"""


@dataclass
class Stage:
    """A server with typists, and a browser."""

    server: Server
    browser: Browser
    problems: list[str] = field(default_factory=list)

    async def run(self, task: str, lanes: int = 16) -> str:
        """Start so many typists; the task is ``<at once> <then> <a second>`` in tokens."""
        body = {"message": task, "channels": [{"agent": "typist"}] * lanes}
        status, run, _ = await call("POST", f"{self.server.url}/api/runs", body)
        assert status == 201, run
        return str(run["run"])

    async def cancel(self, run: str) -> None:
        await call("POST", f"{self.server.url}/api/runs/{run}/cancel", {"mode": "now"})

    async def page(self, path: str, *, init: str | None = None) -> Page:
        context = await self.browser.new_context(viewport={"width": 1600, "height": 1000})
        page = await context.new_page()
        page.on("pageerror", lambda e: self.problems.append(str(e)))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        if init:
            await page.add_init_script(init)
        await page.goto(self.server.url + path)
        return page


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Everything started; closed at the end."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, zygote() as made:
        home = Path(folder)
        (home / "agents").mkdir()
        shutil.copy(TYPIST, home / "agents")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        server = Server(made, home, "--store", f"sqlite:{home / 'mux.db'}", port=port)
        async with server.running(), async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
            try:
                yield Stage(server, browser)
            finally:
                await browser.close()


async def there(page: Page, expression: str, seconds: float = 30) -> Any:
    """The value of an expression, once it has one (the page's policy forbids Playwright's own polling)."""
    async with asyncio.timeout(seconds):
        while not (value := await page.evaluate(expression)):
            await asyncio.sleep(0.02)
    return value


async def metrics(session: CDPSession) -> dict[str, float]:
    """Counters of the debugging protocol, with the time of the reading."""
    answer = await session.send("Performance.getMetrics")
    return {m["name"]: m["value"] for m in answer["metrics"]} | {"wall": time.monotonic()}


async def heap_mb(session: CDPSession) -> float:
    """The page's heap after a collection, in MB."""
    await session.send("HeapProfiler.collectGarbage")
    return float((await metrics(session))["JSHeapUsedSize"]) / 1e6


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def type_keys(page: Page, where: str, seconds: float) -> None:
    """Type into a field for so long."""
    await page.locator(where).focus()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await page.keyboard.press("a")
        await asyncio.sleep(0.15)


async def key_times(page: Page) -> list[float]:
    """From key press to paint, in ms, ascending; presses below the browser's threshold count as 16 ms."""
    return sorted(await page.evaluate("window.keyTimes")) or [16.0]


@dataclass(frozen=True)
class Floor:
    """What the machine takes for nothing.

    Attributes:
        stolen: wall time of a busy loop over its CPU time: 1 = the page had a core to itself.
        key_p95: from key press to paint in an empty page, in ms.
        fetch_ms: the given files by ``fetch``, all at once, nothing done with them.
    """

    stolen: float
    key_p95: float
    fetch_ms: float


async def floor(on: Stage, files: list[str], seconds: float = 3) -> Floor:
    """Measure the floors in an empty page of the same server."""
    context = await on.browser.new_context()
    page = await context.new_page()
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = await metrics(session)
    wall = sum([(await page.evaluate(BUSY))[0] for _ in range(5)])
    after = await metrics(session)
    cpu = 1000 * (after["TaskDuration"] - before["TaskDuration"])
    await page.evaluate(BLANK)
    await page.evaluate(KEYS)
    await type_keys(page, "#blank", seconds)
    keys = await key_times(page)
    await page.goto(f"{on.server.url}/icon.svg")
    fetched = min([await page.evaluate(FETCHED, files) for _ in range(3)]) if files else 0.0
    await context.close()
    return Floor(wall / cpu, keys[int(0.95 * (len(keys) - 1))], fetched)


async def thread_tasks(on: Stage, seconds: float) -> list[float]:
    """CPU time of each task on the busiest page's main thread, in ms, ascending: its length without waits."""
    session = await on.browser.new_browser_cdp_session()
    events: list[dict[str, Any]] = []
    done = asyncio.Event()
    session.on("Tracing.dataCollected", lambda part: events.extend(part["value"]))
    session.on("Tracing.tracingComplete", lambda _: done.set())
    config = {"includedCategories": ["toplevel"], "excludedCategories": ["*"]}
    await session.send("Tracing.start", {"transferMode": "ReportEvents", "traceConfig": config})
    await asyncio.sleep(seconds)
    await session.send("Tracing.end")
    await done.wait()
    await session.detach()
    mains = {(e["pid"], e["tid"]) for e in events if e.get("args", {}).get("name") == "CrRendererMain"}
    tasks: dict[tuple[int, int], list[float]] = {main: [0.0] for main in mains}
    for e in events:
        if e["name"] == "ThreadControllerImpl::RunTask" and (e["pid"], e["tid"]) in tasks:
            tasks[e["pid"], e["tid"]].append(e.get("tdur", 0) / 1000)
    return sorted(max(tasks.values(), key=sum))

"""A browser's own readers, through cut connections: nothing lost, nothing doubled, one run only."""

from __future__ import annotations

import json
import random
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser

from tests.e2e.conftest import BROWSER
from tests.support.cutting import CuttingProxy, cutting
from tests.support.service import running

pytestmark = BROWSER

EVENT_SOURCE = """(url) => new Promise((resolve) => {
  const events = [];
  const source = new EventSource(url);
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if ("seq" in event) events.push(event);
    if (event.type === "run_finished") { source.close(); resolve(events); }
  };
})"""
FETCH = """async (body) => {
  const events = [];
  let last = null;
  let url = "/api/runs";
  for (;;) {
    const headers = { Accept: "text/event-stream" };
    if (last) headers["Last-Event-ID"] = last;
    const start = url === "/api/runs";
    if (start) { headers["Content-Type"] = "application/json"; headers["Idempotency-Key"] = "one"; }
    try {
      const request = start ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
      const answer = await fetch(url, request);
      if (answer.status === 204) return events;
      const location = answer.headers.get("Location");
      if (location) url = `${location}/events`;
      let rest = "";
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const blocks = (rest + value).split("\\n\\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const fields = Object.fromEntries(block.split("\\n").map((line) => line.split(/: (.*)/s, 2)));
          const event = JSON.parse(fields.data);
          if ("seq" in event) events.push(event);
          if (fields.id) last = fields.id;
        }
      }
    } catch (error) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}"""


async def read_in_a_page(
    browser: Browser, proxy: CuttingProxy, script: str, argument: Any, mean: float
) -> Any:
    page = await browser.new_page()
    await page.goto(f"{proxy.url}/openapi.json")  # any page of the origin; its connection is not cut
    await proxy.close()  # or the page's connection would be used again, and never cut
    proxy.mean = mean
    try:
        return await page.evaluate(script, argument)
    finally:
        await page.close()


async def logged(url: str) -> tuple[int, list[Any]]:
    """How many runs there are, and the events of the newest, by NDJSON without a proxy."""
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/api/runs") as answer:
            runs = (await answer.json())["runs"]
        headers = {"Accept": "application/x-ndjson"}
        async with http.get(f"{url}/api/runs/{runs[0]['run']}/events", headers=headers) as answer:
            events = [json.loads(line) async for line in answer.content]
    return len(runs), [e for e in events if "seq" in e]


@pytest.mark.parametrize(("mean", "seed"), [(9_000, 1), (400, 2)], ids=["after-ids", "before-the-first-id"])
async def test_eventsource_resumes_through_cuts(browser: Browser, mean: float, seed: int) -> None:
    async with running() as url, cutting(url, seed=seed, mean=0) as proxy:
        query = "message=What%20is%2017*23%3F&agents=analyst&connection_id=c1&grace_s=30&compact=0"
        if (
            mean < 1000
        ):  # the first answers die inside their headers or first frames, the later ones live longer
            proxy.dice = Growing(mean)
        events = await read_in_a_page(browser, proxy, EVENT_SOURCE, f"/api/chat/stream?{query}", mean)
        assert proxy.cuts > 0
        assert (1, events) == await logged(url)


class Growing(random.Random):
    """Bytes until a cut: few at first, then ever more, so that the end is reached."""

    def __init__(self, first: float) -> None:
        super().__init__(0)
        self.next = first

    def expovariate(self, lambd: float = 1.0) -> float:
        self.next *= 4
        return self.next / 4


async def test_a_fetch_reader_that_posts_with_a_key_resumes_through_cuts(browser: Browser) -> None:
    async with running() as url, cutting(url, seed=3, mean=0) as proxy:
        body = {"message": "What is 17*23?", "agents": ["analyst", "critic"], "on_disconnect": "continue"}
        events = await read_in_a_page(browser, proxy, FETCH, body, 4_000)
        assert proxy.cuts > 3
        assert (1, events) == await logged(url)

"""What the numbers are of, over a whole server; and that no client can make them grow without end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mux.events import ChannelInfo, Done, Usage
from mux.metrics import Metrics
from mux.run.channel import ChannelState
from tests.support.api import finished_run
from tests.support.checker import http
from tests.support.service import running, write_agent


def values(text: str) -> dict[tuple[str, ...], float]:
    """Name and labels' values → number."""
    return {
        (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def ended(agent: str, model: str = "m", **fields: object) -> ChannelState:
    channel = ChannelState.of(ChannelInfo(id="c", agent=agent, model=model))
    channel.done = Done.model_validate({"status": "completed", "duration_ms": 1, "attempt": 1} | fields)
    return channel


@pytest.mark.timeout(30)
async def test_a_run_is_counted_with_its_channels_tools_and_times(tmp_path: Path) -> None:
    write_agent(
        tmp_path, "broken.py", "import mux\n\n@mux.agent(name='broken', description='Fails.')\n"
        "async def agent(ctx):\n    yield mux.Token(content='a')\n    raise RuntimeError('no')\n",
    )  # fmt: skip
    async with running(agents=[tmp_path, Path("agents")]) as url:
        run = await finished_run(url, "analyst", "broken", message="What is 17 * 23?")
        found: dict[tuple[str, ...], float] = {}
        while ("mux_runs_total", run["status"]) not in found:  # the row is told after the last event
            async with http("GET", f"{url}/metrics") as response:
                assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
                found = values((await response.body()).decode())
    assert found["mux_runs_total", run["status"]] == 1
    assert found["mux_channels_total", "analyst", "rehearsal", "completed"] == 1
    assert found["mux_channels_total", "broken", "unknown", "failed"] == 1
    failed = next(c for c in run["channels"] if c["agent"] == "broken")
    assert found["mux_channel_errors_total", "broken", failed["error"]["code"], "unknown"] == 1
    assert found["mux_run_seconds_count", run["status"]] == 1
    assert found["mux_ttft_seconds_count", "analyst", "rehearsal"] == 1
    assert found["mux_tool_seconds_count", "ok", "calculator"] >= 1
    assert found["mux_events_total", "done"] == 2
    assert found["mux_events_total", "token"] > 2
    assert found["mux_store_append_seconds_count",] > 2
    assert found["mux_streams_open",] == 0
    assert found["mux_loop_lag_seconds",] < 5


def test_usage_and_cost_are_counted_as_reported() -> None:
    metrics = Metrics()
    channel = ended("a", ttft_ms=250, tokens_per_s=50.0)
    channel.usages[(), 1] = (1, Usage(input_tokens=10, output_tokens=3, cost=0.25, currency="USD"))
    metrics.channel_ended(channel)
    metrics.channel_ended(channel)
    found = values(metrics.text().decode())
    assert found["mux_tokens_total", "a", "input", "m"] == 20
    assert found["mux_tokens_total", "a", "output", "m"] == 6
    assert ("mux_tokens_total", "a", "reasoning", "m") not in found
    assert found["mux_cost_total", "a", "USD", "m"] == 0.5
    assert found["mux_ttft_seconds_sum", "a", "m"] == 0.5
    assert found["mux_token_interval_seconds_sum", "a", "m"] == pytest.approx(0.04)


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    for n in range(1000):
        metrics.channel_ended(ended(f"agent{n}", f"model{n}"))
    found = [key for key in values(metrics.text().decode()) if key[0] == "mux_channels_total"]
    assert len(found) == 51
    assert ("mux_channels_total", "other", "other", "completed") in found


@pytest.mark.allow_blocking
async def test_the_loops_lag_is_the_longest_since_the_last_scrape() -> None:
    metrics = Metrics()
    metrics.start()
    time.sleep(0.9)  # noqa: ASYNC251 - the loop is held up
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    lag = values(metrics.text().decode())["mux_loop_lag_seconds",]
    assert 0.3 < lag < 5
    assert values(metrics.text().decode())["mux_loop_lag_seconds",] == 0
    metrics.stop()

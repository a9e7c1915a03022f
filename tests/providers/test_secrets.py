"""Canaries: whatever way a secret comes to an endpoint or back from it, nobody else sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mux.telemetry import configure_logging
from tests.support.api import call, read, settled
from tests.support.endpoint import DONE, Exchange, delta, serving
from tests.support.process import clean_env
from tests.support.service import make_settings, running, write_agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.usefixtures("no_leaks")]

KEY = "sk-canary-of-the-key-0001"
HEADER = "canary-of-the-header-0002"
QUERY = "canary-of-the-query-0003"
PASSWORD = "canary-of-the-password-0004"
BODY = "sk-canary-of-the-body-0005"  # not ours: what an endpoint writes into its errors
SECRETS = (KEY, HEADER, QUERY, PASSWORD, BODY)

Answer = Callable[[Exchange], Awaitable[None]]


def echo(x: Exchange) -> str:
    """What a careless endpoint writes: all that it was sent."""
    return f"{x.headers.get('authorization')} {x.headers.get('x-extra')} {x.path} {BODY}"


def status(code: int) -> Answer:
    async def answer(x: Exchange) -> None:
        error = {"message": echo(x), "code": echo(x), "type": echo(x), "param": BODY}
        await x.answer(code, json.dumps({"error": error}).encode(), x_request_id=BODY)

    return answer


async def redirect(x: Exchange) -> None:
    await x.answer(307, echo(x).encode(), location=f"http://127.0.0.1:1/{KEY}?to={BODY}")


async def page(x: Exchange) -> None:
    await x.head(content_type="text/html")
    await x.send(f"<html>{echo(x)}</html>".encode())
    await x.end()


async def error_in_200(x: Exchange) -> None:
    await x.answer(200, json.dumps({"error": {"message": echo(x), "type": BODY}}).encode())


async def error_in_mid_stream(x: Exchange) -> None:
    await x.head()
    await x.send(delta("so far"), f"data: {json.dumps({'error': {'message': echo(x)}})}\n\n".encode(), DONE)
    await x.end()


async def garbage(x: Exchange) -> None:
    await x.head()
    await x.send(delta("so far"), f"data: {{{echo(x)}\n\n".encode(), DONE)
    await x.end()


async def named_error(x: Exchange) -> None:
    await x.head()
    await x.send(f"event: error\ndata: {echo(x)}\n\n".encode())
    await x.end()


ANSWERS: dict[str, Answer] = {
    "s400": status(400), "s401": status(401), "s403": status(403), "s404": status(404), "s429": status(429),
    "s500": status(500), "redirect": redirect, "page": page, "error-in-200": error_in_200,
    "error-in-mid-stream": error_in_mid_stream, "garbage": garbage, "named-error": named_error,
}  # fmt: skip
CODES = {
    "s400": "upstream_rejected", "s401": "upstream_rejected", "s403": "upstream_rejected",
    "s404": "upstream_rejected", "s429": "rate_limited", "s500": "upstream_error",
    "redirect": "upstream_rejected", "page": "upstream_protocol", "error-in-200": "upstream_error",
    "error-in-mid-stream": "upstream_error", "garbage": "upstream_protocol", "named-error": "upstream_error",
    "nobody-there": "upstream_unavailable", "no-such-host": "upstream_unavailable",
}  # fmt: skip


async def route(x: Exchange) -> None:
    await ANSWERS[x.path.split("/")[1]](x)


def base_urls(port: int, closed: int) -> dict[str, str]:
    """Addresses with all that people put into them."""
    here = f"http://user:{PASSWORD}@127.0.0.1"
    found = {name: f"{here}:{port}/{name}/v1?key={QUERY}" for name in ANSWERS}
    return found | {
        "nobody-there": f"{here}:{closed}/v1?key={QUERY}",
        "no-such-host": f"http://user:{PASSWORD}@no-such-host.invalid/v1?key={QUERY}",
    }


def toml(urls: dict[str, str]) -> str:
    lines = ['model = "rehearsal"\n']
    for name, url in urls.items():
        lines.append(
            f'[providers.{name}]\nbase_url = "{url}"\napi_key_env = "CANARY_KEY"\nmax_retries = 0\n'
            'headers_env = { X-Extra = "CANARY_HEADER" }\nmodels = ["m"]\n'
        )
    return "\n".join(lines)


async def doctor(folder: Path) -> str:
    """What ``mux doctor`` and ``mux config`` print, on both outputs."""
    env = clean_env(folder / "home", CANARY_KEY=KEY, CANARY_HEADER=HEADER, MUX_STORE="memory:")
    printed = b""
    for command in ("doctor", "config"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mux.cli", command, cwd=folder, env=env,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        printed += (await process.communicate())[0]
    return printed.decode()


async def test_no_canary_is_seen_anywhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    monkeypatch.setenv("CANARY_HEADER", HEADER)
    write_agent(tmp_path / "agents", "clerk.md", "---\nname: clerk\ndescription: Answers.\n---\n")
    store = tmp_path / "mux.sqlite"
    configure_logging("json", "debug")
    caplog.set_level(logging.INFO)  # of the libraries; their debug level prints requests, and is off
    seen: dict[str, str] = {}
    gone = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    closed = gone.sockets[0].getsockname()[1]
    gone.close()
    await gone.wait_closed()
    async with serving(route) as endpoint:
        urls = base_urls(endpoint.port, closed)
        (tmp_path / "mux.toml").write_text(toml(urls))
        providers = {
            name: {
                "base_url": url,
                "api_key_env": "CANARY_KEY",
                "headers_env": {"X-Extra": "CANARY_HEADER"},
                "models": ["m"],
                "max_retries": 0,
            }
            for name, url in urls.items()
        }
        settings = make_settings(agents=[tmp_path / "agents"], providers=providers, store=f"sqlite:{store}")
        async with running(settings) as url:
            channels = [{"id": name, "agent": "clerk", "model": f"{name}:m"} for name in urls]
            _, run, _ = await call("POST", f"{url}/api/runs", {"message": "Go.", "channels": channels})
            await settled(url, run["run"])
            events = [b.data for b in await read(f"{url}/api/runs/{run['run']}/events")]
            seen["events"] = json.dumps(events)
            for path in (f"runs/{run['run']}", "runs", "models", "agents"):
                seen[f"/api/{path.split('/')[0]}"] = json.dumps((await call("GET", f"{url}/api/{path}"))[1])
            problem = {"message": "Go.", "channels": [{"agent": "clerk", "model": "s40:m"}]}
            seen["problem"] = json.dumps((await call("POST", f"{url}/api/runs", problem))[1])
            chat = {"model": "clerk", "messages": [{"role": "user", "content": "Go."}]}
            seen["/v1"] = json.dumps((await call("POST", f"{url}/v1/chat/completions", chat))[1])
        seen["doctor"] = await doctor(tmp_path)
        assert {x.headers.get("authorization") for x in endpoint.seen} == {f"Bearer {KEY}"}
        assert {x.headers.get("x-extra") for x in endpoint.seen} == {HEADER}
    files = sorted(tmp_path.glob("mux.sqlite*"))  # noqa: ASYNC240 - after the run
    seen["store"] = b"".join(f.read_bytes() for f in files).decode("latin-1")
    printed = capsys.readouterr()
    seen["log"] = printed.err + printed.out
    seen["library logs"] = caplog.text
    assert {e["channel"]: e["code"] for e in events if e["type"] == "error"} == CODES
    leaks = [f"{secret} in {place}" for place, text in seen.items() for secret in SECRETS if secret in text]
    assert not leaks
    assert "model s401:m" in seen["doctor"], seen["doctor"]
    assert "channel" in seen["log"]

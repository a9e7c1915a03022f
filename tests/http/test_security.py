"""Who may call: hosts, origins, fetch metadata, CORS, and the address."""

from __future__ import annotations

from pathlib import Path

import pytest

from mux.errors import ConfigError
from mux.http.service import Service
from tests.support.api import call
from tests.support.checker import http
from tests.support.service import make_settings, serving

BODY = {"message": "1", "agents": ["counter"]}
START = "/api/chat/stream?message=1&agents=counter"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:{port}", True),
        ("LOCALHOST", True),
        ("localhost.:{port}", True),
        ("127.0.0.1:{port}", True),
        ("[::1]:{port}", True),
        ("evil.example:{port}", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("evil.example/localhost", False),
        ("localhost:99999", False),
        ("", False),
    ],
)
async def test_only_allowed_hosts_are_answered(url: str, host: str, allowed: bool) -> None:
    host = host.format(port=url.rsplit(":", 1)[1])
    for path in ("/healthz", "/", "/api/runs"):
        status = (await _status("GET", url + path, {"Host": host}))[0]
        assert status == 200 if allowed else status in (400, 403), path


async def _status(method: str, url: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    async with http(method, url, headers=headers) as response:
        return response.status, response.headers


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "{own}"}, True),
        ({"Origin": "{own}", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://localhost:1"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
async def test_other_sites_start_nothing(url: str, headers: dict[str, str], allowed: bool) -> None:
    sent = {k: v.format(own=url) for k, v in headers.items()}
    status, problem, _ = await call("POST", f"{url}/api/runs", BODY, headers=sent)
    assert status == (201 if allowed else 403), problem
    status, _ = await _status("GET", url + START, sent)
    assert status == (200 if allowed else 403)
    runs = (await call("GET", f"{url}/api/runs"))[1]["runs"]
    assert len(runs) == (2 if allowed else 0)


async def test_images_of_other_sites_may_read_what_changes_nothing_but_learn_nothing(url: str) -> None:
    status, headers = await _status("GET", f"{url}/api/agents", {"Sec-Fetch-Site": "cross-site"})
    assert status == 200
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


async def test_an_allowed_origin_may_call_and_read(agents_dir: Path, no_leaks: None) -> None:
    origin = "https://pages.example"
    async with serving(agents=[agents_dir], http={"allowed_origins": [origin]}) as service:
        sent = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        status, _, headers = await call("POST", f"{service.url}/api/runs", BODY, headers=sent)
        assert (status, headers["access-control-allow-origin"]) == (201, origin)
        assert "Origin" in headers["vary"]
        preflight = {**sent, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "x"}
        status, headers = await _status("OPTIONS", f"{service.url}/api/runs/any", preflight)
        assert status == 204
        assert "PATCH" in headers["access-control-allow-methods"]
        assert "Last-Event-ID" in headers["access-control-allow-headers"]
        status, headers = await _status("GET", service.url + START, sent)
        assert (status, headers["access-control-allow-origin"]) == (200, origin)
        status, headers = await _status("GET", f"{service.url}/api/runs/nope", sent)
        assert (status, headers["access-control-allow-origin"]) == (404, origin)
        status, headers = await _status("GET", f"{service.url}/js/stream.js", sent)
        assert headers["cross-origin-resource-policy"] == "cross-origin"
        other = {**preflight, "Origin": "https://other.example"}
        assert (await _status("OPTIONS", f"{service.url}/api/runs/any", other))[0] == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "mux.example"])
async def test_another_address_than_loopback_is_refused(host: str, no_leaks: None) -> None:
    service = Service(make_settings(host=host))
    with pytest.raises(ConfigError, match="mux keys add"):
        await service.start()
    await service.stop(grace_s=0)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
async def test_loopback_addresses_are_served(host: str, no_leaks: None) -> None:
    async with serving(make_settings(host=host)) as service:
        assert (await call("GET", f"{service.url}/healthz"))[0] == 200

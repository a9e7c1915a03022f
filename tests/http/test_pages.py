"""The dashboard's files: the policy, types, caching and confinement."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from pathlib import Path

import pytest
from aiohttp import web

from mux.errors import MuxError
from mux.http.pages import Pages, content_security_policy
from mux.http.problems import answer_to
from mux.http.routes import Handler
from tests.support.api import call
from tests.support.checker import http

PAGE = b'<script type="importmap">{"imports": {}}</script><script type="module" src="/js/main.js"></script>'


async def test_the_dashboard_is_served_under_the_strict_policy(url: str) -> None:
    async with http("GET", f"{url}/") as response:
        page = await response.body()
    assert response.status == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    inline = re.findall(rb'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    for script in inline:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" in policy
    assert policy.count("'sha256-") == len(inline)
    for part in (
        "default-src 'none'", "font-src 'self'", "style-src 'self'", "connect-src 'self'",
        "img-src 'self' data:", "require-trusted-types-for 'script'", "trusted-types 'none'",
        "frame-ancestors 'none'",
    ):  # fmt: skip
        assert part in policy.split("; ")
    assert "unsafe" not in policy


def test_the_policy_follows_the_page_that_is_served() -> None:
    changed = PAGE.replace(b"{}", b'{"a": "/a.js"}')
    assert content_security_policy(PAGE) != content_security_policy(changed)
    assert "script-src 'self';" in content_security_policy(b"<p>no script</p>")


async def test_every_module_of_the_dashboard_has_its_type(url: str) -> None:
    async with http("GET", f"{url}/") as response:
        page = (await response.body()).decode()
    for path in re.findall(r'(?:src|href)="(/?[\w./-]+\.(?:js|css))"', page):
        async with http("GET", f"{url}/{path.lstrip('/')}") as response:
            assert response.status == 200, path
            kind = "text/javascript" if path.endswith("js") else "text/css"
            assert response.headers["content-type"].startswith(kind)


@pytest.fixture
async def site(tmp_path: Path, no_leaks: None) -> Path:
    root = tmp_path / "static"
    (root / "js").mkdir(parents=True)
    (root / "vendor" / "lib" / "1.2.3").mkdir(parents=True)
    (root / "index.html").write_bytes(PAGE)
    (root / "js" / "main.js").write_text("export const x = 1;\n" * 100)
    (root / "js" / ".env").write_text("SECRET=1")
    (root / "vendor" / "lib" / "1.2.3" / "index.js").write_text("lib")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "js" / "link.js").symlink_to(tmp_path / "secret.txt")
    return root


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Failures as answers, as in the application."""
    try:
        return await handler(request)
    except MuxError as e:
        return answer_to(request, e)


async def get(
    root: Path, name: str, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One file of a folder, over a server of its own."""
    app = web.Application(middlewares=[answered])
    Pages(root).add_to(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with http("GET", f"http://{host}:{port}{name}", headers=headers) as response:
            return response.status, response.headers, await response.body()
    finally:
        await runner.cleanup()


@pytest.mark.allow_blocking  # the folder is listed when the application is made
async def test_files_are_revalidated_and_versioned_ones_kept(site: Path) -> None:
    status, headers, body = await get(site, "/js/main.js")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    status, again, _ = await get(site, "/js/main.js", {"If-None-Match": headers["etag"]})
    assert (status, again["etag"]) == (304, headers["etag"])
    (site / "js" / "main.js").write_text("changed")
    assert (await get(site, "/js/main.js", {"If-None-Match": headers["etag"]}))[0] == 200
    _, headers, _ = await get(site, "/vendor/lib/1.2.3/index.js")
    assert "immutable" in headers["cache-control"]
    assert body.startswith(b"export")


@pytest.mark.allow_blocking  # as above
async def test_text_is_compressed_for_those_who_ask(site: Path) -> None:
    _, headers, body = await get(site, "/js/main.js", {"Accept-Encoding": "gzip, br"})
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(body) == (site / "js" / "main.js").read_bytes()


@pytest.mark.allow_blocking  # as above
@pytest.mark.parametrize(
    "name",
    ["/js/../../secret.txt", "/js/%2e%2e/%2e%2e/secret.txt", "/js/..%2f..%2fsecret.txt", "/js/link.js",
     "/js/.env", "/js/", "/js", "/js//etc/passwd", "/js/%00", "/js/" + "x" * 300, "/nope.js"],
)  # fmt: skip
async def test_nothing_outside_the_folder_is_served(site: Path, name: str) -> None:
    status, _, body = await get(site, name)
    assert status == 404, body


async def test_pages_take_only_reads(url: str) -> None:
    assert (await call("POST", f"{url}/"))[0] == 405
    assert (await call("HEAD", f"{url}/"))[0] == 200
    status, problem, _ = await call("GET", f"{url}/js/nope.js")
    assert (status, problem["code"]) == (404, "page_not_found")

"""The door out: only public addresses, whatever a URL, a resolver or a redirect says."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from mux.net import Net, NetError, Page, Resolve, address_problem
from mux.settings import Fetch

pytestmark = pytest.mark.usefixtures("no_leaks")

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[TestServer]]


def anything(_: str) -> bool:
    return True


def resolver(*answers: Sequence[str]) -> Resolve:
    """Gives these answers, one after the other, the last for ever; remembers the questions in `.asked`."""
    rest = list(answers)
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return rest.pop(0) if len(rest) > 1 else rest[0]

    resolve.asked = asked  # type: ignore[attr-defined]  # a test's own note
    return resolve


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> TestServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        servers.append(TestServer(app, host="127.0.0.1"))
        await servers[-1].start_server()
        return servers[-1]

    yield start
    for server in servers:
        await server.close()


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello", content_type="text/plain")


@pytest.mark.parametrize(
    "address",
    [
        "192.0.0.192", "168.63.129.16", "192.88.99.1", "::ffff:168.63.129.16",
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1",
        "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1",
        "2002:7f00:1::", "2001::1", "2001:db8::1", "3fff::1", "100::1", "5f00::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_a_problem(address: str) -> None:
    assert address_problem(ipaddress.ip_address(address)) is not None


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_a_public_address_is_none(address: str) -> None:
    assert address_problem(ipaddress.ip_address(address)) is None


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_judged_like_the_plain_one(address: ipaddress.IPv4Address) -> None:
    plain = address_problem(address) is None
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | int(address))
    nat64 = ipaddress.IPv6Address((0x0064FF9B << 96) | int(address))
    assert (address_problem(mapped) is None) == plain
    assert (address_problem(nat64) is None) == plain


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://[::1]/", "http://localhost/", "http://2130706433/", "http://0177.0.0.1/",
        "http://0x7f.0.0.1/", "http://0x7f000001/", "http://127.1/", "http://0/", "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/", "http://[64:ff9b::7f00:1]/", "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1%25lo]/", "http://１２７.0.0.1/", "http://127。0。0。1/", "http://ⓛocalhost/",
        "http://localhost./", "http://10.0.0.1:8080/", "http://192.168.0.1#@example.com/",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_private_host_gets_through(url: str) -> None:
    with pytest.raises(NetError) as caught:
        await Net(Fetch(timeout_s=5)).get(url, accept=anything)
    assert caught.value.code in ("address_refused", "host_unknown", "url_invalid")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com:22/", "http://example.com:6379/", "https://example.com:25/",
        "", "nonsense", "file:///etc/passwd", "ftp://example.com/", "gopher://example.com/",
        "javascript:alert(1)",
        "data:text/plain,x", "http://", "http:///x", "//example.com", "http://user:pw@example.com/",
        "http://exa mple.com/\r\nX: y", "http://example.com:99999/", "http://" + "a" * 5_000, "unix:///var/run/x",
    ],
)  # fmt: skip
async def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    net = Net(Fetch(timeout_s=2), resolve=resolver(["10.0.0.1"]))
    with pytest.raises(NetError) as caught:
        await net.get(url, accept=anything)
    assert caught.value.code == "url_invalid"


async def test_a_host_with_one_private_address_among_public_ones_is_refused() -> None:
    net = Net(Fetch(), resolve=resolver(["93.184.216.34", "10.0.0.1"]))
    with pytest.raises(NetError, match=r"10\.0\.0\.1 is no public address"):
        await net.get("http://example.com/", accept=anything)


async def test_a_second_dns_answer_can_not_move_the_connection(serve: Serve) -> None:
    server = await serve(hello)
    # the first answer is allowed by name and is where the server is; a second question would get another
    resolve = resolver(["127.0.0.1"], ["192.0.2.1"])
    net = Net(Fetch(allow_private=("127.0.0.0/8",)), resolve=resolve)
    page = await net.get(f"http://rebind.test:{server.port}/", accept=anything)
    assert page.body == b"hello"
    assert resolve.asked == ["rebind.test"]  # type: ignore[attr-defined]  # asked exactly once


async def test_the_host_header_is_the_hosts_own_name(serve: Serve) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.host} {request.headers.get('Cookie')}")

    server = await serve(echo)
    net = Net(Fetch(allow_private=("site.test",)), resolve=resolver(["127.0.0.1"]))
    page = await net.get(f"http://site.test:{server.port}/x#fragment", accept=anything)
    assert page == Page(
        f"http://site.test:{server.port}/x",
        200,
        "text/plain",
        "utf-8",
        f"site.test:{server.port} None".encode(),
    )


async def test_tls_is_for_the_hosts_name_not_for_the_address(tmp_path: Path) -> None:
    """The certificate is self-signed, so the request fails; what counts is the name that was asked for."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _, name, __: names.append(name)
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    net = Net(Fetch(allow_private=("site.test",)), resolve=resolver(["127.0.0.1"]))
    async with server:
        with pytest.raises(NetError, match="can't be fetched"):
            await net.get(f"https://site.test:{port}/", accept=anything)
    assert names == ["site.test"]


async def test_each_redirect_is_checked_again(serve: Serve) -> None:
    targets = ["http://169.254.169.254/", "file:///etc/passwd", "http://10.0.0.1/", "http://internal.test/"]

    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": targets[int(request.path[1:])]})

    server = await serve(redirect)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"] if host == "site.test" else ["192.168.1.1"]

    net = Net(Fetch(allow_private=("site.test",)), resolve=resolve)
    for number in range(len(targets)):
        with pytest.raises(NetError) as caught:
            await net.get(f"http://site.test:{server.port}/{number}", accept=anything)
        assert caught.value.code in ("address_refused", "url_invalid")


async def test_redirects_are_followed_so_many_times_and_no_more(serve: Serve) -> None:
    async def count(request: web.Request) -> web.Response:
        left = int(request.path[1:])
        return (
            web.Response(text="there")
            if left == 0
            else web.Response(status=307, headers={"Location": f"/{left - 1}"})
        )

    server = await serve(count)
    net = Net(Fetch(allow_private=("127.0.0.1",), max_redirects=3))
    page = await net.get(f"http://127.0.0.1:{server.port}/3", accept=anything)
    assert (page.body, page.url) == (b"there", f"http://127.0.0.1:{server.port}/0")
    with pytest.raises(NetError, match="more than 3 times"):
        await net.get(f"http://127.0.0.1:{server.port}/4", accept=anything)


async def test_an_answer_over_the_limit_is_stopped_while_it_streams(serve: Serve) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
                sent += 65_536
        except (ConnectionError, asyncio.CancelledError):
            pass
        return response

    server = await serve(endless)
    net = Net(Fetch(allow_private=("127.0.0.1",), max_mb=1))
    with pytest.raises(NetError, match="larger than 1 MB"):
        await net.get(f"http://127.0.0.1:{server.port}/", accept=anything)
    assert sent < 20_000_000


async def test_a_small_answer_that_unpacks_to_a_large_one_is_stopped(serve: Serve) -> None:
    bomb = await asyncio.to_thread(gzip.compress, bytes(50_000_000))

    async def packed(_: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    server = await serve(packed)
    net = Net(Fetch(allow_private=("127.0.0.1",), max_mb=1))
    with pytest.raises(NetError) as caught:
        await net.get(f"http://127.0.0.1:{server.port}/", accept=anything)
    assert caught.value.code == "response_too_large"


async def test_a_slow_answer_is_stopped_by_the_whole_time(serve: Serve) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.05)

    server = await serve(slow)
    net = Net(Fetch(allow_private=("127.0.0.1",), timeout_s=0.4))
    with pytest.raises(NetError) as caught:
        await net.get(f"http://127.0.0.1:{server.port}/", accept=anything)
    assert caught.value.code == "fetch_timeout"


async def test_the_type_is_asked_before_the_body_is_read(serve: Serve) -> None:
    async def image(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1000, content_type="image/png")

    server = await serve(image)
    net = Net(Fetch(allow_private=("127.0.0.1",)))
    with pytest.raises(NetError, match="image/png"):
        await net.get(f"http://127.0.0.1:{server.port}/", accept=lambda t: t.startswith("text/"))


async def test_an_error_status_and_a_dead_server_say_so_without_the_servers_words(serve: Serve) -> None:
    async def gone(_: web.Request) -> web.Response:
        return web.Response(status=404, text="secret details")

    server = await serve(gone)
    net = Net(Fetch(allow_private=("127.0.0.1",)))
    with pytest.raises(NetError, match="answered 404") as caught:
        await net.get(f"http://127.0.0.1:{server.port}/", accept=anything)
    assert "secret" not in str(caught.value)
    port = server.port
    await server.close()
    with pytest.raises(NetError, match="can't be fetched"):
        await net.get(f"http://127.0.0.1:{port}/", accept=anything)


async def test_only_allowed_hosts_are_asked_where_they_are_listed() -> None:
    net = Net(Fetch(allow_hosts=("docs.test", "*.example.org")), resolve=resolver(["10.0.0.1"]))
    for url in ("http://docs.test/", "http://a.example.org/", "http://b.a.example.org/"):
        with pytest.raises(NetError) as caught:
            await net.get(url, accept=anything)
        assert caught.value.code == "address_refused"  # the name is allowed, its address still is not
    for url in (
        "http://evil.test/",
        "http://docs.test.evil.test/",
        "http://evilexample.org/",
        "http://10.0.0.1/",
    ):
        with pytest.raises(NetError) as caught:
            await net.get(url, accept=anything)
        assert caught.value.code == "host_not_allowed"


async def test_a_configured_host_may_be_private_but_not_what_it_redirects_to(serve: Serve) -> None:
    async def redirect(request: web.Request) -> web.Response:
        if request.path == "/ok":
            return web.Response(text="fine")
        return web.Response(status=302, headers={"Location": "http://10.0.0.1/"})

    server = await serve(redirect)
    net = Net(Fetch(allow_hosts=("docs.test",)))
    base = f"http://127.0.0.1:{server.port}"
    assert (await net.get(f"{base}/ok", accept=anything, configured=True)).body == b"fine"
    with pytest.raises(NetError):
        await net.get(f"{base}/away", accept=anything, configured=True)
    with pytest.raises(NetError):
        await net.get(f"{base}/ok", accept=anything)


async def test_cookies_and_proxies_of_the_environment_are_not_used(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def cookies(request: web.Request) -> web.Response:
        response = web.Response(status=302, headers={"Location": "/next"})
        response.set_cookie("a", "b")
        return web.Response(text=str(request.cookies)) if request.path == "/next" else response

    server = await serve(cookies)
    net = Net(Fetch(allow_private=("127.0.0.1",)))
    assert (await net.get(f"http://127.0.0.1:{server.port}/", accept=anything)).body == b"{}"

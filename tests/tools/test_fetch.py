"""fetch_url and web_search against a real local server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from mux.net import Net
from mux.settings import Fetch, WebSearch
from mux.tools import Tool, ToolContext, tool
from mux.tools.fetch import MAX_SHOWN, fetch_tool
from mux.tools.reader import Reader
from mux.tools.sources import Sources
from mux.tools.web_search import search_url, web_search_tool
from tests.support.tools import call, collect

pytestmark = pytest.mark.usefixtures("no_leaks")

_PAGE = """<html><head><title>A &amp; B</title><script>evil()</script></head>
<body><nav>menu</nav><h1>News</h1><p>The <a href="/x">bridge</a> is open.</p></body></html>"""


async def _answer(request: web.Request) -> web.Response:
    match request.path:
        case "/page":
            return web.Response(text=_PAGE, content_type="text/html")
        case "/latin":
            return web.Response(
                body="Grüße".encode("latin-1"), headers={"Content-Type": "text/plain; charset=latin-1"}
            )
        case "/long":
            return web.Response(text="word " * 20_000)
        case "/json":
            return web.json_response({"a": [1, 2]})
        case "/image":
            return web.Response(body=b"\x89PNG", content_type="image/png")
        case "/binary":
            return web.Response(body=bytes(range(256)), content_type="text/plain")
        case "/empty":
            return web.Response(text="", content_type="text/html")
        case "/search":
            results = [
                {"url": "http://one.test/", "title": "One", "content": f"about  {request.query['q']}"},
                {"url": "javascript:alert(1)", "title": "Bad"},
                {"url": "http://two.test/", "title": "", "extra": 1},
            ]
            assert request.query["format"] == "json"
            return web.json_response({"results": [] if request.query["q"] == "nothing" else results})
    return web.Response(status=500, text="internal secret")


@pytest.fixture
async def base() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", _answer)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    yield f"http://127.0.0.1:{server.port}"
    await server.close()


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    made = Reader()
    yield made
    await made.aclose()


@pytest.fixture
def fetch(reader: Reader) -> Tool:
    return fetch_tool(Net(Fetch(allow_private=("127.0.0.1",))), reader, Sources())


async def test_a_page_becomes_readable_text_and_a_numbered_source(fetch: Tool, base: str) -> None:
    progress, result = await collect(fetch, url=f"{base}/page")
    assert progress[0].message == f"fetching {base}/page"
    assert result.data["sources"] == [{"n": 1, "title": "A & B", "url": f"{base}/page"}]
    assert result.output.startswith(f"[1] A & B ({base}/page)")
    assert "bridge" in result.output
    assert "is open." in result.output
    for noise in ("evil", "menu", "<p>"):
        assert noise not in result.output


async def test_charsets_json_and_empty_pages_are_read(fetch: Tool, base: str) -> None:
    assert "Grüße" in (await call(fetch, url=f"{base}/latin")).output
    assert '{"a": [1, 2]}' in (await call(fetch, url=f"{base}/json")).output
    assert "(the page has no text)" in (await call(fetch, url=f"{base}/empty")).output


async def test_a_long_page_is_read_in_parts(fetch: Tool, base: str) -> None:
    first = (await call(fetch, url=f"{base}/long")).output
    assert f"cut here; go on with offset={MAX_SHOWN} of 99999" in first
    rest = (await call(fetch, url=f"{base}/long", offset=90_000)).output
    assert "cut here" not in rest
    assert (await call(fetch, url=f"{base}/long", offset=200_000)).error == "invalid_arguments"


@pytest.mark.parametrize(
    ("path", "told"), [("/image", "image/png"), ("/binary", "is not text"), ("/other", "answered 500")]
)
async def test_what_is_no_text_or_fails_is_an_error_in_our_words(
    fetch: Tool, base: str, path: str, told: str
) -> None:
    result = await call(fetch, url=base + path)
    assert result.error == "tool_failed"
    assert told in result.output
    assert "secret" not in result.output


async def test_private_addresses_are_refused_by_default(base: str) -> None:
    result = await call(fetch_tool(Net(Fetch()), Reader(), Sources()), url=f"{base}/page")
    assert "Only public addresses may be fetched" in result.output


def _nothing(_: str) -> Tool | None:
    return None


async def test_the_search_backend_gives_numbered_sources(base: str) -> None:
    search = web_search_tool(WebSearch(url=f"{base}/search"), Net(Fetch()), Sources(), _nothing)
    assert search is not None
    progress, result = await collect(search, query="old bridges & roads")
    assert progress
    assert result.data["sources"] == [
        {"n": 1, "title": "One", "url": "http://one.test/"},
        {"n": 2, "title": "http://two.test/", "url": "http://two.test/"},
    ]
    assert "about old bridges & roads" in result.output
    assert (await call(search, query="nothing")).data == {"sources": [], "results": []}
    assert len((await call(search, query="x", limit=1)).data["sources"]) == 1


async def test_a_backend_that_answers_no_json_says_what_to_check(base: str) -> None:
    search = web_search_tool(WebSearch(url=f"{base}/long"), Net(Fetch()), Sources(), _nothing)
    assert search is not None
    assert "format=json" in (await call(search, query="x")).output


@pytest.mark.parametrize("address", ["/broken", "/image", None])
async def test_a_backend_that_fails_is_told_without_the_key_in_its_address(
    base: str, address: str | None
) -> None:
    """The result goes to the model and into the log."""
    place = f"{base}{address}" if address else f"http://127.0.0.1:{unused_port()}/search"
    search = web_search_tool(WebSearch(url=f"{place}?key=sk-canary"), Net(Fetch()), Sources(), _nothing)
    assert search is not None
    progress, result = await collect(search, query="x")
    assert result.is_error
    assert result.output.startswith("The search backend (127.0.0.1)")
    assert "sk-canary" not in repr((progress, result))


def test_the_query_can_not_change_the_backends_url() -> None:
    assert (
        search_url("http://s.test/q?lang=en", "a&b=c #x")
        == "http://s.test/q?lang=en&q=a%26b%3Dc+%23x&format=json"
    )
    assert search_url("http://s.test/{query}/x", "a/../b?c").startswith("http://s.test/a")
    assert "?" not in search_url("http://s.test/{query}", "a?b")
    assert search_url("http://s.test/?x={query}", "a&b").count("&") == 0


def test_without_a_backend_there_is_no_such_tool() -> None:
    assert web_search_tool(WebSearch(), Net(Fetch()), Sources(), _nothing) is None


async def test_an_mcp_tool_can_be_the_backend() -> None:
    @tool(name="brave_search")
    async def backend(q: str, ctx: ToolContext) -> str:
        """Search."""
        return json.dumps({"asked": q, "by": ctx.tool})

    known: dict[str, Tool] = {}
    search = web_search_tool(WebSearch(mcp="brave_search"), Net(Fetch()), Sources(), known.get)
    assert search is not None
    assert "is not connected now" in (await call(search, query="x")).output
    known["brave_search"] = backend
    assert json.loads((await call(search, query="x")).output) == {"asked": "x", "by": "web_search"}
    known["brave_search"] = tool(name="odd")(lambda: None)
    assert "not a search tool" in (await call(search, query="x")).output

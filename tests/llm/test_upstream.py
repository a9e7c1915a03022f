"""`HttpModel` against a server that notices what its client does."""

from __future__ import annotations

import asyncio
import base64
import gzip
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import structlog

from mux.agent import Message
from mux.errors import AgentError, UpstreamError
from mux.llm.body import Arrivals, arrivals
from mux.llm.model import Delta, ModelRequest, TextDelta, TurnEnd
from mux.llm.upstream import HttpModel
from mux.settings import Provider, Timeouts
from tests.support.endpoint import DONE, Endpoint, Exchange, Script, delta, serving

pytestmark = pytest.mark.usefixtures("no_leaks")

KEY = "sk-canary-0123456789"
ASK = ModelRequest("m", [Message(role="user", content="go")], params={"temperature": 0})


@asynccontextmanager
async def endpoint(
    script: Script, *, env: dict[str, str] | None = None, clock: Any = time.monotonic, **options: Any
) -> AsyncIterator[tuple[HttpModel, Endpoint]]:
    async with serving(script) as server:
        model = HttpModel("p", Provider(base_url=server.url, **options), env=env or {}, clock=clock)
        try:
            yield model, server
        finally:
            await model.aclose()


async def read(model: HttpModel, request: ModelRequest = ASK) -> list[Delta]:
    return [d async for d in model.stream(request)]


async def failure(model: HttpModel) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await read(model)
    return caught.value


async def hello(x: Exchange) -> None:
    await x.head()
    await x.send(delta("hel"), delta("lo"), delta(finish="stop"), DONE)
    await x.end()


async def test_a_turn_over_http_has_its_text_and_its_times() -> None:
    async with endpoint(hello) as (model, _):
        deltas = await read(model)
    assert deltas[:2] == [TextDelta("hel"), TextDelta("lo")]
    end = deltas[2]
    assert isinstance(end, TurnEnd)
    assert end.ttft_ms is not None
    assert end.generation_ms is not None
    assert len(deltas) == 3


async def test_the_connection_is_used_again_after_a_turn() -> None:
    async with endpoint(hello) as (model, server):
        for _ in range(3):
            await read(model)
    assert (len(server.seen), server.connections) == (3, 1)


async def test_closing_the_iterator_closes_the_connection_at_once() -> None:
    gone = asyncio.Event()

    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("a"))
        await x.gone()
        gone.set()

    async with endpoint(script) as (model, _):
        stream = cast(AsyncGenerator[Delta, None], model.stream(ASK))
        assert await anext(stream) == TextDelta("a")
        await stream.aclose()
        await asyncio.wait_for(gone.wait(), 1)


@pytest.mark.parametrize("answered", [False, True])
async def test_cancelling_the_reader_closes_the_connection_at_once(answered: bool) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(x: Exchange) -> None:
        if answered:
            await x.head()
        asked.set()
        await x.gone()
        gone.set()

    async with endpoint(script) as (model, _):
        task = asyncio.create_task(read(model))
        await asked.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.wait_for(gone.wait(), 1)


async def test_comments_are_no_first_byte() -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        while True:
            await x.send(b": keep-alive\n\n")
            await asyncio.sleep(0.02)

    async with endpoint(script, timeouts=Timeouts(first_byte_s=0.3)) as (model, _):
        error = await failure(model)
    assert (error.code, error.retryable) == ("upstream_unavailable", True)
    assert "first_byte_s" in error.message


async def test_an_endpoint_that_never_answers_is_unavailable() -> None:
    async with endpoint(Exchange.gone, timeouts=Timeouts(first_byte_s=0.2)) as (model, _):
        assert (await failure(model)).code == "upstream_unavailable"


@pytest.mark.parametrize("quiet", [b": keep-alive\n\n", delta(), b"data: \n\n"])
async def test_keep_alives_do_not_hide_a_stall(quiet: bytes) -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("a"))
        while True:
            await x.send(quiet)
            await asyncio.sleep(0.02)

    async with endpoint(script, timeouts=Timeouts(progress_s=0.3)) as (model, _):
        error = await failure(model)
    assert (error.code, error.retryable) == ("upstream_stall", True)


async def test_a_turn_that_goes_on_and_on_times_out() -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        while True:
            await x.send(delta("a"))
            await asyncio.sleep(0.02)

    async with endpoint(script, timeouts=Timeouts(turn_s=0.4)) as (model, _):
        error = await failure(model)
    assert (error.code, error.retryable) == ("turn_timeout", False)


async def test_time_that_the_consumer_takes_does_not_count() -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("a"))
        await asyncio.sleep(0.1)
        await x.send(delta("b"), delta(finish="stop"), DONE)
        await x.end()

    limits = Timeouts(first_byte_s=0.5, progress_s=0.3, turn_s=0.6)
    async with endpoint(script, timeouts=limits) as (model, _):
        text = ""
        async for d in model.stream(ASK):
            if isinstance(d, TextDelta):
                text += d.text
                await asyncio.sleep(0.7)
    assert text == "ab"
    assert isinstance(d, TurnEnd)
    assert d.generation_ms is not None
    assert d.generation_ms < 600


async def test_a_turn_that_is_over_does_not_wait_for_ever_for_done() -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("a"), delta(finish="stop"))
        await x.gone()

    async with endpoint(script, timeouts=Timeouts(progress_s=0.2)) as (model, _):
        deltas = await read(model)
    assert isinstance(deltas[-1], TurnEnd)


async def test_a_refused_connection_is_told_by_its_cause() -> None:
    async with serving(hello) as server:
        url = server.url
    model = HttpModel("p", Provider(base_url=url), env={})
    error = await failure(model)
    await model.aclose()
    assert (error.code, error.retryable) == ("upstream_unavailable", True)
    assert "refused the connection" in error.message


async def test_a_name_that_does_not_resolve_is_told_by_its_cause() -> None:
    model = HttpModel("p", Provider(base_url="http://nowhere.invalid/v1"), env={})
    error = await failure(model)
    await model.aclose()
    assert error.code == "upstream_unavailable"
    assert "can't be resolved" in error.message


async def test_a_server_that_speaks_no_tls_is_told_by_its_cause() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    model = HttpModel("p", Provider(base_url=f"https://127.0.0.1:{port}/v1"), env={})
    error = await failure(model)
    await model.aclose()
    server.close()
    await server.wait_closed()
    assert (error.code, error.retryable) == ("upstream_unavailable", False)
    assert "TLS" in error.message


async def test_a_connection_closed_without_an_answer_is_unavailable() -> None:
    async def script(x: Exchange) -> None:
        x.writer.transport.abort()

    async with endpoint(script) as (model, _):
        error = await failure(model)
    assert (error.code, error.retryable) == ("upstream_unavailable", True)


async def test_a_redirect_is_refused_and_its_target_not_named() -> None:
    async def script(x: Exchange) -> None:
        await x.answer(307, location=f"http://127.0.0.1:1/{KEY}")

    async with endpoint(script, env={"K": KEY}, api_key_env="K") as (model, server):
        error = await failure(model)
    assert (error.code, error.retryable, len(server.seen)) == ("upstream_rejected", False, 1)
    assert KEY not in f"{error} {error.extra}"


async def test_an_endless_error_body_is_not_read() -> None:
    async def script(x: Exchange) -> None:
        await x.head(500)
        while not x.writer.is_closing():
            await x.send(b"x" * 4096)
            await asyncio.sleep(0)

    async with endpoint(script) as (model, _):
        began = time.monotonic()
        error = await failure(model)
    assert (error.code, error.retryable) == ("upstream_error", True)
    assert time.monotonic() - began < 2


async def test_without_a_key_none_is_sent_and_no_other_providers_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)

    async def script(x: Exchange) -> None:
        await (x.answer(200, b'{"data":[]}') if x.method == "GET" else hello(x))

    async with endpoint(script) as (model, server):
        await read(model)
        await model.models()
    for seen in server.seen:
        assert "authorization" not in seen.headers
        assert KEY not in str(seen.headers)


async def test_the_key_and_headers_come_from_the_environment() -> None:
    env = {"K": f" {KEY}\n", "H": "value-of-header"}
    async with endpoint(hello, env=env, api_key_env="K", headers_env={"X-Team": "H"}) as (model, server):
        await read(model)
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.seen[0].headers["x-team"] == "value-of-header"


@pytest.mark.parametrize("key", [None, KEY])
async def test_an_address_may_hold_a_query_and_a_password(key: str | None) -> None:
    async with serving(hello) as server:
        address = server.url.replace("http://", "http://ann:pass-word@") + "?tenant=blue&v=2"
        env = {"K": key} if key else {}
        model = HttpModel("p", Provider(base_url=address, api_key_env="K"), env=env)
        try:
            await read(model)
        finally:
            await model.aclose()
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions?tenant=blue&v=2"
    basic = "Basic " + base64.b64encode(b"ann:pass-word").decode()
    assert seen.headers["authorization"] == (f"Bearer {key}" if key else basic)


async def test_the_request_is_the_body_that_was_built() -> None:
    async with endpoint(hello, params={"top_p": 0.5, "stream_options": None}) as (model, server):
        await read(model)
    assert server.seen[0].path == "/v1/chat/completions"
    assert server.seen[0].body == {
        "model": "m",
        "messages": [{"role": "user", "content": "go"}],
        "stream": True,
        "top_p": 0.5,
        "temperature": 0,
    }


async def test_every_request_is_like_the_sdks_first_but_for_its_body() -> None:
    async with endpoint(hello, api_key_env="K", env={"K": KEY}) as (model, server):
        await read(model)
        await read(model, replace(ASK, messages=[Message(role="user", content="gö\ud83d")], params={}))
        await read(model, replace(ASK, model="other"))
    first, second, third = server.seen
    assert [m["content"] for m in second.body["messages"]] == ["gö\ufffd"]
    assert third.body["model"] == "other"
    same = [{k: v for k, v in x.headers.items() if k != "content-length"} for x in server.seen]
    assert same[0] == same[1] == same[2]
    assert first.path == second.path == third.path


# --- text that goes past the iterator -----------------------------------------------------------------------


class Channel:
    """Takes text at once, as far as it has room."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.text = ""
        self.came = asyncio.Event()

    def take(self, delta: Delta) -> bool:
        if not isinstance(delta, TextDelta) or not self.room:
            return False
        self.room -= 1
        self.text += delta.text
        self.came.set()
        return True


async def test_text_is_on_the_channel_before_any_task_was_woken_for_it() -> None:
    go_on = asyncio.Event()

    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("a"))
        await go_on.wait()
        await x.send(delta("b"), delta(finish="stop"), DONE)
        await x.end()

    channel = Channel()
    async with endpoint(script) as (model, _):
        task = asyncio.create_task(read(model, replace(ASK, take=channel.take)))
        await asyncio.wait_for(channel.came.wait(), 5)
        go_on.set()
        given = await task
    assert channel.text == "ab"
    assert [type(d) for d in given] == [TurnEnd]


@pytest.mark.parametrize("room", [0, 1, 3, 50])
async def test_what_a_full_channel_does_not_take_comes_in_order_by_the_iterator(room: int) -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        for number in range(40):
            await x.send(delta(f"{number},"))
        await x.send(delta(finish="stop"), DONE)
        await x.end()

    channel = Channel(room)
    async with endpoint(script) as (model, _):
        async for given in model.stream(replace(ASK, take=channel.take)):
            if isinstance(given, TextDelta):
                channel.text += given.text
    assert channel.text == "".join(f"{number}," for number in range(40))


async def test_a_channel_that_fails_ends_the_turn_with_its_error() -> None:
    def take(delta: Delta) -> bool:
        raise AgentError("reply_too_large", "It is too much.")

    async with endpoint(hello) as (model, _):
        with pytest.raises(AgentError, match="too much"):
            await read(model, replace(ASK, take=take))


async def test_a_connection_that_is_lost_ends_the_turn_after_the_text_before_it() -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("a"))
        await asyncio.sleep(0.05)
        x.writer.transport.abort()

    channel = Channel()
    async with endpoint(script) as (model, _):
        with pytest.raises(UpstreamError) as caught:
            await read(model, replace(ASK, take=channel.take))
    assert (channel.text, caught.value.code) == ("a", "upstream_truncated")


async def test_the_responses_api_is_asked_where_it_is_configured() -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(b'data: {"type":"response.output_text.delta","output_index":0,"delta":"a"}\n\n')
        await x.send(b'data: {"type":"response.completed","response":{"status":"completed"}}\n\n')
        await x.end()

    async with endpoint(script, api="responses") as (model, server):
        assert (await read(model))[0] == TextDelta("a")
    assert server.seen[0].path == "/v1/responses"
    assert server.seen[0].body["input"] == [{"role": "user", "content": "go"}]


async def test_azure_is_asked_in_its_own_way() -> None:
    async with serving(hello) as server:
        url = server.url.removesuffix("/v1")
        provider = Provider(base_url=url, api_key_env="K", azure_api_version="2024-10-21")
        model = HttpModel("p", provider, env={"K": KEY})
        await read(model)
        await model.aclose()
    assert server.seen[0].path == "/openai/deployments/m/chat/completions?api-version=2024-10-21"
    assert server.seen[0].headers["api-key"] == KEY


@pytest.mark.parametrize(("header", "other"), [("Authorization", "api-key"), ("api-key", "Authorization")])
@pytest.mark.parametrize("version", [None, "2024-10-21"])
async def test_a_key_in_a_header_of_its_own_is_sent_alone(
    header: str, other: str, version: str | None
) -> None:
    """Azure refuses a request with a good token and the api-key "none"."""
    async with serving(hello) as server:
        provider = Provider(base_url=server.url, headers_env={header: "T"}, azure_api_version=version)
        model = HttpModel("p", provider, env={"T": f"Bearer {KEY}"})
        await read(model)
        await model.aclose()
    headers = {name.lower(): value for name, value in server.seen[0].headers.items()}
    assert headers[header.lower()] == f"Bearer {KEY}"
    assert other.lower() not in headers


async def test_a_refused_key_that_is_not_set_at_all_says_so() -> None:
    async def script(x: Exchange) -> None:
        await x.answer(401, b"{}")

    asked = {"api_key_env": "MY_KEY", "headers_env": {"X-Team": "MY_TEAM"}}
    for env, says in (
        ({}, "set MY_KEY and MY_TEAM in the environment"),
        ({"MY_KEY": KEY}, "set MY_TEAM in the environment"),
        ({"MY_KEY": KEY, "MY_TEAM": "blue"}, "check the key in MY_KEY"),
    ):
        async with endpoint(script, env=env, **asked) as (model, _):
            assert says in (await failure(model)).message


async def test_a_provider_that_is_closed_while_its_client_is_made_sends_nothing() -> None:
    async with serving(hello) as server:
        model = HttpModel("p", Provider(base_url=server.url), env={})
        made, asked, closed = model._make_client, threading.Event(), threading.Event()

        def make() -> Any:
            asked.set()
            closed.wait(10)
            return made()

        model._make_client = make  # type: ignore[method-assign]
        reading = asyncio.create_task(read(model))
        await asyncio.to_thread(asked.wait, 10)
        await model.aclose()
        closed.set()
        with pytest.raises(UpstreamError, match="has been closed"):
            await reading
        assert not server.seen


async def test_a_cut_in_mid_stream_is_truncated() -> None:
    async def script(x: Exchange) -> None:
        await x.head()
        await x.send(delta("a"))
        x.writer.transport.abort()

    async with endpoint(script) as (model, _):
        assert (await failure(model)).code == "upstream_truncated"


async def test_at_most_so_many_requests_at_once_and_waiting_is_no_stall() -> None:
    running = most = 0

    async def script(x: Exchange) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await x.head()
        await x.send(delta("a"))
        await asyncio.sleep(0.5)
        running -= 1
        await x.send(delta(finish="stop"), DONE)
        await x.end()

    limits = Timeouts(first_byte_s=1.2, turn_s=1.4)  # less than the last of eight has to wait
    async with endpoint(script, max_concurrent=2, timeouts=limits) as (model, _):
        await read(model)  # the first request loads the SDK
        await asyncio.gather(*(read(model) for _ in range(8)))
    assert most == 2


async def test_an_endpoint_that_keeps_failing_is_left_alone_until_a_probe_works() -> None:
    works = False
    offset = 0.0

    async def script(x: Exchange) -> None:
        if works:
            await hello(x)
        else:
            await x.answer(503, b"busy")

    async with endpoint(script, clock=lambda: time.monotonic() + offset) as (model, server):
        for _ in range(8):
            assert (await failure(model)).code == "upstream_error"
        asked = len(server.seen)
        error = await failure(model)
        assert error.code == "upstream_unavailable"
        assert error.retry_after is not None
        assert "tried again in" in error.message
        assert len(server.seen) == asked, "nothing is sent while the circuit is open"
        works = True
        offset = 10.0
        assert isinstance((await read(model))[-1], TurnEnd)
        assert model.circuit.state == "closed"


async def test_a_probe_that_is_given_up_lets_the_next_one_probe() -> None:
    offset = 0.0
    hang = False
    probed = asyncio.Event()

    async def script(x: Exchange) -> None:
        if hang:
            probed.set()
            await x.gone()
        else:
            await x.answer(503, b"busy")

    async with endpoint(script, clock=lambda: time.monotonic() + offset) as (model, _):
        for _ in range(8):
            await failure(model)
        offset, hang = 10.0, True
        task = asyncio.create_task(read(model))
        await probed.wait()
        task.cancel()
        await asyncio.wait([task])
        hang = False
        assert (await failure(model)).code == "upstream_error"


async def test_a_rate_limit_says_when_to_come_back() -> None:
    async def script(x: Exchange) -> None:
        await x.answer(429, b'{"error":{"message":"slow"}}', retry_after="7")

    async with endpoint(script) as (model, _):
        error = await failure(model)
    assert (error.code, error.retryable, error.retry_after) == ("rate_limited", True, 7)


async def test_no_log_line_holds_a_key() -> None:
    async def script(x: Exchange) -> None:
        await x.answer(401, b'{"error":{"message":"bad key %s"}}' % KEY.encode())

    with structlog.testing.capture_logs() as lines:
        async with endpoint(script, env={"K": KEY}, api_key_env="K") as (model, _):
            error = await failure(model)
    assert error.code == "upstream_rejected"
    assert "K" in error.message
    assert KEY not in f"{error!r} {error} {error.extra} {lines}"
    assert error.__cause__ is None


async def test_loading_the_sdk_is_no_time_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint(hello, timeouts=Timeouts(first_byte_s=0.5, turn_s=0.6)) as (model, _):
        opened = model._opened

        async def slowly() -> Any:
            await asyncio.sleep(0.8)
            return await opened()

        monkeypatch.setattr(model, "_opened", slowly)
        end = (await read(model))[-1]
    assert isinstance(end, TurnEnd)
    assert end.ttft_ms is not None
    assert end.ttft_ms < 600


async def test_a_closed_model_asks_nothing() -> None:
    async with endpoint(hello) as (model, server):
        await model.aclose()
        assert (await failure(model)).code == "upstream_unavailable"
        assert server.seen == []


async def test_models_are_listed_with_their_context() -> None:
    async def script(x: Exchange) -> None:
        await x.answer(
            200, b'{"data":[{"id":"a","meta":{"n_ctx":4096}},{"id":"b","max_model_len":9},{"id":"c"}]}'
        )

    async with endpoint(script) as (model, _):
        assert await model.models() == [{"id": "a", "context": 4096}, {"id": "b", "context": 9}, {"id": "c"}]


# --- how the body is read -----------------------------------------------------------------------------------


async def test_the_transports_own_reader_is_taken_where_the_sdk_is_as_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[object] = []

    def spy(stream: object) -> Any:
        taken.append(arrivals(stream))
        return taken[-1]

    monkeypatch.setattr("mux.llm.upstream.arrivals", spy)
    async with endpoint(hello) as (model, _):
        await read(model)
    assert [type(t) for t in taken] == [Arrivals], "the SDK's transport has changed: see mux.llm.body"


async def test_another_transport_is_read_the_public_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arrivals(object()) is None
    monkeypatch.setattr("mux.llm.upstream.arrivals", lambda _: None)
    async with endpoint(hello) as (model, server):
        for _ in range(2):
            assert (await read(model))[:2] == [TextDelta("hel"), TextDelta("lo")]
    assert server.connections == 1


async def test_an_answer_that_is_compressed_all_the_same_is_read() -> None:
    async def script(x: Exchange) -> None:
        body = gzip.compress(delta("hello") + delta(finish="stop") + DONE)
        await x.head(content_encoding="gzip")
        await x.send(body[:20], body[20:])
        await x.end()

    async with endpoint(script) as (model, _):
        assert (await read(model))[0] == TextDelta("hello")

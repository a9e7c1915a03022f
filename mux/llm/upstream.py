"""A model behind HTTP: one request by the openai SDK, its answer read as bytes by :mod:`mux.llm.wire`.

The SDK sends (keys, Azure, connection pool); nothing of the answer passes through it. Its retries and
redirects are off: retries are the loop's, each with an event, and a redirect could carry the key elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from mux.errors import MuxError, UpstreamError
from mux.llm.alarm import Alarm
from mux.llm.body import Arrivals, Read, arrivals, drain
from mux.llm.chat import ChatParser
from mux.llm.circuit import Circuit
from mux.llm.failures import broken, rejected, unreachable
from mux.llm.model import Delta, ModelRequest, TurnEnd
from mux.llm.prices import library_cost, preload
from mux.llm.prompt import chat_body, responses_body
from mux.llm.responses import ResponsesParser
from mux.llm.think import ThinkTags
from mux.llm.watchdog import Watch
from mux.llm.wire import TurnReader
from mux.settings import Provider
from mux.telemetry import get_logger, register_secret

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

__all__ = ["HttpModel"]

PEEK_BYTES: Final = 16_384  # of a failed answer's body, to find a well-known error code in it
PEEK_S: Final = 2.0

_MADE: Final = 256  # models of one endpoint whose requests are prepared; beyond, the SDK makes each

_HEADERS: Final = {"Accept": "text/event-stream, application/json", "Accept-Encoding": "identity"}


class HttpModel:
    """One configured endpoint (a :class:`mux.llm.model.Model`); the request names the model.

    Args:
        name: the provider's name in the configuration.
        provider: its settings.
        priced: models whose price is configured: the price library is not asked for them.
        env: where keys are read from.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        provider: Provider,
        *,
        priced: Collection[str] = (),
        env: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.provider = provider
        self._priced = frozenset(priced)
        self.circuit = Circuit(clock=clock)
        self._clock = clock
        self._log = get_logger(provider=name)
        self._slots = asyncio.Semaphore(provider.max_concurrent) if provider.max_concurrent else None
        self._client: AsyncOpenAI | None = None
        self._http: httpx2.AsyncClient | None = None
        self._silent: set[str] = set()  # models that reported no usage when they were last asked
        self._made: dict[str, httpx2.Request] = {}  # the SDK's first request for each model
        self._opening = asyncio.Lock()
        self._closed = asyncio.Event()
        self._key = _clean(env.get(provider.api_key_env)) if provider.api_key_env else None
        self._extra_headers: dict[str, Any] = dict(_HEADERS)
        self._headers = {h: v for h, e in provider.headers_env.items() if (v := _clean(env.get(e)))}
        named = [provider.api_key_env, *provider.headers_env.values()]
        self._unset = [name for name in named if name and not _clean(env.get(name))]
        address = urlsplit(provider.base_url)
        if self._key is None and address.username and "authorization" not in map(str.lower, self._headers):
            login = f"{unquote(address.username)}:{unquote(address.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        for secret in (self._key, *self._headers.values()):
            register_secret(secret)
        register_secret(address.password)
        for _, value in parse_qsl(address.query):  # some gateways want the key there
            register_secret(value)
        self._place = f"{address.hostname}:{address.port}" if address.port else str(address.hostname)

    def stream(self, request: ModelRequest) -> AsyncIterator[Delta]:
        """Ask for one turn: exactly one request. See :class:`mux.llm.model.Model`."""
        return self._turn(request)

    async def aclose(self) -> None:
        """Close its connections; streams that still run break off."""
        self._closed.set()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    # --- one turn -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[Callable[[], None]]:
        """Let one request pass and tell the circuit how it went; gives what tells it of the first progress.

        Raises:
            UpstreamError: the circuit is open; or as the request failed, naming the provider.
        """
        try:
            probe = self.circuit.admit()
        except UpstreamError as e:
            raise self._named(e) from None
        told, answered = not probe, False

        def answers() -> None:
            nonlocal told, answered
            if not answered:
                answered = True
                if told:
                    self.circuit.answered()
                else:
                    told = True
                    self.circuit.worked()

        try:
            yield answers
            told = True
            self.circuit.worked()
        except UpstreamError as e:
            told = True
            self.circuit.failed(e, probe=probe)
            raise self._named(e) from None
        finally:
            if not told:
                self.circuit.gave_up()

    def _named(self, error: UpstreamError) -> UpstreamError:
        """The same error, naming the provider."""
        message = f"Provider {self.name!r}: {error.message[:1].lower()}{error.message[1:]}"
        return UpstreamError(
            error.code,
            message,
            status=error.status,
            retryable=error.retryable,
            retry_after=error.retry_after,
            extra={"provider": self.name, **error.extra},
        )

    async def _turn(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        async with contextlib.AsyncExitStack() as stack:
            if self._slots is not None:
                await stack.enter_async_context(self._slots)
            answers = stack.enter_context(self._admitted())
            tags = ThinkTags() if self.provider.think_tags else None
            client = await self._opened()  # loading the SDK is no time of the provider's
            watch = Watch(self.provider.timeouts, self._clock)
            body = await self._open(client, request, stack, watch)
            answer = _Answer(body, TurnReader(self._parser(request)), tags, request.take, watch, answers)
            if isinstance(body, Arrivals):
                stack.enter_context(body.listen(answer.arrived))
            alarm = stack.enter_context(Alarm(answer.left))
            while not answer.over:
                await answer.more(alarm)
                before = self._clock()
                for delta in answer.deltas():
                    yield self._ended(delta, request, watch) if isinstance(delta, TurnEnd) else delta
                watch.held(self._clock() - before)
                answer.check()
            await answer.drain()

    def estimates_usage(self, model: str) -> bool:
        """Whether the last turn of this model came without usage: what it uses is counted here."""
        return model in self._silent

    def _ended(self, end: TurnEnd, request: ModelRequest, watch: Watch) -> TurnEnd:
        """The turn's end with its times, and its cost where the price library knows it."""
        usage = end.usage
        if usage is not None:
            self._silent.discard(request.model)
        elif len(self._silent) < _MADE:
            self._silent.add(request.model)
        if usage is not None and request.model not in self._priced:
            usage = library_cost(self.provider.base_url, request.model, usage)
        if watch.first is None:
            return replace(end, usage=usage)
        ttft, generation = round(watch.first * 1000), round((watch.last - watch.first) * 1000)
        return replace(end, usage=usage, ttft_ms=ttft, generation_ms=generation)

    def _parser(self, request: ModelRequest) -> ChatParser | ResponsesParser:
        known = [t.name for t in request.tools]
        if self.provider.api == "responses":
            return ResponsesParser(known)
        n = {**self.provider.params, **request.params}.get("n")
        return ChatParser(known, n if isinstance(n, int) else 1)

    async def _open(
        self, client: AsyncOpenAI, request: ModelRequest, stack: contextlib.AsyncExitStack, watch: Watch
    ) -> Arrivals | Read:
        """Send the request and wait for the head of the answer; gives what reads its body."""
        try:
            async with asyncio.timeout(
                min(watch.left(terminal=False), self.provider.timeouts.turn_s)
            ) as timer:
                http = await self._send(client, request, stack)
        except MuxError:  # ours: a status, or a request that can't be put into the API's words
            raise
        except TimeoutError:
            raise watch.overdue() if timer.expired() else self._unreachable(None) from None
        except Exception as e:  # noqa: BLE001 - failure boundary: whatever the SDK or its transport raise
            raise self._unreachable(e) from None
        # its content type decides nothing: gateways send streams as anything, and pages as event streams
        if http.headers.get("content-encoding", "identity") != "identity":
            chunks: AsyncGenerator[bytes, None] = http.aiter_bytes()
        elif (body := arrivals(http.stream)) is not None:
            return body
        else:
            chunks = http.aiter_raw()
        stack.push_async_callback(chunks.aclose)
        return partial(anext, chunks, b"")

    def _unreachable(self, error: BaseException | None) -> UpstreamError:
        error = error or TimeoutError()
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("openai", "httpx2"):
            self._log.debug("unreachable", error=type(error).__name__)
        else:  # not what the SDK reports when it can't connect: perhaps a defect of ours
            self._log.warning("request_failed", error=type(error).__name__, exc_info=error)
        return unreachable(error, self._place)

    async def _send(
        self, client: AsyncOpenAI, request: ModelRequest, stack: contextlib.AsyncExitStack
    ) -> httpx2.Response:
        """Send the request; gives the head of the answer.

        The SDK makes the first request of each model: address and headers of all that follow are those of
        that one, with another body. Its own way takes 0.9 ms of CPU for each.
        """
        build = responses_body if self.provider.api == "responses" else chat_body
        body = build(request, provider=self.name, params=self.provider.params)
        if (first := self._made.get(request.model)) is not None and self._http is not None:
            following = type(first)(
                "POST",
                first.url,
                headers=[h for h in first.headers.raw if h[0].lower() != b"content-length"],
                content=_encoded(body),
                extensions=dict(first.extensions),
            )
            answer = await self._http.send(following, stream=True)
            stack.push_async_callback(answer.aclose)
            return answer
        # The body goes in whole: the SDK's transforms cost and change it
        common: dict[str, Any] = {"stream": True, "extra_body": body, "extra_headers": self._extra_headers}
        if self.provider.api == "responses":
            sent = client.responses.with_streaming_response.create(model=request.model, input=[], **common)
        else:
            chat = client.chat.completions.with_streaming_response
            sent = chat.create(model=request.model, messages=[], **common)
        http: httpx2.Response = (await stack.enter_async_context(sent)).http_response
        if len(self._made) < _MADE:
            self._made[request.model] = http.request
        return http

    # --- the client -----------------------------------------------------------------------------------------

    async def _opened(self) -> AsyncOpenAI:
        if self._client is None:
            async with self._opening:
                if self._client is None and not self._closed.is_set():
                    # in a thread: importing the SDK and loading certificates block for a second
                    client = await asyncio.to_thread(self._make_client)
                    if self._closed.is_set():  # meanwhile
                        await client.close()
                    else:
                        self._client = client
        if self._client is None:
            raise UpstreamError("upstream_unavailable", "The provider has been closed.", retryable=False)
        return self._client

    def _make_client(self) -> AsyncOpenAI:
        import httpx2
        from openai import AsyncAzureOpenAI, AsyncOpenAI, DefaultAioHttpClient, Omit

        preload()
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs whole addresses, with their queries
        timeout = httpx2.Timeout(None, connect=self.provider.timeouts.first_byte_s)
        secure = urlsplit(self.provider.base_url).scheme != "http"
        self._http = http = DefaultAioHttpClient(
            verify=secure,  # loading certificates takes a while, and plain HTTP has none
            timeout=timeout,
            follow_redirects=False,
            event_hooks={"response": [self._refuse]},
        )
        headers: dict[str, Any] = dict(self._headers)
        base_url, query = self._address()
        if self._key is None:
            # Local servers need no key, and others have one in a header of their own (Entra's tokens for
            # Azure), beside which the SDK's "none" would be refused. Said where the SDK looks for them.
            own = {h.lower(): value for h, value in headers.items()}
            keys = {h: own.get(h.lower(), Omit()) for h in ("Authorization", "api-key")}
            self._extra_headers = {**_HEADERS, **keys}
        common: dict[str, Any] = {"max_retries": 0, "timeout": timeout, "http_client": http}
        if query:
            common["default_query"] = query
        if self.provider.azure_api_version:
            return AsyncAzureOpenAI(
                azure_endpoint=base_url.rstrip("/").removesuffix("/openai"),
                api_version=self.provider.azure_api_version,
                api_key=self._key or "none",
                default_headers=headers,
                **common,
            )
        if urlsplit(self.provider.base_url).hostname != "api.openai.com":
            headers = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit(), **headers}
        return AsyncOpenAI(base_url=base_url, api_key=self._key or "none", default_headers=headers, **common)

    def _address(self) -> tuple[str, dict[str, str]]:
        """``base_url`` without name and password (a header has them), and its query, which goes with every
        request: the SDK would put the path after it."""
        address = urlsplit(self.provider.base_url)
        plain = address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="")
        return plain.geturl(), dict(parse_qsl(address.query))

    async def _refuse(self, response: httpx2.Response) -> None:
        """Called with the head of each answer: turns any status but 2xx into our error, body unread."""
        if 200 <= response.status_code < 300:
            return
        body = b""
        with contextlib.suppress(Exception):  # the status alone tells enough
            async with asyncio.timeout(PEEK_S), contextlib.aclosing(response.aiter_raw()) as parts:
                async for part in parts:
                    body += part
                    if len(body) >= PEEK_BYTES:
                        break
        headers = {k.lower(): v for k, v in response.headers.items()}
        raise rejected(
            response.status_code,
            headers,
            body,
            now=time.time(),
            key_env=self.provider.api_key_env,
            unset=self._unset,
        )

    async def models(self, deadline_s: float = 2.0) -> list[dict[str, Any]]:
        """What the endpoint's ``/models`` lists: ``id`` and, where it says, ``context`` (tokens).

        Raises:
            UpstreamError: it did not answer in time, or not with a list.
        """
        try:
            client = await self._opened()
            async with asyncio.timeout(deadline_s):
                response = await client.models.with_raw_response.list(extra_headers=self._extra_headers)
        except UpstreamError as e:
            raise self._named(e) from None
        except Exception as e:  # noqa: BLE001 - failure boundary: whatever the SDK or its transport raise
            raise self._named(self._unreachable(e)) from None
        try:
            listed = response.http_response.json()
        except ValueError:  # a page for people, where something else listens on that port
            listed = None
        entries = listed.get("data") if isinstance(listed, dict) else listed
        if not isinstance(entries, list):
            raise self._named(broken("Its /models is no list of models."))
        return [
            _model_entry(m) for m in entries[:2000] if isinstance(m, dict) and isinstance(m.get("id"), str)
        ]


class _Answer:
    """One answer while it is read: bytes in, deltas out.

    Text goes past all iterators while nothing else waits before it: `take` puts it on the channel in the turn
    of the event loop in which it was read, and no task is woken.

    Args:
        body: where the bytes come from.
        reader: reads them.
        tags: tells thoughts in tags apart.
        take: see `ModelRequest`.
        watch: the turn's deadlines.
        answers: called with each progress.
    """

    def __init__(
        self,
        body: Arrivals | Read,
        reader: TurnReader,
        tags: ThinkTags | None,
        take: Callable[[Delta], bool] | None,
        watch: Watch,
        answers: Callable[[], None],
    ) -> None:
        self._body = body
        self._reader = reader
        self._tags = tags
        self._take = take
        self._watch = watch
        self._answers = answers
        self._deltas: list[Delta] = []
        self._idle = False  # the consumer waits for more and has been given everything before
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.over = False

    def left(self) -> float:
        """Seconds until something has to come."""
        return self._watch.left(terminal=self._reader.terminal)

    def deltas(self) -> list[Delta]:
        """What is to be given out now, once."""
        found, self._deltas = self._deltas, []
        return found

    def check(self) -> None:
        """Raise what the answer failed of, after everything before it was given out."""
        if self._error is not None:
            raise self._error
        if self._reader.failure is not None:
            raise self._reader.failure

    async def more(self, alarm: Alarm) -> None:
        """Wait until there is something to give out, or it is over.

        Raises:
            UpstreamError: a deadline has passed.
        """
        try:
            if isinstance(self._body, Arrivals):
                self._idle = True
                self.arrived()
                while not self._ready():
                    await alarm.wait(self._woken)
            else:
                self._feed(await alarm.wait(self._body))
        except TimeoutError:
            if self.left() > 0:  # the transport's own
                self._feed(b"", cut=True)
            elif self._reader.terminal:
                self._feed(b"")
            else:
                raise self._watch.overdue() from None
        except Exception as e:  # noqa: BLE001 - failure boundary: whatever breaks a read is a cut stream
            get_logger().debug("stream_cut", error=type(e).__name__)
            self._feed(b"", cut=True)
        finally:
            self._idle = False

    def _ready(self) -> bool:
        return bool(self._deltas) or self.over or self._error is not None

    def _woken(self) -> asyncio.Future[None]:
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def arrived(self) -> None:
        """Something of the body is there: read it, unless the consumer is busy with what came before."""
        body = self._body
        if not self._idle or self._ready() or not isinstance(body, Arrivals):
            return
        try:
            while not self._ready() and (chunk := body.take()):
                self._feed(chunk)
            if not self._ready() and body.ended:
                self._feed(b"")
        except Exception as e:  # noqa: BLE001 - the connection broke; or the channel takes nothing any more
            self._broken(e)
        if self._ready() and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _broken(self, error: Exception) -> None:
        if isinstance(error, MuxError):
            self._error = error
        else:
            get_logger().debug("stream_cut", error=type(error).__name__)
            self._feed(b"", cut=True)

    def _feed(self, chunk: bytes, *, cut: bool = False) -> None:
        reader = self._reader
        seen = reader.progressed
        deltas = reader.feed(chunk) if chunk else reader.end(cut=cut)
        if not chunk or (reader.done and reader.failure is None):
            deltas = [*deltas, *reader.end()] if chunk else deltas
            self.over = True
        if reader.failure is not None:
            self.over = True
        if reader.progressed != seen:
            self._watch.progress()
            self._answers()
        if self._tags is not None and deltas:
            deltas = self._tags.split(deltas, final=reader.failure is not None)
            self._tags = None if self._tags.over else self._tags
        if self._take is not None and self._idle and not self._deltas:
            given = 0
            while given < len(deltas) and self._take(deltas[given]):
                given += 1
            deltas = deltas[given:] if given else deltas
        self._deltas += deltas

    async def drain(self) -> None:
        """After its end: read what is left, so that the connection can be used again."""
        if self._reader.done:
            await drain(self._body)


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError, UnicodeEncodeError):  # half a character, in a parameter
        return json.dumps(body).encode()


def _clean(value: str | None) -> str | None:
    value = (value or "").strip()
    return value or None


def _model_entry(model: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": model["id"]}
    meta = model.get("meta") if isinstance(model.get("meta"), dict) else {}
    for holder, name in (
        (model, "context_length"),
        (model, "max_model_len"),
        (meta, "n_ctx"),
        (meta, "n_ctx_train"),
    ):
        if isinstance(value := (holder or {}).get(name), int):
            entry["context"] = value
            break
    return entry

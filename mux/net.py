"""The one door for outgoing HTTP other than model requests: pages that agents ask for, a search backend.

The URL comes from a model, which may repeat what a hostile page told it, so this is where server-side request
forgery is stopped (OWASP SSRF prevention; CWE-918). The host is resolved once; *every* address it has must be
public; the connection goes to one of those very addresses, with the host's own name for TLS and ``Host``, so
that a second DNS answer can't move it (DNS rebinding); each redirect is a new request with the same checks.
Time, size and type are limited while the answer streams in. No cookies, no proxies, no credentials.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mux.errors import Fault, MuxError
from mux.settings import Fetch

__all__ = ["Net", "NetError", "Page", "Resolve", "address_problem"]

USER_AGENT = "mux-agents (+https://pypi.org/project/mux-agents/)"
MAX_URL = 4_000
_CHUNK = 65_536
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Services that would take lines of a request for commands: the common ones of the Fetch standard's "bad
# ports", and Redis and memcached.
_BAD_PORTS = frozenset({
    0, 1, 7, 9, 13, 19, 21, 22, 23, 25, 53, 69, 79, 110, 111, 119, 123, 135, 137, 139, 143, 161, 179, 389,
    445, 465, 512, 513, 514, 515, 548, 554, 587, 631, 636, 989, 990, 993, 995, 2049, 5060, 5061, 6000, 6379,
    6667, 6697, 11211,
})  # fmt: skip

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Progress: TypeAlias = Callable[[int, int | None], Awaitable[None]]  # bytes so far, bytes announced
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]  # host, port → addresses; raises OSError

# Python calls these global, and no public page is behind them.
_V4_SPECIAL = tuple(
    ipaddress.ip_network(n)
    for n in (
        "192.0.0.0/24",  # IETF protocol assignments (RFC 6890); Oracle's metadata are at .192
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "168.63.129.16/32",  # Azure's WireServer
    )
)
# Global unicast is 2000::/3 (RFC 4291, 2.4); inside it these lead elsewhere.
_V6_GLOBAL = ipaddress.ip_network("2000::/3")
_V6_SPECIAL = tuple(
    ipaddress.ip_network(n)
    for n in (
        "2001::/23",  # IETF protocol assignments: Teredo, ORCHID (RFC 2928)
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation (RFC 9637)
        "2002::/16",  # 6to4: carries an IPv4 address that a relay would reach
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


class NetError(MuxError):
    """A request that was refused or failed. ``code`` is one of ``url_invalid``, ``host_not_allowed``,
    ``address_refused``, ``host_unknown``, ``too_many_redirects``, ``response_too_large``, ``type_refused``,
    ``fetch_timeout``, ``fetch_failed``, ``http_status``."""

    fault: Fault = "upstream"
    status = 502


@dataclass(frozen=True, slots=True)
class Page:
    """One answer, complete.

    Attributes:
        url: where it came from, after redirects.
        status: 200 to 299.
        media_type: ``text/html`` and the like, lower case; empty if not said.
        charset: as the server said, if it did.
    """

    url: str
    status: int
    media_type: str
    charset: str | None
    body: bytes


async def _system_resolve(host: str, port: int) -> Sequence[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def address_problem(address: Address) -> str | None:
    """Why this address must not be connected to on behalf of others; ``None`` if it is public."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address_problem(address.ipv4_mapped)
        if address in _NAT64:  # a gateway would connect to the embedded address
            return address_problem(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _V6_GLOBAL or any(address in n for n in _V6_SPECIAL):
            return f"{address} is no public address"
        return None
    if address.is_loopback:
        return f"{address} is this machine"
    if address.is_link_local:
        return f"{address} is link-local, where clouds keep their metadata"
    special = any(address in n for n in _V4_SPECIAL)
    if special or address.is_multicast or address.is_reserved or not address.is_global:
        return f"{address} is no public address"
    return None


class Net:
    """Makes requests under the rules of ``[fetch]``.

    Args:
        settings: limits, hosts, exceptions.
        resolve: replaces the system's resolver, for tests.
    """

    def __init__(self, settings: Fetch, *, resolve: Resolve = _system_resolve) -> None:
        self._settings = settings
        self._resolve = resolve
        self._private_hosts = {e.lower() for e in settings.allow_private if _network(e) is None}
        self._private_networks = [n for e in settings.allow_private if (n := _network(e)) is not None]

    async def get(
        self,
        url: str,
        *,
        accept: Callable[[str], bool],
        accept_header: str = "*/*",
        configured: bool = False,
        progress: Progress | None = None,
    ) -> Page:
        """GET a page, following redirects.

        Args:
            url: http or https.
            accept: whether a media type is wanted; asked before the body is read.
            accept_header: sent as ``Accept``.
            configured: the URL's host was named by the operator (a search backend), so it may be private;
                a redirect to another host may not.
            progress: told how much has arrived.

        Raises:
            NetError: refused or failed; the message says what a caller may do instead.
        """
        trusted = _parse(url).raw_host if configured else None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._follow(url, accept, accept_header, trusted, progress)
        except TimeoutError:
            limit = self._settings.timeout_s
            raise NetError(
                "fetch_timeout", f"{_short(url)} did not answer completely in {limit:g} s."
            ) from None

    async def _follow(
        self,
        url: str,
        accept: Callable[[str], bool],
        accept_header: str,
        trusted: str | None,
        progress: Progress | None,
    ) -> Page:
        target = _parse(url)
        for _ in range(self._settings.max_redirects + 1):
            answer = await self._once(target, accept, accept_header, target.raw_host == trusted, progress)
            if isinstance(answer, Page):
                return answer
            target = _parse(str(answer))
        raise NetError(
            "too_many_redirects", f"{_short(url)} redirects more than {self._settings.max_redirects} times."
        )

    async def _once(
        self,
        url: URL,
        accept: Callable[[str], bool],
        accept_header: str,
        trusted: bool,
        progress: Progress | None,
    ) -> Page | URL:
        """One request, to addresses checked now and to no others: a page, or where it redirects to."""
        host = url.raw_host or ""
        addresses = await self._addresses(host, url.port or 0, trusted)
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(host, addresses), use_dns_cache=False, force_close=True, limit=1
        )
        headers = {"User-Agent": USER_AGENT, "Accept": accept_header}
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                    timeout=aiohttp.ClientTimeout(total=None),  # ours spans all redirects
                ) as session,
                session.get(url, headers=headers, allow_redirects=False) as response,
            ):
                if response.status in _REDIRECTS:
                    return _location(url, response)
                return await self._page(url, response, accept, progress)
        except (aiohttp.ClientError, OSError, ValueError) as e:
            # never the exception's text: it may quote what the server sent
            raise NetError("fetch_failed", f"{_short(url)} can't be fetched ({type(e).__name__}).") from e

    async def _addresses(self, host: str, port: int, trusted: bool) -> Sequence[str]:
        if not trusted:
            self._check_host(host)
        literal = _address(host)
        if literal is not None:
            found: Sequence[str] = [str(literal)]
        else:
            try:
                found = await self._resolve(host, port)
            except (OSError, UnicodeError):
                found = []
        if not found:
            raise NetError("host_unknown", f"The host {host[:200]!r} has no address.")
        private_ok = trusted or host.lower() in self._private_hosts
        for text in found:
            address = _address(text)
            problem = "its address can't be understood" if address is None else address_problem(address)
            if problem is None or private_ok:
                continue
            if address is not None and any(address in n for n in self._private_networks):
                continue
            message = f"The host {host[:200]!r} is refused: {problem}. Only public addresses may be fetched."
            raise NetError("address_refused", message, status=403)
        return found

    def _check_host(self, host: str) -> None:
        allowed = self._settings.allow_hosts
        name = host.lower().rstrip(".")
        for entry in allowed:
            plain = entry.lower().removeprefix("*")
            if name == plain.lstrip(".") or (plain.startswith(".") and name.endswith(plain)):
                return
        if allowed:
            message = f"The host {host[:200]!r} is not allowed here. Allowed: {', '.join(allowed)}."
            raise NetError("host_not_allowed", message, status=403)

    async def _page(
        self,
        url: URL,
        response: aiohttp.ClientResponse,
        accept: Callable[[str], bool],
        progress: Progress | None,
    ) -> Page:
        if not 200 <= response.status < 300:
            message = f"{_short(url)} answered {response.status}."
            raise NetError("http_status", message, extra={"upstream_status": response.status})
        media_type = "" if "Content-Type" not in response.headers else response.content_type.lower()
        if not accept(media_type):
            shown = media_type[:100] or "no media type"
            raise NetError("type_refused", f"{_short(url)} is {shown}, which can't be read as text.")
        limit = int(self._settings.max_mb * 1_000_000)
        too_large = NetError(
            "response_too_large",
            f"{_short(url)} is larger than {self._settings.max_mb:g} MB, the limit here.",
        )
        announced = response.content_length
        if announced is not None and announced > limit:
            raise too_large
        body = bytearray()
        # Decompressed pieces are counted, so that a small bomb is stopped as well.
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > limit:
                raise too_large
            if progress is not None:
                await progress(len(body), announced)
        return Page(str(url), response.status, media_type, response.charset, bytes(body))


class _Pinned(AbstractResolver):
    """Answers with the addresses that were checked, whatever DNS says by now."""

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        self._host = host
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host != self._host:
            raise OSError(f"{host!r} was not checked")
        return [_result(self._host, a, port) for a in self._addresses]

    async def close(self) -> None:
        """Nothing is held."""


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
    )


def _parse(url: str) -> URL:
    """The URL, if it is one that can be fetched at all."""
    problem: Literal["too long", "not a URL", "not http"] | None = None
    parsed: URL | None = None
    url = url.strip()
    if len(url) > MAX_URL:
        problem = "too long"
    elif any(c <= " " or c == "\x7f" for c in url):
        problem = "not a URL"
    else:
        try:
            parsed = URL(url).with_fragment(None)
        except (ValueError, TypeError):
            problem = "not a URL"
    if parsed is None or problem is not None:
        raise NetError("url_invalid", f"This is {problem}: {_short(url)}.", status=400)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        message = f"Only http:// and https:// URLs can be fetched, not {_short(url)}."
        raise NetError("url_invalid", message, status=400)
    if parsed.port in _BAD_PORTS:
        raise NetError("url_invalid", f"Port {parsed.port} is no web server's.", status=400)
    if parsed.user is not None or parsed.password is not None:
        raise NetError("url_invalid", "A URL must not carry a user name or password.", status=400)
    return parsed


def _location(url: URL, response: aiohttp.ClientResponse) -> URL:
    location = response.headers.get("Location", "")
    try:
        return url.join(URL(location))
    except ValueError:
        raise NetError("fetch_failed", f"{_short(url)} redirects to no valid URL.") from None


def _address(text: str) -> Address | None:
    try:
        # A zone ("fe80::1%eth0") says nothing of whether the address is public.
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _short(url: Any) -> str:
    text = str(url)
    return text if len(text) <= 200 else text[:200] + "…"

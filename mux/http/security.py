"""Who may call: Host allow-list, Origin, Sec-Fetch-Site, CORS (DESIGN section 12).

The server listens on loopback, where every web page that the user has open can send it requests:

- the Host check stops DNS rebinding (a page of evil.example that resolves to 127.0.0.1);
- the Origin check stops other sites' scripts and forms;
- Sec-Fetch-Site stops what sends no Origin: images, links and navigation to the GET that starts runs.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from mux.errors import BadRequest
from mux.http.routes import Route
from mux.http.state import SITE
from mux.settings import Settings

__all__ = ["add_headers", "check", "from_trusted_proxy", "host_of", "scheme_of"]

_ALLOW_HEADERS = "Accept, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, Authorization, X-Api-Key"
_OWN_ADDRESSES = ("Location", "Mux-Cancel")  # as handlers know them, without the base path
_EXPOSE_HEADERS = "Location, Retry-After, Preference-Applied, Idempotency-Replayed, Mux-Run"


def check(request: web.Request) -> web.Response | None:
    """Refuse requests that neither the user nor an allowed origin meant; preflights are answered here.

    Raises:
        BadRequest: ``host_invalid``, ``host_forbidden``, ``origin_forbidden``, ``cross_site``.
    """
    settings = request.app[SITE].settings
    _check_host(request, settings, request.app[SITE].extra_hosts)
    origin = request.headers.get("Origin")
    if origin is not None and not _origin_allowed(request, origin, settings):
        raise BadRequest(
            "origin_forbidden",
            f"Pages of {origin[:200]} may not call this server (http.allowed_origins).",
            status=403,
        )
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return web.Response(status=204)
    route: Route | None = getattr(request.match_info.handler, "route", None)
    if route is not None and route.starts and request.method == "GET" and _is_embedded(request):
        raise BadRequest(
            "cross_site",
            "A page embedded this address, which would start a run. Open it yourself, or read it as an event "
            "stream (Accept: text/event-stream).",
            status=403,
        )
    changes = request.method not in ("GET", "HEAD", "OPTIONS") or (route is not None and route.starts)
    site = request.headers.get("Sec-Fetch-Site", "none")
    if changes and origin is None and site not in ("same-origin", "none"):
        raise BadRequest(
            "cross_site",
            "Another site sent this request, and it would start or change something. Open it yourself, "
            "or call it from a page of this server.",
            status=403,
        )
    return None


def _is_embedded(request: web.Request) -> bool:
    """Whether a browser asks for this as a picture, script or frame. Over plain HTTP to another name than
    localhost browsers send no Sec-Fetch-Site: then only an event stream is what it says."""
    headers = request.headers
    if "Sec-Fetch-Site" in headers or "text/event-stream" in headers.get("Accept", ""):
        return False
    return "mozilla/" in headers.get("User-Agent", "").lower()


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every response (a signal, because streams send theirs before the handler returns)."""
    headers = response.headers
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers["Server"] = "Mux"  # and no versions
    origin = request.headers.get("Origin")
    settings = request.app[SITE].settings
    for name in _OWN_ADDRESSES:
        if settings.base_path and headers.get(name, "").startswith("/api/"):
            headers[name] = settings.base_path + headers[name]
    if settings.http.allowed_origins:
        headers["Vary"] = ", ".join(filter(None, (headers.get("Vary"), "Origin")))
    if origin is None or not _listed(origin, settings):
        headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        return
    headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Expose-Headers"] = _EXPOSE_HEADERS
    headers.setdefault("Cross-Origin-Resource-Policy", "cross-origin")
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = "GET, POST, PATCH, DELETE"
        headers["Access-Control-Allow-Headers"] = _ALLOW_HEADERS
        headers["Access-Control-Max-Age"] = "600"


def _check_host(request: web.Request, settings: Settings, extra: tuple[str, ...]) -> None:
    hosts = _hosts(request, settings)
    name = _host_name(hosts[0]) if len(hosts) == 1 else None
    if name is None:
        raise BadRequest("host_invalid", "The request needs exactly one valid Host header.")
    allowed = {_plain(h) for h in (*settings.http.allowed_hosts, settings.host, *extra)}
    if name not in allowed:
        raise BadRequest(
            "host_forbidden",
            f"This server does not answer for the host {name[:200]!r} (http.allowed_hosts).",
            status=403,
        )


def _hosts(request: web.Request, settings: Settings) -> list[str]:
    """The Host header; the one that the browser sent, where a trusted proxy says so."""
    forwarded = request.headers.getall("X-Forwarded-Host", [])
    if forwarded and from_trusted_proxy(request, settings):
        return forwarded
    return request.headers.getall("Host", [])


def host_of(request: web.Request) -> str:
    """The host, with its port, that the caller knows this server by."""
    return next(iter(_hosts(request, request.app[SITE].settings)), "")


def scheme_of(request: web.Request) -> str:
    """``https`` where the browser came by that, as a trusted proxy says."""
    settings = request.app[SITE].settings
    forwarded = request.headers.get("X-Forwarded-Proto", "").lower()
    if forwarded in ("http", "https") and from_trusted_proxy(request, settings):
        return forwarded
    return request.scheme


def from_trusted_proxy(request: web.Request, settings: Settings) -> bool:
    """Whether the peer is one of ``access.trusted_proxies``."""
    try:
        peer = ipaddress.ip_address((request.remote or "").partition("%")[0])
    except ValueError:  # a socket file, or it is gone
        return False
    peer = getattr(peer, "ipv4_mapped", None) or peer
    return any(peer in network for network in settings.access.trusted_proxies)


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; ``None`` if it is no such header."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.port is not None and not 0 <= parts.port <= 65535:
            return None
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or not parts.hostname:
        return None
    return _plain(parts.hostname)


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _origin_allowed(request: web.Request, origin: str, settings: Settings) -> bool:
    own = host_of(request).lower()
    return origin.lower() in (f"http://{own}", f"https://{own}") or _listed(origin, settings)


def _listed(origin: str, settings: Settings) -> bool:
    return origin.lower().rstrip("/") in {o.lower().rstrip("/") for o in settings.http.allowed_origins}

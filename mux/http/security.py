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

from mux.errors import BadRequest, ConfigError
from mux.http.routes import Route
from mux.http.state import API
from mux.settings import Settings

__all__ = ["add_headers", "check", "check_address"]

_ALLOW_HEADERS = "Accept, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, Authorization"
_EXPOSE_HEADERS = "Location, Retry-After, Preference-Applied, Idempotency-Replayed, Mux-Run"


def check_address(settings: Settings) -> None:
    """Refuse to listen anywhere but on loopback: there are no API keys yet.

    Raises:
        ConfigError: ``address_not_loopback``.
    """
    host = settings.host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise ConfigError(
            "address_not_loopback",
            f"{host} is reachable from other machines, and this version has no API keys. "
            "Listen on 127.0.0.1, and use a tunnel (ssh -L) to reach it from elsewhere.",
        )


def check(request: web.Request) -> web.Response | None:
    """Refuse requests that neither the user nor an allowed origin meant; preflights are answered here.

    Raises:
        BadRequest: ``host_invalid``, ``host_forbidden``, ``origin_forbidden``, ``cross_site``.
    """
    settings = request.app[API].settings
    _check_host(request, settings, request.app[API].extra_hosts)
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
    settings = request.app[API].settings
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
    hosts = request.headers.getall("Host", [])
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
    own = request.headers.get("Host", "").lower()
    return origin.lower() in (f"http://{own}", f"https://{own}") or _listed(origin, settings)


def _listed(origin: str, settings: Settings) -> bool:
    return origin.lower().rstrip("/") in {o.lower().rstrip("/") for o in settings.http.allowed_origins}

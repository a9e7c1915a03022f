"""The dashboard's files: confined to their folder, typed, revalidated by ETag, under a strict CSP.

There is no build step: what is served is what is in the folder (DASHBOARD section 2).
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from mux.errors import NotFound
from mux.http.routes import QUERY

__all__ = ["Pages", "content_security_policy"]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".wasm": "application/wasm",
}  # a table of our own: the system's differs between machines, and a script without its type does not run
_COMPRESSED = ("text/", "application/json", "image/svg+xml")
_IMPORT_MAP = re.compile(rb"<script[^>]*\btype=[\"']?importmap[\"']?[^>]*>(.*?)</script>", re.DOTALL | re.I)
_MAX_CACHED = 256
_HIDDEN = re.compile(r"(^|/)(\.|node_modules(/|$)|tests?(/|$)|package(-lock)?\.json$|tsconfig)")


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int]
    kind: str
    body: bytes
    zipped: bytes | None
    etag: str
    policy: str | None


def content_security_policy(page: bytes) -> str:
    """The policy of a page; its inline import map is allowed by the hash of what is served."""
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(m[1]).digest()).decode()}'"
        for m in _IMPORT_MAP.finditer(page)
    )
    return (
        f"default-src 'none'; script-src 'self'{hashes}; font-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; require-trusted-types-for 'script'; "
        "trusted-types 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )


async def _with_slash(request: web.Request) -> web.StreamResponse:
    raise web.HTTPPermanentRedirect(f"{request.path}/")  # what the page names is relative to its folder


class Pages:
    """Serves one folder.

    Args:
        root: the folder; nothing outside it is ever served, whatever links lie in it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._cache: OrderedDict[str, _File] = OrderedDict()

    def add_to(self, app: web.Application, *, base: str = "") -> None:
        """Register ``/`` and what lies at the top of the folder, below a path; all other paths stay free for
        the API."""
        if base:
            app.router.add_route("GET", base, _with_slash)
        self._add(app, f"{base}/", "index.html")
        self._add(app, f"{base}/shared", "index.html")  # of somebody who has a link to one run
        if not self._root.is_dir():
            return
        for entry in sorted(self._root.iterdir()):
            name = entry.name
            if _HIDDEN.search(name):
                continue
            if entry.is_dir():
                self._add(app, f"{base}/{name}/{{rest:.*}}", f"{name}/")
            elif name != "index.html":
                self._add(app, f"{base}/{name}", name)
                if entry.suffix == ".html":
                    self._add(app, f"{base}/{entry.stem}", name)

    def _add(self, app: web.Application, path: str, target: str) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            request[QUERY] = {}
            return await self.serve(request, target + request.match_info.get("rest", ""))

        app.router.add_route("GET", path, handle)
        app.router.add_route("HEAD", path, handle)

    async def serve(self, request: web.Request, name: str) -> web.StreamResponse:
        """One file.

        Raises:
            NotFound: ``page_not_found``: it is not there, or not in the folder.
        """
        file = await asyncio.to_thread(self._load, name)
        headers = {"ETag": file.etag, "Vary": "Accept-Encoding"}
        # Paths under vendor/ name the version: such a file never changes.
        fixed = re.match(r"vendor/[^/]+/\d", name) is not None
        headers["Cache-Control"] = "public, max-age=31536000, immutable" if fixed else "no-cache"
        if file.policy is not None:
            headers["Content-Security-Policy"] = file.policy
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
        if file.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = file.kind
        body = file.body
        if file.zipped is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            body = file.zipped
        return web.Response(body=body, headers=headers)

    def _load(self, name: str) -> _File:
        try:
            path = self._confined(name)
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            cached = self._cache.get(name)
            if cached is not None and cached.stamp == stamp:
                return cached
            body = path.read_bytes()
        except OSError:
            raise NotFound("page_not_found", f"There is no page {name[:200]!r}.") from None
        kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
        zipped = gzip.compress(body, 6, mtime=0) if kind.startswith(_COMPRESSED) and len(body) > 512 else None
        policy = content_security_policy(body) if path.suffix == ".html" else None
        etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        file = self._cache[name] = _File(stamp, kind, body, zipped, etag, policy)
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return file

    def _confined(self, name: str) -> Path:
        """The file's real path, if it lies in the folder (``..``, absolute names and links out do not)."""
        if "\0" not in name and not _HIDDEN.search(name) and not name.startswith("/"):
            path = (self._root / name).resolve()
            if path.is_relative_to(self._root) and path.is_file():
                return path
        raise NotFound("page_not_found", f"There is no page {name[:200]!r}.")

"""The route table: each route is declared once, with its parameters and models.

The table registers the handlers, checks and converts the parameters, and makes ``/openapi.json``. So what is
documented is what is accepted.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

from mux.errors import BadRequest
from mux.http.bodies import read_model
from mux.http.keys import Scope
from mux.http.problems import problem

__all__ = ["BODY", "QUERY", "ROUTE", "Answer", "Handler", "Param", "Route", "add_routes", "query"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Kind = Literal["string", "integer", "number", "boolean"]

QUERY: web.RequestKey[Any] = web.RequestKey("query", object)
BODY: web.RequestKey[Any] = web.RequestKey("body", object)
ROUTE: web.RequestKey[Any] = web.RequestKey("route", object)


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter.

    Attributes:
        place: in the query, the path or a header.
        many: may be repeated, and holds names joined by commas; converted to a list.
        prefix: the name is a prefix (``metadata.``), converted to a dict.
        schema: further members of its JSON Schema; ``minimum``, ``maximum`` and ``enum`` are enforced.
    """

    name: str
    about: str
    kind: Kind = "string"
    place: Literal["query", "path", "header"] = "query"
    required: bool = False
    many: bool = False
    prefix: bool = False
    schema: Mapping[str, Any] = field(default_factory=dict)


_OWNER = Param("owner", "with the scope `admin`: as this owner sees it")
_TICKET = Param("ticket", "in place of a key: what `POST /api/tickets` gave, once")


@dataclass(frozen=True, slots=True)
class Answer:
    """One response of a route: its meaning, and its model or media types.

    Attributes:
        item: the model of one frame of a stream that does not carry our events.
    """

    about: str
    model: type[BaseModel] | None = None
    media: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    item: type[BaseModel] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        errors: statuses that it answers with a problem document, besides those of every route (400, 403,
            500) and of every JSON body (408, 413, 415).
        starts: a GET that changes state: guarded like one (Origin, Sec-Fetch-Site).
        empty_body: the body may be left out.
        stream: the answer never ends by itself: no HEAD.
        raw_body: media type of a body that the handler reads itself.
        error_form: the model of its errors, where they are no problem documents.
        scope: what a caller needs; by default ``read``, and ``run`` where it changes something.
        shared: a link to the run shows it, too.
    """

    method: str
    path: str
    handler: Handler
    about: str
    tag: str
    params: Sequence[Param] = ()
    body: type[BaseModel] | None = None
    answers: Mapping[int, Answer] = field(default_factory=dict)
    errors: Sequence[int] = ()
    starts: bool = False
    empty_body: bool = False
    stream: bool = False
    raw_body: str | None = None
    error_form: type[BaseModel] | None = None
    scope: Scope | Literal["public"] | None = None
    shared: bool = False

    @property
    def needs(self) -> Scope | Literal["public"]:
        """What a caller needs: nothing, or a scope."""
        return self.scope or ("run" if self.changes_state else "read")

    @property
    def takes_ticket(self) -> bool:
        """Whether a ticket stands for a key: EventSource can send no header."""
        return self.stream and self.method == "GET" and self.needs != "admin"

    @property
    def all_params(self) -> tuple[Param, ...]:
        """Its parameters, and those that say who asks."""
        whose = (_OWNER,) if self.needs == "read" else ()
        return (*self.params, *whose, *((_TICKET,) if self.takes_ticket else ()))

    @property
    def changes_state(self) -> bool:
        """Whether a page of another site must not cause it."""
        return self.starts or self.method not in ("GET", "HEAD", "OPTIONS")


def add_routes(app: web.Application, table: Sequence[Route], *, base: str = "") -> None:
    """Register the whole table, below a path."""
    for route in table:
        bound = _bind(route)
        app.router.add_route(route.method, base + route.path, bound, expect_handler=_expect)
        if route.method == "GET" and not route.stream:
            app.router.add_route("HEAD", base + route.path, bound, expect_handler=_expect)


def query(request: web.Request, name: str, default: Any = None) -> Any:
    """A converted query parameter; the default where it was not given."""
    value = request[QUERY].get(name)
    return default if value is None else value


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """``Expect: 100-continue`` (RFC 9110, 10.1.1), before any middleware; aiohttp's own refuses in text."""
    if request.version < (1, 1):
        return None
    if request.headers["Expect"].lower() != "100-continue":
        return problem(417, "expectation_failed", "Expect can only be 100-continue here; leave it out.")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
    return None


def _bind(route: Route) -> Handler:
    params = [p for p in route.all_params if p.place == "query"]

    async def handle(request: web.Request) -> web.StreamResponse:
        request[ROUTE] = route
        request[QUERY] = _convert(request, params)
        if route.body is not None:
            request[BODY] = await read_model(request, route.body, optional=route.empty_body)
        return await route.handler(request)

    handle.route = route  # type: ignore[attr-defined]  # the security middleware asks before the handler runs
    return handle


def _convert(request: web.Request, params: Sequence[Param]) -> dict[str, Any]:
    given = request.rel_url.query
    out: dict[str, Any] = {}
    exact = {p.name: p for p in params if not p.prefix}
    prefixes = [p for p in params if p.prefix]
    for name in dict.fromkeys(given):
        _check_text(name)
        param = exact.get(name)
        if param is None:
            prefix = next((p for p in prefixes if name.startswith(p.name) and len(name) > len(p.name)), None)
            if prefix is None:
                raise _unknown(name, [p.name for p in params])
            out.setdefault(prefix.name, {})[name[len(prefix.name) :]] = _one(prefix, given.getall(name)[-1])
        elif param.many:
            out[name] = [_one(param, text) for text in given.getall(name)]
        else:
            values = given.getall(name)
            if len(values) > 1:
                raise BadRequest("query_invalid", f"{name} is given {len(values)} times; give it once.")
            out[name] = _one(param, values[0])
    for param in params:
        if param.required and param.name not in out:
            raise BadRequest("query_invalid", f"The parameter {param.name} is missing: {param.about}.")
    return out


def _one(param: Param, text: str) -> Any:
    _check_text(text)
    value: Any = text
    if param.kind == "boolean":
        value = {"1": True, "true": True, "": True, "0": False, "false": False}.get(text.lower())
        if value is None:
            raise BadRequest("query_invalid", f"{param.name} has to be 1 or 0.")
    elif param.kind in ("integer", "number"):
        value = _number(param, text)
    choices = param.schema.get("enum")
    if choices and value not in choices:
        raise BadRequest("query_invalid", f"{param.name} has to be one of {', '.join(map(str, choices))}.")
    return value


def _number(param: Param, text: str) -> int | float:
    try:
        value = int(text) if param.kind == "integer" and len(text) <= 18 else float(text)
    except ValueError:
        raise BadRequest("query_invalid", f"{param.name} has to be a number, not {text[:40]!r}.") from None
    low, high = param.schema.get("minimum"), param.schema.get("maximum")
    if value != value or (low is not None and value < low) or (high is not None and value > high):
        raise BadRequest("query_invalid", f"{param.name} has to be between {low} and {high}.")
    return int(value) if param.kind == "integer" else value


def _check_text(text: str) -> None:
    """Text that can't be written as UTF-8 (broken percent-encoding) would fail much later."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("query_invalid", "The query is not valid UTF-8.") from None


def _unknown(name: str, known: Sequence[str]) -> BadRequest:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known) or 'none'}."
    return BadRequest("query_unknown", f"There is no parameter {name[:80]!r} here.{hint}")

"""Request bodies: lines, JSON with the place of an error, models with a field's path and the nearest name."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import json
import typing
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import pydantic_core
from aiohttp import web
from pydantic import BaseModel, ValidationError

from mux.errors import BadRequest

__all__ = ["problem_of_validation", "read_lines", "read_model"]

M = TypeVar("M", bound=BaseModel)
BODY_S = 60.0  # a body is on its way for so long at most: a client that stops in it must not be kept
_MAX_ERRORS = 10
_AT_ONCE = 64 << 10  # bytes that are parsed on the loop's thread: a millisecond
_HALVES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_OWN_CODES = frozenset({"message_empty"})  # types of errors that our models raise with a code of their own


async def read_model(request: web.Request, model: type[M], *, optional: bool = False) -> M:
    """The body as a model.

    Args:
        optional: an empty body stands for the model's defaults.

    Raises:
        BadRequest: ``body_type`` (415), ``body_missing``, ``body_broken``, ``body_slow`` (408),
            ``json_invalid`` or ``request_invalid``.
        HTTPRequestEntityTooLarge: the body is over the limit.
    """
    async with _arriving():
        data = await request.read()
    if not data.strip():
        if optional:
            return model()
        raise BadRequest("body_missing", "The request has no body; send a JSON object.")
    kind = request.content_type if "Content-Type" in request.headers else "application/json"
    if kind != "application/json" and not kind.endswith("+json"):
        raise BadRequest(
            "body_type", f"The body is {kind[:80]}; send it as Content-Type: application/json.", status=415
        )
    if len(data) <= _AT_ONCE:
        return _parse(data, model)
    return await asyncio.to_thread(_parse, data, model)


def _parse(data: bytes, model: type[M]) -> M:
    try:
        value = _from_json(data)
        json.dumps(value, allow_nan=False)  # 1e999 is read as infinity, which no JSON could give back
    except (ValueError, RecursionError) as e:
        raise BadRequest("json_invalid", f"The body is not JSON: {e}.") from None
    if not isinstance(value, dict):
        raise BadRequest("request_invalid", "The body has to be a JSON object.")
    try:
        return model.model_validate(value)
    except ValidationError as e:
        raise problem_of_validation(e, model) from None


def _from_json(data: bytes) -> Any:
    """A browser cuts text between the halves of an emoji and sends half of it: a replacement character."""
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError:
        if b"\\u" not in data:
            raise
        text = json.dumps(json.loads(data), ensure_ascii=False)
        return pydantic_core.from_json(text.translate(_HALVES), allow_inf_nan=False)


async def read_lines(request: web.Request, *, longest: int) -> AsyncIterator[bytes]:
    """The body's lines as they arrive, without the empty ones: such a body may be larger than others.

    Args:
        longest: bytes of one line.

    Raises:
        BadRequest: ``body_too_large`` (413), ``body_slow`` (408: nothing came for a minute), ``body_broken``.
    """
    begun: list[bytes] = []  # parts of a line: joined once, or a long one would be copied for each part
    size = 0
    while True:
        async with _arriving():
            data = await request.content.readany()
        first, *lines = data.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > longest:
            raise BadRequest("body_too_large", "A line of this file is longer than any event.", status=413)
        if lines or not data:
            lines.insert(0, b"".join(begun))
            begun = [lines.pop()] if data else []
            size = sum(map(len, begun))
            for line in lines:
                if line.strip():
                    yield line
        if not data:
            return


@contextlib.asynccontextmanager
async def _arriving() -> AsyncIterator[None]:
    """What is wrong with a body that is being read."""
    try:
        async with asyncio.timeout(BODY_S):
            yield
    except TimeoutError:
        raise BadRequest(
            "body_slow", f"The body did not arrive within {BODY_S:g} s; send it again.", status=408
        ) from None
    except web.RequestPayloadError:
        raise BadRequest(
            "body_broken", "The body is not what its headers say (encoding or length)."
        ) from None


def problem_of_validation(error: ValidationError, model: type[BaseModel]) -> BadRequest:
    """What is wrong, field by field, with the name that was probably meant."""
    found: list[dict[str, Any]] = []
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    for item in errors[:_MAX_ERRORS]:
        field = ".".join(str(p) for p in item["loc"])
        entry: dict[str, Any] = {"field": field, "message": item["msg"].removeprefix("Value error, ")}
        if item["type"] == "extra_forbidden":
            known = _known(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            entry["message"] = "unknown field" + (f"; did you mean {near[0]!r}?" if near else "")
            if near:
                entry["did_you_mean"] = near[0]
        found.append(entry)
    first = found[0]
    where = f"{first['field'][:200]}: " if first["field"] else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    code = errors[0]["type"]
    return BadRequest(
        code if code in _OWN_CODES else "request_invalid",
        f"{where}{first['message']}{more}",
        extra={"errors": found},
    )


def _known(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model at this place of the value."""
    here: list[type[BaseModel]] = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [
            m for one in here if part in one.model_fields for m in _models(one.model_fields[part].annotation)
        ]
        here = inner or here  # a part that names a member of a union stays where it is
    return sorted({name for one in here for name in one.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and typing.get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [m for arg in typing.get_args(annotation) for m in _models(arg)]

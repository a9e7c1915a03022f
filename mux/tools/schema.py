"""From a function's signature and docstring to a JSON Schema, and from raw arguments to valid ones."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import docstring_parser
import jsonschema
import jsonschema.validators
import referencing
import regex
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from mux.tools.base import ToolContext, ToolProblem

__all__ = ["Signature", "schema_validator", "signature_of"]

Validate = Callable[[dict[str, Any]], dict[str, Any]]
_PATTERN_S = 0.05
_MAX_PROBLEMS = 8  # what a model can mend in one go


class _PlainSchema(GenerateJsonSchema):
    """Without the titles that pydantic derives from names: they cost tokens and say nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Signature:
    """What was read off a tool function.

    Attributes:
        description: the docstring without its argument section.
        parameters: JSON Schema of the arguments.
        validate: raw arguments → the function's keyword arguments.
        context: name of the parameter that takes the :class:`ToolContext`, if there is one.
    """

    def __init__(
        self, description: str, parameters: dict[str, Any], validate: Validate, context: str | None
    ) -> None:
        self.description = description
        self.parameters = parameters
        self.validate = validate
        self.context = context


def signature_of(function: Callable[..., Any], parameters: Mapping[str, Any] | None = None) -> Signature:
    """Read a function's signature.

    Args:
        function: the tool function, fully annotated.
        parameters: a JSON Schema that replaces the one from the signature: it alone validates.

    Raises:
        TypeError: the signature can't be a tool's; the message says what to change.
    """
    name = getattr(function, "__name__", "tool")
    hints = _hints(function, name)
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    texts = {p.arg_name: (p.description or "").strip() for p in doc.params}
    context: str | None = None
    fields: dict[str, Any] = {}
    takes_any = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise TypeError(f"tool {name!r}: parameter {parameter.name!r} must be an ordinary one")
        hint = hints.get(parameter.name, Any)
        if _is_context(hint):
            context = parameter.name
            continue
        fields[parameter.name] = _field(parameter, hint, texts.get(parameter.name))
    description = _description(doc)
    if parameters is not None:
        schema = dict(parameters)
        missing = set(schema.get("properties", {})) - set(fields)
        if missing and not takes_any:
            raise TypeError(f"tool {name!r}: the function takes no {sorted(missing)}; add **kwargs to it")
        return Signature(description, schema, schema_validator(schema), context)
    if takes_any:
        raise TypeError(f"tool {name!r}: a function with **kwargs needs parameters=, a JSON Schema")
    schema, validate = _from_fields(name, fields)
    return Signature(description, schema, validate, context)


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as e:
        raise TypeError(f"tool {name!r}: an annotation can't be resolved ({e}); import it at run time") from e


def _is_context(hint: Any) -> bool:
    if hint is ToolContext:
        return True
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and ToolContext in typing.get_args(hint)


def _description(doc: docstring_parser.Docstring) -> str:
    parts = [doc.short_description or "", doc.long_description or ""]
    return "\n\n".join(p.strip() for p in parts if p.strip())


def _field(parameter: inspect.Parameter, hint: Any, text: str | None) -> tuple[Any, FieldInfo]:
    """A model field under the parameter's name as alias: the field's own name can't clash with pydantic's."""
    default = ... if parameter.default is parameter.empty else parameter.default
    if isinstance(default, FieldInfo):
        raise TypeError(f"parameter {parameter.name!r}: put Field(…) into Annotated[…], not into the default")
    has_text = any(
        isinstance(m, FieldInfo) and m.description is not None for m in getattr(hint, "__metadata__", ())
    )
    if text and not has_text:
        return hint, Field(default, alias=parameter.name, description=text)
    return hint, Field(default, alias=parameter.name)


def _from_fields(name: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], Validate]:
    names = {f"arg_{i}": alias for i, alias in enumerate(fields)}
    definitions: dict[str, Any] = {key: fields[alias] for key, alias in names.items()}
    try:
        model: type[BaseModel] = create_model(
            f"{name}_arguments", __config__=ConfigDict(extra="forbid"), **definitions
        )
        schema = model.model_json_schema(schema_generator=_PlainSchema)
    except PydanticUserError as e:
        raise TypeError(f"tool {name!r}: {_culprit(fields)}{e.message.splitlines()[0]}") from e
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
    for part in schema.get("properties", {}).values():
        if isinstance(value := part.get("default"), float) and not math.isfinite(value):
            del part["default"]  # JSON has no infinity, and providers refuse it
    schema.setdefault("properties", {})

    def validate(raw: dict[str, Any]) -> dict[str, Any]:
        try:
            valid = model.model_validate(raw)
        except ValidationError as e:
            raise ToolProblem(_explain(e, list(names.values())), "invalid_arguments") from None
        return {alias: getattr(valid, key) for key, alias in names.items()}

    return schema, validate


def _culprit(fields: Mapping[str, Any]) -> str:
    """Which parameter has a type that JSON can't describe, as the beginning of a sentence."""
    for alias, field in fields.items():
        try:
            create_model("one", arg=field).model_json_schema()
        except PydanticUserError:
            return f"parameter {alias!r} has no JSON Schema (use plain types, dataclasses, pydantic models): "
    return ""


def _explain(error: ValidationError, known: list[str]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False)[:_MAX_PROBLEMS]:
        where = ".".join(str(p) for p in problem["loc"]) or "(arguments)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: there is no such argument; known: {', '.join(known) or 'none'}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: is missing")
        else:
            lines.append(f"{where}: {problem['msg']}")
    return "Invalid arguments. " + "; ".join(lines) + ". Call the tool again with corrected arguments."


def schema_validator(schema: Mapping[str, Any]) -> Validate:
    """A validator of raw arguments against a given JSON Schema; its ``$ref`` may only point into itself.

    Raises:
        TypeError: the schema itself is not valid, or is not one of an object.
    """
    cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        cls.check_schema(dict(schema))
    except jsonschema.SchemaError as e:
        raise TypeError(f"not a JSON Schema: {e.message}") from e
    if schema.get("type", "object") != "object":
        raise TypeError("a tool's JSON Schema must be of type object")
    extend: Any = jsonschema.validators.extend  # untyped
    cls = extend(cls, {"pattern": _pattern, "patternProperties": _pattern_properties})
    # An explicit registry: the default one would fetch a "$ref" from the network.
    registry: Any = referencing.Registry()
    validator = cls(dict(schema), registry=registry)

    def validate(raw: dict[str, Any]) -> dict[str, Any]:
        try:
            problems = sorted(validator.iter_errors(raw), key=lambda e: [str(p) for p in e.absolute_path])
        except (referencing.exceptions.Unresolvable, RecursionError) as e:
            raise ToolProblem(f"The tool's own schema can't be used: {e}", "invalid_arguments") from e
        except jsonschema.ValidationError as e:
            raise ToolProblem(f"Invalid arguments. {e.message}.", "invalid_arguments") from None
        if problems:
            text = "; ".join(_problem(p) for p in problems[:_MAX_PROBLEMS])
            message = f"Invalid arguments. {text}. Call the tool again with corrected arguments."
            raise ToolProblem(message, "invalid_arguments")
        return dict(raw)

    return validate


def _matches(pattern: str, text: str) -> bool:
    """As the standard validator does it, but with a time limit: patterns come from others' servers, texts
    from models, and some pairs of them take for ever ((a+)+$).

    Raises:
        jsonschema.ValidationError: it takes too long.
    """
    try:
        return regex.search(pattern, text, timeout=_PATTERN_S) is not None
    except (TimeoutError, regex.error):
        raise jsonschema.ValidationError(f"the pattern {pattern[:80]!r} can't be checked") from None


def _pattern(
    validator: Any, pattern: str, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, part in patterns.items():
        for key, value in instance.items():
            if _matches(pattern, key):
                yield from validator.descend(value, part, path=key, schema_path=pattern)


def _problem(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(p) for p in error.absolute_path) or "(arguments)"
    message = error.message
    return f"{where}: {message if len(message) <= 300 else message[:300] + '…'}"

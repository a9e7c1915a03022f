"""JSON Schema of the logged events, from the same models that encode them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, create_model

from mux.events.bodies import BY_TYPE
from mux.events.envelope import Envelope


def logged_models() -> dict[str, type[BaseModel]]:
    """For every type the flat pydantic model of the logged event, envelope and body in one."""
    return {
        name: create_model(f"{body.__name__}Event", __base__=(body, Envelope), __doc__=body.__doc__)
        for name, body in BY_TYPE.items()
    }


def event_json_schema(ref_template: str = "#/$defs/{model}") -> dict[str, Any]:
    """JSON Schema of any logged event: a union discriminated by ``type``."""
    union: Any = None
    for model in logged_models().values():
        union = model if union is None else union | model
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[union, Field(discriminator="type")])
    return adapter.json_schema(ref_template=ref_template, mode="serialization")

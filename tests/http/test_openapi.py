"""The document describes what the server does: every route, parameter, event and error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from mux.events import BY_TYPE
from mux.http.app import ROUTES
from tests.support.api import call, finished_run, read
from tests.support.service import running


@pytest.fixture
async def document(url: str) -> dict[str, Any]:
    status, document, _ = await call("GET", f"{url}/openapi.json")
    assert status == 200
    assert isinstance(document, dict)
    return document


async def test_every_route_is_described_once(document: dict[str, Any]) -> None:
    described = {(m.upper(), p) for p, item in document["paths"].items() for m in item}
    assert described == {(r.method, r.path) for r in ROUTES}
    ids = [o["operationId"] for item in document["paths"].values() for o in item.values()]
    assert len(ids) == len(set(ids))


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for ref in _refs(document):
        assert ref.removeprefix("#/components/schemas/") in schemas, ref
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name


def _refs(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [r for v in value.values() for r in _refs(v)]
    return [r for v in value for r in _refs(v)] if isinstance(value, list) else []


async def test_path_parameters_are_those_of_the_path(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}, path


async def test_every_event_type_is_described_and_real_streams_fit(url: str, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    types = {
        s["properties"]["type"].get("const")
        for n, s in schemas.items()
        if n.endswith("Event") and n != "Event"
    }
    assert types == set(BY_TYPE)
    run = (await finished_run(url, "counter", "analyst", message="6"))["run"]
    item = {"$ref": "#/components/schemas/StreamItem", "components": document["components"]}
    check = jsonschema.Draft202012Validator(item)
    for query in ("", "?compact=1"):
        for block in await read(f"{url}/api/runs/{run}/events{query}"):
            check.validate(block.data)


async def test_answers_fit_their_schemas(url: str, document: dict[str, Any]) -> None:
    run = (await finished_run(url))["run"]
    for path in (
        "/api/runs",
        f"/api/runs/{run}",
        "/api/agents",
        "/api/models",
        "/api/viewers",
        "/healthz",
        "/readyz",
    ):
        status, answer, _ = await call("GET", url + path)
        described = document["paths"][path.replace(run, "{run}")]["get"]["responses"][str(status)]
        schema = described["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer)
    problem = (await call("GET", f"{url}/api/runs/nope"))[1]
    reference = {"$ref": "#/components/schemas/Problem", "components": document["components"]}
    jsonschema.Draft202012Validator(reference).validate(problem)
    assert json.dumps(document)


async def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


async def test_every_error_has_its_form(document: dict[str, Any]) -> None:
    """Problem documents, and OpenAI's form under ``/v1``; each operation says so for 400 and 500 at least."""
    forms = {"/v1/": ("application/json", "OpenAIError"), "": ("application/problem+json", "Problem")}
    for path, item in document["paths"].items():
        media, model = next(form for prefix, form in forms.items() if path.startswith(prefix))
        for operation in item.values():
            errors = {s: a for s, a in operation["responses"].items() if int(s) >= 400 and path != "/readyz"}
            assert path == "/readyz" or {"400", "500"} <= set(errors)
            for answer in errors.values():
                assert answer["content"][media]["schema"] == {"$ref": f"#/components/schemas/{model}"}, path


async def test_agents_that_read_documents_say_which_folders(no_leaks: None, tmp_path: Path) -> None:
    for roots, shown in (([], "Mux's manual"), ([str(tmp_path)], str(tmp_path))):
        async with running(documents={"roots": roots}) as url:
            _, body, _ = await call("GET", f"{url}/api/agents")
            agents = {a["name"]: a for a in body["agents"]}
        assert agents["researcher"]["documents"] == [shown]
        assert "documents" not in agents["assistant"]

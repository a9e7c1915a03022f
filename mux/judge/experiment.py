"""What an experiment asks for, and the files that it is read from: YAML in our form or promptfoo's."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mux.errors import BadRequest
from mux.files import json_lines, read_text

__all__ = ["CHECKS", "Case", "Check", "CheckStatus", "Experiment", "Judge", "Lane", "read_experiment"]

CheckStatus = Literal["pass", "fail", "error"]
MAX_CASES = 10_000
MAX_BYTES = 64 << 20
CHECKS = {
    "equals": "equals", "contains": "contains", "icontains": "icontains", "contains-all": "contains-all",
    "contains-any": "contains-any", "starts-with": "starts-with", "regex": "regex", "json": "is-json",
    "is-json": "is-json", "contains-json": "contains-json", "python": "python", "calls": "calls",
    "max_cost": "cost", "cost": "cost", "max_seconds": "max_seconds", "latency": "latency",
    "max_ttft": "max_ttft", "rubric": "llm-rubric", "llm-rubric": "llm-rubric",
}  # fmt: skip
"""The names of checks, ours and promptfoo's, and the one that each is known by here."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Part):
    """One thing that an answer must fulfil. ``threshold`` is money, ms or a score, by type."""

    type: str
    value: Any = None
    threshold: float | None = None
    weight: float = Field(default=1.0, ge=0)

    @property
    def negated(self) -> bool:
        return self.type.startswith("not-")

    @property
    def name(self) -> str:
        """The type's one name, without ``not-``."""
        return CHECKS[self.type.removeprefix("not-")]


class Lane(_Part):
    """Who answers: a channel of ``POST /api/runs``."""

    id: str = Field(pattern=r"^[A-Za-z0-9._~-]{1,64}$")
    agent: str = "assistant"
    model: str | None = None
    instructions: str | None = None
    params: dict[str, Any] | None = None
    tools: list[str] | None = None


class Judge(_Part):
    """The agent that judges rubrics and, with ``pairwise``, compares each two lanes of a case."""

    agent: str = "critic"
    model: str | None = None
    criteria: tuple[str, ...] = ()
    pairwise: bool = False


class Case(_Part):
    """One filled prompt and what its answers must fulfil."""

    id: int
    prompt: str
    description: str = ""
    checks: tuple[Check, ...] = ()


class Experiment(_Part):
    """Everything that runs: each case in each lane, ``repeat`` times."""

    lanes: tuple[Lane, ...] = Field(min_length=1, max_length=64)
    cases: tuple[Case, ...] = Field(min_length=1, max_length=MAX_CASES)
    judge: Judge | None = None
    repeat: int = Field(default=1, ge=1, le=100)

    @property
    def digest(self) -> str:
        """Names the content: the same experiment has the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def read_experiment(path: Path) -> Experiment:
    """Read a file; other files that it names (``file://``) lie beside it.

    Raises:
        BadRequest: ``experiment_invalid``; ``experiment_unsupported`` names everything that can't be used.
    """
    try:
        document = _yaml(path, read_text(path, MAX_BYTES))
        if isinstance(document, dict):
            return _Reader(path.parent).read(document)
    except ValueError as e:
        raise _invalid(str(e)) from None
    raise _invalid(f"{path} has to be a mapping with prompts and lanes.")


def _invalid(message: str) -> BadRequest:
    return BadRequest("experiment_invalid", message)


def _yaml(path: Path, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(f"{path} is no YAML: {str(e)[:300]}") from None


_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][\w.-]*)\s*\}\}")
_KNOWN = {
    "prompts",
    "lanes",
    "providers",
    "tests",
    "defaultTest",
    "judge",
    "repeat",
    "description",
    "$schema",
}
_TEST = {"vars", "assert", "description"}
_PROVIDER = re.compile(r"(?:(openai):(?:chat|responses):|(ollama):(?:chat|completion):)?(\S+:\S+|\S+)")


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unsupported: list[str] = []

    def read(self, document: Mapping[str, Any]) -> Experiment:
        self._only(document, _KNOWN, "the file")
        prompts = [self._file(p, f"prompts[{n}]") for n, p in enumerate(_listed(document.get("prompts")))]
        if not prompts:
            raise _invalid("The file has no prompts.")
        default = document.get("defaultTest") or {}
        if not isinstance(default, dict):
            raise _invalid("defaultTest has to be a mapping.")
        self._only(default, _TEST, "defaultTest")
        tests = self._tests(document.get("tests"))
        for n, test in enumerate(tests):
            self._only(test, _TEST, f"tests[{n}]")
        lanes = [self._lane(lane, n) for n, lane in enumerate(_listed(document.get("lanes")))]
        lanes += [self._provider(p, n) for n, p in enumerate(_listed(document.get("providers")))]
        if len({lane["id"] for lane in lanes}) != len(lanes):
            raise _invalid("Two lanes have the same id; give each its own.")
        checks = [self._checks(test, default, n) for n, test in enumerate(tests)]
        if self._unsupported:
            raise BadRequest(
                "experiment_unsupported",
                "Nothing was started. Not supported here: " + "; ".join(dict.fromkeys(self._unsupported)),
            )
        if len(prompts) * len(tests) > MAX_CASES:
            raise _invalid(f"That makes {len(prompts) * len(tests)} cases; {MAX_CASES} are the most.")
        cases = [
            {
                "id": t * len(prompts) + p + 1,
                "prompt": _fill(prompt, {**(default.get("vars") or {}), **(test.get("vars") or {})}, t),
                "description": str(test.get("description") or ""),
                "checks": checks[t],
            }
            for t, test in enumerate(tests)
            for p, prompt in enumerate(prompts)
        ]
        try:
            return Experiment.model_validate(
                {"lanes": lanes, "cases": cases, "judge": document.get("judge"),
                 "repeat": document.get("repeat", 1)}
            )  # fmt: skip
        except ValidationError as e:
            first = e.errors()[0]
            raise _invalid(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None

    def _only(self, value: Mapping[str, Any], known: set[str], where: str) -> None:
        self._unsupported += [f"{key!r} in {where}" for key in value if key not in known]

    def _file(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            self._unsupported.append(f"{where}, which is no text")
            return ""
        if not value.startswith("file://"):
            return value
        return read_text(self._folder / value.removeprefix("file://"), MAX_BYTES)

    def _lane(self, lane: Any, n: int) -> dict[str, Any]:
        if not isinstance(lane, dict):
            raise _invalid(f"lanes[{n}] has to be a mapping with an id and an agent.")
        return lane if "id" in lane else {"id": f"lane{n + 1}", **lane}

    def _provider(self, provider: Any, n: int) -> dict[str, Any]:
        known = provider if isinstance(provider, dict) else {"id": provider}
        self._only(known, {"id", "label", "config"}, f"providers[{n}]")
        match = _PROVIDER.fullmatch(str(known.get("id")))
        if match is None or str(known.get("id")).startswith(("file:", "http", "exec:", "python:")):
            self._unsupported.append(f"providers[{n}] {known.get('id')!r}")
            return {"id": f"lane{n + 1}"}
        name = match[1] or match[2]
        model = f"{name}:{match[3]}" if name else match[3]
        label = re.sub(r"[^A-Za-z0-9._~-]+", "-", str(known.get("label") or model))[:64]
        return {"id": label, "model": model, "params": known.get("config")}

    def _tests(self, tests: Any) -> list[dict[str, Any]]:
        if isinstance(tests, str):
            path = self._folder / tests.removeprefix("file://")
            return _rows(path, self)
        found = _listed(tests) or [{}]
        if not all(isinstance(test, dict) for test in found):
            raise _invalid("tests has to be a list of mappings, or the name of a CSV, JSONL or YAML file.")
        return list(found)

    def _checks(self, test: Mapping[str, Any], default: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
        found = []
        for given in [*_listed(default.get("assert")), *_listed(test.get("assert"))]:
            item = given
            if not isinstance(item, dict) or not isinstance(item.get("type"), str):
                raise _invalid(f"tests[{n}].assert: each has to be a mapping with a type.")
            kind = item["type"]
            if kind.removeprefix("not-") not in CHECKS:
                self._unsupported.append(f"assertion type {kind!r}")
            self._only(item, set(Check.model_fields), f"assertion {kind!r}")
            value = item.get("value")
            if isinstance(value, str) and value.startswith("file://"):
                item = {**item, "value": self._file(value, f"assertion {kind!r}")}
            if isinstance(item.get("value"), str) and kind.removeprefix("not-") != "python":
                item = {**item, "value": _fill(item["value"], test.get("vars") or {}, n)}
            found.append(item)
        return found

    def row(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """One line of a CSV file as a test: columns are variables, ``__expected`` is an assertion."""
        test: dict[str, Any] = {"vars": {}, "assert": []}
        for name, value in row.items():
            if name is None:
                raise _invalid(f"{where} has more cells than the first line has names.")
            if re.fullmatch(r"__expected\d*", name):
                if value:
                    test["assert"].append(_expected(value))
            elif name == "__description":
                test["description"] = value
            elif name.startswith("__"):
                self._unsupported.append(f"column {name!r}")
            else:
                test["vars"][name] = value or ""
        return test


def _expected(text: str) -> dict[str, Any]:
    kind, colon, value = text.partition(":")
    kind = kind.strip()
    if kind.removeprefix("not-") in CHECKS:
        return {"type": kind, **({"value": value.strip()} if colon else {})}
    return {"type": "equals", "value": text}


def _rows(path: Path, reader: _Reader) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        tests = list(json_lines(path, MAX_BYTES))
        for n, test in tests:
            if not isinstance(test, dict):
                raise _invalid(f"{path}, line {n}: give an object.")
        return [test for _, test in tests]
    text = read_text(path, MAX_BYTES)
    if path.suffix == ".csv":
        try:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        except csv.Error as e:
            raise _invalid(f"{path}: {e}.") from None
        return [reader.row(row, f"{path}, row {n}") for n, row in enumerate(rows, 1)]
    if path.suffix in (".yaml", ".yml"):
        loaded = _yaml(path, text)
        if isinstance(loaded, list) and all(isinstance(t, dict) for t in loaded):
            return loaded
    raise _invalid(f"{path}: tests come from .csv, .jsonl or .yaml files (a list of mappings).")


def _listed(value: Any) -> Sequence[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _fill(text: str, variables: Mapping[str, Any], n: int) -> str:
    def value(match: re.Match[str]) -> str:
        found: Any = variables
        for part in match[1].split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise _invalid(f"tests[{n}] has no variable {match[1]!r}, which its prompt or check names.")
            found = found[part]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return _VARIABLE.sub(value, text)

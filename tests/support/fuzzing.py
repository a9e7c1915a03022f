"""Hooks of schemathesis: real names in most requests, so that it reaches more than the 404s.

Loaded by its command line (``SCHEMATHESIS_HOOKS``), in a process of its own. ``MUX_FUZZ_NAMES`` holds JSON:
what may stand for each path parameter.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import schemathesis

NAMES: dict[str, list[str]] = json.loads(os.environ.get("MUX_FUZZ_NAMES", "{}"))
AGENTS = ["counter", "analyst", "hold"]
CHANCE = random.Random(11)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Most requests name what exists."""
    for name, value in (case.path_parameters or {}).items():
        if NAMES.get(name) and CHANCE.random() < 0.7 and isinstance(value, str):
            case.path_parameters[name] = CHANCE.choice(NAMES[name])
    query = case.query or {}
    if "run" in query and CHANCE.random() < 0.7:
        query["run"] = [CHANCE.choice(NAMES["run"])]
    if "agents" in query and CHANCE.random() < 0.7:
        query["agents"] = [CHANCE.choice(AGENTS)]
    if isinstance(case.body, dict):
        _name_agents(case.body)


def _name_agents(body: dict[str, Any]) -> None:
    if isinstance(body.get("agents"), list) and CHANCE.random() < 0.7:
        body["agents"] = [CHANCE.choice(AGENTS)]
    for one in (body, *(c for c in body.get("channels") or () if isinstance(c, dict))):
        if isinstance(one.get("agent"), str) and CHANCE.random() < 0.7:
            one["agent"] = CHANCE.choice(AGENTS)
    # no ``counter`` here: it fails on most tasks, and a failed agent is a 502 of this protocol, as documented
    if isinstance(body.get("model"), str) and "messages" in body and CHANCE.random() < 0.7:
        body["model"] = "+".join(CHANCE.sample(["analyst", "nasty"], CHANCE.choice([1, 2])))


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """A body that is no JSON document."""
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value).encode()

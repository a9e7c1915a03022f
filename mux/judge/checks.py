"""Checks of one answer: what the channel's final snapshot says against what its case asks for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
import regex

from mux.judge.experiment import Check, CheckStatus

__all__ = ["Result", "check_answer"]

REGEX_S = 2.0
PYTHON_S = 10.0
_CHILD = """
import io, json, sys
order = json.load(sys.stdin)
code, scope = order["code"], {"output": order["output"], "context": {}}
if "def get_assert" in code:
    exec(code, scope)
    value = scope["get_assert"](order["output"], {})
elif "\\n" in code.strip() or code.strip().startswith("return "):
    lines = io.StringIO(code, None)  # at what Python takes for a line's end
    exec("def _check(output, context):\\n" + "".join("    " + line for line in lines), scope)
    value = scope["_check"](order["output"], {})
else:
    value = eval(code.strip(), scope)
sys.__stdout__.write("\\n" + json.dumps(value))
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a check; ``error``: it could not be decided, which is no verdict on the answer."""

    type: str
    status: CheckStatus
    reason: str
    score: float = 0.0
    weight: float = 1.0


class _Undecided(Exception):
    pass


async def check_answer(check: Check, channel: Mapping[str, Any]) -> Result:
    """Decide one check (but ``llm-rubric``, which needs a judge).

    Args:
        channel: the channel of the finished run's snapshot.
    """
    try:
        score, reason = await _score(check, channel)
    except _Undecided as e:
        return Result(check.type, "error", str(e), weight=check.weight)
    except Exception as e:  # noqa: BLE001 - the boundary around one check
        return Result(check.type, "error", f"{type(e).__name__}: {str(e)[:300]}", weight=check.weight)
    passed = (score > 0) != check.negated
    return Result(check.type, "pass" if passed else "fail", reason, float(passed), check.weight)


async def _score(check: Check, channel: Mapping[str, Any]) -> tuple[float, str]:
    text, value, name = str(channel.get("text") or ""), check.value, check.name
    if name in ("cost", "latency", "max_seconds", "max_ttft"):
        return _measure(check, channel)
    if name == "calls":
        return _calls(value, channel.get("tools") or [])
    if name == "python":
        return await _python(str(value), text, check.threshold)
    if name == "regex":
        try:
            found = await asyncio.to_thread(
                lambda: regex.search(str(value), text, timeout=REGEX_S, concurrent=True)
            )
        except TimeoutError:
            raise _Undecided(f"the pattern took longer than {REGEX_S:g} s") from None
        except regex.error as e:
            raise _Undecided(f"the pattern is none: {e}") from None
        return float(found is not None), f"/{value}/ " + ("matches" if found else "does not match")
    if name in ("is-json", "contains-json"):
        return await asyncio.to_thread(_json, name, value, text)
    return _words(name, value, text)


def _words(name: str, value: Any, text: str) -> tuple[float, str]:
    wanted = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if name == "contains-all" or name == "contains-any":
        if not isinstance(value, list):
            wanted = [v.strip() for v in str(value).split(",")]
        missing = [w for w in wanted if w not in text]
        good = not missing if name == "contains-all" else len(missing) < len(wanted)
        return float(good), f"missing: {', '.join(missing)}"[:300] if missing else "all are there"
    if name == "equals":
        if not isinstance(value, str):
            with contextlib.suppress(ValueError):
                return float(json.loads(text) == value), "compared as JSON"
        return float(text.strip() == wanted[0].strip()), f"expected {wanted[0][:200]!r}"
    if name == "icontains":
        return float(wanted[0].casefold() in text.casefold()), f"{wanted[0][:200]!r}, in any case"
    good = text.startswith(wanted[0]) if name == "starts-with" else wanted[0] in text
    return float(good), f"{name} {wanted[0][:200]!r}"


def _measure(check: Check, channel: Mapping[str, Any]) -> tuple[float, str]:
    bound = check.threshold if check.threshold is not None else check.value
    if bound is None:
        raise _Undecided("it has no threshold")
    measured = {
        "cost": (channel.get("usage") or {}).get("cost"),
        "latency": channel.get("duration_ms"),
        "max_seconds": channel["duration_ms"] / 1000 if channel.get("duration_ms") is not None else None,
        "max_ttft": channel.get("ttft_ms"),
    }[check.name]
    if measured is None:
        raise _Undecided("the run has no such figure (no price, or nothing was measured)")
    return float(measured <= float(bound)), f"{measured:g}, at most {float(bound):g}"


def _calls(value: Any, tools: list[dict[str, Any]]) -> tuple[float, str]:
    """``[name, …]`` or ``[{tool, arguments?, times?}, …]``, or ``{in_order: […]}``."""
    ordered = isinstance(value, dict) and "in_order" in value
    wanted = value["in_order"] if ordered else value
    wanted = [
        w if isinstance(w, dict) else {"tool": w} for w in (wanted if isinstance(wanted, list) else [wanted])
    ]
    made = [t["tool"] for t in tools]
    at = 0
    for want in wanted:
        hits = [
            n
            for n, t in enumerate(tools)
            if t["tool"] == want["tool"]
            and all((t.get("arguments") or {}).get(k) == v for k, v in (want.get("arguments") or {}).items())
            and (not ordered or n >= at)
        ]
        if not hits or ("times" in want and len(hits) != want["times"]):
            return 0.0, f"{want['tool']}: {len(hits)} such calls; called: {', '.join(made) or 'nothing'}"
        at = hits[0] + 1
    return 1.0, f"called: {', '.join(made)}"


def _json(name: str, schema: Any, text: str) -> tuple[float, str]:
    candidates = [text] if name == "is-json" else [text[i:] for i, c in enumerate(text) if c in "{["][:200]
    reason = "no JSON"
    for candidate in candidates:
        try:
            value = (
                json.loads(candidate) if name == "is-json" else json.JSONDecoder().raw_decode(candidate)[0]
            )
        except (ValueError, RecursionError):
            continue
        if schema is None:
            return 1.0, "JSON"
        shape = json.loads(schema) if isinstance(schema, str) else schema
        try:
            jsonschema.validate(value, shape)
        except jsonschema.ValidationError as e:
            reason = e.message[:300]
            continue
        return 1.0, "JSON by its schema"
    return 0.0, reason


async def _python(code: str, text: str, threshold: float | None) -> tuple[float, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    order = json.dumps({"code": code, "output": text}).encode()
    try:
        out, errors = await asyncio.wait_for(process.communicate(order), PYTHON_S)
    except TimeoutError:
        raise _Undecided(f"it took longer than {PYTHON_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise _Undecided((errors.decode(errors="replace").strip().splitlines() or ["it failed"])[-1][:300])
    value = json.loads(out.rpartition(b"\n")[2])
    reason = "its own decision"
    if isinstance(value, dict):
        reason = str(value.get("reason") or reason)[:300]
        value = value.get("pass", value.get("pass_", value.get("score")))
    if not isinstance(value, bool | int | float):
        raise _Undecided(f"it gave {value!r:.100}, not a truth value or a score")
    if isinstance(value, bool):
        return float(value), reason
    return float(value >= threshold if threshold is not None else value > 0), f"{reason} ({value:g})"

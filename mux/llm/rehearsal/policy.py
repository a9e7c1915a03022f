"""Decides the next turn: which tools to call with what, or what to answer.

The policy is a list of plain rules. It decides from the task and the tools' results alone, so the same
conversation always gets the same turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mux.llm.model import ToolSchema
from mux.llm.rehearsal import reading
from mux.llm.rehearsal.answers import answer
from mux.llm.rehearsal.arguments import fill
from mux.llm.rehearsal.situation import Result, Situation
from mux.llm.rehearsal.voices import claims

__all__ = ["Plan", "decide"]

_MAX_CALLS = 4  # in one turn
_MAX_ROUNDS = 5  # then it answers with what it has
_ENDED = frozenset({"completed", "refused", "failed", "cancelled", "timed_out", "budget_exceeded"})
_READERS = frozenset({"synthesizer", "critic"})  # agents that read the others, as this one does
_RAISES = "print('it raises', repr(error))"  # by which a program that was mended once is known
_COUNTABLE = ("count", "python", "program", "script", "average", "mean", "sum", "sort", "statistic", "code")


@dataclass(frozen=True, slots=True)
class Plan:
    """One turn: what is thought, said and called."""

    reasoning: str = ""
    text: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(slots=True)
class _Draft:
    """Calls with the reason for each, in the order thought of."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    def add(self, name: str, arguments: dict[str, Any], why: str = "") -> None:
        if len(self.calls) < _MAX_CALLS and (name, arguments) not in self.calls:
            self.calls.append((name, arguments))
            if why and why not in self.why:
                self.why.append(why)

    def plan(self, opening: str) -> Plan:
        return Plan(reasoning=" ".join([opening, *self.why]).strip(), calls=tuple(self.calls))


def decide(s: Situation) -> Plan:
    """The next turn."""
    if not s.results and reading.asks_for_secrets(s.task):
        return Plan(
            reasoning="This asks me to hand out secrets. I won't do that, and no tool is needed to say so.",
            refusal="I can't help with that: passwords, keys and other secrets are not mine to hand out."
            " (This is Mux's rehearsal model, not a language model, and it declines such requests by rule.)",
        )
    if s.tools and not s.results:
        return _begin(s)
    if s.results and s.rounds < _MAX_ROUNDS:
        further = _recover(s) or _follow_up(s)
        if further is not None:
            return further
    return Plan(reasoning=_looking_back(s), text=answer(s))


# --- the first turn ---------------------------------------------------------------------------------------


def _begin(s: Situation) -> Plan:
    draft = _Draft()
    for tool, rule in _RULES:
        if tool in s.tools:
            rule(s, draft)
    if not draft.calls:
        _best_unknown(s, draft)
    words = reading.keywords(s.task, 3)
    opening = f"The task is about {_listed(words)}." if words else "Let me see what the task needs."
    return draft.plan(opening)


def _delegate(s: Situation, draft: _Draft) -> None:
    for arguments in _delegations(s.tools["delegate"], s.task):
        draft.add("delegate", arguments, "I split it up and give each part to the agent whose work it is.")


def _delegations(tool: ToolSchema, task: str) -> list[dict[str, Any]]:
    """The parts of a task for the agents whose work they are: one searches, one calculates."""
    parts = reading.clauses(task)
    figures = [c for c in parts if reading.expressions(c) or reading.percentages(c)]
    rest = [c for c in parts if c not in figures]
    split = bool(figures and rest)
    work = {
        "researcher": ". ".join(rest) if split else task,
        "analyst": ". ".join(figures) if split else task,
    }
    if "tasks" in (tool.parameters.get("properties") or {}):
        return [{"tasks": [{"agent": a, "message": m} for a, m in work.items()]}]
    return [fill(tool, task, agent=a, message=m, task=m, prompt=m) for a, m in work.items()]


def _ask(s: Situation, draft: _Draft) -> None:
    if not draft.calls:
        arguments = fill(s.tools["ask_channels"], s.task)
        draft.add("ask_channels", arguments, "First I read what the other channels say.")


def _calculate(s: Situation, draft: _Draft) -> None:
    if reading.asks_for_an_error(s.task):
        draft.add("calculator", {"expression": "1 / 0"}, "An error is wanted: a division by zero gives one.")
    if reading.programs(s.task) and "run_python" in s.tools:
        return  # what stands in a program is its own to calculate
    for said, _ in reading.percentages(s.task):
        draft.add("calculator", {"expression": said}, "I give the calculator what was written.")
    for expression in reading.expressions(s.task):
        draft.add("calculator", {"expression": expression}, "There is arithmetic in it, so I calculate.")
    for expression in _claimed(s):
        draft.add("calculator", {"expression": expression}, "I check the figures that were handed to me.")


def _claimed(s: Situation) -> list[str]:
    """Arithmetic that other channels state the result of, not checked yet."""
    found = list(dict.fromkeys(e for v in s.voices for e in claims(v.text)))
    return [e for e in found if not _tried(s, "calculator", {"expression": e})][:3]


def _fetch(s: Situation, draft: _Draft) -> None:
    for url in reading.urls(s.task)[:2]:
        draft.add("fetch_url", fill(s.tools["fetch_url"], s.task, url=url), "A page is named, so I fetch it.")


def _read(s: Situation, draft: _Draft) -> None:
    for name in reading.document_names(s.task)[:2]:
        draft.add("read_doc", {"path": name}, "A document is named, so I open it.")
    if reading.asks_for_an_error(s.task) and "calculator" not in s.tools:
        draft.add("read_doc", {"path": "no-such-document.md"}, "An error is wanted: I open what can't exist.")


def _search(s: Situation, draft: _Draft) -> None:
    words = reading.keywords(s.task)
    if words:
        draft.add("search_docs", {"query": " ".join(words)}, f"I search the documents for {_listed(words)}.")
    elif not draft.calls and "list_docs" in s.tools:
        draft.add("list_docs", {}, "I look at which documents there are.")


def _search_web(s: Situation, draft: _Draft) -> None:
    words = reading.keywords(s.task)
    low = s.task.casefold()
    if words and any(w in low for w in ("web", "internet", "online", "news", "latest")):
        draft.add("web_search", {"query": " ".join(words)}, "This needs the web.")


def _program(s: Situation, draft: _Draft) -> None:
    low = s.task.casefold()
    values = reading.numbers(s.task)
    sums = [(said, code) for said, code in reading.percentages(s.task)]
    sums += [(e, e) for e in reading.expressions(s.task) if not any(c.isalpha() for c in e)]
    counted = any(w in low for w in _COUNTABLE)
    if programs := reading.programs(s.task):
        draft.add("run_python", {"code": programs[0]}, "There is a program in it, so I run that.")
    elif counted and len(values) > 2:
        code = _numbers_program(values)
        draft.add("run_python", {"code": code}, "A small program goes through the numbers.")
    elif sums:
        code = "".join(f"print({said!r}, '=', {code})\n" for said, code in sums)
        draft.add("run_python", {"code": code}, "A line of Python checks it on another way.")
    elif counted or not draft.calls:
        code = _numbers_program(values) if len(values) > 1 else _words_program(s.task)
        draft.add("run_python", {"code": code}, "A small program goes through the numbers or words.")


def _numbers_program(values: list[float]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:50])
    return (
        f"numbers = [{shown}]\n"
        "total = 0\n"
        "for n in numbers:\n"
        "    total = total + n\n"
        "    print('after', n, 'the sum is', total)\n"
        "print('count', len(numbers))\n"
        "print('sum', total)\n"
        "print('mean', total / len(numbers))\n"
        "print('smallest', min(numbers), 'largest', max(numbers))\n"
    )


def _words_program(task: str) -> str:
    return (
        f"text = {json.dumps(task[:600], ensure_ascii=False)}\n"
        "words = text.split()\n"
        "longest = ''\n"
        "for word in words:\n"
        "    if len(word) > len(longest):\n"
        "        longest = word\n"
        "print('words', len(words))\n"
        "print('letters', len(text))\n"
        "print('longest word', longest)\n"
    )


def _best_unknown(s: Situation, draft: _Draft) -> None:
    """Tools that no rule knows: the one whose name and description fit the task best."""
    words = {w.casefold() for w in reading.keywords(s.task, 20)}

    def fitness(tool: ToolSchema) -> int:
        about = f"{tool.name.replace('_', ' ')} {tool.description}".casefold()
        return sum(w in about for w in words)

    best = max(s.tools.values(), key=fitness)
    draft.add(best.name, fill(best, s.task), f"{best.name} is the tool that fits best.")


_RULES: tuple[tuple[str, Callable[[Situation, _Draft], None]], ...] = (
    ("delegate", _delegate),
    ("ask_channels", _ask),
    ("calculator", _calculate),
    ("fetch_url", _fetch),
    ("read_doc", _read),
    ("web_search", _search_web),
    ("search_docs", _search),
    ("run_python", _program),
)


# --- later turns ------------------------------------------------------------------------------------------


def _recover(s: Situation) -> Plan | None:
    """Calls that mend what failed in the last round, each tried once."""
    draft = _Draft()
    for result in s.last:
        if result.is_error:
            mended = _mended(s, result)
            if mended is not None and not _tried(s, *mended):
                draft.add(*mended)
    if not draft.calls:
        return None
    failed = next(r for r in s.last if r.is_error)
    return draft.plan(
        f"{failed.tool} refused that: {reading.first_sentence(failed.output, 120)} I try it another way."
    )


def _mended(s: Situation, result: Result) -> tuple[str, dict[str, Any]] | None:
    if result.tool == "calculator":
        said = result.argument("expression")
        rewritten = dict(reading.percentages(said)).get(said)
        if rewritten is None and said.replace(" ", "") == "1/0":
            rewritten = "1 / 1"
        return ("calculator", {"expression": rewritten}) if rewritten else None
    if result.tool == "read_doc" and "list_docs" in s.tools:
        return "list_docs", {}
    if result.tool == "fetch_url" and "search_docs" in s.tools:
        return "search_docs", {"query": " ".join(reading.keywords(s.task)) or "index"}
    if result.tool == "run_python" and _RAISES not in result.argument("code"):
        return "run_python", {"code": _reporting_its_error(result.argument("code"))}
    return None


def _reporting_its_error(code: str) -> str:
    """The program again, saying what it raises instead of failing of it."""
    body = "\n".join(f"    {line}" for line in code.splitlines() if line.strip())
    return f"try:\n{body}\nexcept Exception as error:\n    {_RAISES}\n"


def _tried(s: Situation, name: str, arguments: Mapping[str, Any]) -> bool:
    return any(r.tool == name and dict(r.arguments) == dict(arguments) for r in s.results)


def _follow_up(s: Situation) -> Plan | None:
    """What the results of the last round call for."""
    return _wait_for_others(s) or _check_claims(s) or _search_further(s)


def _wait_for_others(s: Situation) -> Plan | None:
    """Wait for channels that still work, but not for those that read others: they may wait for this one."""
    asked = s.of_tool("ask_channels")
    if not asked or any(r.arguments.get("wait") for r in asked):
        return None
    tool = s.tools.get("ask_channels")
    busy = [v.channel for v in s.voices if v.status not in _ENDED and v.agent not in _READERS]
    if not busy or tool is None or "wait" not in (tool.parameters.get("properties") or {}):
        return None
    return Plan(
        reasoning=f"{_listed(busy)} still {'works' if len(busy) == 1 else 'work'}. I wait for that.",
        calls=(("ask_channels", {"channels": busy, "wait": True}),),
    )


def _check_claims(s: Situation) -> Plan | None:
    if "calculator" not in s.tools or not (found := _claimed(s)):
        return None
    return Plan(
        reasoning="They state figures. I calculate them again before I believe them.",
        calls=tuple(("calculator", {"expression": e}) for e in found),
    )


def _search_further(s: Situation) -> Plan | None:
    """Reading the best hit, or searching again with fewer words."""
    for result in s.last:
        if result.tool != "search_docs" or result.is_error:
            continue
        found = reading.passages(result.output)
        words = reading.keywords(s.task)
        if not found:
            fewer = sorted(words, key=len)[-1:]
            arguments = {"query": " ".join(fewer)}
            if fewer and len(words) > 1 and not _tried(s, "search_docs", arguments):
                return Plan(
                    reasoning=f"Nothing fits all of that. I try again with {_listed(fewer)} alone.",
                    calls=(("search_docs", arguments),),
                )
            continue
        best = max(found, key=lambda p: sum(w.casefold() in p[3].casefold() for w in words))
        if "read_doc" in s.tools and not s.of_tool("read_doc"):
            return Plan(
                reasoning=f"The best passage is in {best[1] or best[2]}. I read that before I answer.",
                calls=(("read_doc", {"path": best[2] or str(best[0])}),),
            )
    return None


def _looking_back(s: Situation) -> str:
    if not s.results:
        return "I have no tools here, so I can only say what I see in the message itself."
    good = sum(not r.is_error for r in s.results)
    tools = _listed(list(dict.fromkeys(r.tool for r in s.results)))
    failed = len(s.results) - good
    tail = f" {failed} of the calls failed, and I say so." if failed else ""
    count = f"{good} usable result{'' if good == 1 else 's'}"
    return f"I have {count} from {tools}. Now the answer, with nothing but what they say.{tail}"


def _listed(words: list[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]

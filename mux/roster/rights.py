"""Which tools an agent file gives its agent, in the words of several coding assistants.

The rule of this module: what is not understood takes away, it never gives. Tools are given by ``tools`` (or
``allowed-tools``) alone; everything else that speaks of tools can only forbid:

- ``tools: {name: true | false}`` and ``tools: [name, "!name"]``;
- ``disallowedTools``, under any of its spellings;
- ``permission: {kind: allow | ask | deny}``, also by pattern: what is neither plainly allowed nor about
  something that there is none of here is taken away, ``ask`` too;
- ``permissionMode: plan`` and ``readonly: true``: no tools but those that only read.

Names may be patterns (``files_*``), and ``mcp__server__tool`` is this server's ``server_tool``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RIGHTS", "Rights", "normal", "rights_of"]

_GIVES = ("tools", "allowedtools")
_TAKES = ("disallowedtools", "deniedtools", "excludetools", "excludedtools", "disabledtools", "blockedtools",
          "forbiddentools")  # fmt: skip
_PERMISSIONS = ("permission", "permissions")
_MODES = ("permissionmode", "readonly")
RIGHTS = frozenset({*_GIVES, *_TAKES, *_PERMISSIONS, *_MODES})

# What other programs call what some of our tools do. Used to forbid only: the names give nothing.
_OURS: Mapping[str, tuple[str, ...]] = {
    "bash": ("run_python",), "shell": ("run_python",), "execute": ("run_python",),
    "terminal": ("run_python",),
    "runcommand": ("run_python",), "webfetch": ("fetch_url",), "fetch": ("fetch_url",),
    "websearch": ("web_search",), "search": ("web_search",), "read": ("read_doc",), "grep": ("search_docs",),
    "glob": ("list_docs",), "list": ("list_docs",), "ls": ("list_docs",), "task": ("delegate",),
    "agent": ("delegate",),
}  # fmt: skip
_READERS = ("calculator", "search_docs", "list_docs", "read_doc", "web_search", "ask_channels")
_FREE_MODES = frozenset({"default", "acceptedits", "bypasspermissions", "dontask", "auto", "none", "false"})
_ALL = "*"


@dataclass(frozen=True, slots=True)
class Rights:
    """What a file gives and takes.

    Attributes:
        given: names and patterns of tools that the agent may use.
        denied: names and patterns that it may not use, whatever is given.
        warnings: what was not understood and therefore taken away.
    """

    given: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def normal(key: str) -> str:
    """A key without its spelling: ``disallowed-tools`` and ``disallowedTools`` are one."""
    return key.replace("-", "").replace("_", "").lower()


def rights_of(front: Mapping[str, Any]) -> Rights:
    """The rights that a front matter describes."""
    given: list[str] | None = None
    denied: list[str] = []
    warnings: list[str] = []
    for key, value in front.items():
        kind = normal(key)
        if kind in _GIVES:
            gives, takes = _read_tools(key, value, warnings)
            given = gives if given is None else [name for name in given if name in gives]
            denied += takes
        elif kind in _TAKES:
            denied += _tools_taken_away(key, value, warnings)
        elif kind in _PERMISSIONS:
            denied += _forbidden(key, value, warnings)
        elif kind == "permissionmode" and normal(str(value)) not in _FREE_MODES:
            warnings.append(f"{key}: {value}: the agent has only tools that read")
            given = [name for name in given or _all_given_tools(front) if name in _READERS]
        elif kind == "readonly" and value not in (False, None):
            given = [name for name in given or _all_given_tools(front) if name in _READERS]
    return Rights(tuple(dict.fromkeys(given or ())), tuple(dict.fromkeys(denied)), tuple(warnings))


def _all_given_tools(front: Mapping[str, Any]) -> list[str]:
    return [n for k, v in front.items() if normal(k) in _GIVES for n in _read_tools(k, v, [])[0]]


def _read_tools(key: str, value: Any, warnings: list[str]) -> tuple[list[str], list[str]]:
    """What ``tools`` gives, and what it takes."""
    gives: list[str] = []
    takes: list[str] = []
    for name, allowed in _entries(value):
        if name.startswith(("!", "-")):
            takes += _ours(name[1:].strip())
        elif allowed is True:
            gives.append(_local(name))
        else:
            takes += _ours(name)
            if allowed is not False:
                warnings.append(f"{key}: {name}: {allowed!r} is not understood; the agent runs without it")
    return gives, takes


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Names with whether they are allowed, from a mapping, a list of both, or a string with commas."""
    if isinstance(value, Mapping):
        yield from ((str(name).strip(), allowed) for name, allowed in value.items())
    elif isinstance(value, str):
        yield from ((name, True) for name in _names(value))
    elif isinstance(value, list | tuple):
        for entry in value:
            if isinstance(entry, Mapping):
                yield from _entries(entry)
            elif str(entry).strip():
                yield str(entry).strip(), True


def _names(text: str) -> list[str]:
    """Names between commas; a comma in brackets parts none, as in ``Bash(git add, git commit), Read``."""
    names, depth, begin = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char in ",\n" and depth <= 0:
            names.append(text[begin:at])
            begin = at + 1
    names.append(text[begin:])
    return [name.strip().strip("\"'") for name in names if name.strip()]


def _tools_taken_away(key: str, value: Any, warnings: list[str]) -> list[str]:
    """What ``disallowedTools`` takes."""
    if value is None or value is False:
        return []
    if isinstance(value, Mapping):
        names = [str(name) for name, forbidden in value.items() if forbidden is not False]
    elif isinstance(value, str) and value[:1] not in ("[", "{", "&"):  # a list that does not end is no list
        names = [part for name in _names(value) for part in (name, *name.split())]
    elif isinstance(value, list | tuple):
        names = [str(name) for name in value]
    else:
        warnings.append(f"{key}: {value!r} is not understood; the agent runs without tools")
        return [_ALL]
    return [ours for name in names for ours in _ours(name.strip())]


def _forbidden(key: str, value: Any, warnings: list[str]) -> list[str]:
    """What ``permission`` takes: all that it does not plainly allow."""
    if value is None or _allows(value):
        return []
    if not isinstance(value, Mapping):
        warnings.append(f"{key}: {value!r} is not plainly 'allow'; the agent runs without tools")
        return [_ALL]
    denied: list[str] = []
    for kind, decision in value.items():
        if kind in ("deny", "ask"):  # lists of names, as in the settings of Claude Code
            denied += _tools_taken_away(f"{key}.{kind}", decision, warnings)
        elif kind == "allow" and not isinstance(decision, str):
            continue  # it can give nothing
        elif not _allows(decision):
            denied += _ours(str(kind))
            if decision not in ("deny", False):
                warnings.append(
                    f"{key}: {kind}: not plainly 'allow'; the agent runs without what it is about"
                )
    return denied


def _allows(decision: Any) -> bool:
    if isinstance(decision, Mapping):
        return all(_allows(part) for part in decision.values())
    return decision is True or (isinstance(decision, str) and decision.strip().lower() == "allow")


def _local(name: str) -> str:
    """The name here: ``mcp__server__tool`` is ``server_tool``, a server alone is all of its tools."""
    if not name.startswith("mcp__"):
        return name
    server, _, tool = name.removeprefix("mcp__").partition("__")
    return f"{server}_{tool or '*'}"


def _ours(name: str) -> list[str]:
    """The names here that a foreign name forbids: its own, and those of what does the same."""
    plain = name.partition("(")[0].strip()
    return [_local(plain), *_OURS.get(normal(plain), ())] if plain else []

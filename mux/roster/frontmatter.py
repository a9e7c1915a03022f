"""The front matter of a Markdown file: YAML, and read key by key where it is none.

Descriptions with colons, quotes and examples in them are common in the files that coding assistants write,
and are no YAML. One odd value must not cost the others their types: each key is read for itself, and only
the value that can't be read is taken as the text that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import yaml

__all__ = ["FrontMatterError", "read_front_matter", "split_front_matter"]

_TEXTS = frozenset({"name", "description", "color", "model"})  # what is meant as text, whatever it looks like


class FrontMatterError(ValueError):
    """The front matter can't be used at all; the message says why."""


def split_front_matter(text: str) -> tuple[str, str] | None:
    """The front matter and the body of a file; ``None`` if it begins with no front matter."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        return None
    for at, line in enumerate(lines[1:], start=1):
        if line.rstrip() == "---":
            return "\n".join(lines[1:at]), "\n".join(lines[at + 1 :]).strip()
    return None


def read_front_matter(text: str, is_key: Callable[[str], bool]) -> tuple[dict[str, Any], list[str]]:
    """The keys with their values, and warnings.

    Args:
        text: what stands between the two lines of dashes.
        is_key: whether a word is a key of agent files; other words with a colon belong to the text above.

    Raises:
        FrontMatterError: nothing in it can be read as a key with a value.
    """
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: a date such as 2026-13-45
        found, unread = _key_by_key(text, is_key)
        if not found:
            raise FrontMatterError(f"its front matter is no YAML: {_where(e)}") from e
        texts = f"; read as plain text: {', '.join(unread)}" if unread else ""
        return found, [f"the front matter is no valid YAML ({_where(e)}); it was read line by line{texts}"]
    if value is None:
        return {}, []
    if not isinstance(value, dict):
        raise FrontMatterError("its front matter must be a mapping, such as 'name: researcher'")
    return {str(k): v for k, v in value.items()}, []


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or (
        str(error) if isinstance(error, ValueError) else "it can't be parsed"
    )
    return f"line {mark.line + 2}: {what}" if mark is not None else str(what)


def _key_by_key(text: str, is_key: Callable[[str], bool]) -> tuple[dict[str, Any], list[str]]:
    """Every key with its own value, and the keys whose value was taken as text."""
    blocks: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        word, colon, rest = line.partition(":")
        if colon and is_key(word) and (not rest or rest[0].isspace()):
            blocks.append((word, [line]))
        elif blocks:
            blocks[-1][1].append(line)
    found: dict[str, Any] = {}
    unread: list[str] = []
    for key, lines in blocks:
        value, read = _value(key, lines)
        if not read and key == "name" and value[:1] in ("[", "{"):
            continue  # a list that does not end is no name
        if not read:
            unread.append(key)
        if key == "tools" and key in found:
            value = _both(found[key], value)  # one of the two may be an example in the text above it
        found[key] = value
    return found, unread


def _value(key: str, lines: list[str]) -> tuple[Any, bool]:
    """The value of one key as YAML, or else its text; and whether it was YAML."""
    for end in (len(lines), _indented(lines)):  # what is not indented may belong to no key that we know
        try:
            value = yaml.safe_load("\n".join(lines[:end]))
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
        if isinstance(value, dict) and len(value) == 1 and (key not in _TEXTS or end == len(lines)):
            return value[key], True
    text = "\n".join([lines[0].partition(":")[2], *lines[1:]]).strip()
    if text[:1] in ("|", ">") and "\n" in text:
        text = text.partition("\n")[2].strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return text, False


def _indented(lines: list[str]) -> int:
    """How many of the lines belong to the first by their indentation."""
    for at, line in enumerate(lines[1:], start=1):
        if line.strip() and not line[0].isspace() and not line.startswith(("-", "#", "]", "}")):
            return at
    return len(lines)


def _both(one: Any, other: Any) -> Any:
    """Of two lists of tools those that stand in both; a mapping stays, since it can take away."""
    if isinstance(one, dict) or isinstance(other, dict):
        return one if isinstance(one, dict) else other
    return [name for name in _list(other) if name in _list(one)]


def _list(value: Any) -> Collection[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list) else []

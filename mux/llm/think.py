"""Thoughts that come as text, told by their tags: ``<think>…</think>`` at the beginning of a reply.

Local servers without a reasoning parser send what the model thinks as ordinary text (DeepSeek-R1, Qwen3 and
others write these tags). Chat templates that put the opening tag into the prompt leave only the closing one
in the answer: then all text before it was thought, which is said when the tag comes. Pure, and the same
whatever pieces the text comes in. A model that *talks* about the tags is not touched: an opening tag counts
only at the very beginning, a closing one only where it stands as a tag does (`_ends_thought`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from mux.llm.model import Delta, OutputDelta, ReasoningDelta, TextDelta, TextWasThought

__all__ = ["ThinkTags"]

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


class ThinkTags:
    """Splits the text of one turn. White space right after a tag is dropped.

    Never holds more back than the beginning of a tag, or a closing tag with the character that follows it.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "opened", "thinking", "closed", "text", "over"] = "start"
        self._held = ""  # what may be the beginning of a tag
        self._text: list[str] = []  # given out as text, while a closing tag may still make thoughts of it

    @property
    def over(self) -> bool:
        """Whether all that follows is text: nothing needs to be split any more."""
        return self._state == "over"

    def passes(self, text: str) -> bool:
        """Whether a piece of text is given out as it is; it counts as given then."""
        if self._state == "text" and not self._held and "<" not in text:
            self._text.append(text)
            return True
        return self._state == "over"

    def split(self, deltas: Iterable[Delta], *, final: bool = False) -> list[Delta]:
        """The deltas with the thoughts told apart.

        Args:
            final: nothing follows: what was held back is given out as what it is so far.
        """
        out: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, TextDelta):
                if self.passes(delta.text):
                    out.append(delta)
                else:
                    self._feed(out, delta.text)
                continue
            if isinstance(delta, ReasoningDelta):
                if self._state == "text":  # the server tells thoughts itself
                    self._flush(out)
                    self._state = "over"
            elif not isinstance(delta, OutputDelta):
                self._flush(out)
                if self._state in ("start", "text"):
                    self._state = "over"  # what stands before a call can't be taken back
            out.append(delta)
        if final:
            self._flush(out)
        return out

    def _flush(self, out: list[Delta]) -> None:
        held, self._held = self._held, ""
        if not held:
            return
        if self._state == "text" and held.startswith(_CLOSE) and _ends_thought("".join(self._text), ""):
            self._closed(out)
            return
        self._give(out, held, thought=self._state in ("opened", "thinking"))

    def _give(self, out: list[Delta], text: str, *, thought: bool = False) -> None:
        if not text:
            return
        if not thought and self._state != "over":
            self._text.append(text)
        out.append(ReasoningDelta(text) if thought else TextDelta(text))

    def _feed(self, out: list[Delta], text: str) -> None:
        text, self._held = self._held + text, ""
        if self._state == "start":
            text = self._begin(out, text)
        if self._state in ("opened", "thinking"):
            text = self._think(out, text)
        if self._state == "closed" and (text := text.lstrip()):
            self._state = "over"
        if self._state == "text":
            text = self._unopened(out, text)
        if self._state == "closed":
            text = text.lstrip()
            self._state = "over" if text else "closed"
        self._give(out, text)

    def _begin(self, out: list[Delta], text: str) -> str:
        begun = text.lstrip()
        blank = text[: len(text) - len(begun)]
        if begun.startswith(_OPEN):
            self._give(out, blank)
            self._state = "opened"
            return begun[len(_OPEN) :]
        if _OPEN.startswith(begun):
            self._give(out, blank)
            self._held = begun
            return ""
        self._state = "text"
        return text

    def _think(self, out: list[Delta], text: str) -> str:
        """Give out what of a text is thought; what follows the closing tag is returned."""
        if self._state == "opened" and (text := text.lstrip()):
            self._state = "thinking"
        thought, closed, rest = text.partition(_CLOSE)
        if closed:
            self._state = "closed"
        else:
            keep = _begun(thought)
            self._held = thought[len(thought) - keep :]
            thought = thought[: len(thought) - keep]
        self._give(out, thought, thought=True)
        return rest

    def _unopened(self, out: list[Delta], text: str) -> str:
        """Text in which a closing tag may come that nothing opened; what is left of it is returned."""
        at = 0
        while (at := text.find(_CLOSE, at)) >= 0:
            after = text[at + len(_CLOSE) :]
            if not after:  # the next character decides
                self._held = text[at:]
                return text[:at]
            if _ends_thought("".join(self._text) + text[:at], after):
                self._give(out, text[:at])
                self._closed(out)
                return after
            at += len(_CLOSE)
        keep = _begun(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _closed(self, out: list[Delta]) -> None:
        out.append(TextWasThought())
        self._text.clear()
        self._state = "closed"


def _begun(text: str) -> int:
    """How much of the end of a text may be the beginning of a closing tag."""
    return next((n for n in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:n])), 0)


def _ends_thought(before: str, after: str) -> bool:
    """Whether a closing tag without an opening one ends thoughts, or is talked about.

    Templates set it on a line of its own or right behind a sentence; in prose and code it stands in
    backticks, in quotes, or between two words of a sentence.
    """
    if not before.strip():
        return True  # the template has closed the thoughts before they began
    if before.count("```") % 2 or _OPEN in before:
        return False
    if before[-1] in "`\"'“‘«(" or (after and after[0] in "`\"'”’»"):
        return False
    line = before[before.rfind("\n") + 1 :]
    if line.count("`") % 2:
        return False
    alone = not line.strip() or not after or after[0] in "\r\n"
    return alone or line.rstrip()[-1] in ".!?…。！？" or not (line[-1].isspace() or after[0].isspace())

"""``<think>…</think>`` at the beginning of a reply → reasoning.

Local servers without a reasoning parser send what the model thinks as ordinary text (DeepSeek-R1, Qwen3 and
others write these tags). Pure, and the same whatever pieces the text comes in. Only the very beginning of a
reply counts: a model that *talks* about the tags is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from mux.llm.model import Delta, ReasoningDelta, TextDelta

__all__ = ["ThinkTags"]

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


class ThinkTags:
    """Splits the text of one turn. White space right after either tag is dropped.

    Never holds more back than the beginning of a tag.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "opened", "thinking", "closed", "text"] = "start"
        self._held = ""  # what may be the beginning of a tag

    @property
    def over(self) -> bool:
        """Whether all that follows is text: nothing needs to be split any more."""
        return self._state == "text"

    def split(self, deltas: Iterable[Delta], *, final: bool = False) -> list[Delta]:
        """The deltas with the thoughts told apart.

        Args:
            final: nothing follows: what was held back is given out as what it is so far.
        """
        out: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self._text(out, delta.text)
            else:
                if not isinstance(delta, ReasoningDelta):
                    self._flush(out)
                out.append(delta)
        if final:
            self._flush(out)
        return out

    def _flush(self, out: list[Delta]) -> None:
        held, self._held = self._held, ""
        if held:
            out.append(TextDelta(held) if self._state == "start" else ReasoningDelta(held))

    def _text(self, out: list[Delta], text: str) -> None:
        text, self._held = self._held + text, ""
        if self._state == "start":
            begun = text.lstrip()
            blank = text[: len(text) - len(begun)]
            if begun.startswith(_OPEN):
                self._state, text = "opened", begun[len(_OPEN) :]
            elif _OPEN.startswith(begun):
                self._held, text = begun, ""
            else:
                self._state, blank = "text", ""
            if blank:
                out.append(TextDelta(blank))
        if self._state in ("opened", "thinking"):
            text = self._think(out, text)
        if self._state == "closed" and (text := text.lstrip()):
            self._state = "text"
        if text:
            out.append(TextDelta(text))

    def _think(self, out: list[Delta], text: str) -> str:
        """Give out what of a text is thought; what follows the closing tag is returned."""
        if self._state == "opened" and (text := text.lstrip()):
            self._state = "thinking"
        thought, closed, rest = text.partition(_CLOSE)
        if closed:
            self._state = "closed"
        else:
            keep = next((n for n in range(len(_CLOSE) - 1, 0, -1) if thought.endswith(_CLOSE[:n])), 0)
            self._held = thought[len(thought) - keep :]
            thought = thought[: len(thought) - keep]
        if thought:
            out.append(ReasoningDelta(thought))
        return rest

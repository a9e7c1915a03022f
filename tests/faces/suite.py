"""What every face must keep, whatever its wire format: order, cut, cancel, guardrail block, ``step_reset``.

A face's test module makes one subclass, whose name begins with ``Test``, and says in it how to open an
encoder and what a client of the protocol understands from its bytes:

    class TestChatCompletions(FaceSuite):
        def open(self, *channels): ...
        def read(self, data): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hypothesis import given
from hypothesis import strategies as st

from mux.events import (
    Body,
    ChannelInfo,
    ChannelStarted,
    Done,
    DoneStatus,
    Error,
    Event,
    GuardrailHit,
    Refusal,
    RunFinished,
    RunStarted,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolStart,
)
from mux.run import run_status

__all__ = ["Face", "FaceSuite", "Heard", "Script", "done", "finished"]


class Face(Protocol):
    """An encoder, as the transport uses it."""

    def feed(self, event: Event) -> list[bytes]: ...

    def cut(self, message: str) -> list[bytes]: ...


@dataclass
class Heard:
    """What a client of the protocol knows at the end.

    Attributes:
        text: by channel, what it takes for the answer.
        terminals: how many terminal frames it saw; anything after the first is a defect that `read` asserts.
        errors: what it was told went wrong, as one text each.
        failed, refused: the channels that it takes for failed, and for refused or filtered.
    """

    text: dict[str, str] = field(default_factory=dict)
    terminals: int = 0
    errors: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


class Script:
    """Events of a run, numbered as the log would."""

    def __init__(self) -> None:
        self.seq = 0
        self.cseq: dict[str | None, int] = {}

    def __call__(self, channel: str | None, body: Body) -> Event:
        self.seq += 1
        self.cseq[channel] = self.cseq.get(channel, 0) + 1
        return Event("r1", self.seq, channel, self.cseq[channel], 0, body)


def done(status: DoneStatus = "completed") -> Done:
    return Done(status=status, duration_ms=1, attempt=1)


def finished(**channels: DoneStatus) -> RunFinished:
    return RunFinished(status=run_status(channels.values()), channels=channels, duration_ms=1)


def begun(e: Script, *channels: str) -> list[Event]:
    infos = [ChannelInfo(id=c, agent=c) for c in channels]
    return [
        e(None, RunStarted(thread="t", channels=infos)),
        *(e(c, ChannelStarted(agent=c, attempt=1)) for c in channels),
        *(e(c, StepStarted(step=1, model="m")) for c in channels),
    ]


def over(e: Script, **channels: DoneStatus) -> list[Event]:
    ends = [e(c, StepFinished(step=1, finish_reason="stop")) for c, s in channels.items() if s == "completed"]
    return [*ends, *(e(c, done(s)) for c, s in channels.items()), e(None, finished(**channels))]


_SAID = st.lists(st.tuples(st.sampled_from("ab"), st.text(min_size=1, max_size=6)), max_size=30)


class FaceSuite(ABC):
    """See the module.

    Attributes:
        by_channel: a stream is one channel's, and whole once that is done.
    """

    by_channel = False

    @abstractmethod
    def open(self, *channels: str) -> Face:
        """An encoder for a run of these channels."""

    @abstractmethod
    def read(self, data: bytes, *channels: str) -> Heard:
        """What a client understands; asserts the protocol's own rules."""

    def told(
        self, channels: Sequence[str], events: Sequence[Event], *, cut_after: int | None = None
    ) -> Heard:
        """Feed the events, or some and then a cut; what comes later must be ignored."""
        face = self.open(*channels)
        given_ = events if cut_after is None else events[:cut_after]
        frames = [frame for event in given_ for frame in face.feed(event)]
        if cut_after is not None:
            frames += face.cut("The server stops.")
            assert face.cut("again") == []
            assert [f for event in events[cut_after:] for f in face.feed(event)] == []
        return self.read(b"".join(frames), *channels)

    # --- order ---------------------------------------------------------------------------------------------

    def test_each_channels_text_arrives_in_order_and_the_end_once(self) -> None:
        given(_SAID)(self._arrives)()  # made here: hypothesis wants a function of its own for each subclass

    def _arrives(self, said: list[tuple[str, str]]) -> None:
        e = Script()
        events = [*begun(e, "a", "b"), *(e(c, Token(content=t)) for c, t in said),
                  *over(e, b="completed", a="completed")]  # fmt: skip
        heard = self.told("ab", events)
        for channel in "ab":
            assert heard.text.get(channel, "") == "".join(t for c, t in said if c == channel)
        assert (heard.terminals, heard.errors, heard.failed) == (1, [], set())

    def test_what_tools_do_is_no_text(self) -> None:
        e = Script()
        events = [
            *begun(e, "a"), e("a", Token(content="before ")),
            e("a", ToolCall(call_id="c", tool="t")), e("a", ToolArgs(call_id="c", content='{"x": 1}')),
            e("a", ToolStart(call_id="c", tool="t", arguments={"x": 1})),
            e("a", ToolProgress(call_id="c", elapsed_ms=1, message="busy", content="printed")),
            e("a", ToolResult(call_id="c", tool="t", output="out")),
            e("a", Token(content="after")), *over(e, a="completed"),
        ]  # fmt: skip
        assert self.told("a", events).text == {"a": "before after"}

    # --- cut, cancel, failure ------------------------------------------------------------------------------

    def test_wherever_it_is_cut_the_client_learns_it_and_nothing_follows(self) -> None:
        e = Script()
        events = [*begun(e, "a", "b"), e("a", Token(content="one ")), e("b", Token(content="two ")),
                  *over(e, a="completed", b="completed")]  # fmt: skip
        for after in range(len(events) - self.by_channel):
            heard = self.told("ab", events, cut_after=after)
            assert heard.terminals == 1
            assert heard.errors, f"cut after {after} events: the client takes a part for the whole"

    def test_a_cancelled_channel_is_no_success(self) -> None:
        e = Script()
        events = [*begun(e, "a", "b"), e("a", Token(content="half")), e("b", Token(content="whole")),
                  *over(e, a="cancelled", b="completed")]  # fmt: skip
        heard = self.told("ab", events)
        assert heard.failed == {"a"}
        assert heard.text["b"] == "whole"
        assert heard.terminals == 1

    def test_a_failed_run_tells_why_and_ends(self) -> None:
        e = Script()
        events = [*begun(e, "a"), e("a", Error(code="upstream_stall", message="It stalled.")),
                  *over(e, a="failed")]  # fmt: skip
        heard = self.told("a", events)
        assert any("It stalled." in text for text in heard.errors)
        assert (heard.terminals, heard.failed) == (1, {"a"})

    # --- guardrails ----------------------------------------------------------------------------------------

    def test_a_blocked_answer_is_refused_and_not_failed(self) -> None:
        e = Script()
        events = [
            *begun(e, "a"), e("a", Token(content="clean. ")),
            e("a", GuardrailHit(rule="r", stage="output", action="blocked")),
            e("a", Refusal(content="I can't say that.")), *over(e, a="refused"),
        ]  # fmt: skip
        heard = self.told("a", events)
        assert (heard.refused, heard.failed, heard.terminals) == ({"a"}, set(), 1)
        assert "clean. " in heard.text["a"]

    # --- step_reset ----------------------------------------------------------------------------------------

    def test_a_step_done_again_is_heard_once_or_the_client_is_told(self) -> None:
        given(st.text(max_size=8), st.text(max_size=8), st.integers(0, 8))(self._redone)()

    def _redone(self, sent: str, redone: str, same: int) -> None:
        redone = sent[:same] + redone
        e = Script()
        events = [*begun(e, "a"), *(e("a", Token(content=c)) for c in sent),
                  e("a", StepReset(step=1, from_cseq=2)), e("a", StepStarted(step=1, model="m")),
                  *(e("a", Token(content=c)) for c in redone), *over(e, a="completed")]  # fmt: skip
        heard = self.told("a", events)
        assert heard.terminals == 1
        assert heard.errors or heard.text.get("a", "") == redone
        if redone.startswith(sent):
            assert heard.errors == [], "what continues what was sent needs no error"

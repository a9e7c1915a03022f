"""The provider-neutral vocabulary between model endpoints and the agent loop.

A :class:`Model` turns one :class:`ModelRequest` into a stream of deltas that ends with exactly one
:class:`TurnEnd`. Everything a provider does differently has been settled before a delta leaves the model:
the loop in ``agent.py`` knows no provider. The rehearsal model and the HTTP models implement the same
protocol and pass the same contract suite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from mux.agent import Message
from mux.events import Usage

__all__ = [
    "CallArgs",
    "CallBegan",
    "CompleteCall",
    "Delta",
    "Model",
    "ModelRequest",
    "OtherChoice",
    "OutputDelta",
    "ReasoningDelta",
    "RefusalDelta",
    "TextDelta",
    "TextWasThought",
    "ToolSchema",
    "TurnEnd",
]

FinishReason: TypeAlias = Literal["stop", "tool_calls", "length", "content_filter"]


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool as the model is told of it; ``parameters`` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One turn to ask for.

    Attributes:
        model: the provider's name for the model (the part after ``provider:``).
        messages: the conversation, system message first where there is one.
        tools: what the model may call; empty = no tools.
        params: temperature, max_tokens, … as the provider takes them.
        run, channel, step: for logs and for the rehearsal model's determinism.
        take: puts a piece of text on the channel at once, in the turn of the event loop in which it was
            read; ``False`` where it can't be taken so: then it is given as a delta. Asked only while
            whoever iterates waits, and has been given everything before it.
    """

    model: str
    messages: Sequence[Message]
    tools: Sequence[ToolSchema] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    channel: str = ""
    step: int = 1
    take: Callable[[Delta], bool] | None = None


# one of these for each token: structs are made in a third of the time of a frozen dataclass
class TextDelta(msgspec.Struct, frozen=True, gc=False):
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    text: str


class RefusalDelta(msgspec.Struct, frozen=True, gc=False):
    text: str


class OutputDelta(msgspec.Struct, frozen=True, gc=False):
    """Something that is no text and has no word of its own here: it becomes a ``custom`` event.

    Attributes:
        name: ``image``, ``audio``, ``annotation``, ``citations``, ``logprobs``, ``output_item`` (a built-in
            call or an approval that the endpoint asks for), ``content_part``, ``delta`` (a member that nobody
            knows) or ``finish_reason`` (an unknown word).
        value: as the endpoint gave it.
        silent: it accompanies text, and is no answer by itself.
    """

    name: str
    value: Any
    silent: bool = False


class TextWasThought(msgspec.Struct, frozen=True, gc=False):
    """All text of the turn so far was reasoning: its ``</think>`` came, and nothing had opened it."""


class CallBegan(msgspec.Struct, frozen=True, gc=False):
    """The model began to write a call. ``key`` numbers the turn's calls from 0; ``name`` is settled."""

    key: int
    name: str


class CallArgs(msgspec.Struct, frozen=True, gc=False):
    """A piece of the arguments of call ``key``."""

    key: int
    text: str


@dataclass(frozen=True, slots=True)
class CompleteCall:
    """A call as it stands at the end of the turn.

    Attributes:
        arguments: the parsed object; ``None`` if it may not run.
        error: why not: ``invalid_json``, ``not_an_object`` or ``truncated`` (the turn ended by ``length``).
        raw: the arguments' text as written (an empty string counts as ``{}``).
        provider_id: the provider's own id; goes back only to the provider.
        extras: opaque members that must go back with the call (signatures).
    """

    key: int
    name: str
    arguments: dict[str, Any] | None
    raw: str
    error: str | None = None
    provider_id: str | None = None
    extras: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class OtherChoice:
    """A further choice (``n`` > 1), whole. Its calls don't run: only the first choice is gone on with.

    Attributes:
        calls: name and arguments' text of each call.
    """

    text: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The turn is over upstream.

    Attributes:
        finish: settled by the rules of the quirks: calls present means ``tool_calls``.
        calls: every call of the turn, in the order begun (each had its `CallBegan`).
        usage: as reported, ``None`` if nothing was.
        provider_items: what must be sent back to this provider with the turn.
        model: the model that the provider says it used.
        choices: further choices (``n`` > 1), of index 1…, in order.
        ttft_ms: first delta received minus request sent.
        generation_ms: last delta received minus first.
    """

    finish: FinishReason
    calls: tuple[CompleteCall, ...] = ()
    usage: Usage | None = None
    provider_items: list[Any] | None = None
    model: str | None = None
    choices: tuple[OtherChoice, ...] = ()
    ttft_ms: int | None = None
    generation_ms: int | None = None


Delta: TypeAlias = (
    TextDelta | ReasoningDelta | RefusalDelta | OutputDelta | TextWasThought | CallBegan | CallArgs | TurnEnd
)


class Model(Protocol):
    """One endpoint that can be asked for turns."""

    def stream(self, request: ModelRequest) -> AsyncIterator[Delta]:
        """Ask for one turn. Closing the iterator closes the provider's stream.

        Raises:
            UpstreamError: with a model-stream code of DESIGN section 4; ``retryable`` says whether the same
                request may be sent again, ``retry_after`` how long to wait. Retrying is the caller's:
                the model sends exactly one request.
        """

    async def aclose(self) -> None:
        """Free its connections."""

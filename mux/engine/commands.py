"""What callers ask of a running run, as values that any process can send to the one that drives it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

import mux.errors
from mux.errors import MuxError
from mux.events import SteerMode
from mux.requests import ApprovalAnswer, CancelMode, ChannelSpec

__all__ = [
    "Add",
    "Answer",
    "Cancel",
    "Command",
    "Retry",
    "Steer",
    "Watched",
    "decode",
    "decode_answer",
    "encode",
    "encode_answer",
    "encode_refusal",
]


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True)


class Cancel(_Command):
    """End one channel, or all of them (``channel`` left out)."""

    do: Literal["cancel"] = "cancel"
    mode: CancelMode
    channel: str | None = None


class Add(_Command):
    """One channel more; the answer is its id."""

    do: Literal["add"] = "add"
    spec: ChannelSpec


class Retry(_Command):
    """Do a channel again beside the old one; the answer is the new one's id."""

    do: Literal["retry"] = "retry"
    channel: str
    model: str | None = None


class Steer(_Command):
    """A message for a channel's agent."""

    do: Literal["steer"] = "steer"
    channel: str
    message_id: str
    content: str
    mode: SteerMode


class Answer(_Command):
    """A person's decision about a call; the answer is the call's channel."""

    do: Literal["answer"] = "answer"
    call_id: str
    answer: ApprovalAnswer
    by: str


class Watched(_Command):
    """How many viewers the run has at one front now.

    Attributes:
        back_s: they were sent away and will be back: the run waits at least so long for them.
    """

    do: Literal["watched"] = "watched"
    front: str
    viewers: int
    back_s: float = 0.0


Command: TypeAlias = Cancel | Add | Retry | Steer | Answer | Watched

_COMMAND: Final[TypeAdapter[Command]] = TypeAdapter(Annotated[Command, Field(discriminator="do")])


def encode(command: Command) -> bytes:
    """As bytes, for the store."""
    return _COMMAND.dump_json(command, exclude_defaults=False)


def decode(payload: bytes) -> Command:
    """What `encode` made. Raises ValueError."""
    return _COMMAND.validate_json(payload)


def encode_answer(value: str | None) -> bytes:
    """That a command was applied, with what its caller is to know."""
    return json.dumps({"value": value}).encode()


def encode_refusal(error: MuxError) -> bytes:
    """Why a command was not applied."""
    about = {
        "kind": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "status": error.status,
        "retryable": error.retryable,
        "retry_after": error.retry_after,
        "extra": dict(error.extra),
    }
    return json.dumps({"refused": about}, default=str).encode()


def decode_answer(payload: bytes) -> str | None:
    """The value of an answer. Raises the refusal, as the error that it was."""
    answer: dict[str, Any] = json.loads(payload)
    about = answer.get("refused")
    if about is None:
        return answer.get("value")
    kind = getattr(mux.errors, about["kind"], MuxError)
    if not (isinstance(kind, type) and issubclass(kind, MuxError)):
        kind = MuxError
    raise kind(
        about["code"],
        about["message"],
        status=about["status"],
        retryable=about["retryable"],
        retry_after=about["retry_after"],
        extra=about["extra"],
    )

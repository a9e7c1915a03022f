"""The control frames as models: about the connection, not in the log, without ``seq`` (DESIGN section 4)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

__all__ = ["FRAMES"]


class StreamOpen(BaseModel):
    """The first frame of every connection."""

    type: Literal["stream_open"]
    cursor: str = Field(description="the position that the stream begins after")
    run: str | None = Field(default=None, description="left out where the stream is over several runs")
    head: int | dict[str, int] = Field(description="seq of the last event so far; by run over several")
    filter: dict[str, Any] = Field(description="the filter; unknown = channels that are not there yet")
    channels: list[str] | dict[str, list[str]] = Field(description="the channels so far; by run over several")


class StreamGap(BaseModel):
    """The events between were trimmed from the log; what follows begins at ``first``."""

    type: Literal["stream_gap"]
    run: str
    requested: int
    first: int


class StreamLive(BaseModel):
    """History is through; from here on events come as they happen."""

    type: Literal["stream_live"]


class StreamRotate(BaseModel):
    """The server ends this connection; reconnect with the last id."""

    type: Literal["stream_rotate"]
    reason: str


class StreamEnd(BaseModel):
    """Nothing more will come: don't reconnect."""

    type: Literal["stream_end"]
    status: str | dict[str, str]
    final: bool


class Heartbeat(BaseModel):
    """Sign of life after silence; its id is the position reached."""

    type: Literal["heartbeat"]
    id: str | None = Field(default=None, description="the position, where the framing has no id (NDJSON)")


class Batch(BaseModel):
    """A window of events (``compact=1``), applied whole or not at all."""

    type: Literal["batch"]
    id: str | None = Field(default=None, description="the position, where the framing has no id (NDJSON)")
    events: list[dict[str, Any]]


FRAMES: tuple[type[BaseModel], ...] = (
    StreamOpen, StreamGap, StreamLive, StreamRotate, StreamEnd, Heartbeat, Batch,
)  # fmt: skip

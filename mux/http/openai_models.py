"""The OpenAI face's requests and answers, as models: what is accepted, and what the document says."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mux.requests import ChatMessage

__all__ = [
    "MAX_CHOICES",
    "Completion",
    "CompletionChunk",
    "CompletionRequest",
    "ModelCard",
    "ModelCards",
    "OpenAIError",
]

MAX_CHOICES = 32


class _Loose(BaseModel):
    """Clients of this protocol send many members that have no meaning here; those are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StreamOptions(_Loose):
    """``stream_options``."""

    include_usage: bool = False


class CompletionRequest(_Loose):
    """``POST /v1/chat/completions``: ``model`` is an agent, or several joined by ``+``."""

    model: str = Field(min_length=1, max_length=2000)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    tools: list[Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str | None = None
    logit_bias: dict[str, float] | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Clients send null for what they leave out, also where the protocol has no null."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @field_validator("tools")
    @classmethod
    def _no_tools(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise ValueError("agents bring their own tools and run them here; leave tools out")
        return value


class ModelCard(_Loose):
    """One agent as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "mux"


class ModelCards(_Loose):
    """``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class OpenAIErrorBody(_Loose):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    code: str | None
    param: str | None


class OpenAIError(_Loose):
    """An error in OpenAI's form."""

    error: OpenAIErrorBody


class ChoiceMessage(_Loose):
    """An agent's whole answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None


class Choice(_Loose):
    """One channel's answer; a failed one has ``finish_reason`` ``error`` and says why."""

    index: int
    message: ChoiceMessage
    finish_reason: Literal["stop", "length", "content_filter", "error"]
    error: OpenAIErrorBody | None = None


class CompletionUsage(_Loose):
    """Tokens as the providers reported them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class Completion(_Loose):
    """The answers of all channels."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | None = None


class ChunkDelta(_Loose):
    """A piece of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(_Loose):
    """A piece of one channel's answer."""

    index: int
    delta: ChunkDelta
    finish_reason: Literal["stop", "length", "content_filter", "error"] | None
    error: OpenAIErrorBody | None = None


class CompletionChunk(_Loose):
    """One frame of a streamed completion; the last frame is ``[DONE]``."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None

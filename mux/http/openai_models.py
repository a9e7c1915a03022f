"""The OpenAI face's requests and answers, as models: what is accepted, and what the document says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mux.requests import ChatMessage, ClientTool

__all__ = [
    "MAX_CHOICES",
    "Completion",
    "CompletionChunk",
    "CompletionRequest",
    "ModelCard",
    "ModelCards",
    "OpenAIError",
    "OpenAIRequest",
]

MAX_CHOICES = 32


class _Loose(BaseModel):
    """Clients of this protocol send members that have no meaning here; those are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StreamOptions(_Loose):
    """``stream_options``."""

    include_usage: bool = False


class FunctionDefinition(_Loose):
    """A function that the client runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> ClientTool:
        """As the agents are offered it."""
        return ClientTool(**self.model_dump(exclude_none=True))


class FunctionTool(_Loose):
    """One of ``tools``."""

    type: str
    function: FunctionDefinition | None = None

    @model_validator(mode="after")
    def _a_function(self) -> FunctionTool:
        if self.type != "function" or self.function is None:
            raise ValueError(f"a tool of type {self.type[:40]!r} can't be offered here; only functions can")
        return self


class OpenAIRequest(BaseModel):
    """A request of OpenAI's: members that it does not name go to the model as they are.

    Attributes:
        REFUSED: members that can't be honoured here → why.
        IGNORED: members that change nothing here.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    REFUSED: ClassVar[Mapping[str, str]]
    IGNORED: ClassVar[frozenset[str]]

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Clients send null for what they leave out, also where the protocol has no null."""
        if not isinstance(value, dict):
            return value
        value = {k: v for k, v in value.items() if v is not None}
        for name, why in cls.REFUSED.items():
            if name in value:
                raise ValueError(f"{name} is not supported: {why}")
        return value

    def unnamed(self) -> dict[str, Any]:
        """What goes to the model unread."""
        return {k: v for k, v in (self.model_extra or {}).items() if k not in self.IGNORED}


class CompletionRequest(OpenAIRequest):
    """``POST /v1/chat/completions``."""

    REFUSED: ClassVar = {
        "functions": "the older form of tools; use tools",
        "function_call": "the older form of tool_choice; use tool_choice",
        "audio": "agents answer in text",
    }
    IGNORED: ClassVar = frozenset({"store"})  # every run is kept, whatever a client says about it

    model: str = Field(min_length=1, max_length=2000)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    metadata: dict[str, str] | None = None

    @field_validator("modalities")
    @classmethod
    def _only_text(cls, value: list[str] | None) -> list[str] | None:
        if value and set(value) - {"text"}:
            raise ValueError("agents answer in text; leave modalities out")
        return None

    def params(self) -> dict[str, Any]:
        """What goes to the model as it is."""
        named = self.model_dump(include=set(_PASSED_ON), exclude_none=True)
        return named | self.unnamed()

    def client_tools(self) -> list[ClientTool] | None:
        """The tools that the client runs."""
        return [t.function.tool() for t in self.tools or () if t.function is not None] or None


_PASSED_ON = (
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "reasoning_effort",
    "logit_bias",
)


class ModelCard(_Loose):
    """What ``model`` may name: an agent, a configured model or an alias."""

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


class FunctionCall(_Loose):
    """What a call calls; ``arguments`` is JSON as the model wrote it."""

    name: str
    arguments: str


class ToolCallItem(_Loose):
    """A call that the client is to run."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class About(_Loose):
    """Where a choice comes from, and a call of it that waits for a person."""

    run: str
    channel: str
    agent: str
    approval: dict[str, Any] | None = None


class ChoiceMessage(_Loose):
    """An agent's whole answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallItem] | None = None


class Choice(_Loose):
    """One channel's answer; a failed one has ``finish_reason`` ``error`` and says why."""

    index: int
    message: ChoiceMessage
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "error"]
    logprobs: dict[str, Any] | None = None
    error: OpenAIErrorBody | None = None
    x_mux: About | None = None


class CompletionUsage(_Loose):
    """Tokens as the providers reported them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None
    cost: float | None = None
    cost_currency: str | None = None


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
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(_Loose):
    """A piece of one channel's answer."""

    index: int
    delta: ChunkDelta
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "error"] | None
    logprobs: dict[str, Any] | None = None
    error: OpenAIErrorBody | None = None
    x_mux: About | None = None


class CompletionChunk(_Loose):
    """One frame of a streamed completion; the last frame is ``[DONE]``."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None

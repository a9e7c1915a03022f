"""Why a turn ended, in the words that endpoints use for it."""

from __future__ import annotations

from mux.llm.model import FinishReason

__all__ = ["FAILED", "NATURAL", "NOT_FINISHED", "STOPS", "plain", "said_word", "settle_finish"]

# as compared: lower case, "_" for "-" and blanks
STOPS: dict[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "tool_calls",
    "length": "length",
    "content_filter": "content_filter",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "max_length": "length",
    "length_limit": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",  # Anthropic, Z.ai
    "content_filtered": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "recitation": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
    "spii": "content_filter",
    "refusal": "content_filter",  # Anthropic
}
# other words for the model's own end
NATURAL = frozenset(
    {
        "end",
        "end_turn",
        "endturn",
        "eos",
        "eos_token",
        "end_of_turn",
        "end_of_text",
        "stop_sequence",
        "stop_token",
    }
    | {"complete", "completed", "done", "finish", "finished", "normal", "success", "ok", "true", "unknown"}
)
NOT_FINISHED = frozenset({"", "null", "none", "undefined", "false"})
# error: OpenRouter; network_error: Z.ai; insufficient_system_resource: DeepSeek; abort: vLLM, SGLang
FAILED = frozenset(
    {
        "error",
        "failed",
        "network_error",
        "server_error",
        "internal_error",
        "insufficient_system_resource",
        "engine_overloaded",
        "timeout",
        "abort",
        "aborted",
        "cancelled",
        "canceled",
    }
)


def plain(word: str) -> str:
    """The word as it is compared."""
    return word.strip().lower().replace("-", "_").replace(" ", "_")


def said_word(word: str) -> str:
    """An unknown word, fit to be shown."""
    return "".join(c if c.isalnum() or c in "_.:" else "_" for c in word)[:64]


def settle_finish(said: str | None, calls: int) -> FinishReason:
    """The finish reason: ``length`` and ``content_filter`` stay; otherwise the calls decide, not the word."""
    word = STOPS.get(plain(said or ""))
    if word in ("length", "content_filter"):
        return word
    return "tool_calls" if calls else "stop"

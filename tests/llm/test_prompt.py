"""From requests to bodies: what goes back, to whom, and what no endpoint would take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mux.agent import Message, MessageCall
from mux.errors import BadRequest
from mux.llm.chat import ChatParser
from mux.llm.model import ModelRequest, ReasoningDelta, ToolSchema
from mux.llm.prompt import chat_body, responses_body

TOOL = ToolSchema("get_time", "Says the time.", {"type": "object", "properties": {}})
CALL = MessageCall(call_id="call_ours", tool="get_time", arguments='{"a":1}')
RESULT = Message(role="tool", call_id="call_ours", content="noon")
USER = Message(role="user", content="what time is it?")


def chat(*messages: Message, **options: Any) -> list[dict[str, Any]]:
    body = chat_body(ModelRequest("m", messages, **options), provider="p", params={})
    found: list[dict[str, Any]] = body["messages"]
    return found


def responses(*messages: Message) -> list[dict[str, Any]]:
    body = responses_body(ModelRequest("m", messages), provider="p", params={})
    found: list[dict[str, Any]] = body["input"]
    return found


def assistant(**fields: Any) -> Message:
    return Message(role="assistant", **{"calls": (CALL,), "provider": "p", **fields})


def test_a_chat_request_has_tools_usage_and_params() -> None:
    request = ModelRequest("m", [USER], (TOOL,), {"temperature": 0.3, "n": 2})
    assert chat_body(request, provider="p", params={"temperature": 1, "top_p": 0.5}) == {
        "model": "m",
        "messages": [{"role": "user", "content": "what time is it?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "get_time",
                    "description": "Says the time.",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "temperature": 0.3,
        "top_p": 0.5,
        "n": 2,
    }


def test_a_param_of_none_leaves_a_member_out_and_ours_stay_ours() -> None:
    request = ModelRequest("m", [USER], params={"stream_options": None, "stream": False, "messages": []})
    assert chat_body(request, provider="p", params={}) == {
        "model": "m",
        "messages": [{"role": "user", "content": "what time is it?"}],
        "stream": True,
    }


def test_our_call_id_is_sent_where_the_provider_gave_none() -> None:
    sent = chat(USER, assistant(), RESULT)
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "call_ours"


def test_the_providers_own_id_and_signature_go_back_to_it() -> None:
    items = [
        {"kind": "call", "at": 0, "id": "theirs", "extra_content": {"google": {"thought_signature": "x"}}}
    ]
    sent = chat(USER, assistant(provider_items=items), RESULT)
    assert sent[1]["tool_calls"] == [
        {
            "id": "theirs",
            "type": "function",
            "function": {"name": "get_time", "arguments": '{"a":1}'},
            "extra_content": {"google": {"thought_signature": "x"}},
        }
    ]
    assert sent[2]["tool_call_id"] == "theirs"


def test_items_of_another_provider_stay_here() -> None:
    items = [{"kind": "call", "at": 0, "id": "theirs"}, {"kind": "message", "reasoning_details": [1]}]
    sent = chat(USER, assistant(provider="q:model", provider_items=items, reasoning="hm"), RESULT)
    assert sent[1]["tool_calls"][0]["id"] == "call_ours"
    assert "reasoning_details" not in sent[1]


def test_equal_ids_of_two_calls_are_replaced_by_ours() -> None:
    two = (CALL, MessageCall(call_id="call_b", tool="get_time", arguments="{}"))
    items = [{"kind": "call", "at": at, "id": "same"} for at in (0, 1)]
    sent = chat(USER, assistant(calls=two, provider_items=items))
    assert [c["id"] for c in sent[1]["tool_calls"]] == ["call_ours", "call_b"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_go_back_in_their_own_spelling_while_the_turn_goes_on(field: str) -> None:
    items = [{"kind": "reasoning", "field": field}]
    thinking = assistant(provider_items=items, reasoning="hm")
    assert chat(USER, thinking, RESULT)[1][field] == "hm"
    assert field not in chat(USER, thinking, RESULT, USER)[1]


def test_thoughts_stay_here_where_the_provider_never_sent_any() -> None:
    assert set(chat(USER, assistant(reasoning="hm"))[1]) == {"role", "content", "tool_calls"}


@pytest.mark.parametrize("raw", ['{"a":', "[1]", "", "nonsense", "[" * 100_000])
def test_arguments_that_are_no_object_go_back_empty(raw: str) -> None:
    broken = MessageCall(call_id="c", tool="get time!", arguments=raw)
    function = chat(USER, assistant(calls=(broken,)))[1]["tool_calls"][0]["function"]
    assert function == {"name": "get_time_", "arguments": "{}"}


def test_an_assistant_who_said_nothing_is_left_out() -> None:
    assert [m["role"] for m in chat(USER, Message(role="assistant", content=""))] == ["user"]


def test_content_parts_pass_in_chat_and_are_reworded_for_responses() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
        {"type": "file", "file": {"file_id": "f"}},
    ]
    message = Message(role="user", content=parts)
    assert chat(message)[0]["content"] == parts
    assert responses(message)[0]["content"] == [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:x", "detail": "low"},
        {"type": "input_file", "file_id": "f"},
    ]


def test_a_responses_conversation_keeps_its_reasoning_and_ids() -> None:
    items = [
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e", "status": "completed"},
        {"type": "reasoning", "id": "empty", "summary": []},
        {"type": "function_call", "call_id": "theirs", "name": "get_time", "arguments": '{"a":1}'},
    ]
    sent = responses(USER, assistant(content="wait", provider_items=items), RESULT)
    assert sent[1:] == [
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e"},
        {"role": "assistant", "content": "wait"},
        {"type": "function_call", "call_id": "theirs", "name": "get_time", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "theirs", "output": "noon"},
    ]


def test_a_responses_request_stores_nothing_and_asks_for_reasoning_where_there_is_any() -> None:
    plain = responses_body(ModelRequest("m", [USER], (TOOL,), {"max_tokens": 9}), provider="p", params={})
    assert (plain["store"], plain["max_output_tokens"], plain["stream"]) == (False, 9, True)
    assert "include" not in plain
    assert "max_tokens" not in plain
    assert plain["tools"][0]["name"] == "get_time"
    thinking = responses_body(ModelRequest("o3", [USER]), provider="p", params={})
    assert thinking["include"] == ["reasoning.encrypted_content"]
    json.dumps([plain, thinking])


def test_signed_thoughts_go_back_as_one_block_to_the_gateway_that_sent_them() -> None:
    """LiteLLM sends a thought in pieces, and all of it again beside its signature."""
    pieces = [("Hm", ""), ("m.", ""), ("Hmm.", "eA==")]
    parser = ChatParser(["get_time"])
    for text, signature in pieces:
        block = {"type": "thinking", "thinking": text, "signature": signature}
        delta = {"thinking_blocks": [block]} | ({} if signature else {"reasoning_content": text})
        parser.record("", json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode())
    items = parser.end(done=True).provider_items
    said = [d.text for d in parser.out if isinstance(d, ReasoningDelta)]
    assert "".join(said) == "Hmm."
    own, other = (chat(USER, assistant(provider_items=items, provider=p), RESULT)[1] for p in ("p", "q"))
    assert own["thinking_blocks"] == [{"type": "thinking", "thinking": "Hmm.", "signature": "eA=="}]
    assert "thinking_blocks" not in other


# --- parameters in the words of the other API ---------------------------------------------------------------

SCHEMA = {"name": "Berth", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_completion_tokens": 9}, {"max_output_tokens": 9}),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}, "verbosity": "low"},
            {"text": {"format": {"type": "json_schema", **SCHEMA}, "verbosity": "low"}},
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
            {"tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False},
        ),
        (
            {"reasoning_effort": "low"},
            {"reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]},
        ),
        (
            {"logprobs": True, "top_logprobs": 3},
            {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
        ),
        ({"top_k": 5, "chat_template_kwargs": {"a": 1}}, {"top_k": 5, "chat_template_kwargs": {"a": 1}}),
        ({"n": 1, "stop": None}, {}),
    ],
)
def test_parameters_of_the_chat_format_are_put_into_the_other_apis_words(
    given: dict[str, Any], sent: dict[str, Any]
) -> None:
    body = responses_body(ModelRequest("m", [USER], params=given), provider="p", params={})
    assert {k: v for k, v in body.items() if k not in ("model", "input", "stream", "store")} == sent


@pytest.mark.parametrize("name", ["stop", "seed", "logit_bias", "frequency_penalty", "n"])
def test_a_parameter_for_which_the_api_has_no_word_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadRequest, match=name) as refused:
        responses_body(ModelRequest("m", [USER], params={name: 2}), provider="p", params={})
    assert (refused.value.code, refused.value.extra) == ("param_unsupported", {"param": name})


def test_a_clients_tool_keeps_its_strictness() -> None:
    tool = ToolSchema("f", "", {"type": "object"}, strict=True)
    body = chat_body(ModelRequest("m", [USER], tools=[tool]), provider="p", params={})
    assert body["tools"][0]["function"]["strict"] is True


def test_a_built_in_call_goes_back_to_the_api_that_made_it() -> None:
    item = {"type": "web_search_call", "id": "ws", "status": "completed"}
    said = Message(role="assistant", content="a", provider_items=[item], provider="p")
    sent = responses_body(ModelRequest("m", [USER, said, USER]), provider="p", params={})["input"]
    assert [i.get("type", i.get("role")) for i in sent] == ["user", "web_search_call", "assistant", "user"]

"""The OpenAI face over HTTP, with the openai SDK as its judge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from tests.support.service import running, serving, write_agent

COUNTER = """
import asyncio, mux
@mux.agent(name="counter", description="Counts.")
async def agent(ctx):
    for i in range(3):
        yield mux.Token(content=f"{i} ")
"""
BROKEN = """
import mux
@mux.agent(name="broken", description="Fails after a word.")
async def agent(ctx):
    yield mux.Token(content="word")
    raise RuntimeError("secret detail")
"""
ENDLESS = """
import asyncio, mux
@mux.agent(name="endless", description="Never ends.")
async def agent(ctx):
    yield mux.Token(content="begun ")
    await asyncio.Event().wait()
"""
LEAKY = """
import mux
@mux.agent(name="leaky", description="Says what it must not.")
async def agent(ctx):
    yield mux.Token(content="fine. the code is swordfish now")
"""


@pytest.fixture
async def url(no_leaks: None, tmp_path: Path) -> AsyncIterator[str]:
    folder = tmp_path / "agents"
    for name, text in (("counter", COUNTER), ("broken", BROKEN), ("endless", ENDLESS), ("leaky", LEAKY)):
        write_agent(folder, f"{name}.py", text)
    rule = {"secret": {"pattern": "swordfish", "action": "block"}}
    async with running(agents=[str(folder)], guardrails=rule) as base:
        yield base


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def ask(text: str = "What is 17*23?") -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_the_sdk_streams_one_choice_per_agent(client: AsyncOpenAI) -> None:
    text: dict[int, str] = {}
    async with client.chat.completions.stream(model="counter+analyst", messages=ask()) as stream:
        async for event in stream:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    text[choice.index] = text.get(choice.index, "") + (choice.delta.content or "")
        final = await stream.get_final_completion()
    assert text[0] == "0 1 2 "
    assert "391" in text[1]
    assert [c.message.content for c in final.choices] == [text[0], text[1]]
    assert [c.finish_reason for c in final.choices] == ["stop", "stop"]
    assert not any(c.message.tool_calls for c in final.choices)


async def test_the_sdk_gets_a_whole_answer_with_usage(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="analyst", messages=ask())
    assert "391" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


async def test_usage_comes_last_in_the_stream_when_it_is_asked_for(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="analyst", messages=ask(), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert not any(chunk.usage for chunk in chunks[:-1])


async def test_n_repeats_an_agent(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="counter", messages=ask(), n=3)
    assert [c.message.content for c in answer.choices] == ["0 1 2 "] * 3


async def test_a_conversation_is_passed_on(client: AsyncOpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "What is 6*7?"}]},
    ]
    answer = await client.chat.completions.create(model="analyst", messages=messages)
    assert "42" in (answer.choices[0].message.content or "")


async def test_a_failing_agent_raises_in_the_sdk_and_shows_no_detail(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="broken", messages=ask(), stream=True)
    with pytest.raises(openai.APIError) as error:
        _ = [chunk async for chunk in stream]
    assert error.value.code == "agent_failed"
    assert "secret detail" not in str(error.value)
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(model="broken", messages=ask())
    assert failed.value.code == "agent_failed"


async def test_a_guardrails_block_is_a_content_filter_and_leaks_nothing(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="leaky", messages=ask(), stream=True)
    chunks = [chunk async for chunk in stream]
    raw = "".join(chunk.model_dump_json() for chunk in chunks)
    assert "sword" not in raw
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
        "content_filter"
    ]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}, 404, "model_not_found", None),
        ({"model": "counter"}, 400, "request_invalid", "messages"),
        ({"model": "counter", "messages": []}, 400, "request_invalid", "messages"),
        ({"model": "counter+", "messages": [{"role": "user", "content": "x"}]}, 400, "request_invalid", None),
        ({"model": "counter", "messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400,
         "request_invalid", "tools.0.type"),
    ],
)  # fmt: skip
async def test_bad_requests_are_answered_in_openais_form(
    url: str, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["param"]) == (status, code, param)
        assert error["message"]
    async with aiohttp.ClientSession() as http, http.get(f"{url}/api/runs") as answer:
        assert (await answer.json())["runs"] == []


async def test_members_that_are_null_or_have_no_meaning_here_are_passed_over(url: str) -> None:
    body = {
        "model": "counter", "messages": [{"role": "user", "content": "2"}], "n": None, "stream": None,
        "temperature": None, "tools": [], "tool_choice": "auto", "user": "u", "store": False,
    }  # fmt: skip
    headers = {"Authorization": "Bearer sk-any"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status == 200
        told = await answer.json()
    assert told["choices"][0]["message"]["content"].startswith("0 1 ")


async def test_an_empty_message_is_refused_in_openais_form(url: str) -> None:
    body = {"model": "counter", "messages": [{"role": "user", "content": " "}]}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["type"]) == (400, "message_empty", "invalid_request_error")


async def test_the_agents_are_listed_as_models(client: AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert {"analyst", "counter"} <= set(names)
    assert (await client.models.retrieve("counter")).owned_by == "mux"
    with pytest.raises(openai.NotFoundError) as error:
        await client.models.retrieve("nobody")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_cancels_the_run(url: str, stream: bool) -> None:
    async with aiohttp.ClientSession() as http:
        body = {"model": "endless", "messages": ask(), "stream": stream}
        request = asyncio.create_task(http.post(f"{url}/v1/chat/completions", json=body).__aenter__())
        runs: list[Any] = []
        while not runs or runs[0]["status"] != "running":
            await asyncio.sleep(0.01)
            async with http.get(f"{url}/api/runs") as listed:
                runs = (await listed.json())["runs"]
        if stream:
            response = await request
            assert b"begun" in await response.content.readuntil(b"begun")
            response.close()
        else:
            request.cancel()
        async with asyncio.timeout(5):
            while True:
                async with http.get(f"{url}/api/runs") as listed:
                    if (await listed.json())["runs"][0]["status"] == "cancelled":
                        break
                await asyncio.sleep(0.01)


async def test_a_draining_server_ends_the_stream_with_an_error_and_done(
    no_leaks: None, tmp_path: Path
) -> None:
    write_agent(tmp_path / "agents", "endless.py", ENDLESS)
    async with serving(agents=[str(tmp_path / "agents")]) as service, aiohttp.ClientSession() as http:
        body = {"model": "endless", "messages": ask(), "stream": True}
        async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"begun")
            service.hub.drain()
            rest = (await response.content.read()).split(b"\n\n")
    frames = [f.removeprefix(b"data: ") for f in rest if f.startswith(b"data: ")]
    assert frames[-1] == b"[DONE]"
    assert json.loads(frames[-2])["error"]["code"] == "interrupted"

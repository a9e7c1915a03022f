"""Programs that speak OpenAI, as they are, with nothing but their base URL changed: the openai SDK,
LangChain, Pydantic AI and the OpenAI Agents SDK, against agents on a scripted model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.support.fake_openai import Chunk, FakeOpenAI, text_chunks, tool_chunks
from tests.support.fake_openai import serving as upstream
from tests.support.service import running, write_agent

SCRIBE = """
import mux

@mux.tool(approval="always")
async def write(text: str) -> str:
    "Write a text down."
    return f"wrote {text}"

@mux.tool
async def broken() -> str:
    "Fails."
    raise RuntimeError("no ink")

agent = mux.LlmAgent(name="scribe", instructions="You write.", tools=[write, broken])
"""
LEAKY = """
import mux

@mux.agent(name="leaky", description="Says what it must not.")
async def agent(ctx):
    yield "fine. the code is swordfish now"
"""
pytestmark = [
    pytest.mark.allow_blocking,  # these SDKs load their parts when they are first used
    # LangChain and others leave their pools to the garbage collector
    pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Berth(BaseModel):
    """Where a ship lies."""

    number: int


@asynccontextmanager
async def mux_on(tmp_path: Path, *turns: list[Chunk]) -> AsyncIterator[tuple[str, FakeOpenAI]]:
    """A server whose models answer these turns; its base URL for OpenAI's clients, and the upstream."""
    write_agent(tmp_path / "agents", "scribe.py", SCRIBE)
    write_agent(tmp_path / "agents", "leaky.py", LEAKY)
    async with (
        upstream(*turns) as model,
        running(
            agents=[tmp_path / "agents"],
            model="up:m",
            providers={"up": {"base_url": model.url, "max_retries": 0}},
            aliases={"gpt-4o": "up:m", "writer": "scribe"},
            guardrails={"secret": {"pattern": "swordfish", "action": "block"}},
        ) as url,
    ):
        yield f"{url}/v1", model


@asynccontextmanager
async def sdk(base: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base, api_key="none") as client:
        yield client


def last_request(model: FakeOpenAI) -> dict[str, Any]:
    body: dict[str, Any] = model.requests[-1]
    return body


# --- the openai SDK: chat completions ----------------------------------------------------------------


async def test_tools_of_the_client_come_back_as_tool_calls_and_their_results_go_on(tmp_path: Path) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    call = tool_chunks(("p1", "weather", '{"city": "Oslo"}'))
    async with mux_on(tmp_path, call, text_chunks("Rain.")) as (base, model), sdk(base) as client:
        messages: list[Any] = [{"role": "user", "content": "Oslo?"}]
        first = await client.chat.completions.create(
            model="gpt-4o", messages=messages, tools=tools, tool_choice="auto"
        )
        [choice] = first.choices
        assert choice.finish_reason == "tool_calls"
        [asked] = choice.message.tool_calls or []
        assert asked.type == "function"
        assert json.loads(asked.function.arguments) == {"city": "Oslo"}
        messages += [choice.message, {"role": "tool", "tool_call_id": asked.id, "content": "rain"}]
        second = await client.chat.completions.create(model="gpt-4o", messages=messages, tools=tools)
        assert second.choices[0].message.content == "Rain."
        assert [m["role"] for m in last_request(model)["messages"]] == ["user", "assistant", "tool"]


async def test_streamed_tool_calls_are_put_together_by_the_sdk(tmp_path: Path) -> None:
    tools: Any = [
        {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}
    ]
    call = tool_chunks(("p1", "weather", '{"city": "Oslo"}'), ("p2", "weather", '{"city": "Bergen"}'))
    async with mux_on(tmp_path, call) as (base, _), sdk(base) as client:
        asked: Any = {"model": "scribe", "messages": [{"role": "user", "content": "?"}], "tools": tools}
        async with client.chat.completions.stream(**asked) as stream:
            whole = await stream.get_final_completion()
        cities = [json.loads(c.function.arguments)["city"] for c in whole.choices[0].message.tool_calls or []]
        assert cities == ["Oslo", "Bergen"]


async def test_a_response_format_reaches_the_model_and_its_answer_is_parsed(tmp_path: Path) -> None:
    async with mux_on(tmp_path, text_chunks('{"number"', ": 7}")) as (base, model), sdk(base) as client:
        answer = await client.chat.completions.parse(
            model="scribe", messages=[{"role": "user", "content": "berth?"}], response_format=Berth,
            extra_body={"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}},
        )  # fmt: skip
        assert answer.choices[0].message.parsed == Berth(number=7)
        sent = last_request(model)
        assert sent["response_format"]["json_schema"]["name"] == "Berth"
        assert (sent["top_k"], sent["chat_template_kwargs"]) == (5, {"enable_thinking": False})


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("status", "error"), [
    (400, openai.BadRequestError), (401, openai.AuthenticationError), (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError), (413, openai.APIStatusError), (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
])  # fmt: skip
async def test_a_providers_refusal_keeps_its_class_and_is_not_asked_for_again(
    tmp_path: Path, status: int, error: type[openai.APIStatusError], stream: bool
) -> None:
    async with mux_on(tmp_path, [status], [status]) as (base, model), sdk(base) as client:
        once = client.with_options(max_retries=0 if status == 429 else 2)
        with pytest.raises(error) as caught:
            await once.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "hi"}], stream=stream
            )
        assert caught.value.status_code == status
        assert len(model.requests) == 1


async def test_what_can_not_be_honoured_is_refused_by_name(tmp_path: Path) -> None:
    async with mux_on(tmp_path) as (base, _), sdk(base) as client:
        refused: list[dict[str, Any]] = [
            {"functions": [{}]},
            {"modalities": ["audio"]},
            {"tools": [{"type": "web_search"}]},
        ]
        for extra in refused:
            with pytest.raises(openai.BadRequestError, match=next(iter(extra))):
                await client.chat.completions.create(
                    model="scribe", messages=[{"role": "user", "content": "x"}], extra_body=extra
                )


async def test_models_are_agents_aliases_and_what_providers_offer(tmp_path: Path) -> None:
    async with mux_on(tmp_path) as (base, _), sdk(base) as client:
        names = {m.id: m.owned_by async for m in client.models.list()}
        assert names["scribe"] == "mux"
        assert names["gpt-4o"] == "alias"
        assert "rehearsal" in names


async def test_an_agent_that_waits_for_a_person_says_so_in_the_stream(tmp_path: Path) -> None:
    call = tool_chunks(("p1", "write", '{"text": "a"}'))
    async with mux_on(tmp_path, call, text_chunks("Done.")) as (base, _), sdk(base) as client:
        stream = await client.chat.completions.create(
            model="scribe", messages=[{"role": "user", "content": "write"}], stream=True
        )
        text = ""
        async for chunk in stream:
            about = (chunk.choices[0].model_extra or {}).get("x_mux") if chunk.choices else None
            if about and "approval" in about:
                url = f"/api/runs/{about['run']}/approvals/{about['approval']['call_id']}"
                await client.post(
                    base.removesuffix("/v1") + url, body={"decision": "approve"}, cast_to=object
                )
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        assert text == "Done."


# --- the openai SDK: responses -----------------------------------------------------------------------


async def test_responses_call_the_clients_functions_and_go_on_by_their_id(tmp_path: Path) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    call = tool_chunks(("p1", "weather", '{"city": "Oslo"}'))
    async with mux_on(tmp_path, call, text_chunks("Rain.")) as (base, model), sdk(base) as client:
        first = await client.responses.create(model="gpt-4o", input="Oslo?", tools=tools)
        [item] = first.output
        assert item.type == "function_call"
        assert json.loads(item.arguments) == {"city": "Oslo"}
        second = await client.responses.create(
            model="gpt-4o", tools=tools, previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": item.call_id, "output": "rain"}],
        )  # fmt: skip
        assert second.output_text == "Rain."
        sent = last_request(model)["messages"]
        assert [m["role"] for m in sent] == ["user", "assistant", "tool"]
        assert sent[-1]["content"] == "rain"


async def test_responses_parse_structured_output(tmp_path: Path) -> None:
    async with mux_on(tmp_path, text_chunks('{"number": 7}')) as (base, model), sdk(base) as client:
        answer = await client.responses.parse(
            model="gpt-4o", input="berth?", text_format=Berth, instructions="Short."
        )
        assert answer.output_parsed == Berth(number=7)
        assert last_request(model)["messages"][0] == {"role": "system", "content": "Short."}


async def test_an_approval_ends_a_response_and_its_answer_begins_the_next(tmp_path: Path) -> None:
    call = tool_chunks(("p1", "write", '{"text": "a"}'))
    async with mux_on(tmp_path, call, text_chunks("Done.")) as (base, _), sdk(base) as client:
        async with client.responses.stream(model="scribe", input="write") as stream:
            first = await stream.get_final_response()
        [request] = [i for i in first.output if i.type == "mcp_approval_request"]
        assert first.status == "completed"
        second = await client.responses.create(
            model="scribe", previous_response_id=first.id,
            input=[{"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}],
        )  # fmt: skip
        [ran] = [i for i in second.output if i.type == "mcp_call"]
        assert (ran.output, second.output_text) == ("wrote a", "Done.")


async def test_a_tool_that_fails_is_a_failed_call_and_not_a_failed_response(tmp_path: Path) -> None:
    async with (
        mux_on(tmp_path, tool_chunks(("p", "broken", "{}")), text_chunks("Sorry.")) as (base, _),
        sdk(base) as c,
    ):
        answer = await c.responses.create(model="writer", input="go")
        [call] = [i for i in answer.output if i.type == "mcp_call"]
        assert (call.status, answer.status, answer.output_text) == ("failed", "completed", "Sorry.")


async def test_a_guardrails_block_is_a_refusal(tmp_path: Path) -> None:
    async with mux_on(tmp_path) as (base, _), sdk(base) as client:
        answer = await client.responses.create(model="leaky", input="go")
        assert "swordfish" not in answer.model_dump_json()
        assert "refusal" in [p.type for i in answer.output if i.type == "message" for p in i.content]


async def test_a_background_response_is_followed_resumed_cancelled_and_deleted(tmp_path: Path) -> None:
    async with mux_on(tmp_path, text_chunks(*"abcdef")) as (base, _), sdk(base) as client:
        begun = await client.responses.create(model="gpt-4o", input="go", background=True, stream=True)
        seen: list[Any] = []
        async for event in begun:
            seen.append(event)
            if event.sequence_number == 4:
                break
        await begun.close()
        created = seen[0].response
        rest = await client.responses.retrieve(created.id, stream=True, starting_after=4)
        numbers = [event.sequence_number async for event in rest]
        assert numbers == list(range(5, 5 + len(numbers)))
        whole = await client.responses.retrieve(created.id)
        assert (whole.status, whole.output_text) == ("completed", "abcdef")
        assert (await client.responses.cancel(created.id)).status == "completed"
        items = [i async for i in client.responses.input_items.list(created.id)]
        assert len(items) == 1
        await client.responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(created.id)


# --- frameworks ------------------------------------------------------------------------------------


async def test_langchain_binds_tools_and_asks_for_structure(tmp_path: Path) -> None:
    from langchain_openai import ChatOpenAI

    call = tool_chunks(("p1", "weather", '{"city": "Oslo"}'))
    answer = text_chunks('{"number": 7}')
    async with mux_on(tmp_path, call, call, answer) as (base, _):
        llm: Any = ChatOpenAI(model="gpt-4o", base_url=base, api_key="none", max_retries=0)  # type: ignore[arg-type]
        tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": WEATHER}}
        whole = await llm.bind_tools([tool]).ainvoke("Oslo?")
        assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("weather", {"city": "Oslo"})]
        streamed = None
        async for chunk in llm.bind_tools([tool]).astream("Oslo?"):
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed is not None
        assert [c["args"] for c in streamed.tool_calls] == [{"city": "Oslo"}]
        assert await llm.with_structured_output(Berth, method="json_schema").ainvoke("berth?") == Berth(
            number=7
        )


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_pydantic_ai_runs_its_own_tools_on_it(tmp_path: Path, api: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    call = tool_chunks(("p1", "weather", '{"city": "Oslo"}'))
    async with mux_on(tmp_path, call, text_chunks("Rain in Oslo.")) as (base, _):
        provider = OpenAIProvider(base_url=base, api_key="none")
        kind: Any = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
        agent = Agent(kind("gpt-4o", provider=provider))
        asked: list[str] = []

        @agent.tool_plain
        def weather(city: str) -> str:
            """Say the weather."""
            asked.append(city)
            return "rain"

        result = await agent.run("Oslo?")
        assert (asked, result.output) == (["Oslo"], "Rain in Oslo.")


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_the_openai_agents_sdk_runs_its_own_tools_on_it(
    tmp_path: Path, api: str, streamed: bool
) -> None:
    import agents

    call = tool_chunks(("p1", "weather", '{"city": "Oslo"}'))
    async with mux_on(tmp_path, call, text_chunks("Rain in Oslo.")) as (base, _), sdk(base) as client:
        kind: Any = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
        asked: list[str] = []

        @agents.function_tool
        def weather(city: str) -> str:
            """Say the weather."""
            asked.append(city)
            return "rain"

        agent = agents.Agent(name="a", model=kind("gpt-4o", client), tools=[weather])
        config = agents.RunConfig(tracing_disabled=True)
        if streamed:
            run = agents.Runner.run_streamed(agent, "Oslo?", run_config=config)
            async for _event in run.stream_events():
                pass
            output = run.final_output
        else:
            output = (await agents.Runner.run(agent, "Oslo?", run_config=config)).final_output
        assert (asked, output) == (["Oslo"], "Rain in Oslo.")


async def test_an_agents_own_tools_do_not_disturb_the_openai_agents_sdk(tmp_path: Path) -> None:
    import agents

    turns = [tool_chunks(("p", "broken", "{}")), text_chunks("Sorry.")]
    async with mux_on(tmp_path, *turns) as (base, _), sdk(base) as client:
        agent = agents.Agent(name="a", model=agents.OpenAIResponsesModel("scribe", client))
        config = agents.RunConfig(tracing_disabled=True)
        assert (await agents.Runner.run(agent, "go", run_config=config)).final_output == "Sorry."

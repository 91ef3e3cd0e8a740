"""The responses part of OpenAI's client library against the server: typed parsing is half of the check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel

from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.wire_cases import until
from tests.e2e.client_cases import MAX_TOKENS, QUESTION, SCHEMA, WEATHER_SCHEMA
from tests.e2e.conftest import SMALL_MODEL, is_idle

pytestmark = pytest.mark.real_model
COLD: dict[str, Any] = {"temperature": 0, "max_output_tokens": MAX_TOKENS}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": WEATHER_SCHEMA,
    "strict": True,
}
CALLING = 'I look.<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


class City(BaseModel):
    """What a parsed answer has to be."""

    is_large: bool
    is_old: bool


@pytest.fixture
def api(smollm2_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def scripted_api(scripted_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_response(api: openai.OpenAI, smollm2_text: str) -> None:
    reply = api.responses.create(model=SMALL_MODEL, input=QUESTION, **COLD)
    assert isinstance(reply, Response)
    assert reply.output_text == smollm2_text
    assert (reply.object, reply.model, reply.error) == ("response", SMALL_MODEL, None)
    assert reply.status in ("completed", "incomplete")
    (item,) = reply.output
    assert item.type == "message"
    assert item.role == "assistant"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.usage.output_tokens_details.reasoning_tokens == 0
    assert reply.model_extra is not None
    assert reply.model_extra["subsecond"]["variant"]


def test_a_response_to_items(api: openai.OpenAI) -> None:
    items: list[Any] = [
        {"role": "user", "content": "Hello."},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    ]
    reply = api.responses.create(model=SMALL_MODEL, input=items, instructions="You are brief.", **COLD)
    assert reply.output_text
    counted = api.responses.input_tokens.count(model=SMALL_MODEL, input=items, instructions="You are brief.")
    assert reply.usage is not None
    assert counted.input_tokens == reply.usage.input_tokens > 40


def test_a_stream(api: openai.OpenAI, smollm2_text: str) -> None:
    events = list(api.responses.create(model=SMALL_MODEL, input=QUESTION, stream=True, **COLD))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == smollm2_text
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == smollm2_text
    assert last.response.model_extra is not None
    assert last.response.model_extra["subsecond"]["decode_ms"] > 0


def test_the_helper_that_puts_streams_together(api: openai.OpenAI) -> None:
    with api.responses.stream(model=SMALL_MODEL, input="Say hi.", temperature=0, max_output_tokens=200) as stream:
        kinds = {event.type for event in stream}
        reply = stream.get_final_response()
    assert {"response.created", "response.output_text.delta", "response.output_text.done"} <= kinds
    assert reply.output_text
    assert reply.status == "completed"


def test_settings_and_an_answer_that_is_cut_off(api: openai.OpenAI) -> None:
    reply = api.responses.create(
        model=SMALL_MODEL,
        input=QUESTION,
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=3,
        metadata={"a": "b"},
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "text"}},
        truncation="disabled",
        parallel_tool_calls=False,
        user="someone",
        extra_body={"seed": 3, "priority": 1, "deadline_ms": 60_000},
    )
    assert (reply.status, reply.temperature, reply.top_p, reply.metadata) == ("incomplete", 0.5, 0.9, {"a": "b"})
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage is not None
    assert reply.usage.output_tokens == 3
    assert reply.model_extra is not None
    assert reply.model_extra["subsecond"]["seed"] == 3


def test_log_probabilities(api: openai.OpenAI) -> None:
    reply = api.responses.create(
        model=SMALL_MODEL,
        input=QUESTION,
        temperature=0,
        max_output_tokens=4,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    content: Any = reply.output[0].content[0]  # type: ignore[union-attr, index]
    assert content.type == "output_text"
    assert content.logprobs is not None
    assert "".join(entry.token for entry in content.logprobs) == reply.output_text
    for entry in content.logprobs:
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.top_logprobs[0].token == entry.token
        assert len(entry.top_logprobs) == 2


def test_a_conversation_goes_on(api: openai.OpenAI) -> None:
    first = api.responses.create(model=SMALL_MODEL, input=QUESTION, **COLD)
    second = api.responses.create(model=SMALL_MODEL, input="And of Spain?", previous_response_id=first.id, **COLD)
    assert second.previous_response_id == first.id
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens // 2
    assert api.responses.retrieve(first.id).output_text == first.output_text
    api.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(first.id)
    unkept = api.responses.create(model=SMALL_MODEL, input="Hi.", store=False, **COLD)
    with pytest.raises(openai.NotFoundError):
        api.responses.create(model=SMALL_MODEL, input="Hi.", previous_response_id=unkept.id)


def test_answers_by_a_schema(api: openai.OpenAI) -> None:
    held = api.responses.create(
        model=SMALL_MODEL,
        input="Name a city and its rank as JSON.",
        temperature=0,
        max_output_tokens=60,
        text={"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}},
    )
    assert set(json.loads(held.output_text)) == {"city", "rank"}
    parsed = api.responses.parse(
        model=SMALL_MODEL, input="Is Rome large, is it old?", text_format=City, temperature=0, max_output_tokens=60
    )
    assert isinstance(parsed.output_parsed, City)
    free = api.responses.create(
        model=SMALL_MODEL,
        input="Answer with {}.",
        temperature=0,
        max_output_tokens=16,
        text={"format": {"type": "json_object"}},
    )
    assert free.output_text.lstrip().startswith("{")


def test_calls_and_their_results(scripted_api: openai.OpenAI, scripted_server: LiveServer) -> None:
    scripted_server.model.answers.update({"tool_response": "It shines.", "wetter": CALLING})
    asked: list[Any] = [{"role": "user", "content": "wetter"}]
    reply = scripted_api.responses.create(model="scripted", input=asked, tools=[WEATHER], temperature=0)
    assert [item.type for item in reply.output] == ["message", "function_call"]
    items: list[Any] = reply.output
    call = items[1]
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Bern"})
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    answer = scripted_api.responses.create(
        model="scripted", input=[*asked, *items, result], tools=[WEATHER], temperature=0
    )
    assert answer.output_text == "It shines."
    again = scripted_api.responses.create(
        model="scripted", input=[result], previous_response_id=reply.id, tools=[WEATHER], temperature=0
    )
    assert again.output_text == "It shines."


def test_a_streamed_call(scripted_api: openai.OpenAI, scripted_server: LiveServer) -> None:
    scripted_server.model.answers["wetter"] = CALLING
    with scripted_api.responses.stream(model="scripted", input="wetter", tools=[WEATHER], temperature=0) as stream:
        events = list(stream)
        reply = stream.get_final_response()
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(pieces)) == {"city": "Bern"}
    call = reply.output[1]
    assert isinstance(call, ResponseFunctionToolCall)
    assert json.loads(call.arguments) == {"city": "Bern"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_that_has_to_be_made(scripted_api: openai.OpenAI, choice: Any) -> None:
    reply = scripted_api.responses.create(
        model="scripted",
        input="say no",
        tools=[WEATHER],
        tool_choice=choice,
        reasoning={"effort": "none"},
        parallel_tool_calls=False,
        temperature=0,
        max_output_tokens=200,
    )
    (call,) = reply.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert json.loads(call.arguments)["city"] in ("Bern", "Oslo")


def test_what_a_coding_agent_sends_is_taken(scripted_api: openai.OpenAI) -> None:
    """The fields of an agent's requests, with tools that only its vendor runs and a probe of nothing."""
    mail: Any = {"type": "namespace", "name": "mail", "description": "Post.", "tools": [WEATHER | {"strict": False}]}
    asked: Any = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "say yes"}]}]
    tools: Any = [WEATHER | {"strict": False}, mail, {"type": "web_search", "external_web_access": False}]
    events = list(
        scripted_api.responses.create(
            model="scripted",
            instructions="You help.",
            input=asked,
            tools=tools,
            tool_choice="auto",
            parallel_tool_calls=True,
            reasoning={"effort": "medium", "summary": "auto"},
            store=False,
            stream=True,
            include=["reasoning.encrypted_content"],
            prompt_cache_key="a",
            extra_body={"client_metadata": {"a": "b"}},
        )
    )
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "yes"
    assert last.response.model_extra is not None
    assert last.response.model_extra["subsecond"]["left_out"] == ["web_search"]
    probe = scripted_api.responses.create(model="scripted", input=[], max_output_tokens=1)
    assert (probe.status, probe.output) == ("completed", [])


def test_reasoning(scripted_api: openai.OpenAI) -> None:
    reply = scripted_api.responses.create(model="scripted", input="say <think>Hm.</think>Yes.", temperature=0)
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output[0].content[0].text == "Hm."  # type: ignore[union-attr, index]
    assert reply.output_text == "Yes."
    items: list[Any] = [*reply.output, {"role": "user", "content": "say ok"}]
    again = scripted_api.responses.create(model="scripted", input=items, reasoning={"effort": "none"}, temperature=0)
    assert [item.type for item in again.output] == ["message"]


def test_errors(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        api.responses.create(model="nobody", input="Hi.")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        api.responses.create(model=SMALL_MODEL, input="Hi.", temperature=1000)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as hosted:
        api.responses.create(model=SMALL_MODEL, input="Hi.", tools=[{"type": "file_search", "vector_store_ids": ["a"]}])
    assert hosted.value.param == "tools[0].type"
    with pytest.raises(openai.BadRequestError) as long:
        api.responses.create(model=SMALL_MODEL, input="word " * 9000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.RateLimitError):
        api.responses.create(model=SMALL_MODEL, input=QUESTION, stream=True, extra_body={"deadline_ms": 0.001})


def test_async_clients_and_leaving_a_stream(smollm2_server: LiveServer, smollm2_text: str) -> None:

    async def ask() -> None:
        url = f"{smollm2_server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as api:
            asked = [api.responses.create(model=SMALL_MODEL, input=QUESTION, **COLD) for _ in range(3)]
            assert [reply.output_text for reply in await asyncio.gather(*asked)] == [smollm2_text] * 3
            stream = await api.responses.create(model=SMALL_MODEL, input="Tell a very long story.", stream=True)
            async with stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        break
            assert event.type == "response.output_text.delta"

    asyncio.run(ask())
    until(lambda: is_idle(smollm2_server))

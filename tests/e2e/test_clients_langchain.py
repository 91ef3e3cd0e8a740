"""langchain-openai against a running server: messages, streams, tools, structured output, log-probabilities."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Iterable
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, SecretStr

from tests.contract.serve.live_server import LiveServer
from tests.e2e.client_cases import MAX_TOKENS, QUESTION
from tests.e2e.conftest import SMALL_MODEL

pytestmark = pytest.mark.real_model


class City(BaseModel):
    """A city."""

    city: Literal["Paris", "Rome"]
    rank: Literal[1, 2, 3]


@tool
def get_weather(city: Literal["Bern", "Oslo"]) -> str:
    """Tells the weather of a city."""
    return f"It is sunny in {city}."


def chat(server: LiveServer, **fields: Any) -> ChatOpenAI:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, "max_retries": 0, **fields}
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key=SecretStr("any"), model=SMALL_MODEL, **options)


def joined(chunks: Iterable[Any]) -> AIMessageChunk:
    """What a stream grows to."""
    whole = functools.reduce(operator.add, chunks)
    assert isinstance(whole, AIMessageChunk)
    return whole


def test_invoke(smollm2_server: LiveServer, smollm2_text: str) -> None:
    reply = chat(smollm2_server).invoke(QUESTION)
    assert isinstance(reply, AIMessage)
    assert reply.content == smollm2_text
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] <= MAX_TOKENS
    assert reply.response_metadata["model_name"] == SMALL_MODEL
    assert reply.response_metadata["finish_reason"] in ("stop", "length")
    assert reply.response_metadata["system_fingerprint"].startswith("fp_")


def test_stream(smollm2_server: LiveServer, smollm2_text: str) -> None:
    whole = joined(chat(smollm2_server, stream_usage=True).stream(QUESTION))
    assert whole.content == smollm2_text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] > whole.usage_metadata["output_tokens"] > 0


def test_async_batch(smollm2_server: LiveServer, smollm2_text: str) -> None:
    async def run() -> list[AIMessage]:
        return await chat(smollm2_server).abatch([QUESTION, [HumanMessage(QUESTION, name="somebody")]])

    assert [reply.content for reply in asyncio.run(run())] == [smollm2_text] * 2


def test_a_tool_goes_round(smollm2_server: LiveServer) -> None:
    asked = [SystemMessage("Be brief."), HumanMessage("What is the weather in Bern?")]
    model = chat(smollm2_server, max_tokens=80).bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    reply = model.invoke(asked)
    assert len(reply.tool_calls) == 1
    call = reply.tool_calls[0]
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in ("Bern", "Oslo")
    assert not reply.invalid_tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    after = chat(smollm2_server, max_tokens=8).bind_tools([get_weather]).invoke([*asked, reply, result])
    assert after.usage_metadata is not None
    assert reply.usage_metadata is not None
    assert after.usage_metadata["input_tokens"] > reply.usage_metadata["input_tokens"]


def test_a_streamed_call_is_put_together(smollm2_server: LiveServer) -> None:
    model = chat(smollm2_server, max_tokens=80).bind_tools([get_weather], tool_choice="get_weather")
    whole = joined(model.stream("What is the weather in Oslo?"))
    assert [call["name"] for call in whole.tool_calls] == ["get_weather"]
    assert whole.tool_calls[0]["args"]["city"] in ("Bern", "Oslo")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(smollm2_server: LiveServer, method: Any) -> None:
    found = chat(smollm2_server, max_tokens=80).with_structured_output(City, method=method).invoke(QUESTION)
    assert isinstance(found, City)
    assert found.city in ("Paris", "Rome")


def test_logprobs(smollm2_server: LiveServer, smollm2_text: str) -> None:
    reply = chat(smollm2_server, logprobs=True, top_logprobs=2).invoke(QUESTION)
    entries = reply.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == smollm2_text
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_the_older_completions(smollm2_server: LiveServer) -> None:
    options: dict[str, Any] = {"base_url": f"{smollm2_server.url}/v1", "api_key": "any", "max_retries": 0}
    model = OpenAI(model=SMALL_MODEL, temperature=0, max_tokens=5, **options)
    text = model.invoke("The capital of France is")
    assert text
    assert "".join(model.stream("The capital of France is")) == text


def test_an_error_is_the_clients_own(smollm2_server: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(smollm2_server, temperature=1000).invoke(QUESTION)
    assert wrong.value.param == "temperature"

"""OpenAI's own Python client against a running server: what it parses, streams, retries and refuses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.contract.serve.live_server import LiveServer
from tests.e2e.client_cases import MAX_TOKENS, QUESTION, SCHEMA, WEATHER_SCHEMA
from tests.e2e.conftest import SMALL_MODEL, is_idle, small_model

pytestmark = pytest.mark.real_model

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": WEATHER_SCHEMA},
}


class City(BaseModel):
    """What parsed answers are."""

    city: Literal["Paris", "Rome"]
    is_capital: bool


@pytest.fixture(scope="module")
def client(smollm2_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="any", max_retries=0, timeout=300) as made:
        yield made


def test_plain(client: openai.OpenAI, smollm2_text: str, smollm2_server: LiveServer) -> None:
    reply = client.chat.completions.create(model=SMALL_MODEL, messages=ASKED, temperature=0, max_tokens=MAX_TOKENS)
    assert reply.choices[0].message.content == smollm2_text
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.refusal is None
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.choices[0].logprobs is None
    assert reply.object == "chat.completion"
    assert reply.model == SMALL_MODEL
    assert reply.id.startswith("chatcmpl-")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.completion_tokens_details is not None
    assert reply.model_extra is not None
    assert reply.model_extra["subsecond"]["variant"] == small_model(smollm2_server).backend.variant


def test_headers_name_the_request(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=SMALL_MODEL, messages=ASKED, max_tokens=1)
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id
    assert raw.parse().choices[0].finish_reason == "length"


def test_a_seed_gives_the_same_answer_again(client: openai.OpenAI) -> None:
    def answer(**more: int) -> tuple[str | None, str | None, int]:
        reply = client.chat.completions.create(model=SMALL_MODEL, messages=ASKED, max_tokens=10, top_p=0.95, **more)  # type: ignore[call-overload]
        return reply.choices[0].message.content, reply.system_fingerprint, reply.model_extra["subsecond"]["seed"]

    first = answer()
    assert answer(seed=first[2]) == first
    assert answer(seed=1)[0] != answer(seed=2)[0]


def test_stream(client: openai.OpenAI, smollm2_text: str) -> None:
    stream = client.chat.completions.create(
        model=SMALL_MODEL,
        messages=ASKED,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == smollm2_text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= MAX_TOKENS
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["subsecond"]["prefill_ms"] >= 0
    assert len(chunks) > 4


def test_the_stream_helper_puts_events_together(client: openai.OpenAI, smollm2_text: str) -> None:
    with client.chat.completions.stream(
        model=SMALL_MODEL, messages=ASKED, temperature=0, max_tokens=MAX_TOKENS, logprobs=True
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.done") == 1
    assert kinds.count("content.delta") > 3
    assert "logprobs.content.done" in kinds
    assert final.choices[0].message.content == smollm2_text


def test_samples(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=SMALL_MODEL, messages=ASKED, n=3, seed=5, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) > 1
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 24


def test_logprobs(client: openai.OpenAI, smollm2_text: str) -> None:
    reply = client.chat.completions.create(
        model=SMALL_MODEL, messages=ASKED, temperature=0, max_tokens=MAX_TOKENS, logprobs=True, top_logprobs=5
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert bytes(byte for entry in logprobs.content for byte in entry.bytes or ()).decode() == smollm2_text
    assert all(len(entry.top_logprobs) == 5 for entry in logprobs.content)
    assert all(entry.top_logprobs[0].token == entry.token for entry in logprobs.content)
    assert all(entry.logprob <= 0 for entry in logprobs.content)


def test_stop_and_bias(client: openai.OpenAI, smollm2_text: str, smollm2_server: LiveServer) -> None:
    word = smollm2_text.split()[2]
    reply = client.chat.completions.create(
        model=SMALL_MODEL, messages=ASKED, temperature=0, max_tokens=MAX_TOKENS, stop=[word, "\n\n\n"]
    )
    assert reply.choices[0].message.content == smollm2_text[: smollm2_text.index(word)]
    assert reply.choices[0].finish_reason == "stop"
    token_id = small_model(smollm2_server).encode(" Rome")[0]
    biased = client.chat.completions.create(
        model=SMALL_MODEL, messages=ASKED, temperature=0, max_tokens=3, logit_bias={str(token_id): 100}
    )
    assert biased.choices[0].message.content == " Rome Rome Rome"


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=SMALL_MODEL,
        messages=ASKED,
        seed=1,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}},
    )
    value = json.loads(reply.choices[0].message.content or "")
    assert set(value) == {"city", "rank"}
    assert isinstance(value["city"], str)
    assert 0 <= value["rank"] <= 9
    assert reply.choices[0].finish_reason == "stop"


def test_parsed_answers(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=SMALL_MODEL, messages=ASKED, seed=1, max_tokens=60, response_format=City
    )
    city = reply.choices[0].message.parsed
    assert isinstance(city, City)
    assert city.city in ("Paris", "Rome")
    with client.chat.completions.stream(
        model=SMALL_MODEL, messages=ASKED, seed=1, max_tokens=60, response_format=City
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == city


def test_json_mode(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=SMALL_MODEL,
        messages=[{"role": "user", "content": 'Write {"a": 1} as JSON.'}],
        temperature=0,
        max_tokens=80,
        response_format={"type": "json_object"},
    )
    content = reply.choices[0].message.content or ""
    assert content.lstrip().startswith("{")
    assert reply.choices[0].finish_reason == "length" or isinstance(json.loads(content), dict)


def test_a_pattern_is_kept(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=SMALL_MODEL,
        messages=ASKED,
        seed=3,
        max_tokens=20,
        extra_body={"structured_outputs": {"regex": "(Paris|Rome), [0-9]{2}"}},
    )
    assert (reply.choices[0].message.content or "")[:-2] in ("Paris, ", "Rome, ")


def test_a_tool_is_called_and_its_result_read(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Bern?"}]
    reply = client.chat.completions.create(
        model=SMALL_MODEL,
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=80,
    )
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Oslo")
    messages.append(choice.message.to_dict())  # type: ignore[arg-type]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "It is sunny."})
    after = client.chat.completions.create(model=SMALL_MODEL, messages=messages, tools=[WEATHER], max_tokens=10)
    assert after.usage is not None
    assert reply.usage is not None
    assert after.usage.prompt_tokens > reply.usage.prompt_tokens


def test_a_streamed_call_is_put_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=SMALL_MODEL,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=80,
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 1
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls
    assert final.message.tool_calls[0].function.name == "get_weather"
    assert json.loads(final.message.tool_calls[0].function.arguments)["city"] in ("Bern", "Oslo")


def test_a_parsed_tool(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=SMALL_MODEL,
        messages=ASKED,
        tools=[openai.pydantic_function_tool(City)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=80,
    )
    calls = reply.choices[0].message.tool_calls
    assert calls
    assert len(calls) == 1
    assert isinstance(calls[0].function.parsed_arguments, City)


def test_no_tool_is_called_when_none_may_be(client: openai.OpenAI, smollm2_text: str) -> None:
    reply = client.chat.completions.create(
        model=SMALL_MODEL, messages=ASKED, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=MAX_TOKENS
    )
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].message.content == smollm2_text


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=SMALL_MODEL, messages=ASKED, temperature=1000)
    assert wrong.value.param == "temperature"
    assert wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=SMALL_MODEL, messages=ASKED, extra_body={"no_such_field": 1})
    assert unknown.value.param == "no_such_field"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="missing", messages=ASKED)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=SMALL_MODEL, messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="pictures are not read"):
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        client.chat.completions.create(model=SMALL_MODEL, messages=[{"role": "user", "content": [image]}])  # type: ignore[misc, list-item]


def test_what_cannot_be_in_time_is_a_rate_limit_error(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 1500}]
    with pytest.raises(openai.RateLimitError) as late:
        client.chat.completions.create(model=SMALL_MODEL, messages=messages, extra_body={"deadline_ms": 0.01})
    assert int(late.value.response.headers["retry-after"]) >= 1


def test_leaving_a_stream_ends_the_answer(client: openai.OpenAI, smollm2_server: LiveServer) -> None:
    engine = small_model(smollm2_server).engine
    with client.chat.completions.create(
        model=SMALL_MODEL, messages=ASKED, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        assert engine.stats().num_running + engine.stats().num_waiting == 1
    while not is_idle(smollm2_server):
        time.sleep(0.01)


def test_extensions(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=SMALL_MODEL,
        messages=[*ASKED, {"role": "assistant", "content": "The capital of France is Rome"}],
        temperature=0,
        max_tokens=4,
        extra_body={"continue_final_message": True, "priority": 3, "top_k": 5, "min_p": 0.01, "ignore_eos": True},
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    assert not (reply.choices[0].message.content or "").startswith("The capital")


def test_completions(client: openai.OpenAI, smollm2_server: LiveServer) -> None:
    model = small_model(smollm2_server)
    prompts = ["The capital of France is", "Two and two is"]
    reply = client.completions.create(model=SMALL_MODEL, prompt=prompts, temperature=0, max_tokens=5)
    expected = [model.generate(prompt, raw=True, max_tokens=5).text for prompt in prompts]
    assert [choice.text for choice in reply.choices] == expected
    assert reply.object == "text_completion"
    assert reply.usage is not None
    ids = [model.encode(prompt) for prompt in prompts]
    again = client.completions.create(model=SMALL_MODEL, prompt=ids, temperature=0, max_tokens=5, echo=True)
    assert [choice.text for choice in again.choices] == [a + b for a, b in zip(prompts, expected, strict=True)]
    stream = client.completions.create(
        model=SMALL_MODEL, prompt=prompts[0], temperature=0, max_tokens=5, stream=True, stop="never"
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == expected[0]


def test_prompt_logprobs_of_completions(client: openai.OpenAI, smollm2_server: LiveServer) -> None:
    prompt = "The capital of France is Paris."
    reply = client.completions.create(
        model=SMALL_MODEL, prompt=prompt, temperature=0, max_tokens=1, echo=True, logprobs=2
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    assert "".join(logprobs.tokens[:-1]) == prompt
    assert logprobs.token_logprobs.count(None) == 1  # type: ignore[arg-type]
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    place = logprobs.tokens.index(" Paris")
    assert logprobs.top_logprobs is not None
    assert max(logprobs.top_logprobs[place].values()) == logprobs.token_logprobs[place]


def test_async(smollm2_server: LiveServer, smollm2_text: str) -> None:
    async def run() -> tuple[list[str | None], str]:
        async with openai.AsyncOpenAI(base_url=f"{smollm2_server.url}/v1", api_key="any", timeout=300) as client:

            async def answer() -> str | None:
                reply = await client.chat.completions.create(
                    model=SMALL_MODEL, messages=ASKED, temperature=0, max_tokens=MAX_TOKENS
                )
                return reply.choices[0].message.content

            texts = await asyncio.gather(*(answer() for _ in range(4)))
            stream = await client.chat.completions.create(
                model=SMALL_MODEL, messages=ASKED, temperature=0, max_tokens=MAX_TOKENS, stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return list(texts), "".join(pieces)

    texts, streamed = asyncio.run(run())
    assert texts == [smollm2_text] * 4
    assert streamed == smollm2_text


def test_an_async_task_that_is_cancelled_frees_everything(smollm2_server: LiveServer) -> None:
    engine = small_model(smollm2_server).engine

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{smollm2_server.url}/v1", api_key="any", timeout=300) as client:
            asking = asyncio.create_task(
                client.chat.completions.create(
                    model=SMALL_MODEL, messages=ASKED, max_tokens=3000, extra_body={"ignore_eos": True}
                )
            )
            while not engine.stats().num_running:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(run())
    while not is_idle(smollm2_server):
        time.sleep(0.01)


def test_models(client: openai.OpenAI) -> None:
    assert SMALL_MODEL in [model.id for model in client.models.list()]


def test_several_calls_of_one_answer(scripted_server: LiveServer) -> None:
    scripted_server.model.answers["both cities"] = (
        "<think>Two calls.</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    )
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "The weather in both cities?"}]
    with openai.OpenAI(base_url=f"{scripted_server.url}/v1", api_key="any", max_retries=0) as client:
        whole = client.chat.completions.create(model="scripted", messages=messages, tools=[WEATHER], temperature=0)
        with client.chat.completions.stream(
            model="scripted", messages=messages, tools=[WEATHER], temperature=0
        ) as stream:
            streamed = stream.get_final_completion()
    for choice in (whole.choices[0], streamed.choices[0]):
        assert choice.finish_reason == "tool_calls"
        calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Bern", "Oslo"]
        assert len({call.id for call in calls}) == 2
    assert whole.choices[0].message.model_extra is not None
    assert whole.choices[0].message.model_extra["reasoning_content"] == "Two calls."
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens

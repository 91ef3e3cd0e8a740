"""Anthropic's own client library against the server: typed parsing of every answer and event is half of the check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from subsecond.serve.anthropic_order import BILLING_HEADER
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.wire_cases import until
from tests.e2e.client_cases import MAX_TOKENS, QUESTION, SCHEMA, WEATHER_SCHEMA
from tests.e2e.conftest import SMALL_MODEL, engine_stats, is_idle

pytestmark = pytest.mark.real_model
COLD: dict[str, Any] = {"temperature": 0}  # which the library no longer has a word for
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
WEATHER: Any = {"name": "weather", "description": "Tells the weather of a city.", "input_schema": WEATHER_SCHEMA}
CALLING = 'I look.<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


@pytest.fixture
def api(smollm2_server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=smollm2_server.url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def scripted_api(scripted_server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=scripted_server.url, api_key="unused", max_retries=0) as client:
        yield client


def test_a_message(api: anthropic.Anthropic, smollm2_text: str) -> None:
    message = api.messages.create(model=SMALL_MODEL, max_tokens=MAX_TOKENS, messages=ASKED, extra_body=COLD)
    assert isinstance(message, anthropic.types.Message)
    assert (message.type, message.role, message.model) == ("message", "assistant", SMALL_MODEL)
    (block,) = message.content
    assert block.type == "text"
    assert block.text == smollm2_text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < message.usage.output_tokens <= MAX_TOKENS
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 10
    assert message.model_extra is not None
    assert message.model_extra["subsecond"]["variant"]
    assert message._request_id


def test_a_stream(api: anthropic.Anthropic, smollm2_text: str) -> None:
    with api.messages.stream(model=SMALL_MODEL, max_tokens=MAX_TOKENS, messages=ASKED, extra_body=COLD) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 3
    assert "".join(pieces) == smollm2_text == message.content[0].text  # type: ignore[union-attr]
    assert message.usage.output_tokens >= len(pieces)
    assert message.stop_reason in ("end_turn", "max_tokens")


def test_raw_events(api: anthropic.Anthropic) -> None:
    events = list(api.messages.create(model=SMALL_MODEL, max_tokens=6, messages=ASKED, extra_body=COLD, stream=True))
    assert [event.type for event in events if event.type != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    end = events[-2]
    assert end.type == "message_delta"
    assert (end.delta.stop_reason, end.usage.output_tokens) == ("max_tokens", 6)
    assert end.model_extra is not None
    assert end.model_extra["subsecond"]["decode_ms"] > 0


def test_settings(api: anthropic.Anthropic, smollm2_text: str) -> None:
    word = smollm2_text.split()[2]
    message = api.messages.create(
        model=SMALL_MODEL,
        max_tokens=MAX_TOKENS,
        messages=ASKED,
        stop_sequences=["@@", word],
        metadata={"user_id": "someone"},
        extra_body={**COLD, "top_k": 40, "top_p": 0.9, "seed": 3, "priority": 1, "deadline_ms": 60_000},
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert word not in message.content[0].text  # type: ignore[union-attr]
    assert message.model_extra is not None
    assert message.model_extra["subsecond"]["seed"] == 3


def test_a_conversation_with_a_system_prompt_in_blocks(api: anthropic.Anthropic) -> None:
    system: list[Any] = [
        {"type": "text", "text": BILLING_HEADER + " cch=1;"},
        {"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}},
    ]
    messages: list[Any] = [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "Paris."}]}, *ASKED]
    counted = api.messages.count_tokens(model=SMALL_MODEL, messages=messages, system=system)
    first, second = (
        api.messages.create(model=SMALL_MODEL, max_tokens=4, messages=messages, system=system, extra_body=COLD)
        for _ in range(2)
    )
    assert counted.input_tokens == second.usage.input_tokens + (second.usage.cache_read_input_tokens or 0)
    assert (second.usage.cache_read_input_tokens or 0) >= counted.input_tokens // 2
    assert first.content == second.content


def test_an_answer_by_a_schema(api: anthropic.Anthropic) -> None:
    message = api.messages.create(
        model=SMALL_MODEL,
        max_tokens=60,
        messages=[{"role": "user", "content": "Name a city and its rank as JSON."}],
        extra_body=COLD,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    value = json.loads(message.content[0].text)  # type: ignore[union-attr]
    assert set(value) == {"city", "rank"}
    assert isinstance(value["rank"], int)


def test_calls_and_their_results(scripted_api: anthropic.Anthropic, scripted_server: LiveServer) -> None:
    scripted_server.model.answers.update({"tool_response": "It shines.", "wetter": CALLING})
    asked: Any = {"role": "user", "content": "wetter"}
    call = scripted_api.messages.create(
        model="scripted", max_tokens=200, messages=[asked], tools=[WEATHER], extra_body=COLD
    )
    assert call.stop_reason == "tool_use"
    assert [block.type for block in call.content] == ["text", "tool_use"]
    use = call.content[1]
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("weather", {"city": "Bern"})
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "sun"}
    answer = scripted_api.messages.create(
        model="scripted",
        max_tokens=200,
        messages=[asked, {"role": "assistant", "content": call.content}, {"role": "user", "content": [result]}],
        tools=[WEATHER],
        extra_body=COLD,
    )
    assert answer.content[0].text == "It shines."  # type: ignore[union-attr]


def test_a_streamed_call(scripted_api: anthropic.Anthropic, scripted_server: LiveServer) -> None:
    scripted_server.model.answers["wetter"] = CALLING
    with scripted_api.messages.stream(
        model="scripted",
        max_tokens=200,
        messages=[{"role": "user", "content": "wetter"}],
        tools=[WEATHER],
        extra_body=COLD,
    ) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    assert json.loads("".join(pieces)) == {"city": "Bern"}
    assert message.content[1].input == {"city": "Bern"}  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_that_has_to_be_made(scripted_api: anthropic.Anthropic, choice: Any) -> None:
    forced: Any = {**choice, "disable_parallel_tool_use": True}
    message = scripted_api.messages.create(
        model="scripted",
        max_tokens=200,
        messages=[{"role": "user", "content": "say no"}],
        tools=[WEATHER],
        tool_choice=forced,
        thinking={"type": "disabled"},
        extra_body=COLD,
    )
    (block,) = message.content
    assert block.type == "tool_use"
    assert block.input["city"] in ("Bern", "Oslo")


def test_thinking(scripted_api: anthropic.Anthropic) -> None:
    asked: list[Any] = [{"role": "user", "content": "say <think>Hm.</think>Yes."}]
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    with scripted_api.messages.stream(
        model="scripted", max_tokens=2000, messages=asked, thinking=thinking, extra_body=COLD
    ) as stream:
        thoughts = [event.thinking for event in stream if event.type == "thinking"]
        message = stream.get_final_message()
    assert "".join(thoughts) == "Hm."
    assert [block.type for block in message.content] == ["thinking", "text"]
    again = scripted_api.messages.create(
        model="scripted",
        max_tokens=2000,
        messages=[*asked, {"role": "assistant", "content": message.content}, {"role": "user", "content": "say ok"}],
        thinking={"type": "disabled"},
        extra_body=COLD,
    )
    assert [block.type for block in again.content] == ["text"]


def test_errors(api: anthropic.Anthropic, smollm2_server: LiveServer) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        api.messages.create(model="nobody", max_tokens=4, messages=ASKED)
    assert unknown.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens=-1"):
        api.messages.create(model=SMALL_MODEL, max_tokens=-1, messages=ASKED)
    with pytest.raises(anthropic.BadRequestError, match="pictures are not read here") as picture:
        source = {"type": "url", "url": "http://a/b.png"}
        block: Any = {"type": "image", "source": source}
        api.messages.create(model=SMALL_MODEL, max_tokens=4, messages=[{"role": "user", "content": [block]}])
    assert picture.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match=r"9[0-9]* tokens"):
        api.messages.create(model=SMALL_MODEL, max_tokens=4, messages=[{"role": "user", "content": "word " * 9000}])
    with pytest.raises(anthropic.RateLimitError):
        api.messages.create(
            model=SMALL_MODEL, max_tokens=4, messages=ASKED, stream=True, extra_body={"deadline_ms": 0.001}
        )


def test_keys() -> None:
    key = "0123456789abcdef-a"
    with LiveServer(["scripted"], keys=f"ada {key}") as server:
        asked: Any = {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "say hi"}]}
        with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as good:
            assert good.messages.create(**asked).content[0].text == "hi"
        with (
            anthropic.Anthropic(base_url=server.url, api_key="another", max_retries=0) as bad,
            pytest.raises(anthropic.AuthenticationError) as refused,
        ):
            bad.messages.create(**asked)
        assert refused.value.type == "authentication_error"


def test_leaving_a_stream_ends_the_work(api: anthropic.Anthropic, smollm2_server: LiveServer) -> None:
    asked: list[Any] = [{"role": "user", "content": "Tell a very long story."}]
    with api.messages.stream(model=SMALL_MODEL, max_tokens=2000, messages=asked, extra_body=COLD) as stream:
        next(iter(stream.text_stream))
        assert engine_stats(smollm2_server).num_running == 1
    until(lambda: engine_stats(smollm2_server).num_running == 0)
    with pytest.raises(anthropic.APITimeoutError):
        api.with_options(timeout=0.5).messages.create(
            model=SMALL_MODEL, max_tokens=2000, messages=asked, extra_body=COLD
        )
    until(lambda: is_idle(smollm2_server))

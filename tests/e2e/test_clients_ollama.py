"""Ollama's own client library against the server: typed parsing of every answer and line is half of the check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

import subsecond
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.wire_cases import until
from tests.e2e.client_cases import MAX_TOKENS, QUESTION, SCHEMA
from tests.e2e.conftest import SMALL_MODEL, is_idle

pytestmark = pytest.mark.real_model
ASKED = [{"role": "user", "content": QUESTION}]
COLD: dict[str, Any] = {"temperature": 0, "num_predict": MAX_TOKENS}
CALLING = 'I look.<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: of which

    Returns:
        what it is like
    """
    return f"sun in {city}"


@pytest.fixture
def api(smollm2_server: LiveServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=smollm2_server.url) as client:
        yield client


@pytest.fixture
def scripted_api(scripted_server: LiveServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=scripted_server.url) as client:
        yield client


def test_a_chat(api: ollama.Client, smollm2_text: str) -> None:
    reply = api.chat(model=SMALL_MODEL, messages=ASKED, options=COLD)
    assert isinstance(reply, ollama.ChatResponse)
    assert (reply.message.role, reply.message.content) == ("assistant", smollm2_text)
    assert (reply.done, reply.model) == (True, SMALL_MODEL)
    assert reply.done_reason in ("stop", "length")
    assert reply.total_duration is not None
    assert reply.eval_duration is not None
    assert reply.prompt_eval_count is not None
    assert reply.total_duration > reply.eval_duration > 0
    assert reply.prompt_eval_count > 10
    assert 0 < (reply.eval_count or 0) <= MAX_TOKENS


def test_a_streamed_chat(api: ollama.Client, smollm2_text: str) -> None:
    parts = list(api.chat(model=f"{SMALL_MODEL}:latest", messages=ASKED, options=COLD, stream=True))
    assert len(parts) > 4
    assert "".join(part.message.content or "" for part in parts) == smollm2_text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count


def test_generate(api: ollama.Client, smollm2_text: str) -> None:
    reply = api.generate(model=SMALL_MODEL, prompt=QUESTION, options=COLD)
    assert reply.response == smollm2_text
    parts = list(api.generate(model=SMALL_MODEL, prompt=QUESTION, options=COLD, stream=True))
    assert "".join(part.response or "" for part in parts) == smollm2_text
    raw = api.generate(model=SMALL_MODEL, prompt="One, two, three,", raw=True, options={**COLD, "num_predict": 3})
    assert "four" in (raw.response or "")
    assert (raw.done_reason, raw.eval_count) == ("length", 3)


def test_options(api: ollama.Client, smollm2_text: str) -> None:
    word = smollm2_text.split()[2]
    options = {**COLD, "stop": [word], "seed": 3, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.0, "num_ctx": 2048}
    reply = api.chat(model=SMALL_MODEL, messages=ASKED, options=options, keep_alive="5m")
    assert (reply.message.content or "").strip() == " ".join(smollm2_text.split()[:2])
    assert reply.done_reason == "stop"


def test_two_answers_with_one_seed_are_alike(api: ollama.Client) -> None:
    options = {"seed": 7, "num_predict": 12, "temperature": 1.5}
    first, second = (api.chat(model=SMALL_MODEL, messages=ASKED, options=options).message.content for _ in range(2))
    assert first == second
    other = api.chat(model=SMALL_MODEL, messages=ASKED, options=options | {"seed": 8}).message.content
    assert other != first


def test_answers_in_json(api: ollama.Client) -> None:
    asked = [{"role": "user", "content": "Name a city and its rank as JSON."}]
    held = api.chat(model=SMALL_MODEL, messages=asked, format=SCHEMA, options={"temperature": 0, "num_predict": 60})
    value = json.loads(held.message.content or "")
    assert set(value) == {"city", "rank"}
    free = api.generate(
        model=SMALL_MODEL, prompt="Answer with {}.", format="json", options={"temperature": 0, "num_predict": 16}
    )
    assert (free.response or "").lstrip().startswith("{")


def test_log_probabilities(api: ollama.Client) -> None:
    reply = api.chat(
        model=SMALL_MODEL, messages=ASKED, options={"temperature": 0, "num_predict": 4}, logprobs=True, top_logprobs=3
    )
    assert reply.logprobs is not None
    assert "".join(entry.token for entry in reply.logprobs) == reply.message.content
    for entry in reply.logprobs:
        assert entry.top_logprobs is not None
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0


def test_calls_and_their_results(scripted_api: ollama.Client, scripted_server: LiveServer) -> None:
    scripted_server.model.answers.update({"tool_response": "It shines.", "wetter": CALLING})
    asked: list[Any] = [{"role": "user", "content": "wetter"}]
    reply = scripted_api.chat(model="scripted", messages=asked, tools=[weather], options=COLD | {"num_predict": 200})
    assert reply.message.content == "I look."
    (call,) = reply.message.tool_calls or ()
    assert (call.function.name, dict(call.function.arguments)) == ("weather", {"city": "Bern"})
    result = {"role": "tool", "content": weather(**call.function.arguments), "tool_name": call.function.name}
    answer = scripted_api.chat(
        model="scripted", messages=[*asked, reply.message, result], tools=[weather], options=COLD
    )
    assert answer.message.content == "It shines."
    streamed = scripted_api.chat(
        model="scripted", messages=asked, tools=[weather], options=COLD | {"num_predict": 200}, stream=True
    )
    calls = [call.function for part in streamed for call in part.message.tool_calls or ()]
    assert [(each.name, each.arguments["city"]) for each in calls] == [("weather", "Bern")]


def test_thinking(scripted_api: ollama.Client) -> None:
    asked = [{"role": "user", "content": "say <think>Hm.</think>Yes."}]
    reply = scripted_api.chat(model="scripted", messages=asked, think=True, options={"temperature": 0})
    assert (reply.message.thinking, reply.message.content) == ("Hm.", "Yes.")
    parts = list(
        scripted_api.chat(model="scripted", messages=asked, think="low", options={"temperature": 0}, stream=True)
    )
    assert "".join(part.message.thinking or "" for part in parts) == "Hm."
    plain = scripted_api.chat(model="scripted", messages=[{"role": "user", "content": "say ok"}], think=False)
    assert plain.message.thinking is None


def test_a_model_that_does_not_think_says_so(api: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not reason") as refused:
        api.chat(model=SMALL_MODEL, messages=ASKED, think=True)
    assert refused.value.status_code == 400


def test_models(api: ollama.Client) -> None:
    (listed,) = api.list().models
    assert listed.model == SMALL_MODEL
    (running,) = api.ps().models
    assert running.context_length in (2048, 8192)
    assert (running.size or 0) > 10**7
    shown = api.show(SMALL_MODEL)
    assert shown.capabilities is not None
    assert "completion" in shown.capabilities
    assert shown.details is not None
    assert shown.details.parameter_size == "134.52M"
    assert shown.details.quantization_level
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.parameter_count"] == 134515008
    assert "{%" in (shown.template or "")
    assert api._client.get("/api/version").json() == {"version": subsecond.__version__}


def test_vectors(scripted_api: ollama.Client) -> None:
    reply = scripted_api.embed(model="embedding", input=["one", "two"])
    assert [len(vector) for vector in reply.embeddings] == [8, 8]
    assert (reply.prompt_eval_count or 0) > 1
    assert list(scripted_api.embeddings(model="embedding", prompt="one").embedding) == list(reply.embeddings[0])


def test_errors(api: ollama.Client) -> None:
    for model, status, words in (("nobody", 404, "there is no model"), (SMALL_MODEL, 400, "temperature")):
        with pytest.raises(ollama.ResponseError, match=words) as refused:
            api.chat(model=model, messages=ASKED, options={"temperature": -1 if model == SMALL_MODEL else 0})
        assert refused.value.status_code == status
    with pytest.raises(ollama.ResponseError, match="pictures are not read here"):
        api.chat(model=SMALL_MODEL, messages=[{**ASKED[0], "images": ["aGVsbG8="]}])
    with pytest.raises(ollama.ResponseError, match="num_ctx"):
        list(api.generate(model=SMALL_MODEL, prompt="a", options={"num_ctx": 10**6}, stream=True))


def test_an_async_client_and_leaving_a_stream(smollm2_server: LiveServer, smollm2_text: str) -> None:

    async def ask() -> None:
        api = ollama.AsyncClient(host=smollm2_server.url)
        asked = [api.chat(model=SMALL_MODEL, messages=ASKED, options=COLD) for _ in range(3)]
        assert [reply.message.content for reply in await asyncio.gather(*asked)] == [smollm2_text] * 3
        story = [{"role": "user", "content": "Tell a very long story."}]
        stream = await api.chat(model=SMALL_MODEL, messages=story, stream=True)
        async for part in stream:
            assert not part.done
            break
        await stream.aclose()  # type: ignore[attr-defined]
        await api._client.aclose()

    asyncio.run(ask())
    until(lambda: is_idle(smollm2_server))

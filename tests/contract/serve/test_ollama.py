"""What Ollama's API answers, whole and in lines: texts, calls, times, loads, lists, vectors and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import subsecond
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel
from tests.contract.serve.wire_cases import until

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLING = (
    "I look.<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Bern"}}\n'
    "</tool_call>\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Rome"}}\n'
    "</tool_call>"
)
COLD = {"options": {"temperature": 0}}
TIMES = ("total_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


def chat(text: str = "say one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **COLD, **fields}


def prompt(text: str = "say one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "prompt": text, **COLD, **fields}


@pytest.fixture
def lines(client: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    """Post a request and return the lines of its stream."""

    def send(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response.text.splitlines()]

    return send


@pytest.fixture
def ask(client: httpx.Client) -> Callable[..., Any]:
    """Post a request without a stream and return its one object."""

    def send(path: str, body: dict[str, Any]) -> Any:
        response = client.post(path, json={**body, "stream": False})
        assert response.status_code == 200, response.text
        return response.json()

    return send


def test_a_chat_comes_in_lines_unless_told_otherwise(lines: Callable[..., Any], ask: Callable[..., Any]) -> None:
    streamed = lines("/api/chat", chat())
    assert [line["done"] for line in streamed] == [False] * (len(streamed) - 1) + [True]
    assert len(streamed) > 5
    assert {line["message"]["role"] for line in streamed} == {"assistant"}
    assert "".join(line["message"]["content"] for line in streamed) == "one two three"
    assert streamed[-1]["message"] == {"role": "assistant", "content": ""}
    whole = ask("/api/chat", chat())
    assert whole["message"] == {"role": "assistant", "content": "one two three"}
    for last in (streamed[-1], whole):
        assert (last["done"], last["done_reason"], last["model"]) == (True, "stop", "scripted")
        assert all(last[name] > 0 for name in TIMES)
        assert last["total_duration"] > last["eval_duration"]
        assert last["load_duration"] >= 0
        assert last["prompt_eval_count"] == last["subsecond"]["num_prompt_tokens"]
        assert last["created_at"].endswith("Z")


def test_generate_answers_by_the_template_or_without(
    ask: Callable[..., Any], lines: Callable[..., Any], scripted: ScriptedModel
) -> None:
    assert ask("/api/generate", prompt())["response"] == "one two three"
    streamed = lines("/api/generate", prompt(system="Be brief."))
    assert "".join(line["response"] for line in streamed) == "one two three"
    decode = scripted.checkpoint.tokenizer.decode
    assert "system\nBe brief." in decode(scripted.engine.requests[-1].prompt_ids)
    raw = ask("/api/generate", prompt(raw=True))
    assert decode(scripted.engine.requests[-1].prompt_ids, skip_special=False).endswith("say one two three")
    assert "assistant" not in decode(scripted.engine.requests[-1].prompt_ids)
    assert raw["response"] == "one two three"
    assert "context" not in raw


def test_the_defaults_are_those_of_this_api(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    ask("/api/chat", {"model": "scripted", "messages": [{"role": "user", "content": "say a"}]})
    params = scripted.engine.requests[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.8, 40, 0.9, 1.0)
    ask("/api/chat", chat(options={"num_predict": -1, "seed": -1, "top_k": -1, "repeat_last_n": -1}))
    params = scripted.engine.requests[-1].params
    assert (params.max_tokens, params.top_k) == (None, 0)


def test_an_answer_that_is_cut_off(ask: Callable[..., Any]) -> None:
    reply = ask("/api/chat", chat(options={"num_predict": 2, "temperature": 0}))
    assert (reply["done_reason"], reply["eval_count"]) == ("length", 2)


def test_calls_come_whole(ask: Callable[..., Any], lines: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.answers["wetter"] = CALLING
    wanted = [{"city": "Bern"}, {"city": "Rome"}]
    message = ask("/api/chat", chat("wetter", tools=[WEATHER]))["message"]
    assert message["content"] == "I look."
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == wanted
    streamed = lines("/api/chat", chat("wetter", tools=[WEATHER]))
    calls = [call["function"] for line in streamed for call in line["message"].get("tool_calls", [])]
    assert calls == [{"index": n, "name": "weather", "arguments": city} for n, city in enumerate(wanted)]
    assert streamed[-1]["done_reason"] == "stop"


def test_results_belong_to_the_calls_before(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    calls: list[Any] = [{"function": {"name": name, "arguments": {}}} for name in ("weather", "time")]
    messages = [
        {"role": "user", "content": "wetter?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "sun"},
    ]
    scripted.answers["tool_response"] = "It shines."
    reply = ask("/api/chat", {"model": "scripted", "messages": messages, "tools": [WEATHER], **COLD})
    assert reply["message"]["content"] == "It shines."


def test_thinking_stands_apart(ask: Callable[..., Any], lines: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.answers["sum"] = "<think>Two and two.</think>\n\nFour"
    message = ask("/api/chat", chat("the sum", think=True))["message"]
    assert (message["thinking"], message["content"]) == ("Two and two.", "Four")
    streamed = lines("/api/generate", prompt("the sum", think="high"))
    assert "".join(line.get("thinking", "") for line in streamed) == "Two and two."
    assert "".join(line["response"] for line in streamed) == "Four"


def test_log_probabilities(ask: Callable[..., Any], lines: Callable[..., Any]) -> None:
    whole = ask("/api/chat", chat(logprobs=True, top_logprobs=2))["logprobs"]
    assert "".join(entry["token"] for entry in whole) == "one two three"
    assert all(len(entry["top_logprobs"]) == 2 for entry in whole)
    streamed = lines("/api/chat", chat(logprobs=True, top_logprobs=2))
    assert [entry for line in streamed for entry in line.get("logprobs", [])] == whole


def test_names_go_with_a_tag_too(ask: Callable[..., Any], client: httpx.Client) -> None:
    assert ask("/api/chat", chat() | {"model": "scripted:latest"})["model"] == "scripted:latest"
    unknown = client.post("/api/chat", json=chat() | {"model": "nobody:latest"})
    assert unknown.status_code == 404
    assert "there is no model 'nobody:latest'" in unknown.json()["error"]


def test_a_request_without_a_prompt_loads_the_model_or_lets_it_go() -> None:
    with LiveServer(["scripted", "other"]) as server, server.client() as client:
        for path, said in (
            ("/api/generate", {"response": ""}),
            ("/api/chat", {"message": {"role": "assistant", "content": ""}}),
        ):
            loaded = client.post(path, json={"model": "other", "keep_alive": "5m"}).json()
            assert loaded["done_reason"] == "load"
            assert said.items() <= loaded.items()
            assert loaded_names(client) == {"scripted", "other"}
            assert client.post(path, json={"model": "other", "keep_alive": 0}).json()["done_reason"] == "unload"
            assert loaded_names(client) == {"scripted"}
        last = client.post("/api/chat", json=chat(keep_alive="0s", stream=False)).json()
        assert last["message"]["content"] == "one two three"
        assert loaded_names(client) == set()
        for _ in client.post("/api/chat", json=chat(keep_alive=0)).iter_lines():
            pass
        until(lambda: not loaded_names(client))
        client.post("/api/chat", json=chat(keep_alive=-1))
        assert loaded_names(client) == {"scripted"}


def loaded_names(client: httpx.Client) -> set[str]:
    return {model["name"] for model in client.get("/api/ps").json()["models"]}


def test_one_of_several_tenants_cannot_let_a_model_go() -> None:
    key = "0123456789abcdef-a"
    headers = {"authorization": f"Bearer {key}"}
    with LiveServer(["scripted"], keys=f"ada {key}") as server, server.client(headers=headers) as client:
        for body in (chat(keep_alive=0), {"model": "scripted", "keep_alive": 0}):
            response = client.post("/api/chat", json=body)
            assert response.status_code == 400
            assert "keep_alive" in response.json()["error"]
        assert loaded_names(client) == {"scripted"}


def test_lists_of_models(client: httpx.Client) -> None:
    tags = client.get("/api/tags").json()["models"]
    assert [model["name"] for model in tags] == [model["model"] for model in tags] == ["scripted", "embedding"]
    assert all(len(model["digest"]) == 64 for model in tags)
    (running,) = (each for each in client.get("/api/ps").json()["models"] if each["name"] == "scripted")
    assert (running["context_length"], running["size"]) == (4096, 100)
    assert running["details"]["format"] == "gguf"
    assert client.get("/api/version").json() == {"version": subsecond.__version__}


def test_a_model_is_shown(client: httpx.Client, scripted: ScriptedModel) -> None:
    shown = client.post("/api/show", json={"model": "scripted:latest"}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["template"].startswith("{%- if tools %}")
    family = scripted.checkpoint.config.family
    assert shown["model_info"][f"{family}.context_length"] == 4096
    assert shown["details"]["family"] == family
    missing = client.post("/api/show", json={})
    assert missing.status_code == 400
    assert "'model' is missing" in missing.json()["error"]


def test_vectors(client: httpx.Client) -> None:
    reply = client.post("/api/embed", json={"model": "embedding:latest", "input": ["one", "two"]}).json()
    assert [len(vector) for vector in reply["embeddings"]] == [8, 8]
    assert reply["prompt_eval_count"] > 1
    assert reply["total_duration"] >= reply["load_duration"] > 0
    assert reply["subsecond"]["kernels"] == "scalar"
    one = client.post("/api/embed", json={"model": "embedding", "input": "one", "dimensions": 8}).json()
    assert one["embeddings"] == reply["embeddings"][:1]
    old = client.post("/api/embeddings", json={"model": "embedding", "prompt": "one"}).json()
    assert old["embedding"] == one["embeddings"][0]
    for path, text in (("/api/embed", {"input": "a"}), ("/api/embeddings", {"prompt": "a"})):
        wrong = client.post(path, json={"model": "scripted", **text})
        assert wrong.status_code == 400
        assert "language model" in wrong.json()["error"]


def test_less_context_is_no_bound_and_more_is_refused(ask: Callable[..., Any], client: httpx.Client) -> None:
    assert ask("/api/chat", chat(options={"num_ctx": 8, "temperature": 0}))["message"]["content"] == "one two three"
    too_long = client.post("/api/chat", json=chat("say " + "word " * 4200))
    assert too_long.status_code == 400
    assert "4096" in too_long.json()["error"]


def test_a_failing_step_ends_the_lines_by_an_error(lines: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.backend.failure = RuntimeError("the machine is tired")
    assert set(lines("/api/chat", chat())[-1]) == {"error"}


def test_a_body_needs_no_content_type(client: httpx.Client) -> None:
    """As `curl -d` sends it, which says that it were a form."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = client.post("/api/chat", content=json.dumps(chat(stream=False)), headers=headers)
    assert response.json()["message"]["content"] == "one two three"


def test_going_away_ends_the_work(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.backend.step_s = 0.02
    with pytest.raises(httpx.ReadTimeout):
        client.post("/api/generate", json=prompt("random", stream=False), timeout=0.4)
    until(lambda: scripted.engine.stats().num_running == 0)
    with client.stream("POST", "/api/chat", json=chat("random")) as response:
        pieces = response.iter_bytes()  # dropping the iterator would close the connection
        next(pieces)
        until(lambda: scripted.engine.stats().num_running == 1)
    until(lambda: scripted.engine.stats().num_running == 0)


@pytest.mark.parametrize(
    ("place", "body"),
    [
        ("messages[0].role", chat(messages=[{"role": "developer", "content": "a"}])),
        ("messages[0].tool_calls", chat(messages=[{"role": "user", "tool_calls": [{"function": {"name": "a"}}]}])),
        ("messages[0].tool_name", chat(messages=[{"role": "user", "content": "a", "tool_name": "b"}])),
        ("messages", chat(messages=[{"role": "user", "content": "a"}] * 10_001)),
        ("tools", chat(tools=[WEATHER] * 513)),
        ("format", chat(format="xml")),
        ("think", chat(think="a little")),
        ("top_logprobs", chat(top_logprobs=2)),
        ("options.temperature", chat(options={"temperature": -1})),
        ("options.num_predict", chat(options={"num_predict": -3})),
        ("options.num_ctx", chat(options={"num_ctx": 0})),
        ("options.seed", chat(options={"seed": -7})),
        ("deadline_ms", chat(deadline_ms=-1)),
        ("system", prompt(raw=True, system="a")),
        ("think", prompt(raw=True, think=True)),
        ("keep_alive", prompt(keep_alive="5 minutes")),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(client: httpx.Client, place: str, body: dict[str, Any]) -> None:
    response = client.post("/api/generate" if "prompt" in body else "/api/chat", json=body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(place)

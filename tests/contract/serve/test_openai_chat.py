"""What chat completions answer, whole and streamed: texts, samples, ends, log-probabilities, errors and goodbyes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from subsecond.core.errors import OverloadedError
from subsecond.engine.pacing import StepPacer
from subsecond.serve.sse import COMMENT
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel
from tests.contract.serve.wire_cases import until

PATH = "/v1/chat/completions"
THINKING = "<think>Two and two.</think>\n\nFour"


def body(text: str = "say one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, which has to end as the API's do."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [event for event in response.text.split("\n\n") if event and not event.startswith(":")]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def joined(chunks: list[dict[str, Any]], field: str, index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(field) or "" for choice in choices)


@pytest.fixture
def ask(client: httpx.Client) -> Callable[..., Any]:
    """Post a chat and return the reply, which has to be one."""

    def send(*args: Any, **fields: Any) -> Any:
        response = client.post(PATH, json=body(*args, **fields))
        assert response.status_code == 200, response.text
        return response.json()

    return send


@pytest.fixture
def refuse(client: httpx.Client) -> Callable[..., Any]:
    """Post a chat that has to be refused and return the error."""

    def send(status: int, *args: Any, **fields: Any) -> Any:
        response = client.post(PATH, json=body(*args, **fields))
        assert response.status_code == status, response.text
        return response.json()["error"]

    return send


def test_a_whole_answer(ask: Callable[..., Any]) -> None:
    reply = ask()
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == "scripted"
    assert abs(reply["created"] - time.time()) < 3600
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


def test_how_it_was_served(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    reply = ask(seed=5)
    served = reply["subsecond"]
    assert served["artifact"] == "scripted.gguf"
    assert served["variant"] == scripted.backend.variant
    assert served["kernels"] == "scalar"
    assert served["seed"] == 5
    assert (
        served["num_prompt_tokens"] == reply["usage"]["prompt_tokens"] == len(scripted.engine.requests[-1].prompt_ids)
    )
    assert all(served[name] >= 0 for name in ("queue_ms", "prefill_ms", "decode_ms"))
    assert served["is_deadline_passed"] is False
    assert reply["system_fingerprint"] == ask()["system_fingerprint"]
    assert reply["system_fingerprint"].startswith("fp_")


def test_the_default_is_random_and_can_be_repeated(client: httpx.Client, scripted: ScriptedModel) -> None:
    def text(**fields: Any) -> Any:
        message = {"role": "user", "content": "random letters"}
        reply = client.post(PATH, json={"model": "scripted", "messages": [message], "max_tokens": 8, **fields}).json()
        return reply["choices"][0]["message"]["content"], reply["subsecond"]["seed"]

    first, seed = text()
    assert scripted.engine.requests[-1].params.temperature == 1.0
    assert text(seed=seed) == (first, seed)
    assert len({text()[0] for _ in range(4)} | {first}) > 1


def test_cached_tokens_are_told(ask: Callable[..., Any]) -> None:
    ask("say something that is said twice")
    reply = ask("say something that is said twice")
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert reply["subsecond"]["cached_tokens"] == reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_samples_that_share_a_prompt_do_not_count_it_as_cached(ask: Callable[..., Any]) -> None:
    assert ask("say what nobody has said before", n=4)["usage"]["prompt_tokens_details"]["cached_tokens"] < 20


def test_tokens_behind_a_stop_string_do_not_count(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    usages = {ask(stop=" tw")["usage"]["completion_tokens"] for _ in range(8)}
    scripted.backend.step_s = 0.01
    assert usages == {ask(stop=" tw")["usage"]["completion_tokens"]}


def test_a_stream_grows_to_the_whole_answer(ask: Callable[..., Any], client: httpx.Client) -> None:
    chunks = chunks_of(client.post(PATH, json=body(stream=True)))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert joined(chunks, "content") == ask()["choices"][0]["message"]["content"]
    assert all("usage" not in chunk for chunk in chunks)
    assert [chunk for chunk in chunks if "subsecond" in chunk] == chunks[-1:]


def test_a_stream_with_usage_ends_with_it(ask: Callable[..., Any], client: httpx.Client) -> None:
    chunks = chunks_of(client.post(PATH, json=body(stream=True, stream_options={"include_usage": True})))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == ask()["usage"]["completion_tokens"]
    assert chunks[-1]["subsecond"]["artifact"] == "scripted.gguf"
    assert all("subsecond" not in chunk for chunk in chunks[:-1])


@pytest.mark.parametrize("is_streamed", [False, True])
def test_samples_differ_and_are_told_apart(client: httpx.Client, scripted: ScriptedModel, is_streamed: bool) -> None:
    fields = body("random", n=4, temperature=1, max_tokens=12, seed=3, stream=is_streamed)
    response = client.post(PATH, json=fields)
    if is_streamed:
        chunks = chunks_of(response)
        texts = [joined(chunks, "content", index) for index in range(4)]
        assert sum(choice["finish_reason"] is not None for chunk in chunks for choice in chunk["choices"]) == 4
    else:
        choices = response.json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        texts = [choice["message"]["content"] for choice in choices]
        assert response.json()["usage"]["completion_tokens"] == 48
    assert len(set(texts)) == 4
    requests = scripted.engine.requests[-4:]
    assert {request.params.seed for request in requests} == {3}
    assert len({request.group for request in requests}) == 1
    assert [request.sample_index for request in requests] == [0, 1, 2, 3]


def test_streamed_samples_equal_whole_ones(client: httpx.Client) -> None:
    fields = body("random", n=3, temperature=1, max_tokens=9, seed=8)
    whole = client.post(PATH, json=fields).json()
    chunks = chunks_of(client.post(PATH, json={**fields, "stream": True}))
    for choice in whole["choices"]:
        assert joined(chunks, "content", choice["index"]) == choice["message"]["content"]


@pytest.mark.parametrize("stop", ["two", [" tw", "zzz"], ["two", "one two", "two t"]])
def test_a_stop_string_ends_the_answer_before_it(ask: Callable[..., Any], client: httpx.Client, stop: Any) -> None:
    choice = ask(stop=stop)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "tw" not in choice["message"]["content"]
    chunks = chunks_of(client.post(PATH, json=body(stop=stop, stream=True)))
    assert joined(chunks, "content") == choice["message"]["content"]


def test_length_is_told(ask: Callable[..., Any]) -> None:
    reply = ask(max_completion_tokens=2)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 2


def test_reasoning_is_kept_apart(ask: Callable[..., Any], client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["two and two"] = THINKING
    reply = ask("two and two?", logprobs=True)
    message = reply["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Two and two.", "Four")
    assert 0 < reply["usage"]["completion_tokens_details"]["reasoning_tokens"] < reply["usage"]["completion_tokens"]
    chunks = chunks_of(client.post(PATH, json=body("two and two?", stream=True)))
    assert joined(chunks, "reasoning_content") == "Two and two."
    assert joined(chunks, "content") == "Four"


def test_reasoning_can_be_given_back(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    earlier = {"role": "assistant", "content": "Four", "reasoning_content": "Two and two.", "refusal": None}
    asked = {"role": "user", "content": "two and two?"}
    ask(messages=[asked, {**earlier, "tool_calls": None, "annotations": [], "audio": None}, asked])
    assert scripted.engine.requests[-1].prompt_ids


def test_logprobs_have_bytes_and_the_likeliest(ask: Callable[..., Any]) -> None:
    choice = ask("say héllo", logprobs=True, top_logprobs=3)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == choice["message"]["content"]
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] == max(top["logprob"] for top in entry["top_logprobs"])
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"]
        assert entry["token"] == bytes(entry["bytes"]).decode("utf-8", "replace")


def test_logprobs_of_a_stream_are_those_of_the_whole(ask: Callable[..., Any], client: httpx.Client) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "stop": "three"}
    whole = ask(**fields)["choices"][0]["logprobs"]["content"]
    chunks = chunks_of(client.post(PATH, json=body(**fields, stream=True)))
    given = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for logprobs in given if logprobs for entry in logprobs["content"]] == whole


def test_logprobs_without_others(ask: Callable[..., Any]) -> None:
    entries = ask(logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in entries] == [[]] * len(entries)
    assert "".join(entry["token"] for entry in entries) == "one two three"


def test_parts_of_text_are_one_message(ask: Callable[..., Any]) -> None:
    parts = [{"type": "text", "text": "say so"}, {"type": "text", "text": "me"}]
    assert ask(messages=[{"role": "user", "content": parts}])["choices"][0]["message"]["content"] == "so\nme"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"n": 65}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 64, "max_tokens": 2**20}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 20, "logprobs": True, "n": 64}, "top_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "a" * 1001}, "stop"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": -5}, "deadline_ms"),
        ({"priority": 2**31}, "priority"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": "hi"}, "messages"),
    ],
)
def test_what_is_not_allowed_is_named(refuse: Callable[..., Any], fields: dict[str, Any], place: str) -> None:
    error = refuse(400, **fields)
    assert error["param"] == place
    assert error["type"] == "invalid_request_error"


def test_an_empty_conversation_is_refused(refuse: Callable[..., Any]) -> None:
    assert "at least one message" in refuse(400, messages=[])["message"]


def test_ids_outside_the_vocabulary_are_refused(refuse: Callable[..., Any]) -> None:
    assert "vocabulary" in refuse(400, logit_bias={"99999": 1})["message"]
    assert "vocabulary" in refuse(400, stop_token_ids=[99999])["message"]


def test_an_unknown_model_is_not_found(refuse: Callable[..., Any]) -> None:
    assert refuse(404, model="other")["code"] == "model_not_found"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_does_not_fit_is_refused_before_the_stream(refuse: Callable[..., Any], is_streamed: bool) -> None:
    error = refuse(400, "say " + "word " * 5000, stream=is_streamed)
    assert error["code"] == "context_length_exceeded"
    error = refuse(400, max_tokens=5000, stream=is_streamed)
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_cannot_be_in_time_is_refused_with_a_time(
    client: httpx.Client, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    def overloaded(_: object) -> None:
        raise OverloadedError("too much to do", retry_after_s=2.5)

    monkeypatch.setattr(scripted.engine, "submit", overloaded)
    response = client.post(PATH, json=body(deadline_ms=100, stream=is_streamed))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_a_passed_deadline_is_length_and_told(
    client: httpx.Client, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # by what steps before this test took, it could be refused again and again
    monkeypatch.setattr(scripted.engine._scheduler, "pacer", StepPacer())
    scripted.backend.step_s = 0.02
    fields = body("say " + "a b c d e f g h i j " * 20, deadline_ms=1000)
    while (response := client.post(PATH, json=fields)).status_code == 429:
        pass  # a machine that stood still meanwhile: it is too late before it begins
    reply = response.json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["subsecond"]["is_deadline_passed"] is True


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_failed_step_is_told_and_the_next_answer_is_right(
    client: httpx.Client, scripted: ScriptedModel, is_streamed: bool
) -> None:
    scripted.backend.failure = RuntimeError("secret detail")
    response = client.post(PATH, json=body(stream=is_streamed))
    if is_streamed:
        assert response.status_code == 200
        *_, last = [event for event in response.text.split("\n\n") if event]
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert response.status_code == 500
        error = response.json()["error"]
    assert error["type"] == "server_error"
    assert client.post(PATH, json=body()).json()["choices"][0]["message"]["content"] == "one two three"


def test_an_error_in_the_middle_ends_the_stream(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.backend.hold_after = 5
    events: list[str] = []
    with client.stream("POST", PATH, json=body("say " + "a b c d e f g h " * 10, stream=True)) as response:
        for line in filter(None, response.iter_lines()):
            events.append(line)
            if len(events) == 3:
                until(lambda: not scripted.backend.hold.is_set())
                scripted.backend.failure = RuntimeError("broken")
                scripted.backend.hold.set()
    assert "error" in json.loads(events[-1].removeprefix("data: "))
    assert len(events) > 3
    assert "data: [DONE]" not in events


def wait_until_idle(scripted: ScriptedModel) -> None:
    """Return once the engine has nothing to do; the test's own time limit is that of the run."""
    while (stats := scripted.engine.stats()).num_running or stats.num_waiting:
        time.sleep(0.01)


def lines_after(client: httpx.Client, num_lines: int, **fields: Any) -> Iterator[str]:
    with client.stream("POST", PATH, json=body("random", stream=True, **fields)) as response:
        for number, line in enumerate(response.iter_lines()):
            if number == num_lines:
                return
            yield line


@pytest.mark.parametrize("num_samples", [1, 3])
def test_leaving_a_stream_frees_everything(client: httpx.Client, scripted: ScriptedModel, num_samples: int) -> None:
    scripted.backend.step_s = 0.02
    assert list(lines_after(client, 4, n=num_samples, max_tokens=1000))
    wait_until_idle(scripted)
    stats = scripted.engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def test_leaving_before_the_answer_frees_everything(server: LiveServer, scripted: ScriptedModel) -> None:
    scripted.backend.step_s = 0.02
    content = json.dumps(body("random", max_tokens=2000)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    before = len(scripted.engine.requests)
    with server.connect() as impatient:
        impatient.sendall(head.encode() + content)
        until(lambda: scripted.engine.stats().num_running == 1)
    assert len(scripted.engine.requests) == before + 1
    wait_until_idle(scripted)
    stats = scripted.engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def test_comments_keep_a_slow_stream_alive(
    client: httpx.Client, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subsecond.serve.openai_chat.EventStream.__init__.__kwdefaults__", {"keep_alive_s": 0.02})
    scripted.backend.hold.clear()
    lines: list[str] = []
    with client.stream("POST", PATH, json=body(stream=True, max_tokens=1)) as response:
        for line in response.iter_lines():
            lines += [line] if line else []
            if line == COMMENT.decode().rstrip():
                scripted.backend.hold.set()
    assert COMMENT.decode().rstrip() in lines
    assert lines[-1] == "data: [DONE]"

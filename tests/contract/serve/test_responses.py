"""What the responses API answers, whole and as events: items, calls, ends, kept responses, errors and goodbyes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel
from tests.contract.serve.wire_cases import until

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
THINKING = "<think>Two and two.</think>\n\nFour"
CALLING = (
    "I look.<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Bern"}}\n'
    "</tool_call>\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Rome"}}\n'
    "</tool_call>"
)


def body(text: Any = "say one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "input": text, "temperature": 0, **fields}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream: named as their data are typed, and numbered."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    """The types of events without the deltas that repeat."""
    kinds = [event["type"].removeprefix("response.") for event in events]
    return [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]


@pytest.fixture
def ask(client: httpx.Client) -> Callable[..., Any]:
    """Post a request and return the response, which has to be one."""

    def send(*args: Any, **fields: Any) -> Any:
        response = client.post(PATH, json=body(*args, **fields))
        assert response.status_code == 200, response.text
        return response.json()

    return send


@pytest.fixture
def stream(client: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    """Post a request and return its events."""

    def send(*args: Any, **fields: Any) -> list[dict[str, Any]]:
        return events_of(client.post(PATH, json=body(*args, **fields, stream=True)))

    return send


def test_a_whole_answer(ask: Callable[..., Any]) -> None:
    reply = ask(seed=5)
    assert reply["object"] == "response"
    assert reply["id"].startswith("resp_")
    assert (reply["status"], reply["error"], reply["incomplete_details"]) == ("completed", None, None)
    assert abs(reply["created_at"] - time.time()) < 3600
    (item,) = reply["output"]
    assert item["id"].startswith("msg_")
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "one two three", "annotations": [], "logprobs": []}]
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert reply["subsecond"]["seed"] == 5
    assert reply["subsecond"]["num_prompt_tokens"] == usage["input_tokens"]


def test_the_events_of_a_text(stream: Callable[..., Any]) -> None:
    events = stream()
    assert kinds_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) > 3
    done = {event["type"].removeprefix("response."): event for event in events}
    assert "".join(deltas) == done["output_text.done"]["text"] == "one two three"
    assert done["created"]["response"]["status"] == "in_progress"
    assert done["created"]["response"]["usage"] is None
    last = done["completed"]["response"]
    assert last["output"] == [done["output_item.done"]["item"]]
    assert last["id"] == done["created"]["response"]["id"]
    assert done["output_item.added"]["item"]["status"] == "in_progress"
    assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}
    assert last["usage"]["output_tokens"] == len(deltas) + 1
    assert last["subsecond"]["kernels"] == "scalar"


def test_reasoning_is_an_item_of_its_own(
    ask: Callable[..., Any], stream: Callable[..., Any], scripted: ScriptedModel
) -> None:
    scripted.answers["sum"] = THINKING
    reply = ask("the sum")
    assert [item["type"] for item in reply["output"]] == ["reasoning", "message"]
    assert reply["output"][0]["content"] == [{"type": "reasoning_text", "text": "Two and two."}]
    assert reply["output"][0]["summary"] == []
    assert reply["output"][1]["content"][0]["text"] == "Four"
    assert reply["usage"]["output_tokens_details"]["reasoning_tokens"] > 5
    events = stream("the sum")
    kinds = kinds_of(events)
    assert kinds[3:6] == ["content_part.added", "reasoning_text.delta", "reasoning_text.done"]
    indexes = [event["output_index"] for event in events if "output_index" in event]
    assert indexes == sorted(indexes)
    assert set(indexes) == {0, 1}
    texts = [item["content"][0]["text"] for item in events[-1]["response"]["output"]]
    assert texts == ["Two and two.", "Four"]


def test_calls_are_items(ask: Callable[..., Any], stream: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.answers["wetter"] = CALLING
    reply = ask("wetter", tools=[WEATHER])
    assert [item["type"] for item in reply["output"]] == ["message", "function_call", "function_call"]
    calls = reply["output"][1:]
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Bern"}, {"city": "Rome"}]
    assert {call["name"] for call in calls} == {"weather"}
    assert len({call["call_id"] for call in calls} | {call["id"] for call in calls}) == 4
    events = stream("wetter", tools=[WEATHER])
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [json.loads(event["arguments"]) for event in done] == [{"city": "Bern"}, {"city": "Rome"}]
    for event in done:
        deltas = [each["delta"] for each in events if each.get("item_id") == event["item_id"] and "delta" in each]
        assert "".join(deltas) == event["arguments"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item.get("arguments") for item in added] == [None, "", ""]
    assert [item["status"] for item in events[-1]["response"]["output"]] == ["completed"] * 3


def test_namespaces_are_told_apart(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.answers["wetter"] = CALLING.replace('"weather"', '"sky__weather"')
    tools = [{"type": "namespace", "name": "sky", "description": "Above.", "tools": [WEATHER]}, WEATHER]
    calls = [item for item in ask("wetter", tools=tools)["output"] if item["type"] == "function_call"]
    assert [(call["namespace"], call["name"]) for call in calls] == [("sky", "weather")] * 2


def test_hosted_tools_are_left_out_and_named(ask: Callable[..., Any], client: httpx.Client) -> None:
    reply = ask(tools=[WEATHER, {"type": "web_search", "search_context_size": "low"}, {"type": "image_generation"}])
    assert reply["subsecond"]["left_out"] == ["web_search", "image_generation"]
    assert len(reply["tools"]) == 3
    assert "left_out" not in ask(tools=[WEATHER])["subsecond"]
    refused = client.post(PATH, json=body(tools=[{"type": "file_search", "vector_store_ids": []}]))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools[0].type"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_is_cut_off_is_incomplete(client: httpx.Client, is_streamed: bool) -> None:
    response = client.post(PATH, json=body(max_output_tokens=3, stream=is_streamed))
    if is_streamed:
        last = events_of(response)[-1]
        assert last["type"] == "response.incomplete"
        reply = last["response"]
    else:
        reply = response.json()
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["output"][0]["status"] == "incomplete"
    assert reply["output"][0]["content"][0]["text"] == "one"


def test_log_probabilities_stand_beside_the_text(ask: Callable[..., Any], stream: Callable[..., Any]) -> None:
    fields = {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    whole = ask(**fields)["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in whole) == "one two three"
    assert all(entry["bytes"] == list(entry["token"].encode()) for entry in whole)
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in whole)
    deltas = [event for event in stream(**fields) if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == whole


def test_a_request_for_nothing_is_answered_with_nothing(
    ask: Callable[..., Any], stream: Callable[..., Any], scripted: ScriptedModel, client: httpx.Client
) -> None:
    before = len(scripted.engine.requests)
    empty: list[Any] = ["", []]
    for nothing in empty:
        reply = ask(nothing, max_output_tokens=1, instructions="Be brief.")
        assert (reply["status"], reply["output"]) == ("completed", [])
        assert reply["usage"]["total_tokens"] == 0
    assert kinds_of(stream([])) == ["created", "in_progress", "completed"]
    assert len(scripted.engine.requests) == before
    assert client.post(PATH, json={"model": "nobody", "input": []}).status_code == 404


def test_a_conversation_goes_on_from_a_kept_response(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    first = ask("say my name is Ada", instructions="Be brief.")
    second = ask("say more", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    prompt = scripted.checkpoint.tokenizer.decode(scripted.engine.requests[-1].prompt_ids, skip_special=False)
    assert "say my name is Ada" in prompt
    assert "assistant\nmy name is Ada" in prompt
    assert "Be brief." not in prompt
    third = ask("say the rest", previous_response_id=second["id"])
    assert third["usage"]["input_tokens_details"]["cached_tokens"] > second["usage"]["input_tokens"] // 2


def test_calls_go_on_from_a_kept_response(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.answers["wetter"] = CALLING
    first = ask("wetter", tools=[WEATHER])
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "sun"} for call in calls]
    scripted.answers = {"tool_response": "It shines."}
    reply = ask(results, previous_response_id=first["id"], tools=[WEATHER])
    assert reply["output"][0]["content"][0]["text"] == "It shines."


def test_a_kept_response_can_be_read_and_forgotten(ask: Callable[..., Any], client: httpx.Client) -> None:
    reply = ask()
    path = f"{PATH}/{reply['id']}"
    assert client.get(path).json() == reply
    assert client.get(path, params={"stream": "true"}).status_code == 400
    assert client.delete(path).json() == {"id": reply["id"], "object": "response", "deleted": True}
    for answer in (
        client.get(path),
        client.delete(path),
        client.post(PATH, json=body(previous_response_id=reply["id"])),
    ):
        assert answer.status_code == 404
        assert "is kept here" in answer.json()["error"]["message"]


def test_a_response_is_not_kept_against_ones_will(ask: Callable[..., Any], client: httpx.Client) -> None:
    assert client.get(f"{PATH}/{ask(store=False)['id']}").status_code == 404


def test_a_streamed_response_is_kept_too(stream: Callable[..., Any], client: httpx.Client) -> None:
    last = stream()[-1]["response"]
    assert client.get(f"{PATH}/{last['id']}").json() == last


def test_one_tenant_cannot_read_what_is_kept_for_another() -> None:
    keys = "ada 0123456789abcdef-a\nbob 0123456789abcdef-b"
    with LiveServer(["scripted"], keys=keys) as server:
        ada, bob = ({"authorization": f"Bearer 0123456789abcdef-{name}"} for name in "ab")
        with server.client() as client:
            path = f"{PATH}/{client.post(PATH, json=body(), headers=ada).json()['id']}"
            assert client.get(path, headers=bob).status_code == 404
            assert client.delete(path, headers=bob).status_code == 404
            assert client.get(path, headers=ada).status_code == 200
            assert client.get(path).status_code == 401


def test_input_tokens_are_counted(ask: Callable[..., Any], client: httpx.Client) -> None:
    fields = {"instructions": "Be brief.", "tools": [WEATHER]}
    counted = client.post(f"{PATH}/input_tokens", json=body(**fields)).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": ask(**fields)["usage"]["input_tokens"]}
    assert client.post(f"{PATH}/input_tokens", json=body([])).json()["input_tokens"] == 0


def test_a_failing_step_ends_the_events(stream: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.backend.failure = RuntimeError("the machine is tired")
    last = stream()[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert last["response"]["error"]["message"]


def test_a_deadline_that_cannot_be_met_is_an_error_before_the_stream(client: httpx.Client) -> None:
    response = client.post(PATH, json=body("say " + "word " * 200, deadline_ms=0.001, stream=True))
    assert response.status_code == 429
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) >= 1


def test_going_away_ends_the_work(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.backend.step_s = 0.02
    with pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json=body("random", max_output_tokens=2000), timeout=0.4)
    until(lambda: scripted.engine.stats().num_running == 0)
    with client.stream("POST", PATH, json=body("random", max_output_tokens=2000, stream=True)) as response:
        pieces = response.iter_bytes()  # dropping the iterator would close the connection
        next(pieces)
        until(lambda: scripted.engine.stats().num_running == 1)
    until(lambda: scripted.engine.stats().num_running == 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", [{"type": "item_reference", "id": "msg_1"}]),
        ("input", [{"type": "custom_tool_call", "call_id": "a", "name": "b", "input": "c"}]),
        ("tools", [{"type": "mcp", "server_label": "a"}]),
        ("tool_choice", "always"),
        ("include", ["file_search_call.results"]),
        ("temperature", 1000),
        ("max_output_tokens", -1),
        ("top_logprobs", 21),
        ("stop", [""]),
        ("deadline_ms", 0),
        ("input", [5]),
        ("input", [{"role": "user", "content": "a"}] * 10_001),
        ("tools", [WEATHER] * 513),
        ("metadata", {str(number): "a" for number in range(17)}),
        ("metadata", {"a": "b" * 600}),
        pytest.param("user", "a" * 600, id="user-long"),
        ("include", ["message.output_text.logprobs"] * 3),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(client: httpx.Client, field: str, value: Any) -> None:
    response = client.post(PATH, json=body(**{field: value} if field != "input" else {}) | {field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(field)

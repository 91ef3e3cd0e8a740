"""What the messages API answers, whole and as events: blocks, calls, ends, counts, errors and goodbyes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from subsecond.serve.anthropic_order import BILLING_HEADER
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel
from tests.contract.serve.wire_cases import until

PATH = "/v1/messages"
WEATHER = {"name": "weather", "input_schema": {"type": "object"}}
CALLING = (
    "I look.<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Bern"}}\n'
    "</tool_call>\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Rome"}}\n'
    "</tool_call>"
)


def body(text: Any = "say one two three", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "scripted", "messages": messages, "max_tokens": 200, "temperature": 0, **fields}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, named as their data are typed."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


@pytest.fixture
def ask(client: httpx.Client) -> Callable[..., Any]:
    """Post a request and return the message, which has to be one."""

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


def last_prompt(model: ScriptedModel) -> str:
    return model.checkpoint.tokenizer.decode(model.engine.requests[-1].prompt_ids, skip_special=False)


def test_a_whole_message(ask: Callable[..., Any]) -> None:
    reply = ask(seed=5)
    assert reply["id"].startswith("msg_")
    assert (reply["type"], reply["role"], reply["model"]) == ("message", "assistant", "scripted")
    assert reply["content"] == [{"type": "text", "text": "one two three"}]
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("end_turn", None)
    served, usage = reply["subsecond"], reply["usage"]
    assert served["seed"] == 5
    assert served["num_prompt_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_the_events_of_a_text(stream: Callable[..., Any]) -> None:
    events = stream()
    kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert start["usage"]["input_tokens"] > 0
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert "".join(event["delta"]["text"] for event in deltas) == "one two three"
    assert {(event["index"], event["delta"]["type"]) for event in deltas} == {(0, "text_delta")}
    end = events[-2]
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == len(deltas) + 1
    assert end["subsecond"]["kernels"] == "scalar"


def test_a_cached_prompt_is_told_apart(ask: Callable[..., Any], stream: Callable[..., Any]) -> None:
    first = ask("say that is cached later")["usage"]
    again = ask("say that is cached later")["usage"]
    assert again["cache_read_input_tokens"] > 0
    assert (
        again["input_tokens"]
        == sum(first[n] for n in ("input_tokens", "cache_read_input_tokens")) - (again["cache_read_input_tokens"])
    )
    assert stream("say that is cached later")[-2]["usage"] == again


def test_calls_are_blocks(ask: Callable[..., Any], stream: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.answers["wetter"] = CALLING
    reply = ask("wetter", tools=[WEATHER])
    assert reply["stop_reason"] == "tool_use"
    assert [block["type"] for block in reply["content"]] == ["text", "tool_use", "tool_use"]
    assert [block["input"] for block in reply["content"][1:]] == [{"city": "Bern"}, {"city": "Rome"}]
    assert len({block["id"] for block in reply["content"][1:]}) == 2
    events = stream("wetter", tools=[WEATHER])
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2]
    assert [event["content_block"].get("input") for event in starts] == [None, {}, {}]
    for index, city in ((1, "Bern"), (2, "Rome")):
        deltas = [e["delta"] for e in events if e["type"] == "content_block_delta" and e["index"] == index]
        assert {delta["type"] for delta in deltas} == {"input_json_delta"}
        assert json.loads("".join(delta["partial_json"] for delta in deltas)) == {"city": city}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_thinking_is_a_block(ask: Callable[..., Any], stream: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.answers["sum"] = "<think>Two and two.</think>\n\nFour"
    thinking = {"type": "enabled", "budget_tokens": 100}
    reply = ask("the sum", thinking=thinking)
    assert [block["type"] for block in reply["content"]] == ["thinking", "text"]
    assert reply["content"][0]["thinking"] == "Two and two."
    assert reply["content"][0]["signature"]
    events = stream("the sum", thinking=thinking)
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert set(kinds) == {"thinking_delta", "signature_delta", "text_delta"}
    assert kinds.index("signature_delta") == kinds.count("thinking_delta")
    assert [block["text"] for block in ask("the sum", thinking=thinking | {"display": "omitted"})["content"]] == [
        "Four"
    ]


def test_which_stop_sequence_ended_it(ask: Callable[..., Any], stream: Callable[..., Any]) -> None:
    reply = ask(stop_sequences=["four", " th"])
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", " th")
    assert reply["content"][0]["text"] == "one two"
    assert stream(stop_sequences=["four", " th"])[-2]["delta"] == {
        "stop_reason": "stop_sequence",
        "stop_sequence": " th",
    }


def test_an_answer_that_is_cut_off_says_by_what(ask: Callable[..., Any]) -> None:
    assert ask(max_tokens=2)["stop_reason"] == "max_tokens"
    nothing = ask(max_tokens=0)
    assert (nothing["content"], nothing["stop_reason"]) == ([{"type": "text", "text": ""}], "max_tokens")
    assert nothing["usage"]["output_tokens"] == 0


def test_results_of_calls_stand_before_what_is_said_with_them(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    use = {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Bern"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "sun"}], "is_error": True}
    messages = [
        {"role": "user", "content": "wetter?"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "say thanks"}]},
    ]
    assert ask(messages=messages, tools=[WEATHER])["content"][0]["text"] == "thanks"
    prompt = last_prompt(scripted)
    assert prompt.index("I look.") < prompt.index('"city"') < prompt.index("Error: sun") < prompt.index("say thanks")


def test_what_one_side_says_in_several_messages_is_one_turn(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    messages = [
        {"role": "user", "content": "First."},
        {"role": "user", "content": [{"type": "text", "text": "say yes"}]},
    ]
    ask(messages=messages)
    assert "user\nFirst.\n\nsay yes<" in last_prompt(scripted)


def test_a_system_prompt_of_blocks_goes_without_the_billing_header(
    ask: Callable[..., Any], scripted: ScriptedModel
) -> None:
    blocks = [BILLING_HEADER + " cch=1;", "Be brief.", "Be kind."]
    reply = ask(system=[{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in blocks])
    assert reply["subsecond"]["left_out"] == ["billing_header"]
    assert "system\nBe brief.\n\nBe kind.<" in last_prompt(scripted)
    assert BILLING_HEADER not in last_prompt(scripted)


def test_the_beginning_of_an_answer_is_continued(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two"}]
    scripted.answers["assistant\none two"] = " three"
    reply = ask(messages=messages)
    assert reply["content"][0]["text"] == " three"
    assert last_prompt(scripted).endswith("assistant\none two")


def test_tokens_are_counted_as_they_are_used(ask: Callable[..., Any], client: httpx.Client) -> None:
    fields = {"system": "Be brief.", "tools": [WEATHER], "tool_choice": {"type": "auto"}}
    given = {name: value for name, value in body(**fields).items() if name not in ("max_tokens", "temperature")}
    counted = client.post(f"{PATH}/count_tokens", json=given)
    usage = ask(**fields)["usage"]
    assert counted.json() == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_what_agents_send_is_taken(ask: Callable[..., Any]) -> None:
    """The fields of a coding agent's requests; none of them is refused, and none is needed."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}
    reply = ask(
        [{"type": "text", "text": "say yes", **cached}],
        metadata={"user_id": "user_1"},
        system=[{"type": "text", "text": "You help.", **cached}],
        tools=[WEATHER | {"description": "Looks.", "eager_input_streaming": True, **cached}],
        thinking={"type": "adaptive"},
        output_config={"effort": "medium"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        service_tier="auto",
    )
    assert reply["content"][0]["text"] == "yes"


def test_errors_have_the_form_of_this_api(client: httpx.Client) -> None:
    missing = client.post(PATH, json={"model": "scripted", "messages": []})
    assert missing.status_code == 400
    assert missing.json() == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": missing.json()["error"]["message"]},
    }
    assert "max_tokens" in missing.json()["error"]["message"]
    unknown = client.post(PATH, json=body() | {"model": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    late = client.post(PATH, json=body("say " + "word " * 200, deadline_ms=0.001, stream=True))
    assert (late.status_code, late.json()["error"]["type"]) == (429, "rate_limit_error")


def test_keys_come_as_clients_of_this_api_send_them() -> None:
    with LiveServer(["scripted"], keys="ada 0123456789abcdef-a") as server, server.client() as client:
        for headers, status in (
            ({}, 401),
            ({"x-api-key": "wrong"}, 401),
            ({"x-api-key": "0123456789abcdef-a", "anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}, 200),
        ):
            response = client.post(PATH, json=body(), headers=headers)
            assert response.status_code == status
            assert status == 200 or response.json()["error"]["type"] == "authentication_error"


def test_a_failing_step_ends_the_events_by_an_error(stream: Callable[..., Any], scripted: ScriptedModel) -> None:
    scripted.backend.failure = RuntimeError("the machine is tired")
    last = stream()[-1]
    assert last["type"] == "error"
    assert last["error"]["type"] == "api_error"
    assert last["error"]["message"]


def test_going_away_ends_the_work(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.backend.step_s = 0.02
    with pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json=body("random", max_tokens=2000), timeout=0.4)
    until(lambda: scripted.engine.stats().num_running == 0)
    with client.stream("POST", PATH, json=body("random", max_tokens=2000, stream=True)) as response:
        pieces = response.iter_bytes()  # dropping the iterator would close the connection
        next(pieces)
        until(lambda: scripted.engine.stats().num_running == 1)
    until(lambda: scripted.engine.stats().num_running == 0)


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        ("messages[0].content", {"messages": [{"role": "user", "content": []}]}),
        (
            "messages[0]",
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": {}}]}
                ]
            },
        ),
        (
            "messages[0].content[0].type",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": {}}]}
                ]
            },
        ),
        ("tool_choice.name", {"tools": [WEATHER], "tool_choice": {"type": "tool"}}),
        ("tool_choice.name", {"tools": [WEATHER], "tool_choice": {"type": "any", "name": "weather"}}),
        ("tool_choice.type", {"tool_choice": {"type": "any"}}),
        ("thinking.budget_tokens", {"thinking": {"type": "enabled"}}),
        ("thinking.type", {"thinking": {"type": "between_tools"}}),
        ("temperature", {"temperature": -1}),
        ("top_k", {"top_k": -1}),
        ("stop_sequences", {"stop_sequences": [""]}),
        ("max_tokens", {"max_tokens": -1}),
        ("messages", {"messages": [{"role": "user", "content": "a"}] * 10_001}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 20_001}]}),
        ("tools", {"tools": [WEATHER] * 513}),
        ("tools[0]", {"tools": [5]}),
        ("context_management.other", {"context_management": {"other": 1}}),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(client: httpx.Client, place: str, fields: dict[str, Any]) -> None:
    response = client.post(PATH, json=body(**fields))
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(place)

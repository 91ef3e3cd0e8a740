"""Tools and formats in chat completions: calls whole and in pieces, what is held to a schema, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.contract.serve.scripted_model import ScriptedModel

PATH = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Oslo"]}}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {**CITY, "required": ["city"]}}},
    {"type": "function", "function": {"name": "time", "description": "Tells the time."}},
]
TWO_CALLS = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    message = {"role": "user", "content": "how is it there"}
    base = {"model": "scripted", "messages": [message], "temperature": 0, "seed": 1, "reasoning_effort": "none"}
    return client.post(PATH, json={**base, **fields})


def choice_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def deltas_of(response: httpx.Response) -> list[Any]:
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    return [json.loads(event)["choices"][0] for event in events[:-1]]


def test_calls_are_told_from_text(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = TWO_CALLS
    choice = choice_of(ask(client, tools=TOOLS))
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "Let me look."
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "weather", "arguments": '{"city": "Bern"}'}
    assert second["function"] == {"name": "time", "arguments": "{}"}
    assert first["type"] == second["type"] == "function"
    assert first["id"] != second["id"]
    assert "index" not in first


def test_calls_come_in_pieces(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = TWO_CALLS
    choices = deltas_of(ask(client, tools=TOOLS, stream=True))
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    for index, (name, arguments) in enumerate([("weather", '{"city": "Bern"}'), ("time", "{}")]):
        own = [piece for piece in pieces if piece["index"] == index]
        assert own[0]["function"]["name"] == name
        assert own[0]["id"].startswith("call_")
        assert own[0]["type"] == "function"
        assert all("id" not in piece and "name" not in piece["function"] for piece in own[1:])
        assert "".join(piece["function"]["arguments"] for piece in own) == arguments
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert "".join(choice["delta"].get("content") or "" for choice in choices).strip() == "Let me look."


def test_stop_strings_are_not_looked_for_in_calls(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = TWO_CALLS
    choice = choice_of(ask(client, tools=TOOLS, stop=["Bern", "city"]))
    assert choice["finish_reason"] == "tool_calls"
    assert len(choice["message"]["tool_calls"]) == 2


def test_without_tools_or_with_the_choice_none_a_call_is_text(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = TWO_CALLS
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = choice_of(ask(client, **fields))
        assert choice["message"]["content"] == TWO_CALLS
        assert choice["finish_reason"] == "stop"
        assert "tool_calls" not in choice["message"]


def test_what_is_no_call_stays_text(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = '<tool_call>\n{"name": "weather"'
    choice = choice_of(ask(client, tools=TOOLS))
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == '<tool_call>\n{"name": "weather"'


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "weather"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
        },
    ],
)
def test_a_call_that_is_asked_for_comes(client: httpx.Client, choice: Any) -> None:
    answer = choice_of(ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=200))
    assert answer["finish_reason"] == "tool_calls"
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Oslo")
    assert answer["message"]["content"] is None


def test_samples_call_each_for_itself(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = TWO_CALLS
    choices = ask(client, tools=TOOLS, n=3).json()["choices"]
    assert [len(choice["message"]["tool_calls"]) for choice in choices] == [2, 2, 2]
    assert len({call["id"] for choice in choices for call in choice["message"]["tool_calls"]}) == 6


def test_calls_and_results_go_back_into_the_prompt(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = TWO_CALLS
    answer = choice_of(ask(client, tools=TOOLS))["message"]
    scripted.answers.clear()
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in answer["tool_calls"]]
    asked = {"role": "user", "content": "how is it there"}
    choice_of(ask(client, messages=[asked, answer, *results], tools=TOOLS))
    prompt = scripted.checkpoint.tokenizer.decode(scripted.engine.requests[-1].prompt_ids, skip_special=False)
    assert prompt.count("<tool_response>\nsunny\n</tool_response>") == 2
    assert '{"name": "weather", "arguments": {"city": "Bern"}}' in prompt


def test_a_format_holds_behind_reasoning(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.answers["how is it"] = "<think>Free words.</think>\n\nnot JSON"
    format_ = {"type": "json_schema", "json_schema": {"name": "c", "schema": {**CITY, "required": ["city"]}}}
    fields = {"response_format": format_, "max_tokens": 200, "reasoning_effort": None}
    message = choice_of(ask(client, **fields))["message"]
    assert message["reasoning_content"] == "Free words."
    assert json.loads(message["content"])["city"] in ("Bern", "Oslo")


def test_what_cannot_be_enforced_is_told_or_refused(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "uniqueItems": True}
    schema |= {"properties": {"a": {"type": "array", "items": {"const": 1}, "maxItems": 2, "uniqueItems": True}}}
    told = ask(client, max_tokens=100, response_format=schema_format(schema, strict=False))
    assert told.status_code == 200, told.text
    assert told.json()["subsecond"]["unenforced"]
    refused = ask(client, max_tokens=100, response_format=schema_format(schema, strict=True))
    assert refused.status_code == 400
    assert "uniqueItems" in refused.json()["error"]["message"]


def schema_format(schema: Any, *, strict: bool) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": strict}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": 5}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": "text"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": None}}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "no grammar"}},
        {"structured_outputs": {"json": "{"}},
        {"tools": [TOOLS[0], TOOLS[0]]},
        {"tools": [{"type": "function", "function": {"name": "has space"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}, "strict": True}}]},
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_damaged_formats_and_tools_are_refused(client: httpx.Client, fields: Any, is_streamed: bool) -> None:
    response = ask(client, stream=is_streamed, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_choice_of_texts_is_taken_literally(client: httpx.Client) -> None:
    texts = ["(a|b)*", "[x]-{2}^$", "a.b\\c\nd", "~&#/"]
    for text in texts:
        assert choice_of(ask(client, structured_outputs={"choice": [text]}))["message"]["content"] == text
    found = {
        choice_of(ask(client, structured_outputs={"choice": texts}, temperature=100, seed=seed))["message"]["content"]
        for seed in range(12)
    }
    assert found <= set(texts)
    assert len(found) > 1
